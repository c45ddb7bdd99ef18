"""The batch generator: turns a file of layouts into a data set of images, on any number of hosts.

index.py    first pass over the input: where each line is, and which lines are layouts
run.py      what is made from each layout, and what resuming checks
unit.py     `Generator.generate_unit`, the one function that every engine calls
engine.py   runs units concurrently in one process;  ray_engine.py  does the same in Ray Data actors
store.py    a folder or an object store with atomic writes;  lock.py one process per share
manifest.py which units are finished;  shards.py what a unit writes;  verify.py checks all of it
"""
