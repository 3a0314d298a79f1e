"""The protocols of `benchmarks/accuracy.py`, one a file."""
