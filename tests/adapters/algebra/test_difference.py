"""Two adapters compared layer by layer, against the updates formed whole."""

import math

import pytest
import torch

from tests.adapters.folders import lora_of
from tsugiki.adapters import LayerFactors, LoraWeights, compare_layers, compare_tensors, overall


def formed(lora: LoraWeights) -> dict[str, torch.Tensor]:
    return {path: layer.scaling * layer.B.double() @ layer.A.double() for path, layer in lora.layers.items()}


def test_layers_against_updates_formed_whole():
    one, other = lora_of(1), lora_of(2, r=7)
    M, N = formed(one), formed(other)
    differences = compare_layers(one.layers, other.layers)
    for found in differences:
        m, n = M[found.name], N[found.name]
        assert found.norms == pytest.approx((float(m.norm()), float(n.norm())), rel=1e-12)
        assert found.cosine == pytest.approx(float(torch.cosine_similarity(m.flatten(), n.flatten(), 0)), rel=1e-9)
        assert found.relative == pytest.approx(float((m - n).norm() / m.norm()), rel=1e-12)
    m, n = (torch.cat([update.flatten() for update in updates.values()]) for updates in (M, N))
    whole = overall(differences)
    assert whole.cosine == pytest.approx(float(torch.cosine_similarity(m, n, 0)), rel=1e-9)
    assert whole.relative == pytest.approx(float((m - n).norm() / m.norm()), rel=1e-12)


def test_a_layer_that_one_lacks_is_zero_there():
    one, other = lora_of(1, blocks=3), lora_of(1, blocks=2)
    there, back = (compare_layers(*pair) for pair in ((one.layers, other.layers), (other.layers, one.layers)))
    assert [found.only_in for found in there] == [None, None, 0]
    assert [found.only_in for found in back] == [None, None, 1]
    assert there[2].relative == 1
    assert math.isnan(there[2].cosine)
    M = formed(one)
    total = math.sqrt(sum(float(update.norm()) ** 2 for update in M.values()))
    assert overall(there).relative == pytest.approx(float(M["transformer.h.2.attn.c_attn"].norm()) / total)


def test_other_shapes_are_told_and_left_out():
    one, other = lora_of(1).layers, dict(lora_of(2).layers)
    name = next(iter(one))
    other[name] = LayerFactors(torch.ones(4, 64), torch.ones(96, 4), 1.0)
    found = compare_layers(one, other)
    assert found[0].shapes == "96×32, 96×64"
    assert overall(found).norms[0] == pytest.approx(found[1].norms[0])


def test_opposite_and_silent_updates():
    one = lora_of(1)
    name, layer = next(iter(one.layers.items()))
    against = LayerFactors(layer.A, -layer.B, layer.scaling)
    silent = LayerFactors(layer.A, 0 * layer.B, layer.scaling)
    assert compare_layers({name: layer}, {name: against})[0].cosine == pytest.approx(-1)
    assert math.isnan(compare_layers({name: silent}, {name: layer})[0].relative)


def test_tensors_of_other_methods():
    noise = torch.Generator().manual_seed(0)
    m, n = torch.randn(5, 4, generator=noise), torch.randn(5, 4, generator=noise)
    found, only = compare_tensors({"a": m}, {"a": n, "b": m})
    assert found.cosine == pytest.approx(float(torch.cosine_similarity(m.flatten(), n.flatten(), 0)), rel=1e-6)
    assert found.relative == pytest.approx(float((m - n).norm() / m.norm()), rel=1e-6)
    assert only.only_in == 1
