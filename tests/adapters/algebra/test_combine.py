"""Several adapters as one, with PEFT's `add_weighted_adapter` as the oracle."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Generator, Tensor, nn

from tests.adapters.algebra.test_matrices import factors, lora_of, updates
from tests.errors import assert_refused
from tests.lora.test_conv import images, net
from tests.tiny import logits, relative_error, shake, tiny_model
from tests.tiny_types import lively_model
from tsugiki import LoraConfig, active_adapter, graft, load_adapter, save_adapter
from tsugiki.adapters import (
    BaseReference,
    LayerFactors,
    LoraWeights,
    WeightedAdapter,
    combine,
    load_weighted_adapters,
    norm,
    weights_or_ones,
    write_lora_weights,
)
from tsugiki.adapters.algebra.matrices import truncated

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

WEIGHTS = [0.7, -0.4]


def combined(folders: list[Path], weights: list[float], rank: int | None = None) -> LoraWeights:
    lora = combine(load_weighted_adapters(folders, weights))
    return lora if rank is None else truncated(lora, rank)[0]


def shaken(model: Any, name: str, seed: int) -> None:
    generator = Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in sorted(model.named_parameters()):
            if "lora_" in key and f".{name}" in key:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def two_of_pefts(model: Any, folder: Path, *fields: dict[str, Any]) -> tuple[Any, list[Path]]:
    """A PEFT model that holds adapters "a" and "b", and the folders where they are."""
    theirs = peft.get_peft_model(model, peft.LoraConfig(**fields[0]), "a")
    theirs.add_adapter("b", peft.LoraConfig(**fields[1]))
    for seed, name in enumerate("ab"):
        shaken(theirs, name, seed)
    theirs.save_pretrained(folder)
    return theirs.eval(), [folder / "a", folder / "b"]


def delta(layer: LayerFactors) -> Tensor:
    return torch.cat(updates(layer))


def both(targets: list[str], *alphas: int) -> list[dict[str, Any]]:
    """The settings of two adapters that differ in alpha."""
    return [{"r": 4, "target_modules": targets, "lora_alpha": alpha} for alpha in alphas]


LAYERS: dict[str, tuple[Callable[[], Any], list[dict[str, Any]], bool]] = {
    "llama": (partial(tiny_model, "llama"), both(["q_proj", "v_proj"], 12, 6), False),
    "other layers and ranks": (
        tiny_model,
        [
            {"r": 2, "target_modules": ["c_attn", "c_proj"]},
            {"r": 5, "lora_alpha": 3, "target_modules": ["mlp.c_proj", "c_fc"], "use_rslora": True},
        ],
        True,
    ),
    "embedding": (tiny_model, both(["wte"], 8, 3), True),
    "convolutions": (net, both(["first", "second", "fc"], 8, 3), False),
}
"""A model, the settings of two adapters, and whether the layers' weights lie as [in, out]."""


@pytest.mark.parametrize("kind", ["cat", "svd"])
@pytest.mark.parametrize("layers", LAYERS)
def test_both_types_are_pefts(layers: str, kind: str, tmp_path: Path):
    build, fields, turned = LAYERS[layers]
    theirs, folders = two_of_pefts(build(), tmp_path, *fields)
    theirs.add_weighted_adapter(["a", "b"], WEIGHTS, "c", combination_type=kind, svd_rank=3)
    theirs.set_adapter("c")
    expected = {
        name.removeprefix("base_model.model."): module.get_delta_weight("c").detach()
        for name, module in theirs.named_modules()
        if hasattr(module, "get_delta_weight") and ("c" in module.lora_A or "c" in module.lora_embedding_A)
    }
    lora = combined(folders, WEIGHTS, 3 if kind == "svd" else None)
    assert lora.layers.keys() == expected.keys()
    for path, layer in lora.layers.items():
        theirs_here = expected[path].T if turned else expected[path]
        assert relative_error(delta(layer), theirs_here.flatten(1)) < 1e-5, path
    write_lora_weights(lora, tmp_path / "c", None)
    model, again = build(), peft.PeftModel.from_pretrained(build(), tmp_path / "c").eval()
    compute = (lambda one: one(images())) if layers == "convolutions" else logits
    base = compute(model)
    load_adapter(model, tmp_path / "c")
    assert relative_error(compute(model), base) > 1e-3
    for ours in (model, again):
        assert relative_error(compute(ours), compute(theirs)) < 1e-5


