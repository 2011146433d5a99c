"""Optimisers that transformers does not have."""
