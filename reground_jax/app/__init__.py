"""`reground-jax app`: a page in the browser to draw boxes, make pictures and compare columns.

Only page.py and server.py need the extra [app]; the rest is plain Python and can be used without.
"""
