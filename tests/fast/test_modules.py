"""Fused modules in models of many architectures, and that such a model can still be copied, saved and restored."""

import copy
import io
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

from tests.fast.kept import kept_bytes
from tests.tiny import CONFIGS, grafted, ids, tiny_model
from tsugiki import LoraConfig, trainable_parameters
from tsugiki.fast import use_fused_modules
from tsugiki.model import Undo, undo_all

GOT = {
    "gpt2": {"gelu_tanh": 2},
    "llama": {"gated_silu": 2, "rms_norm": 5},
    "gemma3_text": {"gated_gelu_tanh": 2, "rms_norm": 13},
    "qwen3": {"gated_silu": 2, "rms_norm": 9},
    "phi3": {"gated_silu": 2, "rms_norm": 5},
    "bloom": {"gelu_tanh": 2},
    "olmo2": {"gated_silu": 2, "rms_norm": 9},
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


@pytest.mark.parametrize("kind", GOT)
def test_modules_with_a_fused_equivalent_are_replaced(kind: str):
    assert names(use_fused_modules(tiny_model(kind), [])) == GOT[kind]


@pytest.mark.parametrize(("kind", "trains"), zip(CONFIGS, cycle([False, True])))
def test_the_model_computes_the_same_and_can_be_restored(kind: str, trains: bool):
    model = tiny_model(kind).requires_grad_(trains)
    plain, state = gradients(model), {name: value.clone() for name, value in model.state_dict().items()}
    described, keys = repr(model), [set(vars(module)) for module in model.modules()]
    undo: list[Undo] = []
    use_fused_modules(model, undo)
    assert_equal(gradients(model), plain)
    assert repr(model) == described
    assert list(model.state_dict()) == list(state)
    undo_all(undo)
    assert [set(vars(module)) for module in model.modules()] == keys
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(gradients(model), plain, strict=True))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma3_text", "phi3"])
def test_in_bf16_the_error_is_not_larger(kind: str):
    exact = gradients(tiny_model(kind).double().requires_grad_(False))
    model = tiny_model(kind).bfloat16().requires_grad_(False)
    plain = gradients(model)
    use_fused_modules(model, [])
    for ours, theirs, true in zip(gradients(model), plain, exact, strict=True):
        assert (ours.double() - true).norm() < 1.1 * (theirs.double() - true).norm() + 1e-3 * true.norm()


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma3_text", "qwen3"])
def test_less_is_kept_for_backward(kind: str):
    model = tiny_model(kind).requires_grad_(False)
    embedded = model.get_input_embeddings()(ids()).detach().requires_grad_()

    def kept() -> int:
        return kept_bytes(lambda: model(inputs_embeds=embedded, use_cache=False).logits, model.parameters())

    before = kept()
    use_fused_modules(model, [])
    assert kept() < 0.9 * before


def test_a_norm_that_trains_gets_its_gradient():
    model, plain = tiny_model("llama"), tiny_model("llama")
    use_fused_modules(model, [])
    for each in (model, plain):
        grafted(each, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["norm"]))
    assert "model.norm.weight" in trainable_parameters(model)
    assert_equal(gradients(model), gradients(plain))


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
    torch.save(model, file := io.BytesIO())
    file.seek(0)
    copies.append(torch.load(file, weights_only=False))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for other in copies:
        assert ["forward" in vars(module) for module in other.modules()] == replaced
        assert_equal(gradients(other), before)


@pytest.mark.slow
def test_a_compiler_uses_the_models_own_forward():
    model = tiny_model("llama").requires_grad_(False)
    plain = gradients(model)
    use_fused_modules(model, [])
    seen: list[str] = []

    def look(graph: torch.fx.GraphModule, _: Any) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    torch._dynamo.reset()
    assert_equal(gradients(torch.compile(model, backend=look)), plain)
    assert any("rsqrt" in target for target in seen)
    assert not any("autograd_function" in target for target in seen)


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


@pytest.mark.parametrize(
    ("name", "got"),
    [
        ("gelu_new", "gelu_tanh"),
        ("gelu_fast", "gelu_tanh"),
        ("gelu_accurate", "gelu_tanh"),
        ("gelu_pytorch_tanh", "gelu_tanh"),
        ("gelu_python_tanh", "gelu_tanh"),
        ("gelu", "gelu"),
        ("gelu_python", "gelu"),
        ("quick_gelu", "quick_gelu"),
        ("silu", "silu"),
        ("swish", "silu"),
        *((name, None) for name in ("gelu_10", "hardswish", "laplace", "linear", "mish", "prelu", "relu", "tanh")),
    ],
)
def test_transformers_activations_are_recognised(name: str, got: str | None):
    module = ACT2FN[name]
    assert names(use_fused_modules(module, [])) == ({got: 1} if got else {})


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


def test_similar_modules_are_left_alone():
    assert names(use_fused_modules(Doubled(nn.SiLU()), [])) == {"gated_silu": 1}
    assert names(use_fused_modules(Doubled(nn.SiLU(), 1.001), [])) == {"silu": 1}
    assert names(use_fused_modules(Doubled(nn.SiLU(), limit=10.0), [])) == {"silu": 1}  # as DeepSeek-V4 has it
    assert names(use_fused_modules(Doubled(nn.Tanh()), [])) == {}
    assert names(use_fused_modules(nn.LayerNorm(8, bias=False), [])) == {}
    assert names(use_fused_modules(nn.Dropout(0.1), [])) == {}


def test_probing_does_not_change_the_random_state_or_the_model():
    model = tiny_model("gpt2").train()
    state = torch.get_rng_state()
    use_fused_modules(model, [])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
