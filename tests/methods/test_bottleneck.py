"""Bottleneck adapters: AdapterHub's results, their positions in every architecture, files, and use in a model."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from tests.errors import refused
from tests.lifecycle import assert_lifecycle
from tests.methods import adapterhub
from tests.tiny import CONFIGS, ids, logits, relative_error, shake, tiny_model
from tests.tiny_types import tiny_of
from tsugiki import (
    LoraConfig,
    active_adapter,
    graft,
    save_adapter,
    ungraft,
)
from tsugiki.io import ADAPTER_FILE
from tsugiki.methods import METHODS, NON_LINEARITIES, Bottleneck, BottleneckConfig
from tsugiki.model import sublayers_of

METHOD_NAMES = ["houlsby", "pfeiffer"]
POST_NORM = ("gemma2", "gemma3_text", "olmo2")  # a norm between the sub-layer and the residual


def config_of(method: str, **given: Any) -> BottleneckConfig:
    config: BottleneckConfig = METHODS[method].configure(given)
    return config


def grafted(kind: str = "gpt2", method: str = "houlsby", **given: Any) -> Any:
    torch.manual_seed(0)
    model = tiny_model(kind)
    graft(model, config_of(method, **{"reduction_factor": 4, **given}))
    return shake(model)


# --- against AdapterHub -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHOD_NAMES)
@pytest.mark.parametrize("kind", adapterhub.CONFIGS)
def test_logits_and_gradients_equal_adapterhubs(kind: str, method: str):
    stored = load_file(adapterhub.FIXTURE)
    config = AutoConfig.for_model(kind, **adapterhub.CONFIGS[kind], attn_implementation="eager")
    model = AutoModelForCausalLM.from_config(config).double().eval()
    adapterhub.fill(model)
    base = logits(model, adapterhub.IDS)
    adapter = active_adapter(graft(model, config_of(method, reduction_factor=adapterhub.REDUCTION)))
    parameters = {
        f"{path}.{name}": p for path, part in adapter.bottlenecks.items() for name, p in part.named_parameters()
    }
    assert set(parameters) == set(adapterhub.names_there(kind, method))
    with torch.no_grad():
        for name, parameter in parameters.items():
            assert parameter.dtype == torch.float64
            parameter.copy_(adapterhub.value(name, parameter))
    logits_here = model(input_ids=adapterhub.IDS).logits
    logits_here.pow(2).mean().backward()
    ours = logits_here.detach()
    assert relative_error(ours, base) > 1e-2
    tolerance = 1e-12 if kind == "gpt2" else 1e-6  # the other models compute in float32 in places, whatever their dtype
    assert relative_error(ours, stored[f"{kind}.{method}.logits"]) < tolerance
    for name, parameter in parameters.items():
        assert relative_error(parameter.grad, stored[f"{kind}.{method}.gradient.{name}"]) < 10 * tolerance, name


# --- the formula and the positions -----------------------------------------------------------------------------


ACTIVATIONS: dict[str, Any] = {
    "relu": lambda z: z.clamp(min=0),
    "gelu": lambda z: z * (1 + torch.erf(z / 2**0.5)) / 2,
    "gelu_new": lambda z: z / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (z + 0.044715 * z**3))),
    "swish": lambda z: z / (1 + torch.exp(-z)),
    "silu": lambda z: z / (1 + torch.exp(-z)),
    "tanh": lambda z: 1 - 2 / (torch.exp(2 * z) + 1),
    "leakyrelu": lambda z: torch.where(z > 0, z, z / 100),
}


@pytest.mark.parametrize("act", NON_LINEARITIES)
def test_a_bottleneck_computes_its_formula(act: str):
    config = BottleneckConfig(non_linearity=act, scaling=0.5, init_weights="bert")
    part = Bottleneck(6, 3, config, torch.zeros(1, dtype=torch.float64))
    h = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    down, up = part.adapter_down, part.adapter_up
    with torch.no_grad():
        for p in part.parameters():
            p.copy_(torch.randn(p.shape))
    by_hand = h + 0.5 * (ACTIVATIONS[act](h @ down.weight.T + down.bias) @ up.weight.T + up.bias)
    torch.testing.assert_close(part(h), by_hand, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(part, h)


def test_dropout_applies_to_what_is_added_while_training():
    part = Bottleneck(6, 4, BottleneckConfig(dropout=0.5, init_weights="bert"), torch.zeros(1))
    h = torch.randn(400, 6)
    whole = part.eval()(h) - h
    dropped = part.train()(h) - h
    kept = dropped != 0
    assert 0.4 < float(kept.float().mean()) < 0.6
    torch.testing.assert_close(dropped[kept], 2 * whole[kept], rtol=1e-3, atol=1e-5)


def sublayers(kind: str) -> tuple[str, str]:
    """The names of attention and feed-forward network inside a block."""
    sublayers = sublayers_of(tiny_model(kind))
    attention, feedforward = (
        re.split(r"\.0\.", names[0], maxsplit=1)[1] for names in (sublayers.attention, sublayers.feedforward)
    )
    return attention, feedforward


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_output_of_each_adapter_is_added_to_the_residual(kind: str):
    """y = x + a(attention) + a'(feed-forward), for sequential and for parallel sub-layers."""
    model = grafted(kind)
    for parameters in model.parameters():
        parameters.data = parameters.data.double()
    seen: dict[str, Any] = {}
    block = model.get_submodule(next(iter(model._tsugiki.adapters["default"].bottlenecks)).split(".0.")[0])[0]
    names = sublayers(kind)
    parts = [block.get_submodule(name)._modules["tsugiki"] for name in names]
    block.register_forward_hook(lambda _, args, out: seen.update(x=args[0], y=out if torch.is_tensor(out) else out[0]))
    for name, part in zip(names, parts, strict=True):
        part.register_forward_hook(lambda _, args, out, name=name: seen.update({name: args[0]}))
    with torch.no_grad():
        model(input_ids=ids())

    def changed(name: str, part: Any) -> torch.Tensor:
        h, down, up = seen[name], part.adapter_down, part.adapter_up
        inner = h @ down.weight.T + down.bias
        return h + (inner / (1 + torch.exp(-inner))) @ up.weight.T + up.bias

    attention, feedforward = (changed(name, part) for name, part in zip(names, parts, strict=True))
    if kind in POST_NORM:
        attention = block.post_attention_layernorm(attention)
        feedforward = block.post_feedforward_layernorm(feedforward)
    expected = (seen["x"] + attention + feedforward.view(attention.shape)).detach()
    assert relative_error(expected, seen["x"]) > 1e-2
    assert relative_error(seen["y"], expected) < 1e-5


