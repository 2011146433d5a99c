"""Processes, threads, memory and signals of a run."""
