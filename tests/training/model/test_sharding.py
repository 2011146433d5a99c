"""Two processes with sharded weights against one process with whole ones: the same gradients, weights and texts.

The reference computes the rows of both processes, one half after the other, so that the sums are the same to the last
bit. Each check runs in a pair of processes that `tests.distributed.launch` starts.
"""

import copy
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor

from tests.distributed.launch import run_function
from tests.errors import refused
from tests.tiny import CONFIGS, ids, logits, shake, tiny_model
from tests.tiny_types import lively_model
from tsugiki import (
    disable_adapter,
    merge,
    save_adapter,
    trainable_parameters,
    use_fast_paths,
)
from tsugiki.fast import layers
from tsugiki.lora import is_grafted
from tsugiki.lowbit import quantize
from tsugiki.methods import METHODS
from tsugiki.model import replica_in
from tsugiki.training import (
    check_optimizer,
    is_sharded,
    shard,
    split_optimizer_state,
    whole_optimizer_state,
    whole_state,
)

CPU = torch.device("cpu")
SPLITS_INTEGERS = torch.__version__ >= "2.13"  # 2.10 does not
ALL = {"r": 4, "target_modules": "all-linear"}
ENDS = {"r": 4, "target_modules": ["lm_head", "embed_tokens", "wte", "q_proj", "c_attn"]}
EXPERTS = {"r": 2, "target_modules": ["q_proj"], "target_parameters": ["gate_up_proj", "down_proj", "gate.weight"]}
SAVED = {"r": 4, "target_modules": ["c_attn"], "modules_to_save": ["lm_head", "ln_f"], "bias": "all"}
PROMPT = {"num_virtual_tokens": 4}
LENGTH = 16


@dataclass(frozen=True)
class Case:
    """A method on a tiny base."""

    method: str
    kind: str
    dtype: str = "float32"
    """Of the base: float32, bfloat16 or int8; for method full, the dtype that computes."""
    options: dict[str, Any] = field(default_factory=dict)
    fast: bool = True
    checkpointing: bool = False

    @property
    def compute_dtype(self) -> torch.dtype | None:
        return torch.bfloat16 if self.method == "full" and self.dtype == "bfloat16" else None


CASES = [
    Case("lora", "llama", "int8", ALL, checkpointing=True),
    Case("lora", "gemma2", "float32", ENDS),
    Case("lora", "gpt2", "bfloat16", SAVED),
    Case("lora", "qwen3_moe", "float32", EXPERTS, checkpointing=True),
    Case("dora", "llama", "bfloat16", ENDS),
    Case("pissa", "llama", "bfloat16", ALL),
    Case("houlsby", "llama", "bfloat16", {"reduction_factor": 4}, checkpointing=True),
    Case("ia3", "gpt2", "int8"),
    Case("prefix-tuning", "llama", "bfloat16", PROMPT),
    Case("prompt-tuning", "gpt2", "int8", PROMPT),
    Case("bitfit", "gpt2"),
    Case("norms", "llama", "bfloat16"),
    Case("head", "llama", fast=False),
    Case("full", "llama", checkpointing=True),
    Case("full", "gpt2", "bfloat16"),
]


@dataclass
class Trained:
    losses: list[Tensor]
    gradients: dict[str, Tensor]
    """Of the first step."""
    weights: dict[str, Tensor]
    """After the last step."""


def prepared(case: Case) -> Any:
    """A model that is ready to train, its adapter moved away from its initial values."""
    model = tiny_model(case.kind) if case.kind in CONFIGS else lively_model(case.kind)
    if case.dtype == "int8":
        quantize(model, torch.float32)
    elif case.compute_dtype is None:
        model.to(getattr(torch, case.dtype))
    torch.manual_seed(0)
    METHODS[case.method].prepare(model, METHODS[case.method].configure(case.options), base_dropout=False)
    if is_grafted(model):
        shake(model)
    if case.fast:
        use_fast_paths(model)
    if case.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def rows_of(half: int) -> dict[str, Any]:
    """The arguments of a model for two of the four rows of a step."""
    tokens = ids(4, LENGTH)
    labels = tokens.masked_fill(torch.arange(LENGTH) % 5 == 0, -100)
    count = int((labels[:, 1:] != -100).sum())
    rows = slice(2 * half, 2 * half + 2)
    return {"input_ids": tokens[rows], "labels": labels[rows], "num_items_in_batch": count, "use_cache": False}


