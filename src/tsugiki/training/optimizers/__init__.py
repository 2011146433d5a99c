"""The optimisers of runs."""
