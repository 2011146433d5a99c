"""Fused modules in models of many architectures, and that such a model can still be copied, saved and restored."""

import copy
import math
import pickle
from collections import Counter
from itertools import cycle
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tests.tiny import CONFIGS, ids, tiny_model
from tsugiki.fast import use_fused_modules
from tsugiki.model import Undo, undo_all

GOT = {
    "gpt2": {"gelu_tanh": 2},
    "llama": {"gated_silu": 2, "rms_norm": 5},
    "gemma3_text": {"gated_gelu_tanh": 2, "rms_norm": 13},
    "qwen3": {"gated_silu": 2, "rms_norm": 9},
    "phi3": {"gated_silu": 2, "rms_norm": 5},
    "bloom": {"gelu_tanh": 2},
    "cohere": {"gated_silu": 2},  # its norms subtract the mean
    "opt": {},
}


def names(sped_up: list[str]) -> dict[str, int]:
    return dict(Counter(sped_up))


def gradients(model: Any) -> list[torch.Tensor]:
    """Return the logits, and the gradients of the input embeddings and of the trainable parameters."""
    embedded = model.get_input_embeddings()(ids()).detach().requires_grad_()
    out = model(inputs_embeds=embedded, use_cache=False).logits
    wanted = [embedded, *(p for p in model.parameters() if p.requires_grad)]
    loss = F.cross_entropy(out[:, :-1].flatten(0, 1).float(), ids()[:, 1:].flatten())
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    return [out.detach(), *(grad for grad in found if grad is not None)]


def assert_equal(ours: list[torch.Tensor], theirs: list[torch.Tensor], tolerance: float = 1e-5) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-8 + tolerance * float(other.abs().max()))


@pytest.mark.parametrize(("kind", "trains"), zip(CONFIGS, cycle([False, True])))
def test_the_model_computes_the_same_and_can_be_restored(kind: str, trains: bool):
    model = tiny_model(kind).requires_grad_(trains)
    plain, state = gradients(model), {name: value.clone() for name, value in model.state_dict().items()}
    described, keys = repr(model), [set(vars(module)) for module in model.modules()]
    undo: list[Undo] = []
    sped_up = names(use_fused_modules(model, undo))
    assert sped_up == GOT.get(kind, sped_up)
    assert_equal(gradients(model), plain)
    assert repr(model) == described
    assert list(model.state_dict()) == list(state)
    undo_all(undo)
    assert [set(vars(module)) for module in model.modules()] == keys
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(gradients(model), plain, strict=True))


def test_a_norm_that_trains_uses_its_own_forward():
    norm, x = LlamaRMSNorm(64).bfloat16(), torch.randn(32, 64).bfloat16().requires_grad_()
    nn.init.normal_(norm.weight)
    own = norm(x)
    use_fused_modules(norm, [])
    assert torch.equal(norm(x), own)
    norm.requires_grad_(False)
    assert not torch.equal(norm(x), own)  # rounded once, not twice
    torch.testing.assert_close(norm(x), own, rtol=2**-7, atol=0)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "phi3"])
def test_copies_and_pickles_are_independent(kind: str):
    model = tiny_model(kind).requires_grad_(False)
    use_fused_modules(model, [])
    before, replaced = gradients(model), ["forward" in vars(module) for module in model.modules()]
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for other in copies:
        assert ["forward" in vars(module) for module in other.modules()] == replaced
        assert_equal(gradients(other), before)


def test_a_replaced_forward_is_left_alone():
    model = tiny_model("llama")
    norm = model.model.norm
    own = norm.forward
    norm.forward = lambda x: own(x)
    undo: list[Undo] = []
    sped_up = use_fused_modules(model, undo)
    assert names(sped_up) == {"gated_silu": 2, "rms_norm": 4}
    assert use_fused_modules(model, []) == []
    wrapped = model.model.layers[0].mlp
    inner = wrapped.forward
    wrapped.forward = hooked = lambda x: inner(x)
    undo_all(undo)
    assert vars(wrapped)["forward"] is hooked
    assert "forward" not in vars(model.model.layers[1].mlp)


ACTIVATIONS = {
    "gelu_tanh": ("gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh", "gelu_python_tanh"),
    "gelu": ("gelu", "gelu_python"),
    "quick_gelu": ("quick_gelu",),
    "silu": ("silu", "swish"),
    "": ("gelu_10", "hardswish", "laplace", "linear", "mish", "prelu", "relu", "tanh"),
}


@pytest.mark.parametrize(("got", "name"), [(got, name) for got, those in ACTIVATIONS.items() for name in those])
def test_transformers_activations_are_recognised(got: str, name: str):
    assert names(use_fused_modules(ACT2FN[name], [])) == ({got: 1} if got else {})


class Doubled(nn.Module):
    """A gated feed-forward network that differs slightly from ours."""

    def __init__(self, act: nn.Module, factor: float = 1.0, limit: float = math.inf) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(5, 7), nn.Linear(5, 7), nn.Linear(7, 5)
        self.act = act
        self.factor, self.limit = factor, limit

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.gate_proj(x).clamp(max=self.limit)
        return self.down_proj(self.act(gate) * self.up_proj(x) * self.factor)


@pytest.mark.parametrize(
    ("module", "got"),
    [
        (Doubled(nn.SiLU()), {"gated_silu": 1}),
        (Doubled(nn.SiLU(), 1.001), {"silu": 1}),
        (Doubled(nn.SiLU(), limit=10.0), {"silu": 1}),  # as DeepSeek-V4 has it
        (Doubled(nn.Tanh()), {}),
        (nn.LayerNorm(8, bias=False), {}),
        (nn.Dropout(0.1), {}),
    ],
)
def test_similar_modules_are_left_alone_as_is_the_random_state(module: nn.Module, got: dict[str, int]):
    state, module = torch.get_rng_state(), module.train()
    assert names(use_fused_modules(module, [])) == got
    assert torch.equal(torch.get_rng_state(), state)
    assert module.training
