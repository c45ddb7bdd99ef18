"""Measurements that the README's claims about speed rest on: `python -m benchmarks NAME`."""
