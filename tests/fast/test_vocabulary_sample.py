"""The loss with a sample of the vocabulary: against its definition, and against the whole vocabulary in the mean."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tests.fast.test_loss import FLOOR, VOCABULARY, WIDTH, batch, head_of, results
from tests.tiny import in_pairs, relative_error, seeded
from tsugiki.fast import Head, VocabularySample, can_sample, draw_sample, plain_loss, plain_sampled_loss, sampled_loss
from tsugiki.lowbit import Int8Linear
from tsugiki.model import IGNORE_INDEX, select_outputs


def parts_of(labels: Tensor, vocabulary: int = VOCABULARY) -> tuple[Tensor, Tensor]:
    """Return the tokens that are targets, and the others."""
    kept = labels[labels != IGNORE_INDEX].unique()
    others = torch.tensor([token for token in range(vocabulary) if token not in kept.tolist()])
    return kept, others


def sample_of(head: Head, labels: Tensor, count: int, seed: int = 0) -> VocabularySample:
    return draw_sample(head, *parts_of(labels), count, seeded(seed))


@in_pairs(
    kind=["frozen", "frozen with bias", "grafted", "grafted with bias"],
    form=["plain", "scaled"],
    dtype=FLOOR,
    count=[0, 1, 7, VOCABULARY],
)
def test_loss_and_gradients_equal_the_definition(kind: str, form: str, dtype: torch.dtype, count: int):
    form = "plain" if "bias" in kind else form
    head, (hidden, labels) = head_of(kind, form, dtype), batch(dtype)
    sample = sample_of(head, labels, count)
    losses = [partial(loss, sample=sample) for loss in (sampled_loss, plain_sampled_loss)]
    found, plain = (results(loss, hidden, head, labels, 0.5) for loss in losses)
    assert found.keys() == plain.keys()
    for name in plain:
        assert relative_error(found[name].double(), plain[name].double()) <= 4 * FLOOR[dtype], name


def test_all_tokens_drawn_give_the_loss_of_the_whole_vocabulary():
    head, (hidden, labels) = head_of("grafted"), batch()
    sample = sample_of(head, labels, VOCABULARY)
    torch.testing.assert_close(sampled_loss(hidden, head, labels, sample), plain_loss(hidden, head, labels))


def test_the_mean_over_all_draws_is_the_sum_over_the_vocabulary():
    """The sum over the vocabulary is exp of a row's loss, times exp of the target's logit."""
    head, (hidden, labels) = head_of("grafted"), batch()
    _kept, others = parts_of(labels)
    hidden, target, sums = hidden[:1, :1], labels[:1, :1], dict[int, Tensor]()
    for seed in range(2000):
        sample = sample_of(head, labels, 1, seed)
        sums[int(sample.tokens[-1])] = sampled_loss(hidden, head, target, sample).exp()
        if len(sums) == len(others):
            break
    assert sums.keys() == set(others.tolist())
    torch.testing.assert_close(torch.stack([*sums.values()]).mean(), plain_loss(hidden, head, target).exp())


def test_draws_are_different_and_without_repetition():
    head, (_hidden, labels) = head_of("frozen"), batch()
    first, again, other = (sample_of(head, labels, 9, seed).tokens.tolist() for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert len(set(first)) == len(first)


def test_integers_are_those_of_the_whole_layer():
    torch.manual_seed(0)
    layer = Int8Linear.from_layer(nn.Linear(64, 300), torch.float32)
    outputs = torch.tensor([7, 299, 0, 130])
    x = torch.randn(5, 64)
    part: Any = select_outputs(layer, outputs)
    torch.testing.assert_close(part.product(x), layer.product(x)[:, outputs], rtol=0, atol=0)
    torch.testing.assert_close(part.dequantize(), layer.dequantize()[outputs], rtol=0, atol=0)


def test_layers_that_train_caps_hooks_and_unknown_layers_are_not_sampled():
    assert can_sample(head_of("frozen"))
    assert not can_sample(head_of("trained"))
    assert not can_sample(head_of("frozen", "capped"))
    assert not can_sample(Head(nn.Sequential(nn.Linear(WIDTH, VOCABULARY))))
    head = head_of("frozen")
    head.layer.register_forward_hook(lambda *_: None)
    assert not can_sample(head)