@pytest.mark.parametrize("kind", ["cat", "svd"])
def test_a_convolution_in_groups_does_the_sum_of_what_both_do(kind: str, tmp_path: Path):
    """PEFT mixes the groups up here; the layer is linear, so outputs add up."""
    x = torch.randn(2, 4, 9, 9, generator=Generator().manual_seed(0))

    def layer() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(4, 6, 3, groups=2))

    expected = base = layer()(x)
    folders = [tmp_path / name for name in "ab"]
    for rank, folder, weight in zip((2, 4), folders, WEIGHTS, strict=True):
        model = graft(layer(), LoraConfig(r=rank, target_modules=["0"], init_lora_weights=False))
        save_adapter(model, folder)
        expected = expected + weight * (model(x) - base)
    write_lora_weights(combined(folders, WEIGHTS, 6 if kind == "svd" else None), tmp_path / "c", None)
    model = load_adapter(layer(), tmp_path / "c")
    assert relative_error(model(x), base) > 1e-2
    assert relative_error(model(x), expected) < 1e-5


def stored(name: str | None = "base", fingerprint: str | None = "1", **layers: LayerFactors) -> LoraWeights:
    return dataclasses.replace(lora_of(**layers), base=BaseReference(name=name, fingerprint=fingerprint))


def test_half_a_precision_is_no_half_of_the_sum():
    """Adapters in 16 bits are added up in 32."""
    layers = [factors("linear", seed=seed) for seed in (0, 1)]
    short = [dataclasses.replace(layer, A=layer.A.bfloat16(), B=layer.B.bfloat16()) for layer in layers]
    parts = [WeightedAdapter("x", stored(x=layer), weight) for layer, weight in zip(short, (0.3, 1.7), strict=True)]
    found = combine(parts).layers["x"]
    assert found.A.dtype == torch.float32
    assert relative_error(delta(found), 0.3 * delta(short[0]) + 1.7 * delta(short[1])) < 1e-6


def test_the_norm_is_over_all_layers():
    one = stored(x=factors("linear"), y=factors("wide"))
    whole = torch.cat([delta(layer).flatten() for layer in one.layers.values()])
    assert norm(one) == pytest.approx(float(whole.norm()), abs=1e-6)


@pytest.mark.parametrize("factor", [0.25, -3])
def test_scaled_logits_are_pefts_with_a_scaling(factor: float, tmp_path: Path):
    theirs, folders = two_of_pefts(tiny_model(), tmp_path, *[{"r": 4, "target_modules": ["c_attn", "wte"]}] * 2)
    write_lora_weights(combine(load_weighted_adapters(folders[:1], [factor])), tmp_path / "c", None)
    for module in theirs.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("a", factor)
    model = load_adapter(tiny_model(), tmp_path / "c")
    assert relative_error(logits(model), logits(theirs)) < 1e-5
    again = peft.PeftModel.from_pretrained(tiny_model(), tmp_path / "c").eval()
    assert relative_error(logits(again), logits(theirs)) < 1e-5


