"""Measurements of what a model draws: does it place what the boxes ask for, and the text?"""
