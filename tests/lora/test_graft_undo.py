"""Everything that grafting and the fast paths change in a model is undone."""

from collections.abc import Callable
from contextlib import nullcontext
from itertools import cycle
from typing import Any

import pytest
import torch
from torch import nn

from tests.tiny import ids, shake, tiny_model
from tsugiki import (
    LoraConfig,
    disable_adapter,
    graft,
    merge,
    mixed_batch,
    set_adapter,
    ungraft,
    unmerge,
    use_fast_paths,
    use_plain_paths,
)
from tsugiki.methods import METHODS
from tsugiki.model import CHANGED_WEIGHTS

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

SETTINGS: dict[str, dict[str, Any]] = {
    "prompt-tuning": {"num_virtual_tokens": 3},
    "prefix-tuning": {"num_virtual_tokens": 3},
    "p-tuning": {"num_virtual_tokens": 3},
    "select": {"target_parameters": [r"mlp.c_fc.weight", "fc1.weight"]},
}
CONFIGS: dict[str, Callable[[], Any]] = {
    name: lambda name=name: METHODS[name].configure(SETTINGS.get(name, {})) for name in METHODS if name != "full"
} | {
    "lora with biases and a module": lambda: LoraConfig(bias="all", modules_to_save=["lm_head"], lora_dropout=0.1),
    "embedding": lambda: LoraConfig(target_modules=["wte", "embed_tokens"]),
}


def attributes(model: nn.Module) -> dict[str, Any]:
    """Every attribute of every module: tensors, modules and functions by identity, plain values by value."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for name, value in vars(module).items():
            found[f"{path}:{name}"] = list(value) if isinstance(value, dict) else _value(value)
            if isinstance(value, dict):
                found |= {f"{path}:{name}[{key}]": _value(one) for key, one in value.items()}
    found |= {f"requires_grad of {name}": p.requires_grad for name, p in model.named_parameters()}
    if hasattr(model, "config"):
        found["config"] = model.config.to_dict()
    return found


def _value(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str | tuple | None) else id(value)


def train_a_step(model: nn.Module) -> None:
    model.train()
    model(input_ids=ids(), labels=ids()).loss.backward()
    model.zero_grad()
    model.eval()


@pytest.mark.parametrize(
    ("method", "kind", "dtype"),
    zip(CONFIGS, cycle(["gpt2", "opt"]), cycle([torch.float32, torch.float32, torch.bfloat16])),
)
def test_ungraft_undoes_all_of_it(method: str, kind: str, dtype: torch.dtype):
    model = tiny_model(kind).to(dtype)
    before = attributes(model)
    graft(model, CONFIGS[method]())
    assert attributes(model) != before
    train_a_step(shake(model))
    graft(model, LoraConfig(r=2), "second")
    set_adapter(model, "default")
    with disable_adapter(model):
        pass
    if method not in METHODS or METHODS[method].mergeable:
        unmerge(merge(model))
    set_adapter(model, "second")
    rows = mixed_batch(model, ["second", None]) if method != "embedding" else nullcontext()
    with rows, torch.no_grad():
        model(input_ids=ids(2))
    ungraft(model)
    assert attributes(model) == before


def test_ungraft_undoes_it_after_a_merge_but_for_the_weights():
    model = tiny_model()
    before = attributes(model)
    graft(model, LoraConfig(r=2, target_modules=["c_attn"], bias="lora_only"))
    merged = ungraft(merge(shake(model)))
    after = attributes(merged)
    assert after.keys() - before.keys() == {f":{CHANGED_WEIGHTS}"}  # the model is no longer the base that was loaded
    different = {name for name in before if before[name] != after[name]}
    assert {name.split(":")[0].rpartition(".")[2] for name in different} == {"c_attn"}
    assert all(name.endswith(("_parameters[weight]", "_parameters[bias]")) for name in different)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("order", ["graft first", "fast paths first"])
def test_the_fast_paths_are_undone_in_either_order(kind: str, order: str):
    model = tiny_model(kind)
    before = attributes(model)
    if order == "graft first":
        graft(model, LoraConfig(r=2))
    use_fast_paths(model)
    fast = attributes(model)
    assert fast != before
    if order != "graft first":
        graft(model, LoraConfig(r=2))
        train_a_step(model)
        ungraft(model)
        assert attributes(model) == fast
    use_plain_paths(model)
    if order == "graft first":
        ungraft(model)
    assert attributes(model) == before
