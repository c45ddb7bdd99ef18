"""The measurements behind the README's claims about speed: `python -m benchmarks NAME`."""
