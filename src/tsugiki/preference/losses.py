"""The losses of preference tuning: functions of the log-probabilities of whole answers.

A pair is a prompt with two answers: w was chosen, and l was rejected. For an answer y of |y| tokens,

    log π(y)    is its log-probability under the model that trains, summed over its tokens,
    log π₀(y)   is the same under the reference, which is the model before the first step,
    r(y)        = log π(y) - log π₀(y)   is its log-ratio,    r(y) / |y|   the same per token,
    p(y)        = exp(log π(y) / |y|)    is the mean probability of its tokens,

and σ(x) = 1 / (1 + exp(-x)). Each function returns one loss for each pair, in nats, in float32 or wider; a step
minimises their mean. `LOSSES` lists them with what they need.

The loss that teaches the choice says nothing about the text itself. It also falls if both answers become less likely,
as long as the rejected one does so faster, and then the model forgets how to write. So the likelihood of the chosen
answer (`likelihood_loss`) is added to all losses, with a weight of 1, except ORPO, which has it in its formula. The
margins alone do not show what was lost, so look at the loss on the chosen answers as well.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter

import torch
from torch import Tensor
from torch.nn import functional as F

from tsugiki.dtypes import at_least_float32


@dataclass(frozen=True)
class Answers:
    """The answers of one kind, chosen or rejected: a number for each answer, [answers]."""

    log_probabilities: Tensor
    """log π(y), with gradients."""
    tokens: Tensor
    """|y|."""
    reference: Tensor | None = None
    """log π₀(y), without gradients; losses without a reference do not use it."""

    @property
    def per_token(self) -> Tensor:
        """log π(y) / |y|."""
        return _exact(self.log_probabilities) / self.tokens

    @property
    def ratio(self) -> Tensor:
        """r(y)."""
        assert self.reference is not None, "this loss needs the log-probabilities under the reference"
        return _exact(self.log_probabilities) - _exact(self.reference)

    @property
    def ratio_per_token(self) -> Tensor:
        """r(y) / |y|."""
        return self.ratio / self.tokens


def dpo(chosen: Answers, rejected: Answers, beta: float = 0.1, label_smoothing: float = 0.0) -> Tensor:
    """Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290, equation 7).

    A pair is mislabelled with a probability of ε, the label smoothing (E. Mitchell 2023, "A note on DPO with noisy
    preferences"). The paper has β = 0.1, and no smoothing.
    """
    # -(1 - ε) log σ(β (r(w) - r(l))) - ε log σ(-β (r(w) - r(l)))
    return _logistic(beta * (chosen.ratio - rejected.ratio), label_smoothing)


def dpo_norm(chosen: Answers, rejected: Answers, beta: float = 5.0, label_smoothing: float = 0.0) -> Tensor:
    """DPO with log-ratios per token, so that long answers gain nothing by their length (Tülu 3, arXiv:2411.15124).

    A log-ratio per token is smaller than that of an answer by its number of tokens, so β is 5 there, not 0.1.
    """
    # -(1 - ε) log σ(β (r(w) / |w| - r(l) / |l|)) - ε log σ(-β (r(w) / |w| - r(l) / |l|))
    return _logistic(beta * (chosen.ratio_per_token - rejected.ratio_per_token), label_smoothing)


def ipo(chosen: Answers, rejected: Answers, tau: float = 0.1) -> Tensor:
    """Identity preference optimisation (Azar et al. 2023, arXiv:2310.12036, equation 17).

    The log-ratios are per token, as in the paper's own experiments according to its authors (reported by TRL). The
    paper tries τ from 0.1 to 1; 0.1 is that of TRL.
    """
    # (r(w) / |w| - r(l) / |l| - 1 / (2 τ))²
    return (chosen.ratio_per_token - rejected.ratio_per_token - 1 / (2 * tau)).square()


def orpo(chosen: Answers, rejected: Answers, weight: float = 0.1) -> Tensor:
    """Odds ratio preference optimisation (Hong et al. 2024, arXiv:2403.07691, equations 6 and 7).

    It contains the likelihood of the chosen answer, and needs no reference. The weight λ is 0.1 as for Mistral in the
    paper.
    """
    # -log π(w) / |w| - λ log σ(log odds(w) - log odds(l)),   odds(y) = p(y) / (1 - p(y))
    return likelihood_loss(chosen) + weight * _logistic(_log_odds(chosen) - _log_odds(rejected))


def simpo(chosen: Answers, rejected: Answers, beta: float = 2.0, gamma: float = 1.0) -> Tensor:
    """Simple preference optimisation (Meng et al. 2024, arXiv:2405.14734, equation 6), which needs no reference.

    The paper has β from 2 to 2.5 and γ / β from 0.1 to 0.8. The defaults are its β and γ for the base of Llama 3 8B.
    (TRL has β = 0.1 and γ = 0.5.) The paper adds no likelihood: its SimPO is that with a weight of 0.
    """
    # -log σ(β (log π(w) / |w| - log π(l) / |l|) - γ)
    return _logistic(beta * (chosen.per_token - rejected.per_token) - gamma)


def kto(
    good: Answers,
    bad: Answers,
    beta: float = 0.1,
    good_weight: float = 1.0,
    bad_weight: float = 1.0,
    baseline: Tensor | float = 0.0,
) -> Tensor:
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv:2402.01306, equations 7 and 8), with its defaults.

    The answers need not form pairs: one answer to a prompt, marked good or bad, is enough. So there is a loss for each
    answer, those of the good ones first. The baseline z is that of `kto_baseline`. The paper has β = 0.1, and weights
    for which the weighted numbers of good and bad answers are within 1 : 1 and 4 : 3.
    """
    # λ (1 - σ(β (r(y) - z))) for a good answer, λ (1 - σ(β (z - r(y)))) for a bad one
    return torch.cat(
        [
            good_weight * (1 - torch.sigmoid(beta * (good.ratio - baseline))),
            bad_weight * (1 - torch.sigmoid(beta * (baseline - bad.ratio))),
        ]
    )


def kto_baseline(mismatched: Answers) -> Tensor:
    """Return z of `kto`: how far the model has moved from its reference, estimated with answers to other prompts.

    It has no gradient.
    """
    # max(0, mean of r(y)), in which y stands after the prompt of another answer
    return mismatched.ratio.detach().mean().clamp(min=0)


def apo_zero(chosen: Answers, rejected: Answers, beta: float = 0.1) -> Tensor:
    """Anchored preference optimisation (D'Oosterlinck et al. 2024, arXiv:2408.06266, equation 7), with its β = 0.1.

    Chosen answers become more likely, and rejected ones less likely, than under the reference. It is for answers that
    are better than those of the model. It is the formula of the paper plus 1, so that it is never negative.
    """
    # 1 - σ(β r(w)) + σ(β r(l))
    return 1 - torch.sigmoid(beta * chosen.ratio) + torch.sigmoid(beta * rejected.ratio)


def likelihood_loss(chosen: Answers) -> Tensor:
    """The cross-entropy of the chosen answers per token (Pang et al. 2024, arXiv:2404.19733, equation 1, weight 1)."""
    # -log π(w) / |w|
    return -chosen.per_token


@dataclass(frozen=True)
class PreferenceLoss:
    """A loss, and what it needs."""

    function: Callable[..., Tensor]
    needs_reference: bool
    score: Callable[[Answers], Tensor]
    """The number of each answer that the loss compares. A pair counts as right if that of the chosen one is higher."""
    contains_likelihood: bool = False
    """Whether the likelihood of the chosen answers is a part of the loss itself."""
    steep: bool = False
    """Whether its gradient is so large that the text is lost at the learning rate of training on texts."""

    @property
    def likelihood(self) -> float:
        """The default weight of `likelihood_loss`, which is added to it."""
        return 0.0 if self.contains_likelihood else 1.0

    @property
    def defaults(self) -> Mapping[str, float]:
        """The settings of the loss that a user can choose, with their defaults."""
        parameters = inspect.signature(self.function).parameters.values()
        return {one.name: one.default for one in parameters if one.annotation is float}


LOSSES: Mapping[str, PreferenceLoss] = {
    "dpo": PreferenceLoss(dpo, needs_reference=True, score=attrgetter("ratio")),
    "dpo_norm": PreferenceLoss(dpo_norm, needs_reference=True, score=attrgetter("ratio_per_token")),
    "ipo": PreferenceLoss(ipo, needs_reference=True, score=attrgetter("ratio_per_token"), steep=True),
    "orpo": PreferenceLoss(orpo, needs_reference=False, score=attrgetter("per_token"), contains_likelihood=True),
    "simpo": PreferenceLoss(simpo, needs_reference=False, score=attrgetter("per_token")),
    "kto": PreferenceLoss(kto, needs_reference=True, score=attrgetter("ratio")),
    "apo_zero": PreferenceLoss(apo_zero, needs_reference=True, score=attrgetter("ratio")),
}


def _logistic(margin: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return the cross-entropy of "the chosen answer is better", which is σ(margin)."""
    loss = -F.logsigmoid(margin)
    return loss if not label_smoothing else (1 - label_smoothing) * loss - label_smoothing * F.logsigmoid(-margin)


def _log_odds(answers: Answers) -> Tensor:
    """Return log p(y) - log(1 - p(y)); `expm1` is exact where p(y) is near 1, and the limit keeps it finite."""
    log_p = answers.per_token.clamp(max=-math.ulp(1.0))
    return log_p - torch.log(-torch.expm1(log_p))


def _exact(values: Tensor) -> Tensor:
    return values.to(at_least_float32(values.dtype))
