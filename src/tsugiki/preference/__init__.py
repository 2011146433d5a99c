"""Learn which of two answers is better: the losses, the pairs, and the log-probabilities of answers.

pairs        answers as tokens, and rows that hold the two answers of a pair
losses       a loss is a function of the log-probabilities of whole answers (`fast.answer_log_probabilities`)
"""

from tsugiki.lazy import lazy_names

__getattr__, __dir__ = lazy_names(__name__)
