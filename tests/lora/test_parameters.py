"""LoRA on parameters, such as the weights of all experts: against plain loops, the definition, and PEFT."""

import copy
import json
import warnings
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.models.life import gradients, logits_of, loss_of, shake, tokens_for
from tests.tiny import by_definition, relative_error
from tests.tiny_types import lively_model
from tsugiki import (
    LoraConfig,
    TsugikiError,
    active_adapter,
    disable_adapter,
    graft,
    load_adapter,
    merge,
    mixed_batch,
    save_adapter,
    set_adapter,
    trainable_parameters,
    ungraft,
    unmerge,
)
from tsugiki.adapters import check_can_save
from tsugiki.io import ADAPTER_CONFIG_FILE

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

EXPERTS = ["gate_up_proj", "down_proj"]
FIELDS: dict[str, Any] = {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj"], "target_parameters": EXPERTS}
TYPES = ["qwen3_moe", "gpt_oss"]  # weights [experts, out, in], and [experts, in, out] with biases
IMPLEMENTATIONS = ["eager", "batched_mm", "grouped_mm"]


class Loop(nn.Module):
    """Experts as a loop over tokens; each token has two of them."""

    is_transposed = False

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
    adapter = active_adapter(
        graft(model, LoraConfig(r=2, lora_alpha=6, target_modules=[], target_parameters=["up", "down"]))
    )
    for pair in adapter.parameter_pairs.values():
        nn.init.normal_(pair.B)
    x, shares = torch.randn(5, 6, dtype=torch.float64), torch.rand(5, 2, dtype=torch.float64)
    x.requires_grad_(), shares.requires_grad_()
    chosen = torch.tensor([[0, 1], [2, 0], [2, 1], [0, 2], [0, 1]])
    factors = [p for pair in adapter.parameter_pairs.values() for p in (pair.A, pair.B)]
    y = model["experts"](x, chosen, shares)
    found = [y, *torch.autograd.grad((y**2).sum(), [x, shares, *factors])]

    def updated(name: str) -> Tensor:
        weight, pair = getattr(model["experts"], name), adapter.parameter_pairs[f"experts.{name}"]
        matrices = []
        for expert in range(3):
            A = pair.A[expert * 2 : expert * 2 + 2]
            B = torch.stack([pair.B[:, row * 3 + expert] for row in range(2)], 1)
            delta = 3.0 * B @ A
            matrices.append(weight[expert] + (delta.T if transposed else delta))
        return torch.stack(matrices)

    y = experts_of(x, chosen, shares, updated("up"), updated("down"), transposed)
    expected = [y, *torch.autograd.grad((y**2).sum(), [x, shares, *factors])]
    for one, other in zip(found, expected, strict=True):
        assert relative_error(one.detach(), other.detach()) < 1e-13


def grafted(kind: str, implementation: str | None = None, **settings: Any) -> Any:
    model = lively_model(kind)
    if implementation is not None:
        model.set_experts_implementation(implementation)
    torch.manual_seed(0)
    graft(model, LoraConfig(**{**FIELDS, **settings}))
    shake(model)
    return model


def peft_twin(model: Any, kind: str, folder: Path) -> Any:
    save_adapter(model, folder)
    twin = lively_model(kind)
    twin.set_experts_implementation(model.config._experts_implementation)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of missing or unexpected keys
        return peft.PeftModel.from_pretrained(twin, str(folder), is_trainable=True)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", TYPES)
def test_products_by_expert_equal_the_definition(kind: str, implementation: str):
    """Loss and all gradients; the definition forms W + ΔW of all experts."""
    model = grafted(kind, implementation)
    inputs, found = tokens_for(model), []
    for by_product in (True, False):
        if not by_product:
            by_definition(model)
        loss = loss_of(model.train(), inputs)
        found.append((loss.detach(), gradients(model, loss)))
    assert not torch.equal(found[0][1], found[1][1])  # they are two ways
    assert relative_error(found[0][0], found[1][0]) < 1e-6
    assert relative_error(found[0][1], found[1][1]) < 1e-5


@pytest.mark.parametrize(("implementation", "dtype"), zip(IMPLEMENTATIONS, cycle([torch.float32, torch.bfloat16])))
def test_a_new_adapter_changes_no_bit_and_disabling_restores_the_base(implementation: str, dtype: torch.dtype):
    base = lively_model("qwen3_moe").to(dtype)
    base.set_experts_implementation(implementation)
    inputs = tokens_for(base)
    expected = logits_of(base, inputs)
    graft(base, LoraConfig(**FIELDS))
    assert torch.equal(logits_of(base, inputs), expected)
    shake(base)
    assert relative_error(logits_of(base, inputs), expected) > 1e-2
    with disable_adapter(base):
        assert torch.equal(logits_of(base, inputs), expected)
    ungraft(base)
    assert torch.equal(logits_of(base, inputs), expected)
    assert not [name for name, _ in base.named_modules() if "tsugiki" in name]


@pytest.mark.parametrize("kind", TYPES)
def test_peft_computes_the_same_loss_router_loss_and_gradients(kind: str, tmp_path: Path):
    model = grafted(kind, use_rslora=True)
    theirs = peft_twin(model, kind, tmp_path)
    inputs = tokens_for(model)
    labelled = {**inputs, "labels": inputs["input_ids"], "output_router_logits": True}
    one, other = model.train()(**labelled), theirs.train()(**labelled)
    assert float(one.aux_loss) > 0
    assert relative_error(one.aux_loss, other.aux_loss) < 1e-6
    for mine, of_peft in zip(one.router_logits, other.router_logits, strict=True):
        assert relative_error(mine.detach(), of_peft.detach()) < 1e-5
    one.loss.backward(), other.loss.backward()
    expected = {
        name: p.grad for name, p in theirs.named_parameters() if p.requires_grad and "experts.lora_A" in name
    }  # the outermost wrapper: down_proj
    own = [p.grad for name, p in trainable_parameters(model).items() if name.endswith("down_proj.A")]
    assert len(own) == len(expected) > 0
    for mine, of_peft in zip(own, expected.values(), strict=True):
        assert relative_error(mine, of_peft) < 1e-5


@pytest.mark.parametrize("kind", TYPES)
def test_the_file_is_pefts_and_loads_again(kind: str, tmp_path: Path):
    model = grafted(kind, rank_pattern={"gate_up_proj": 3}, alpha_pattern={"down_proj": 5})
    inputs = tokens_for(model)
    adapted = logits_of(model, inputs)
    theirs = peft_twin(model, kind, tmp_path)
    assert relative_error(logits_of(theirs.base_model.model, inputs), adapted) < 1e-5
    loaded = lively_model(kind)
    load_adapter(loaded, tmp_path)
    assert torch.equal(logits_of(loaded, inputs), adapted)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj"]])
def test_a_file_of_peft_loads(targets: Any, tmp_path: Path):
    """With all-linear, PEFT adapts the experts and the router of this type as parameters."""
    theirs = peft.get_peft_model(
        lively_model("qwen3_moe"), peft.LoraConfig(r=2, target_modules=targets, target_parameters=EXPERTS)
    ).eval()
    shake_peft(theirs)
    theirs.save_pretrained(str(tmp_path))
    model = lively_model("qwen3_moe")
    load_adapter(model, tmp_path)
    inputs = tokens_for(model)
    assert relative_error(logits_of(model, inputs), logits_of(theirs.base_model.model, inputs)) < 1e-5


def shake_peft(model: Any) -> None:
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)


