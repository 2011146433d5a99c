"""Measurements that only the documents need. Run from the repository root: `python -m benchmarks.NAME --help`."""
