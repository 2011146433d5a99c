"""The label that keeps a token out of the loss."""

IGNORE_INDEX = -100
"""Label of a token that is excluded from the loss; the value that torch and transformers use by default."""
