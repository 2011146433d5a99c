"""Adapters in files: reading and writing PEFT's format, a library of adapters, operations on them, and merging."""
