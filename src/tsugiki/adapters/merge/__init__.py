"""Merge adapters into the files of a base, tensor by tensor."""