@pytest.mark.parametrize(("kind", "renamed"), [("glm4_moe", 6), ("minimax_m2", 0), ("qwen2_moe", 0)])
def test_layers_whose_names_peft_takes_for_experts_are_stored_as_parameters(kind: str, renamed: int, tmp_path: Path):
    """The shared experts and the dense first block of GLM-4 MoE have such names; PEFT would ignore their factors."""
    settings = {"rank_pattern": {"gate_proj": 3}, "alpha_pattern": {"up_proj": 5}, "lora_dropout": 0.1}
    model = lively_model(kind)
    graft(model, LoraConfig(r=2, target_modules="all-linear", **settings))
    shake(model)
    inputs = tokens_for(model)
    adapted = logits_of(model, inputs)
    theirs = peft_twin(model, kind, tmp_path)
    assert relative_error(logits_of(theirs.base_model.model, inputs), adapted) < 1e-5
    fields = json.loads((tmp_path / ADAPTER_CONFIG_FILE).read_text())
    assert len(fields.get("target_parameters") or ()) == renamed
    loaded = lively_model(kind)
    load_adapter(loaded, tmp_path)
    assert torch.equal(logits_of(loaded, inputs), adapted)


@pytest.mark.parametrize("setting", ["use_dora", "lora_bias"])
def test_what_peft_does_not_allow_for_parameters_is_an_error_on_layers_with_such_names(setting: str):
    with pytest.raises(TsugikiError, match=rf"{setting}.*gate_proj"):
        graft(lively_model("glm4_moe"), LoraConfig(**{setting: True}))


@pytest.mark.parametrize(("kind", "warned"), [("laguna", True), ("glm4_moe", False), ("gemma3_text", False)])
def test_a_name_that_peft_changes_while_it_loads_is_warned_of_before_training(kind: str, warned: bool, tmp_path: Path):
    model = lively_model(kind)
    graft(model, LoraConfig(r=2))
    for save in (check_can_save, partial(save_adapter, path=tmp_path)):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            save(model)
        messages = [str(one.message) for one in found if "PEFT renames" in str(one.message)]
        assert bool(messages) == warned
        assert all("shared_experts" in message for message in messages)