def test_settings_for_blocks_widths_and_modules():
    model = tiny_model("llama")
    adapter = active_adapter(graft(model, config_of("houlsby", reduction_factor={"1": 2, "default": 16})))
    widths = {path: part.adapter_down.out_features for path, part in adapter.bottlenecks.items()}
    assert widths == {
        f"model.layers.{i}.{place}": width for i, width in ((0, 2), (1, 16)) for place in ("self_attn", "mlp")
    }
    ungraft(model)
    adapter = active_adapter(graft(model, config_of("pfeiffer", leave_out=[0], reduction_factor=64)))
    assert {path: p.adapter_down.out_features for path, p in adapter.bottlenecks.items()} == {"model.layers.1": 1}
    ungraft(model)
    own = BottleneckConfig(mh_adapter=False, feedforward_modules=r".*\.1\.mlp\.up_proj", reduction_factor=4)
    adapter = active_adapter(graft(model, own))
    assert adapter.bottlenecks["model.layers.1.mlp.up_proj"].adapter_up.out_features == 48


def test_a_module_without_a_transformers_config():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.feed = nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x + self.mix(x)
            return x + self.feed(x)

    model = nn.ModuleDict({"blocks": nn.Sequential(Block(), Block())})
    with refused("hidden_size"):
        graft(model, config_of("pfeiffer", feedforward_modules=["feed"]))
    adapter = active_adapter(
        graft(model, config_of("houlsby", attention_modules=["mix"], feedforward_modules=["feed.2"]))
    )
    assert set(adapter.bottlenecks) == {f"blocks.{i}.{name}" for i in (0, 1) for name in ("mix", "feed.2")}


def test_a_module_of_another_width_is_an_error_in_the_forward_pass():
    model = tiny_model("llama")
    graft(model, BottleneckConfig(mh_adapter=False, feedforward_modules=["act_fn"]))
    with refused("width 32 .*width 48"):
        logits(model)


# --- in a model ---------------------------------------------------------------------------------------------


def test_a_lora_grafted_later_finds_only_layers_of_the_base():
    model = grafted("llama")
    adapter = active_adapter(graft(model, LoraConfig(r=2, target_modules=r".*_proj|.*adapter_down"), "lora"))
    assert not [path for path in adapter.pairs if "tsugiki" in path]
    model = grafted("llama")
    with refused("adapter_down"):
        graft(model, LoraConfig(r=2, target_modules=["adapter_down"]), "lora")


@pytest.mark.parametrize("kind", ["bert", "mixtral", "mamba"])
def test_bottlenecks_work_without_a_row(kind: str, tmp_path: Path):
    config = BottleneckConfig(reduction_factor=8)
    model = assert_lifecycle(partial(tiny_of, kind), config, tmp_path, mergeable=False, readable_by_peft=False)
    count = len(active_adapter(model).bottlenecks)
    assert count == (1 if kind == "mamba" else 2) * model.config.num_hidden_layers


def test_another_adapters_file_does_not_depend_on_it(tmp_path: Path):
    model = tiny_model()
    graft(model, LoraConfig(r=2, target_modules="all-linear"), "lora")
    save_adapter(shake(model), tmp_path / "alone", "lora")
    graft(model, config_of("houlsby", reduction_factor=4), "houlsby")
    save_adapter(model, tmp_path / "with", "lora")
    for file in (ADAPTER_FILE, "adapter_config.json"):
        assert (tmp_path / "alone" / file).read_bytes() == (tmp_path / "with" / file).read_bytes()
