"""The measurements of `launch/benchmark.py`."""