def test_merged_experts_equal_the_adapter_and_unmerge_restores_them():
    model = grafted("gpt_oss")
    inputs = tokens_for(model)
    adapted = logits_of(model, inputs)
    assert relative_error(logits_of(ungraft(merge(copy.deepcopy(model))), inputs), adapted) < 1e-5
    merge(model)
    assert relative_error(logits_of(model, inputs), adapted) < 1e-5
    unmerge(model)
    assert torch.equal(logits_of(model, inputs), adapted)


@pytest.mark.parametrize("kind", TYPES)
def test_the_updates_of_two_adapters_of_the_same_experts_are_added_as_in_peft(kind: str, tmp_path: Path):
    """The loss, the norms of all gradients, and the merged model."""
    model = grafted(kind)
    second = {**FIELDS, "r": 3, "lora_alpha": 12, "target_parameters": ["down_proj", "gate_up_proj"]}
    graft(model, LoraConfig(**second), "second")
    shake(model)
    theirs = lively_model(kind)
    for name in ("default", "second"):
        save_adapter(model, tmp_path / name, name)
        if name == "default":
            theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / name, is_trainable=True)
        else:
            theirs.load_adapter(tmp_path / name, name, is_trainable=True)
    set_adapter(model, ["default", "second"])
    theirs.base_model.set_adapter(["default", "second"])
    inputs = tokens_for(model)
    one, other = loss_of(model.train(), inputs), loss_of(theirs.base_model.model.train(), inputs)
    assert relative_error(one.detach(), other.detach()) < 1e-6
    one.backward(), other.backward()
    ours = [p.grad.norm() for p in trainable_parameters(model).values()]
    expected = [p.grad.norm() for p in theirs.parameters() if p.requires_grad]
    assert len(ours) == len(expected)
    assert relative_error(torch.stack(ours).sort().values, torch.stack(expected).sort().values) < 1e-4
    both = logits_of(model, inputs)
    for name in ("default", "second"):
        set_adapter(model, name)
        assert relative_error(both, logits_of(model, inputs)) > 1e-3
    set_adapter(model, ["default", "second"])
    assert torch.equal(logits_of(model, inputs), both)
    assert relative_error(logits_of(ungraft(merge(model)), inputs), both) < 1e-5


def test_a_mixed_batch_is_refused_by_name():
    model = grafted("qwen3_moe")
    with pytest.raises(TsugikiError, match=r"'default' adapts .*gate_up_proj"), mixed_batch(model, ["default", None]):
        pass


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_dropout": 0.1}, r"lora_dropout is 0.1.*0 for target_parameters.*gate_up_proj"),
        ({"use_dora": True}, r"use_dora.*target_parameters"),
        ({"lora_bias": True}, r"lora_bias.*target_parameters"),
        ({"init_lora_weights": "pissa"}, r"'pissa'.*linear layers"),
        ({"target_parameters": "gate_up_proj"}, r"target_parameters.*list"),
        ({"target_parameters": ["no_such"]}, r"no_such.*down_proj, gate_up_proj"),
        ({"target_parameters": ["input_layernorm.weight"]}, r"input_layernorm.weight, which has 1 axis"),
        ({"target_parameters": ["q_proj.weight"]}, r"both select the weight of model.layers.0.self_attn.q_proj \(2"),
        ({"target_modules": ["embed_tokens"], "target_parameters": ["embed_tokens.weight"]}, r"both.*embed_tokens"),
    ],
)
def test_settings_that_do_not_fit_are_errors_of_one_line(settings: dict[str, Any], message: str):
    model = lively_model("qwen3_moe")
    with pytest.raises(TsugikiError, match=message) as error:
        graft(model, LoraConfig(**{**FIELDS, **settings}))
    assert "\n" not in str(error.value)


def test_quantised_experts_are_refused_by_name():
    model = lively_model("qwen3_moe")
    experts = model.model.layers[1].mlp.experts
    experts.down_proj = nn.Parameter(experts.down_proj.detach().to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(TsugikiError, match=r"layers\.1\.mlp\.experts\.down_proj, which is quantised.*unquantised"):
        graft(model, LoraConfig(**FIELDS))


@pytest.mark.parametrize("different", [{"num_local_experts": 3}, {"num_hidden_layers": 1}])
def test_an_adapter_for_other_experts_or_layers_does_not_load(different: dict[str, Any], tmp_path: Path):
    save_adapter(grafted("qwen3_moe"), tmp_path)
    other = lively_model("qwen3_moe", **different)
    with pytest.raises(TsugikiError, match=r"model\.layers") as error:
        load_adapter(other, tmp_path, allow_base_mismatch=True)
    assert "\n" not in str(error.value)
    assert not trainable_parameters(other).keys() - dict(other.named_parameters()).keys()
