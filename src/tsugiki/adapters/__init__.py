"""Adapters in files: PEFT's format in both directions, a library of adapters, operations on them, and merging."""
