"""Measure speed and memory of Tsugiki and other tools, with the same workload in separate processes that take turns."""
