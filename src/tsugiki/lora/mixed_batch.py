"""One batch in which each row has an adapter of its own.

    with mixed_batch(model, ["poet", "lawyer", None]):     # None, or PEFT's "__base__": a row of the base
        model.generate(**three_prompts)

Of a linear layer, row i is  y_i = W x_i + b + s_i · B_i A_i x_i.  The frozen product is one for the whole batch, and so
is the rest, with the rows' pairs one behind another, the smaller ranks filled up with zeros:

    low = x Aᵀ      y += low (s B)ᵀ

with x [rows, tokens, in], A [rows, r, in], B [rows, out, r] and y [rows, tokens, out].
Neighbouring rows of one adapter share a pair. Rows of the base are what the frozen layer made of them, to the bit:
nothing is added to them. A DoRA pair then rescales its rows by its factor, which is found once (see `dora`).

`plain_rows` is the definition, and what computes embeddings and convolutions.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tsugiki.errors import TsugikiError
from tsugiki.lora.adapter import LoraAdapter
from tsugiki.lora.dora import dora_factor
from tsugiki.lora.frozen_layer import is_hooked, oriented
from tsugiki.lora.graft import BASE_ROW, detach_adapter, disable_adapter, find_adapter, require_state
from tsugiki.lora.layer import Grafted, LoraLinear, activate_factors
from tsugiki.lora.pair import LowRank
from tsugiki.lora.swap import Undo, replace_forward


@contextmanager
def mixed_batch(model: nn.Module, adapter_names: Sequence[str | None]) -> Iterator[None]:
    """Within the `with` block row i of a batch is computed with the LoRA adapter called `adapter_names[i]`.

    For inference: nothing trains, and the model is in evaluation mode. A batch of n · k rows, as of beams and
    `num_return_sequences`, gives each of n names k neighbouring rows. Which adapters the model holds, and which is
    active, cannot be changed within the block; after it the active one is what it was. A deep copy of the model that is
    made within the block stays in it until `ungraft`.

    Args:
        model: any grafted model; whatever of it is grafted must see the rows in the order of the batch.
        adapter_names: of loaded LoRA adapters; None or "__base__" for a row of the base, to the last bit.

    Raises:
        TsugikiError: a name that is not loaded, an adapter that is no LoRA or trains more than pairs, or one is
            merged. Within the block: a batch of another number of rows, training mode, or gradients.
    """
    rows = _mixed_rows(model, adapter_names)
    state = require_state(model)
    around = state.mixed_rows
    with disable_adapter(model):
        state.mixed_rows, state.attached = rows, rows.attach()
        try:
            yield
        finally:
            detach_adapter(state)
            state.mixed_rows = around


@dataclass(frozen=True)
class RowAdapters:
    """The grafted layers of a model, and what the rows bring to each."""

    layers: list[tuple[Grafted, "LayerRowAdapters"]]

    def attach(self) -> list[Undo]:
        """Let the layers compute row by row; returns what lets them compute as before."""
        return [replace_forward(layer, partial(_forward, layer, rows)) for layer, rows in self.layers]


@dataclass
class LayerRowAdapters:
    """What the rows of a batch bring to one layer."""

    path: str
    names: int
    """How many rows were named."""
    pairs: list[LowRank | None]
    """Of groups of as many neighbouring rows each; None: of the base."""
    stacks: list["Stack"] = field(default_factory=list)
    """Of all groups that have a pair; made when first used, in the types that are used."""


@dataclass(frozen=True)
class Stack:
    """The pairs of neighbouring groups, all of which have one."""

    groups: slice
    A: Tensor
    """[groups, r, in]"""
    B: Tensor
    """Times the scaling, [groups, r, out]."""
    stretch: Tensor | None
    """DoRA's g - 1, [groups, 1, out]; 0 for a pair without. None: no pair has one."""


@torch.no_grad()
def plain_rows(layer: Grafted, pairs: Sequence[LowRank | None], x: Tensor, y: Tensor) -> Tensor:
    """The definition: each group of rows through the layer with its own pair.

    Args:
        layer: a grafted layer, in evaluation mode.
        pairs: of groups of as many neighbouring rows each; None: of the base.
        x: [rows, …], what the layer is given.
        y: [rows, …], what its base makes of x.
    """
    parts = zip(pairs, x.chunk(len(pairs)), y.chunk(len(pairs)), strict=True)
    return torch.cat([of_base if pair is None else _alone(layer, pair, given) for pair, given, of_base in parts])


def rows_product(layer: LoraLinear, stacks: Sequence[Stack], groups: int, x: Tensor, y: Tensor) -> Tensor:
    """`plain_rows` of a linear layer, in place in y.

    Args:
        layer: the grafted layer.
        stacks: the pairs of the groups, in the dtype of x and y.
        groups: how many there are, with those of the base.
        x: [rows, …, in].
        y: [rows, …, out], what the base makes of x, and nobody else holds.
    """
    given, made = x.reshape(groups, -1, x.shape[-1]), y.view(groups, -1, y.shape[-1])
    bias: Tensor | None = layer.base_layer.bias  # type: ignore[assignment]
    for stack in stacks:
        own = made[stack.groups]
        low = torch.bmm(given[stack.groups], stack.A.transpose(1, 2))
        own.baddbmm_(low, stack.B)
        if stack.stretch is not None:
            own.addcmul_(own if bias is None else own - bias, stack.stretch)
    return y


