"""Scores of a model: texts, questions, pairs of answers; and of several models in turn."""
