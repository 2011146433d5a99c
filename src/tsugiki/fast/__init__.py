"""Faster equivalents of parts of a model's forward and backward pass, each beside its plain definition."""