def new_optimizer(trained: dict[str, nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW with a step that does not depend on the sign of a gradient that is only rounding error."""
    return torch.optim.AdamW(trained.values(), lr=1e-2, eps=1e-4)


def half_gradients(model: Any, trained: list[Tensor], half: int, factor: int = 1) -> tuple[Tensor, list[Tensor]]:
    """The loss of two of the four rows, and its gradients in float32."""
    loss = factor * model(**rows_of(half)).loss
    if factor == 1:
        found = torch.autograd.grad(loss, trained, allow_unused=True)
    else:  # FSDP reduces the gradients of its own parameters into `.grad`
        loss.backward()
        found = tuple(p.grad for p in trained)
    zeros = [torch.zeros_like(p) if grad is None else grad.float() for p, grad in zip(trained, found, strict=True)]
    return loss.detach() / factor, zeros


def reference(case: Case, model: Any, steps: int = 3) -> Trained:
    """Train on one process."""
    computing = replica_in(torch.bfloat16, model) if case.compute_dtype else model
    trained, copies = trainable_parameters(model), list(trainable_parameters(computing).values())

    def gradients() -> tuple[Tensor, list[Tensor]]:
        torch._foreach_copy_([copied.data for copied in copies], list(trained.values()))
        (one, first), (two, second) = (half_gradients(computing, copies, half) for half in (0, 1))
        return one + two, torch._foreach_add(first, second)

    return train(trained, gradients, steps)


def sharded(case: Case, model: Any, trained: dict[str, nn.Parameter], steps: int = 3) -> Trained:
    """Train on two processes a model that `shard` has split."""

    def gradients() -> tuple[Tensor, list[Tensor]]:
        full = case.method == "full"
        for parameter in trained.values():
            parameter.grad = None
        loss, found = half_gradients(model, list(trained.values()), distributed.get_rank(), 2 if full else 1)
        for tensor in [loss] if full else [loss, *found]:
            distributed.all_reduce(tensor)
        return loss, found

    return train(trained, gradients, steps)


def train(trained: dict[str, nn.Parameter], gradients: Any, steps: int) -> Trained:
    optimizer = new_optimizer(trained)
    losses, first = [], {}
    for _ in range(steps):
        loss, found = gradients()
        for parameter, grad in zip(trained.values(), found, strict=True):
            parameter.grad = grad.to(parameter.dtype)
        losses.append(loss)
        first = first or {name: whole(grad) for name, grad in zip(trained, found, strict=True)}
        nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
    return Trained(losses, first, {name: whole(parameter) for name, parameter in trained.items()})


def difference(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30))


def compare(case: Case) -> dict[str, float]:
    """What differs between one and two processes, relative."""
    whole_model, model = prepared(case), prepared(case)
    kept = {name for name, p in model.named_parameters() if p.requires_grad or ".lora." in name}
    trained = shard(model, CPU, case.compute_dtype)
    split = {name for name, p in model.named_parameters() if isinstance(p, DTensor)}
    every = {name for name, _ in model.named_parameters()}
    assert split == (every if case.method == "full" else every - kept), "frozen weights are split, the adapter is not"
    assert list(trained) == list(trainable_parameters(whole_model))
    differences = {}
    if is_grafted(model):
        with disable_adapter(whole_model), disable_adapter(model):
            differences["base"] = difference(logits(model), logits(whole_model))
    expected, found = reference(case, whole_model), sharded(case, model, trained)
    differences["loss"] = difference(torch.stack(found.losses), torch.stack(expected.losses))
    for name in trained:
        differences[f"gradient of {name}"] = difference(found.gradients[name], expected.gradients[name])
        differences[f"weight {name}"] = difference(found.weights[name], expected.weights[name])
    if case.compute_dtype is None:
        differences["logits"] = difference(logits(model), logits(whole_model))
    return differences


def compare_all(cases: list[Case]) -> dict[str, dict[str, float]]:
    warnings.simplefilter("ignore")  # of tied weights
    return {str(case): compare(case) for case in cases}


@pytest.mark.parametrize("cases", [CASES[::2], pytest.param(CASES[1::2], marks=pytest.mark.slow)])
def test_two_processes_train_and_compute_as_one(cases: list[Case]):
    cases = [case for case in cases if SPLITS_INTEGERS or case.dtype != "int8"]
    found, _ = run_function(compare_all, cases, timeout=1200)
    assert found.keys() == {str(case) for case in cases}
    for case, differences in found.items():
        assert len(differences) > 3
        assert not {name: value for name, value in differences.items() if not value < 1e-6}, case


def life_of_an_adapter(folder: Path) -> None:
    """What comes before and after training: the optimiser, saving, generating, and what is refused."""
    case = Case("pissa", "llama", "bfloat16", ALL)
    whole_model, model = prepared(case), prepared(case)
    before = sum(p.nbytes for p in model.parameters())
    optimizer = torch.optim.AdamW(trainable_parameters(model).values())
    trained = shard(model, CPU)
    assert (is_sharded(model), is_sharded(whole_model)) == (True, False)
    check_optimizer(model, optimizer)  # the parameters of an adapter stay the same objects
    local = sum((p.to_local() if isinstance(p, DTensor) else p).nbytes for p in model.parameters())
    kept = sum(p.nbytes for name, p in model.named_parameters() if ".lora." in name)
    assert local == (before - kept) / 2 + kept

    with mock.patch.object(layers, "grafted_product", wraps=layers.grafted_product) as fused:
        sharded(case, model, trained, steps=1)
    assert fused.call_count == len(trained) / 2
    reference(case, whole_model, steps=1)
    written = []
    for one in (model, whole_model):
        torch.manual_seed(5)
        options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": True, "top_k": 0, "pad_token_id": 0}
        written.append(one.generate(ids(1, 5), attention_mask=torch.ones(1, 5, dtype=torch.long), **options))
    assert torch.equal(*written)

    if distributed.get_rank() == 0:  # alone: nothing has to be gathered
        save_adapter(model, folder / "sharded")
        save_adapter(whole_model, folder / "whole")
    with refused("split over several processes"):
        merge(model)
    sharded(case, model, trained, steps=1)  # the adapter is still in the model


def test_an_adapter_on_a_sharded_base(tmp_path: Path):
    run_function(life_of_an_adapter, tmp_path)
    found, expected = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("sharded", "whole"))
    assert found.keys() == expected.keys() != set()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def life_of_a_whole_model() -> None:
    """The optimiser's order, and a checkpoint: state and moments are gathered, and split again."""
    case = Case("full", "gpt2")
    model = prepared(case)
    early = torch.optim.AdamW(model.parameters())
    trained = shard(model, CPU)
    with refused(r"wte\.weight is not in the optimiser \(28 such\)"):
        check_optimizer(model, early)
    optimizer = new_optimizer(trained)
    logits(model)  # leaves gathered weights in the root
    check_optimizer(model, optimizer)

    def step(model: Any, trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        optimizer.zero_grad()
        half_gradients(model, list(trained.values()), distributed.get_rank(), 2)
        optimizer.step()
        return {name: whole(parameter) for name, parameter in trained.items()}

    step(model, trained, optimizer)
    logits(model)
    state, moments = whole_state(model, keep=True), whole_optimizer_state(optimizer, keep=True)
    assert not whole_state(model, keep=False)
    assert not whole_optimizer_state(optimizer, keep=False)["state"]
    expected = reference(case, prepared(case), steps=1).weights
    assert all(torch.equal(state[name], weight) for name, weight in expected.items())
    assert state["lm_head.weight"] is state["transformer.wte.weight"]

    again = prepared(case)
    again.load_state_dict(state)
    resumed = shard(again, CPU)
    continued = new_optimizer(resumed)
    continued.load_state_dict(split_optimizer_state(continued, copy.deepcopy(moments)))
    goes_on, uninterrupted = step(again, resumed, continued), step(model, trained, optimizer)
    assert all(torch.equal(goes_on[name], weight) for name, weight in uninterrupted.items())


def test_a_whole_model_in_shards():
    run_function(life_of_a_whole_model)


def test_one_process_alone_cannot_split():
    with refused("torchrun"):
        shard(tiny_model(), CPU)
