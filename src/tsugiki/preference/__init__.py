"""Learn which of two answers is better: the losses, the pairs, and the log-probabilities of answers.

losses       a loss is a function of the log-probabilities of whole answers
"""

from tsugiki.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "losses": (
            "LOSSES Answers PreferenceLoss apo_zero dpo dpo_norm ipo kto kto_baseline likelihood_loss orpo simpo"
        ),
    },
)
