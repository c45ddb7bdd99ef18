"""The batch generator: a file of layouts becomes a data set of images, on any number of hosts.

index.py    first pass over the input: where lines are, which are layouts
run.py      what is made of each layout, and what a resume checks
unit.py     `Generator.generate_unit`, the one function that every engine calls
engine.py   units side by side in one process;  ray_engine.py  the same as Ray Data actors
store.py    a folder or an object store that shows whole files only;  lock.py one process per share
manifest.py which units are finished;  shards.py what a unit writes;  verify.py checks all of it
"""
