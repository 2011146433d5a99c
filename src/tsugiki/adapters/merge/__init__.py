"""Merging adapters into the weights of a base, file to file."""
