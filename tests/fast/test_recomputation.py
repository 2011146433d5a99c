"""Recomputed blocks: the loss and every gradient are the same to the last bit, and less is kept."""

from typing import Any

import torch
from torch import nn

from tests.errors import refused
from tests.fast.kept import kept_bytes
from tests.tiny import ids, in_pairs, logits, shake, tiny_model
from tests.training.step.test_gradients import gradients_of
from tsugiki import LoraConfig, graft
from tsugiki.fast import recompute_blocks, recomputed_blocks, use_fast_paths
from tsugiki.lowbit import quantize

KINDS = ["gpt2", "llama", "gemma3_text"]


def _grafted(kind: str, fast: bool = True) -> Any:
    model = quantize(tiny_model("llama"), torch.float32, "int8") if kind == "int8" else tiny_model(kind)
    torch.manual_seed(0)
    shake(graft(model, LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.3)))
    if fast:
        use_fast_paths(model)
    return model


def _step(model: Any, rows: int, base_dropout: bool = False) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the loss and all gradients of a step on rows that hold several documents."""
    gradients = gradients_of(model, rows=rows, base_dropout=base_dropout)
    loss = gradients.step(0)[1]
    return loss, [weight.grad.clone() for weight in gradients.weights]


@in_pairs(kind=[*KINDS, "int8"], rows=[1, 4], fast=[True, False])
def test_loss_and_gradients_are_the_same_to_the_last_bit(kind: str, rows: int, fast: bool):
    model = _grafted(kind, fast)
    loss, expected = _step(model, rows)
    for count in (1, 2):
        recompute_blocks(model, count)
        assert recomputed_blocks(model) == count
        again, found = _step(model, rows)
        assert torch.equal(again, loss)
        assert all(map(torch.equal, found, expected))
    assert any(gradient.abs().sum() > 0 for gradient in expected)


def test_dropout_inside_the_base_is_the_same():
    torch.manual_seed(0)
    model = shake(graft(tiny_model("gpt2"), LoraConfig(r=2, lora_dropout=0.3), base_dropout=True))
    loss, expected = _step(model, 1, base_dropout=True)
    other = _step(model, 1, base_dropout=False)[0]
    recompute_blocks(model, 2)
    again, found = _step(model, 1, base_dropout=True)
    assert torch.equal(again, loss)
    assert all(map(torch.equal, found, expected))
    assert not torch.equal(other, loss)


def test_recomputed_blocks_keep_their_input_only():
    model, tokens = _grafted("llama").train(), ids(2, 32)
    weights = list(model.parameters())

    def kept() -> int:
        return kept_bytes(lambda: model.base_model(input_ids=tokens, use_cache=False)[0], besides=weights)

    all_kept = kept()
    recompute_blocks(model, 1)
    half = kept()
    recompute_blocks(model, 2)
    none = kept()
    assert none < all_kept / 4
    assert abs(half - (all_kept + none) / 2) < all_kept / 10


def test_it_can_be_undone_and_evaluation_is_not_changed():
    model = _grafted("llama")
    expected, forwards = logits(model), [vars(m).get("forward") for m in model.modules()]
    recompute_blocks(model, 2)
    assert torch.equal(logits(model), expected)
    recompute_blocks(model, 0)
    assert [vars(m).get("forward") for m in model.modules()] == forwards
    assert recomputed_blocks(model) == 0


def test_a_model_without_blocks_is_refused():
    with refused("Linear"):
        recompute_blocks(nn.Linear(2, 2), 1)
    recompute_blocks(nn.Linear(2, 2), 0)
