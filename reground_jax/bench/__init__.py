"""Benchmarks: `reground-jax bench` for a quick look, `python -m benchmarks` for records."""