def _mixed_rows(model: nn.Module, adapter_names: Sequence[str | None]) -> RowAdapters:
    names = [None if name == BASE_ROW else name for name in adapter_names]
    if isinstance(adapter_names, str) or not names or not all(isinstance(name, str | None) for name in names):
        raise TsugikiError(
            f"adapter_names is {adapter_names!r}; it is a list of a name or None for each row of the batch"
        )
    adapters = {name: _lora_called(model, name) for name in names if name is not None}
    neighbours = gcd(*(len(list(run)) for _, run in groupby(names)))
    groups = [None if name is None else adapters[name] for name in names[::neighbours]]
    layers = []
    for path in dict.fromkeys(path for adapter in adapters.values() for path in adapter.pairs):
        if "experts" in path.split("."):
            raise TsugikiError(f"{path} is one of several experts, which cannot tell whose tokens they are given")
        layer: Any = model.get_submodule(path)
        pairs = [None if adapter is None else adapter.pairs.get(path) for adapter in groups]
        layers.append((layer, LayerRowAdapters(path, len(names), pairs)))
    return RowAdapters(layers)


def _lora_called(model: nn.Module, name: str) -> LoraAdapter:
    adapter = find_adapter(model, name)
    if not isinstance(adapter, LoraAdapter):
        kind = type(adapter.config).__name__
        raise TsugikiError(f"{name!r} is no LoRA ({kind}), and cannot have rows of a batch; set_adapter activates it")
    more = [*adapter.modules, *adapter.biases]
    if more:
        raise TsugikiError(
            f"{name!r} trains {more[0]} whole ({len(more)} such), which a batch has only once; set_adapter activates it"
        )
    return adapter


def _forward(layer: Grafted, rows: LayerRowAdapters, x: Tensor) -> Tensor:
    """In place of the layer's own."""
    if layer.training:
        raise TsugikiError("a mixed batch is for inference, and the model is in training mode; use model.eval()")
    if len(x) % rows.names:
        raise TsugikiError(
            f"the batch has {len(x)} rows where {rows.path} sees it, and {rows.names} adapter names were given; "
            "give a name for each row"
        )
    y: Tensor = layer.base_layer(x)
    if y.requires_grad:
        raise TsugikiError("a mixed batch is for inference, and gradients are asked for; use torch.no_grad()")
    if not isinstance(layer, LoraLinear) or not layer.fused or x.dtype != y.dtype or is_hooked(layer.base_layer):
        return plain_rows(layer, rows.pairs, x, y)
    if not rows.stacks or rows.stacks[0].A.dtype != x.dtype or rows.stacks[0].A.device != x.device:
        rows.stacks = _stacks(layer, rows.pairs, x)
    return rows_product(layer, rows.stacks, len(rows.pairs), x, y.contiguous())


def _alone(layer: Grafted, pair: LowRank, x: Tensor) -> Tensor:
    """What the layer makes of x with this pair; on a shallow copy, since other threads may be in the same layer."""
    seen = copy.copy(layer)
    vars(seen)["_modules"] = dict(layer._modules)
    activate_factors(seen, pair)
    y: Tensor = type(layer).forward(seen, x)  # type: ignore[arg-type]
    return y


@torch.no_grad()
def _stacks(layer: LoraLinear, pairs: Sequence[LowRank | None], like: Tensor) -> list[Stack]:
    """Those of every run of groups that have pairs, in the dtype and on the device of `like`."""
    stacks, start = [], 0
    for has_pair, run in groupby(pairs, lambda pair: pair is not None):
        here = list(run)
        groups = slice(start, start := start + len(here))
        if has_pair:
            stacks.append(_stack(layer, here, groups, like))  # type: ignore[arg-type]
    return stacks


def _stack(layer: LoraLinear, pairs: Sequence[LowRank], groups: slice, like: Tensor) -> Stack:
    for pair in pairs:
        if pair.A.device != like.device:
            pair.to(like.device)
    factors = [pair.factors() for pair in pairs]
    A = pad_sequence([A for A, _ in factors], batch_first=True)
    B = pad_sequence([pair.scaling * B.T for pair, (_, B) in zip(pairs, factors, strict=True)], batch_first=True)
    stretch = None
    if any(pair.magnitude is not None for pair in pairs):
        weight = oriented(layer.base_layer)
        none = torch.ones(len(weight), device=like.device)
        stretch = torch.stack([none if pair.magnitude is None else dora_factor(weight, pair) for pair in pairs]) - 1
        stretch = stretch[:, None].to(like.dtype)
    return Stack(groups, A.to(like.dtype), B.to(like.dtype), stretch)
