"""Norms, singular values, products and lower ranks of updates, against ΔW formed whole in float64."""

import dataclasses
import math
from typing import Any

import peft
import pytest
import torch
from torch import Tensor

from tests.errors import assert_refused
from tests.tiny import logits, relative_error, seeded, shake, tiny_model
from tsugiki import load_adapter
from tsugiki.adapters import (
    BaseReference,
    LayerFactors,
    LoraWeights,
    effective_rank,
    kept_energy,
    read_lora_weights,
    singular_values,
    truncated,
    truncated_to_energy,
    update_norm,
    update_shape,
    write_lora_weights,
)
from tsugiki.lora import LoraConfig

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

LAYERS: dict[str, dict[str, Any]] = {
    "linear": {"A": (6, 20), "B": (15, 6)},
    "wide": {"A": (12, 8), "B": (30, 12)},  # of a higher rank than it can have
    "embedding": {"A": (6, 50), "B": (15, 6), "embedding": True},
    "convolution": {"A": (6, 3, 3, 5), "B": (15, 6, 1, 1)},
    "convolution in groups": {"A": (6, 3, 3, 5), "B": (16, 3, 1, 1)},
}


def factors(kind: str, scaling: float = 1.5, seed: int = 0) -> LayerFactors:
    shapes = dict(LAYERS[kind])
    generator = seeded(seed)
    A, B = (torch.randn(shapes.pop(letter), generator=generator) for letter in "AB")
    return LayerFactors(A, B, scaling, **shapes)


def lora_of(**layers: LayerFactors) -> LoraWeights:
    return LoraWeights(
        LoraConfig(target_modules=list(layers)), layers, {}, BaseReference(name=None, fingerprint=None), None
    )


def updates(layer: LayerFactors) -> list[Tensor]:
    """ΔW of each group, formed, in float64."""
    groups = len(layer.A) // layer.B.shape[1]
    A, B = layer.A.double().flatten(1).chunk(groups), layer.B.double().flatten(1).chunk(groups)
    return [layer.scaling * (b @ a) for a, b in zip(A, B, strict=True)]


@pytest.mark.parametrize("kind", LAYERS)
def test_against_the_update_formed_whole(kind: str):
    one = factors(kind, scaling=0.7)
    M = torch.cat(updates(one))
    values = singular_values(one)
    expected = torch.linalg.svdvals(M)
    assert torch.allclose(values, expected[: len(values)], rtol=1e-12)
    assert float(expected[len(values) :].sum()) < 1e-12
    assert update_norm(one) == pytest.approx(float(M.norm()), rel=1e-12)
    assert math.prod(update_shape(one)) == M.numel()


def test_effective_rank_is_between_one_and_the_rank():
    equal = torch.tensor([2.0, 2, 2, 0], dtype=torch.double)
    assert effective_rank(equal) == pytest.approx(3)
    assert effective_rank(torch.tensor([5.0, 0, 0])) == pytest.approx(1)
    assert effective_rank(torch.zeros(4)) == 0
    halves = torch.tensor([0.5, 0.25, 0.25], dtype=torch.double)
    assert effective_rank(halves) == pytest.approx(2**1.5), "an entropy of 1.5 bits"
    assert effective_rank(7 * halves) == pytest.approx(2**1.5)


@pytest.mark.parametrize("r", [1, 4])
@pytest.mark.parametrize("kind", LAYERS)
def test_no_rank_comes_nearer(kind: str, r: int):
    layer = factors(kind)
    shorter, kept = truncated(lora_of(layer=layer), r)
    found = shorter.layers["layer"]
    assert found.A.dtype == found.B.dtype == torch.float32
    groups = len(updates(layer))
    share = max(1, r // groups)
    assert (found.r, kept["layer"].after, kept["layer"].before) == (share * groups, share * groups, layer.r)
    energy = whole = 0.0
    for delta, low in zip(updates(layer), updates(found), strict=True):
        U, S, Vh = torch.linalg.svd(delta, full_matrices=False)
        best = U[:, :share] * S[:share] @ Vh[:share]
        assert relative_error(low, best) < 1e-6
        energy, whole = energy + float(S[:share].square().sum()), whole + float(S.square().sum())
    assert kept["layer"].energy == pytest.approx(energy / whole, rel=1e-12)
    assert kept_energy(kept) == pytest.approx(energy / whole, rel=1e-12)


def test_a_rank_that_is_no_lower_changes_nothing():
    lora = lora_of(low=factors("linear"), high=factors("wide"))
    shorter, kept = truncated(lora, 6)
    assert shorter.layers["low"] is lora.layers["low"]
    assert (kept["low"].energy, shorter.layers["high"].r) == (1.0, 6)
    again, kept = truncated(lora, 8)  # all that a layer of 8 inputs can hold
    assert relative_error(updates(again.layers["high"])[0], updates(lora.layers["high"])[0]) < 1e-6
    assert kept["high"].energy == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("zero", ["A", "B"])
def test_an_update_of_nothing_loses_nothing_and_can_still_be_trained(zero: str):
    layer = factors("linear")
    layer = dataclasses.replace(layer, **{zero: torch.zeros_like(getattr(layer, zero))})
    shorter, kept = truncated(lora_of(layer=layer), 2)
    found = shorter.layers["layer"]
    assert (kept["layer"].energy, kept["layer"].after, kept_energy(kept)) == (1.0, 2, 1.0)
    assert torch.equal(found.A, layer.A[:2])
    assert torch.equal(found.B, layer.B[:, :2])
    assert truncated_to_energy(lora_of(layer=layer), 0.9)[1]["layer"].after == 1


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("share", [0.3, 0.999])
def test_the_smallest_rank_that_keeps_a_share(kind: str, share: float):
    layer = factors(kind)
    kept = truncated_to_energy(lora_of(layer=layer), share)[1]["layer"]
    assert kept.energy >= share - 1e-9
    groups = len(updates(layer))
    if kept.after > groups:
        assert truncated(lora_of(layer=layer), kept.after - groups)[1]["layer"].energy < share
    for call, said in ((truncated, "rank is 0"), (truncated_to_energy, "energy is 0")):
        assert_refused(said, call, lora_of(layer=layer), 0)


def test_what_is_beside_the_pairs_stays(tmp_path):
    """DoRA's lengths and trained biases; PEFT loads the result, of several ranks, and computes the same."""
    ranks = {"r": 6, "rank_pattern": {"c_attn": 2}, "target_modules": ["c_attn", "mlp.c_proj"]}
    theirs = shake(peft.get_peft_model(tiny_model(), peft.LoraConfig(**ranks, use_dora=True, bias="lora_only")))
    theirs.save_pretrained(tmp_path / "whole")
    lora = read_lora_weights(tmp_path / "whole")
    shorter, kept = truncated(lora, 4)
    assert {layer.after for layer in kept.values()} == {2, 4}
    assert shorter.others.keys() == lora.others.keys() != set()
    write_lora_weights(shorter, tmp_path / "short", None)
    ours = load_adapter(tiny_model(), tmp_path / "short")
    again = peft.PeftModel.from_pretrained(tiny_model(), tmp_path / "short").eval()
    assert relative_error(logits(ours), logits(again)) < 1e-5
    assert relative_error(logits(ours), logits(theirs)) < 0.2
