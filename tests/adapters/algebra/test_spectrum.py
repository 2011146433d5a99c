"""Norms, singular values and products of updates that are never formed, against ΔW formed whole in float64."""

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from tests.adapters.test_format import peft_model, settings
from tests.tiny import shake
from tsugiki.adapters import (
    LayerFactors,
    difference_norm,
    effective_rank,
    inner_product,
    read_lora_weights,
    singular_values,
    update_norm,
    update_shape,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def factors(seed: int, r: int = 3, groups: int = 1, kernel: tuple[int, ...] = (), scaling: float = 0.7) -> LayerFactors:
    noise = torch.Generator().manual_seed(seed)
    A = torch.randn(r, 10, *kernel, generator=noise)
    B = torch.randn(8, r // groups, *(1 for _ in kernel), generator=noise)
    return LayerFactors(A, B, scaling)


def formed(layer: LayerFactors) -> torch.Tensor:
    """ΔW as a matrix, from its definition: what the layer's branch makes of each unit input."""
    A, B = layer.A.double(), layer.B.double()
    if A.dim() == 2:
        return layer.scaling * B @ A
    inputs = torch.eye(A[0].numel(), dtype=torch.double).view(-1, *A.shape[1:])
    return layer.scaling * F.conv2d(F.conv2d(inputs, A), B, groups=len(A) // B.shape[1]).flatten(1).T


SHAPES = {
    "linear": {},
    "rank above the width": {"r": 12},
    "convolution": {"kernel": (2, 3)},
    "convolution in groups": {"kernel": (2, 3), "r": 4, "groups": 2},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_against_the_update_formed_whole(shape: str):
    one, other = factors(1, **SHAPES[shape]), factors(2, **SHAPES[shape], scaling=1.5)
    M, N = formed(one), formed(other)
    values = singular_values(one)
    expected = torch.linalg.svdvals(M)
    assert torch.allclose(values, expected[: len(values)], rtol=1e-12)
    assert float(expected[len(values) :].sum()) < 1e-12
    assert update_norm(one) == pytest.approx(float(M.norm()), rel=1e-12)
    assert inner_product(one, other) == pytest.approx(float((M * N).sum()), rel=1e-11)
    assert difference_norm(one, other) == pytest.approx(float((M - N).norm()), rel=1e-12)
    assert update_shape(one)[0] == M.shape[0]
    assert math.prod(update_shape(one)[1:]) == M.shape[1]


def test_ranks_may_differ():
    one, other = factors(1, r=2), factors(2, r=5)
    M, N = formed(one), formed(other)
    assert inner_product(one, other) == pytest.approx(float((M * N).sum()), rel=1e-11)
    assert difference_norm(one, other) == pytest.approx(float((M - N).norm()), rel=1e-12)


def test_a_small_difference_is_not_lost():
    one = factors(1)
    turned = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double)).Q
    same = LayerFactors(turned @ one.A.double(), one.B.double() @ turned.T, one.scaling)
    assert difference_norm(one, same) / update_norm(one) < 1e-14, "other factors, the same update"
    moved = LayerFactors(one.A, one.B * (1 + 1e-6), one.scaling)
    expected = float((formed(one) - formed(moved)).norm())
    assert difference_norm(one, moved) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("kind", "variant"), [("gpt2", "patterns"), ("gpt2", "embedding"), ("llama", "rslora")])
def test_pefts_own_updates(kind: str, variant: str, tmp_path: Path):
    theirs = shake(peft_model(kind, settings(kind, variant)))
    theirs.save_pretrained(tmp_path)
    layers = read_lora_weights(tmp_path).layers
    modules = {
        name.removeprefix("base_model.model."): module
        for name, module in theirs.named_modules()
        if hasattr(module, "get_delta_weight") and len(module.lora_A) + len(module.lora_embedding_A)
    }
    assert layers.keys() == modules.keys()
    for path, layer in layers.items():
        delta = modules[path].get_delta_weight("default").detach().double()
        values = singular_values(layer)
        assert torch.allclose(values, torch.linalg.svdvals(delta)[: len(values)], rtol=1e-5), path
        expected = delta.T.shape if getattr(modules[path], "fan_in_fan_out", False) else delta.shape
        assert sorted(update_shape(layer)) == sorted(expected)


def test_effective_rank_is_between_one_and_the_rank():
    equal = torch.tensor([2.0, 2, 2, 0], dtype=torch.double)
    assert effective_rank(equal) == pytest.approx(3)
    assert effective_rank(torch.tensor([5.0, 0, 0])) == pytest.approx(1)
    assert effective_rank(torch.zeros(4)) == 0
    halves = torch.tensor([0.5, 0.25, 0.25], dtype=torch.double)
    assert effective_rank(halves) == pytest.approx(2**1.5), "an entropy of 1.5 bits"
    assert effective_rank(7 * halves) == pytest.approx(2**1.5)
