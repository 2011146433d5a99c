"""The base's predictions on a sample of a run's text, which decide about its output head and its softmax."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from tsugiki.data.blocks import Blocks
from tsugiki.model.context import IGNORE_INDEX
from tsugiki.model.inference import evaluating
from tsugiki.training.tools.spread import evenly_spread
from tsugiki.training.tools.threads import run_in_threads

_UNLIKELY = math.exp(-13.0)
"""The probability below which a token is unlikely, 2.3e-6."""
_ROWS, _TOKENS = 8, 128
"""Rows of the sample, and tokens of each."""


@dataclass(frozen=True)
class BasePredictions:
    """The base's predictions of the tokens in the loss, in a sample of the training data."""

    unlikely_share: float
    """The share of the tokens to which the base gives almost no probability."""
    mean_probabilities: Tensor
    """float32 [vocabulary]: the probability of each token, in the mean over all places."""


def predict_sample(model: nn.Module, blocks: Blocks) -> BasePredictions:
    """Compute the predictions for the beginnings of some rows, spread evenly over the training data.

    On a processor, the rows are computed in parallel, with one thread each.
    """
    tasks = [partial(_predict, model, blocks[number]) for number in evenly_spread(range(len(blocks)), _ROWS)]
    on_processor = next(model.parameters()).device.type == "cpu"
    with evaluating(model):
        found = list(run_in_threads(tasks, threads_of_each=1) if on_processor else (task() for task in tasks))
    unlikely, counted = sum(one[0] for one in found), max(1, sum(one[1] for one in found))
    return BasePredictions(unlikely / counted, torch.stack([one[2] for one in found]).sum(0) / counted)


@torch.no_grad()  # which holds for one thread, so `evaluating` does not suffice
def _predict(model: nn.Module, row: Mapping[str, Tensor]) -> tuple[int, int, Tensor]:
    """Return how many of the first tokens in the loss of a row are unlikely, how many there are, and all probabilities.

    The probabilities of each token of the vocabulary are summed over the places.
    """
    first = int((row["labels"] != IGNORE_INDEX).int().argmax())  # an answer may be at the end of a row
    start = max(0, first - _TOKENS // 2)
    device = next(model.parameters()).device
    ids, labels = (row[name][start : start + _TOKENS].to(device) for name in ("input_ids", "labels"))
    in_loss = labels[1:] != IGNORE_INDEX
    logits, targets = model(input_ids=ids[None]).logits[0, :-1][in_loss], labels[1:][in_loss]
    probabilities = logits.softmax(-1, dtype=torch.float32)  # of a large vocabulary, 100 MB
    of_targets = probabilities.gather(1, targets[:, None])
    return int((of_targets < _UNLIKELY).sum()), len(targets), probabilities.sum(0).cpu()
