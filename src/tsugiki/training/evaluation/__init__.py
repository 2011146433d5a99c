"""Measuring a model: held-out loss, intervals, samples."""
