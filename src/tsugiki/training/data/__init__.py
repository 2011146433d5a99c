"""The data of a run: split, windows of held-out text, rows, micro-batches."""
