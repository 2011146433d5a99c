"""A frozen output head multiplies a matrix: torch would copy its weight for each row of a slice otherwise."""

import copy
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.tiny import ids, shake, tiny_model
from tsugiki import LoraConfig, disable_adapter, graft, merge

VOCABULARY = 96


class ElementsOfBatchedProducts(TorchDispatchMode):
    """Records the number of elements of the weights that batched products read."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.bmm.default and VOCABULARY in args[1].shape:
            self.found.append(args[1].numel())
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def batched_head_products(model: Any) -> list[int]:
    with ElementsOfBatchedProducts() as mode:
        model(ids(rows=3), logits_to_keep=1)
    return mode.found


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma3_text"])
def test_the_logits_of_the_last_position_are_one_product(kind: str):
    model = tiny_model(kind).bfloat16()
    base = copy.deepcopy(model)
    base.requires_grad_(False)
    if not batched_head_products(base):
        pytest.skip(f"torch {torch.__version__} does not copy the weight any more")
    graft(model, LoraConfig(r=2))
    assert not batched_head_products(model)
    with disable_adapter(model):
        assert not batched_head_products(model)
    assert not batched_head_products(copy.deepcopy(model))
    merge(shake(model))
    assert not batched_head_products(model)
