"""LoRA on parameters, such as the weights of all experts: against plain loops, the definition, and PEFT."""

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.errors import refused
from tests.files import json_of
from tests.lifecycle import assert_lifecycle
from tests.models.life import gradients, loss_of, tokens_for
from tests.tiny import by_definition, grafted, logits, relative_error, shake
from tests.tiny_types import lively_model
from tsugiki import (
    LoraConfig,
    active_adapter,
    graft,
    load_adapter,
    merge,
    mixed_batch,
    save_adapter,
    set_adapter,
    trainable_parameters,
    ungraft,
)
from tsugiki.adapters import check_can_save
from tsugiki.io import ADAPTER_CONFIG_FILE
from tsugiki.lora import is_grafted

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

EXPERTS = ["gate_up_proj", "down_proj"]
FIELDS: dict[str, Any] = {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj"], "target_parameters": EXPERTS}
TYPES = ["qwen3_moe", "gpt_oss"]  # weights [experts, out, in], and [experts, in, out] with biases
IMPLEMENTATIONS = ["eager", "batched_mm", "grouped_mm"]


class Loop(nn.Module):
    """Experts as a loop over tokens; each token has two of them."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.is_transposed = transposed
        shapes = ((3, 10, 6), (3, 6, 5))
        self.up, self.down = (nn.Parameter(torch.randn(s if not transposed else (s[0], s[2], s[1]))) for s in shapes)

    def forward(self, x: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        return experts_of(x, chosen, shares, self.up, self.down, self.is_transposed)


def experts_of(x: Tensor, chosen: Tensor, shares: Tensor, up: Any, down: Any, transposed: bool) -> Tensor:
    rows = []
    for token, experts, share in zip(x, chosen, shares, strict=True):
        row = torch.zeros(len(x[0]), dtype=x.dtype)
        for expert, s in zip(experts, share, strict=True):
            one, other = (up[expert].T, down[expert].T) if transposed else (up[expert], down[expert])
            gate, value = F.linear(token, one).chunk(2)
            row = row + s * F.linear(F.silu(gate) * value, other)
        rows.append(row)
    return torch.stack(rows)


@pytest.mark.parametrize("transposed", [False, True])
def test_experts_with_pairs_equal_a_plain_loop_with_updated_weights(transposed: bool):
    """Output and every gradient in float64; the factors of each expert are cut out of the file's layout here."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"experts": Loop(transposed)}).double()
    config = LoraConfig(r=2, lora_alpha=6, target_modules=[], target_parameters=["up", "down"])
    pairs = active_adapter(graft(model, config)).parameter_pairs
    for pair in pairs.values():
        nn.init.normal_(pair.B)
    x, shares = torch.randn(5, 6, dtype=torch.float64), torch.rand(5, 2, dtype=torch.float64)
    chosen = torch.tensor([[0, 1], [2, 0], [2, 1], [0, 2], [0, 1]])
    moved = [x.requires_grad_(), shares.requires_grad_(), *(p for pair in pairs.values() for p in (pair.A, pair.B))]

    def updated(name: str) -> Tensor:
        weight, pair = getattr(model["experts"], name), pairs[f"experts.{name}"]
        matrices = []
        for expert in range(3):
            A = pair.A[expert * 2 : expert * 2 + 2]
            B = torch.stack([pair.B[:, row * 3 + expert] for row in range(2)], 1)
            delta = 3.0 * B @ A
            matrices.append(weight[expert] + (delta.T if transposed else delta))
        return torch.stack(matrices)

    found = model["experts"](x, chosen, shares)
    expected = experts_of(x, chosen, shares, updated("up"), updated("down"), transposed)
    results = [[y, *torch.autograd.grad((y**2).sum(), moved)] for y in (found, expected)]
    for one, other in zip(*results, strict=True):
        assert relative_error(one.detach(), other.detach()) < 1e-13


def with_experts(kind: str, implementation: str) -> Any:
    model = lively_model(kind)
    model.set_experts_implementation(implementation)
    return model


def peft_twin(model: Any, kind: str, folder: Path) -> Any:
    save_adapter(model, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of missing or unexpected keys
        twin = with_experts(kind, model.config._experts_implementation)
        return peft.PeftModel.from_pretrained(twin, str(folder), is_trainable=True)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", TYPES)
def test_products_by_expert_equal_the_definition(kind: str, implementation: str):
    """Loss and all gradients; the definition forms W + ΔW of all experts."""
    model = grafted(with_experts(kind, implementation), LoraConfig(**FIELDS)).train()
    inputs, found = tokens_for(model), []
    for way in (lambda model: model, by_definition):
        loss = loss_of(way(model), inputs)
        found.append((loss.detach(), gradients(model, loss)))
    assert not torch.equal(found[0][1], found[1][1])  # they are two ways
    assert relative_error(found[0][0], found[1][0]) < 1e-6
    assert relative_error(found[0][1], found[1][1]) < 1e-5


@pytest.mark.parametrize(
    ("kind", "implementation"), [("qwen3_moe", "eager"), ("gpt_oss", "batched_mm"), ("qwen3_moe", "grouped_mm")]
)
def test_the_life_of_an_adapter(kind: str, implementation: str, tmp_path: Path):
    config = LoraConfig(**FIELDS, rank_pattern={"gate_up_proj": 3}, alpha_pattern={"down_proj": 5})
    assert_lifecycle(partial(with_experts, kind, implementation), config, tmp_path)


def test_a_new_adapter_on_a_base_in_16_bits_changes_no_bit():
    base = with_experts("qwen3_moe", "batched_mm").bfloat16()
    expected = logits(base)
    assert torch.equal(logits(graft(base, LoraConfig(**FIELDS))), expected)


@pytest.mark.parametrize("kind", TYPES)
def test_peft_computes_the_same_loss_router_loss_and_gradients(kind: str, tmp_path: Path):
    model = grafted(lively_model(kind), LoraConfig(**FIELDS, use_rslora=True))
    theirs = peft_twin(model, kind, tmp_path)
    labelled = {**tokens_for(model), "labels": tokens_for(model)["input_ids"], "output_router_logits": True}
    one, other = model.train()(**labelled), theirs.train()(**labelled)
    assert float(one.aux_loss) > 0
    assert relative_error(one.aux_loss, other.aux_loss) < 1e-6
    for mine, of_peft in zip(one.router_logits, other.router_logits, strict=True):
        assert relative_error(mine.detach(), of_peft.detach()) < 1e-5
    one.loss.backward(), other.loss.backward()
    # The outermost wrapper of PEFT is that of down_proj.
    expected = [p.grad for name, p in theirs.named_parameters() if p.requires_grad and "experts.lora_A" in name]
    own = [p.grad for name, p in trainable_parameters(model).items() if name.endswith("down_proj.A")]
    assert own
    for mine, of_peft in zip(own, expected, strict=True):
        assert relative_error(mine, of_peft) < 1e-5


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj"]])
def test_a_file_of_peft_loads(targets: Any, tmp_path: Path):
    """With all-linear, PEFT adapts the experts and the router of this type as parameters."""
    config = peft.LoraConfig(r=2, target_modules=targets, target_parameters=EXPERTS)
    theirs = shake(peft.get_peft_model(lively_model("qwen3_moe"), config).eval())
    theirs.save_pretrained(str(tmp_path))
    model = load_adapter(lively_model("qwen3_moe"), tmp_path)
    assert relative_error(logits(model), logits(theirs)) < 1e-5


@pytest.mark.parametrize(("kind", "renamed"), [("glm4_moe", 6), ("minimax_m2", 0), ("qwen2_moe", 0)])
def test_layers_whose_names_peft_takes_for_experts_are_stored_as_parameters(kind: str, renamed: int, tmp_path: Path):
    """The shared experts and the dense first block of GLM-4 MoE have such names; PEFT would ignore their factors."""
    settings = {"rank_pattern": {"gate_proj": 3}, "alpha_pattern": {"up_proj": 5}, "lora_dropout": 0.1}
    model = grafted(lively_model(kind), LoraConfig(r=2, target_modules="all-linear", **settings))
    theirs = peft_twin(model, kind, tmp_path).eval()
    assert relative_error(logits(theirs), logits(model)) < 1e-5
    fields = json_of(tmp_path / ADAPTER_CONFIG_FILE)
    assert len(fields.get("target_parameters") or ()) == renamed
    assert torch.equal(logits(load_adapter(lively_model(kind), tmp_path)), logits(model))


@pytest.mark.parametrize("kind", TYPES)
def test_the_updates_of_two_adapters_of_the_same_experts_are_added_as_in_peft(kind: str, tmp_path: Path):
    """The loss, the norms of all gradients, and the merged model."""
    model = grafted(lively_model(kind), LoraConfig(**FIELDS))
    second = {**FIELDS, "r": 3, "lora_alpha": 12, "target_parameters": ["down_proj", "gate_up_proj"]}
    shake(graft(model, LoraConfig(**second), "second"))
    both_names = ["default", "second"]
    for name in both_names:
        save_adapter(model, tmp_path / name, name)
    theirs = peft.PeftModel.from_pretrained(lively_model(kind), tmp_path / "default", is_trainable=True)
    theirs.load_adapter(tmp_path / "second", "second", is_trainable=True)
    set_adapter(model, both_names)
    theirs.base_model.set_adapter(both_names)
    inputs = tokens_for(model)
    one, other = loss_of(model.train(), inputs), loss_of(theirs.base_model.model.train(), inputs)
    assert relative_error(one.detach(), other.detach()) < 1e-6
    one.backward(), other.backward()
    norms = [torch.stack([p.grad.norm() for p in m.parameters() if p.requires_grad]) for m in (model, theirs)]
    assert relative_error(norms[0].sort().values, norms[1].sort().values) < 1e-4
    both = logits(model)
    for name in both_names:
        set_adapter(model, name)
        assert relative_error(both, logits(model)) > 1e-3
    set_adapter(model, both_names)
    assert torch.equal(logits(model), both)
    assert relative_error(logits(ungraft(merge(model))), both) < 1e-5


@pytest.mark.parametrize("different", [{"num_local_experts": 3}, {"num_hidden_layers": 1}])
def test_an_adapter_for_other_experts_or_layers_does_not_load(different: dict[str, Any], tmp_path: Path):
    model = graft(lively_model("qwen3_moe"), LoraConfig(**FIELDS))
    with refused(r"'default' adapts .*gate_up_proj"), mixed_batch(model, ["default", None]):
        pass
    save_adapter(model, tmp_path)
    other = lively_model("qwen3_moe", **different)
    with refused(r"model\.layers"):
        load_adapter(other, tmp_path, allow_base_mismatch=True)
    assert not is_grafted(other)


@pytest.mark.parametrize(("kind", "warned"), [("laguna", True), ("glm4_moe", False), ("gemma3_text", False)])
def test_a_name_that_peft_changes_while_it_loads_is_warned_of_before_training(kind: str, warned: bool, tmp_path: Path):
    model = graft(lively_model(kind), LoraConfig(r=2))
    for save in (check_can_save, partial(save_adapter, path=tmp_path)):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            save(model)
        messages = [str(one.message) for one in found if "PEFT renames" in str(one.message)]
        assert bool(messages) == warned
        assert all("shared_experts" in message for message in messages)


def test_quantised_experts_are_refused_by_name():
    model = lively_model("qwen3_moe")
    experts = model.model.layers[1].mlp.experts
    experts.down_proj = nn.Parameter(experts.down_proj.detach().to(torch.float8_e4m3fn), requires_grad=False)
    with refused(r"layers\.1\.mlp\.experts\.down_proj, which is quantised.*unquantised"):
        graft(model, LoraConfig(**FIELDS))