@pytest.mark.parametrize(
    ("configs", "targets"),
    [
        ([{"target_modules": ["q"]}, {"target_modules": ["v"]}], ["q", "v"]),
        ([{"target_modules": ".*q"}, {"target_modules": ".*q"}], ".*q"),
        ([{"target_modules": ".*q"}, {"target_modules": ["v"]}], ["0.q", "0.v"]),
        ([{"target_modules": ["q"], "layers_to_transform": [0]}, {"target_modules": ["v"]}], ["0.q", "0.v"]),
    ],
)
def test_the_result_targets_what_it_has(configs: list[dict[str, Any]], targets: Any):
    loras = [
        dataclasses.replace(stored(**{path: factors("linear")}), config=LoraConfig(**fields))
        for path, fields in zip(("0.q", "0.v"), configs, strict=True)
    ]
    config = combine([WeightedAdapter("x", lora, 1) for lora in loras]).config
    assert (config.target_modules, config.layers_to_transform) == (targets, None)


def assert_not_combined(said: str, *loras: LoraWeights) -> None:
    weighted = [WeightedAdapter(name, lora, 1.0) for name, lora in zip("ab", loras, strict=False)]
    assert_refused(said, combine, weighted)


def test_bases():
    bases = [("here", "1"), ("there", "1"), ("here", "2"), ("there", None), (None, None)]
    a, same, other, unsaid, silent = (stored(*base, x=factors("linear")) for base in bases)
    for pair in ((a, same), (silent, a)):
        assert combine([WeightedAdapter("x", lora, 1) for lora in pair]).base == a.base
    assert_not_combined(r"a and b were trained on different bases \(here and here; their weights differ\)", a, other)
    assert_not_combined(r"different bases \(there and here; .*unknown\)", unsaid, a)
    parts = [WeightedAdapter("x", lora, 1) for lora in (a, other)]
    assert combine(parts, allow_base_mismatch=True).base == a.base


def test_what_cannot_be_combined():
    a = stored(x=factors("linear"))
    wide = dataclasses.replace(factors("linear"), A=torch.ones(6, 21))
    assert_not_combined(r"x is \[15, 20\] in a and \[15, 21\] in b", a, stored(x=wide))
    assert_not_combined(
        r"x is \[15, 20\] in a and an embedding", a, stored(x=dataclasses.replace(factors("linear"), embedding=True))
    )
    assert_not_combined("b is a DoRA adapter", a, dataclasses.replace(a, config=LoraConfig(use_dora=True)))
    assert_not_combined("b also trains head.bias", a, dataclasses.replace(a, others={"head.bias": torch.ones(2)}))


def test_each_adapter_has_one_finite_weight():
    assert weights_or_ones(None, 2) == [1.0, 1.0]
    for wrong in ([1.0], [1.0, float("nan")]):
        assert_refused("2 adapters", weights_or_ones, wrong, 2)


def test_layers_that_files_have_as_parameters_are_combined_and_read_by_peft(tmp_path: Path):
    """PEFT would take the names of shared experts for those of experts, so their weights are target parameters."""
    deltas: dict[str, Tensor] = {}
    adapters = {
        "a": {"r": 2, "rank_pattern": {"gate_proj": 3}, "alpha_pattern": {"up_proj": 5}},
        "b": {"r": 2, "target_modules": ["q_proj", "down_proj"]},
    }
    for weight, (name, settings) in zip(WEIGHTS, adapters.items(), strict=True):
        model = lively_model("glm4_moe")
        adapter = active_adapter(graft(model, LoraConfig(**settings)))
        shake(model)
        save_adapter(model, tmp_path / name)
        for path, pair in adapter.pairs.items():
            deltas[path] = deltas.get(path, 0) + weight * pair.delta().detach()
    result = combined([tmp_path / "a", tmp_path / "b"], WEIGHTS)
    write_lora_weights(result, tmp_path / "sum", None)
    expected = lively_model("glm4_moe")
    with torch.no_grad():
        for path, delta in deltas.items():
            expected.get_submodule(path).weight.add_(delta)
    theirs = peft.PeftModel.from_pretrained(lively_model("glm4_moe"), tmp_path / "sum")
    ours = load_adapter(lively_model("glm4_moe"), tmp_path / "sum")
    for model in (theirs.base_model.model, ours):
        assert relative_error(logits(model), logits(expected)) < 1e-5
