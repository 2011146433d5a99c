"""Seconds until an adapter has learned as much as PEFT at its best: `python -m benchmarks.race`."""
