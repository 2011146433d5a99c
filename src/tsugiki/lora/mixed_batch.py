"""A batch in which each row has its own adapter.

    with mixed_batch(model, ["poet", "lawyer", None]):     # None, or PEFT's "__base__", selects the base
        model.generate(**three_prompts)

Row i of a linear layer is  y_i = W x_i + b + s_i · B_i A_i x_i.  The frozen product is computed once for the whole
batch. So is the low-rank part, with the rows' pairs stacked and smaller ranks padded with zeros:

    low = x Aᵀ      y += low (s B)ᵀ

with x [rows, tokens, in], A [rows, r, in], B [rows, out, r] and y [rows, tokens, out].
Neighbouring rows with the same adapter share a pair. Nothing is added to rows of the base, so they are bit-identical
to the output of the frozen layer. A DoRA pair also scales its rows by its factor, which is computed once (see `dora`).

`plain_rows` is the definition; it also computes embeddings and convolutions.

All of this requires that each layer gets the rows in the order of the batch: [rows, tokens, in], or with rows and
tokens in one dimension. A few models (XLNet) compute with [tokens, rows, width]. A forward pass of two rows of three
tokens shows which order a layer has.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from math import gcd
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tsugiki.errors import TsugikiError
from tsugiki.language import _
from tsugiki.lora.adapter import LoraAdapter
from tsugiki.lora.dora import dora_factor
from tsugiki.lora.frozen_layer import is_hooked, oriented
from tsugiki.lora.graft import BASE_ROW
from tsugiki.lora.graft_state import Graft, find_adapter, require_state
from tsugiki.lora.layer import Grafted, LoraLinear, activate_factors
from tsugiki.lora.pair import LowRank
from tsugiki.lora.swap import Undo, replace_forward
from tsugiki.lora.switch import detach_adapter, disable_adapter
from tsugiki.lora.wrappers import unwrapped

_ROWS, _TOKENS = 2, 3  # of the forward pass that shows the order


@contextmanager
def mixed_batch(model: nn.Module, adapter_names: Sequence[str | None]) -> Iterator[None]:
    """Within the `with` block, row i of a batch is computed with the LoRA adapter called `adapter_names[i]`.

    This is for inference: nothing trains, and the model must be in evaluation mode. In a batch of n · k rows, as for
    beam search and `num_return_sequences`, each of n names selects the adapter of k neighbouring rows. Within the block
    no adapter can be added, removed or activated. After the block, the adapter that was active before is active again.
    A deep copy of the model that is made within the block computes with these rows until it is ungrafted.

    Args:
        model: a grafted model.
        adapter_names: names of LoRA adapters in the model; None or "__base__" for a row of the base.

    Raises:
        TsugikiError: there is no adapter of that name, it is not a LoRA adapter or trains more than pairs, an adapter
            is merged, another thread is in such a block, or a layer does not get the rows in the order of the batch.
            Within the block: the batch has another number of rows, the model is in training mode, gradients are
            recorded, or another thread calls the model.
    """
    model = unwrapped(model)
    rows = _mixed_rows(model, adapter_names)
    state = require_state(model)
    outer = state.mixed_rows
    with disable_adapter(model):
        _check_order_of_rows(model, state, rows)
        try:
            state.mixed_rows = rows
            rows.attach(state.attached)
            yield
        finally:
            detach_adapter(state)
            state.mixed_rows = outer


@dataclass(frozen=True)
class RowAdapters:
    """The grafted layers of a model, each with the pairs of the rows."""

    layers: list[tuple[Grafted, "LayerRowAdapters"]]

    def attach(self, undo: list[Undo]) -> None:
        """Let the layers compute each row with its pair; what undoes that is appended to `undo`."""
        for layer, rows in self.layers:
            replace_forward(layer, partial(_forward, layer, rows), undo)


@dataclass
class LayerRowAdapters:
    """The pairs that the rows of a batch use in one layer."""

    path: str
    names: int
    """The number of names that were given."""
    pairs: list[LowRank | None]
    """The pair of each group of neighbouring rows, all of the same size; None: the base."""
    thread: int = field(default_factory=get_ident)
    """The thread that is in the block."""
    stacks: list["Stack"] = field(default_factory=list)
    """The pairs of all groups that have one; stacked at the first use, in the dtype that is used then."""
    versions: list[Any] = field(default_factory=list)
    """What the pairs were when they were stacked."""


@dataclass(frozen=True)
class Stack:
    """The pairs of neighbouring groups of rows, stacked; each of the groups has a pair."""

    groups: slice
    A: Tensor
    """[groups, r, in]"""
    B: Tensor
    """The transposed B, multiplied by the scaling, [groups, r, out]."""
    magnitude_delta: Tensor | None
    """DoRA's g - 1, [groups, 1, out]; 0 for a pair without DoRA. None if no pair has DoRA."""


@torch.no_grad()
def plain_rows(layer: Grafted, pairs: Sequence[LowRank | None], x: Tensor, y: Tensor) -> Tensor:
    """Compute each group of rows with its pair, by the definition.

    Args:
        layer: a grafted layer, in evaluation mode.
        pairs: the pair of each group of neighbouring rows, all of the same size; None: the base.
        x: the layer's input, [rows, …].
        y: the frozen layer's output for x, [rows, …].
    """
    groups = zip(pairs, x.chunk(len(pairs)), y.chunk(len(pairs)), strict=True)
    return torch.cat([base_rows if pair is None else _with_pair(layer, pair, rows) for pair, rows, base_rows in groups])


def rows_product(layer: LoraLinear, stacks: Sequence[Stack], groups: int, x: Tensor, y: Tensor) -> Tensor:
    """Compute `plain_rows` for a linear layer, in place in y.

    Args:
        layer: the grafted layer.
        stacks: the pairs of the groups, in the dtype of x and y.
        groups: the number of groups of rows, including those of the base.
        x: the layer's input, [rows, …, in].
        y: the frozen layer's output for x, [rows, …, out]; overwritten.
    """
    inputs, outputs = x.reshape(groups, -1, x.shape[-1]), y.view(groups, -1, y.shape[-1])
    bias: Tensor | None = layer.base_layer.bias  # type: ignore[assignment]
    for stack in stacks:
        out = outputs[stack.groups]
        low = torch.bmm(inputs[stack.groups], stack.A.transpose(1, 2))
        out.baddbmm_(low, stack.B)
        if stack.magnitude_delta is not None:
            out.addcmul_(out if bias is None else out - bias, stack.magnitude_delta)
    return y


def _mixed_rows(model: nn.Module, adapter_names: Sequence[str | None]) -> RowAdapters:
    names = [None if name == BASE_ROW else name for name in adapter_names]
    if isinstance(adapter_names, str) or not names or not all(isinstance(name, str | None) for name in names):
        raise TsugikiError(
            _("adapter_names is {adapter_names!r}; give a list with a name or None for each row of the batch").format(
                adapter_names=adapter_names
            )
        )
    adapters = {name: _find_lora_adapter(model, name) for name in names if name is not None}
    neighbours = gcd(*(len(list(run)) for _, run in groupby(names)))
    groups = [None if name is None else adapters[name] for name in names[::neighbours]]
    layers = []
    for path in dict.fromkeys(path for adapter in adapters.values() for path in adapter.pairs):
        if "experts" in path.split("."):
            raise TsugikiError(
                _(
                    "{path} belongs to one of several experts, which get tokens of several rows mixed; a mixed "
                    "batch is not possible with adapters on experts"
                ).format(path=path)
            )
        layer: Any = model.get_submodule(path)
        pairs = [None if adapter is None else adapter.pairs.get(path) for adapter in groups]
        layers.append((layer, LayerRowAdapters(path, len(names), pairs)))
    return RowAdapters(layers)


def _find_lora_adapter(model: nn.Module, name: str) -> LoraAdapter:
    adapter = find_adapter(model, name)
    if not isinstance(adapter, LoraAdapter):
        kind = type(adapter.config).__name__
        raise TsugikiError(
            _(
                "{name!r} is not a LoRA adapter ({kind}) and cannot be used for single rows; set_adapter activates "
                "it for the whole batch"
            ).format(name=name, kind=kind)
        )
    experts = list(adapter.parameter_pairs)
    if experts:
        raise TsugikiError(
            _(
                "{name!r} adapts {path} ({count} such), which gets the tokens of all rows together, so it cannot "
                "be used for single rows; set_adapter activates it for the whole batch"
            ).format(name=name, path=experts[0], count=len(experts))
        )
    copies = adapter.others
    if copies:
        raise TsugikiError(
            _(
                "{name!r} has a copy of {path} ({count} such), which cannot be used for single rows; set_adapter "
                "activates it for the whole batch"
            ).format(name=name, path=copies[0], count=len(copies))
        )
    return adapter


def _forward(layer: Grafted, rows: LayerRowAdapters, x: Tensor) -> Tensor:
    """Replace the layer's own `forward` within a mixed batch."""
    if not torch.compiler.is_compiling() and get_ident() != rows.thread:
        raise TsugikiError(
            _(
                "another thread is in a `mixed_batch` block of this model, whose adapters this call would get; "
                "wait until it has left the block (threading.Lock), or give each thread a copy of the model"
            )
        )
    if layer.training:
        raise TsugikiError(_("a mixed batch is for inference, but the model is in training mode; call model.eval()"))
    if len(x) % rows.names:
        raise TsugikiError(
            _(
                "{path} got {rows} rows, but {names} adapter names were given; give a name for each row of the batch"
            ).format(path=rows.path, rows=len(x), names=rows.names)
        )
    y: Tensor = layer.base_layer(x)
    if y.requires_grad:
        raise TsugikiError(_("a mixed batch is for inference, but gradients are recorded; use torch.no_grad()"))
    compiling = torch.compiler.is_compiling()  # a compiler fuses the definition itself
    if compiling or not isinstance(layer, LoraLinear) or not layer.fused or x.dtype != y.dtype:
        return plain_rows(layer, rows.pairs, x, y)
    if is_hooked(layer.base_layer):
        return plain_rows(layer, rows.pairs, x, y)
    versions = [x.dtype, x.device, *map(_version, rows.pairs)]
    if versions != rows.versions:
        rows.stacks, rows.versions = _stacks(layer, rows.pairs, x), versions
    return rows_product(layer, rows.stacks, len(rows.pairs), x, y.contiguous())


def _version(pair: LowRank | None) -> Any:
    """Return what changes if the values of a pair change."""
    if pair is None:
        return None
    tensors = [tensor for tensor in pair._parameters.values() if tensor is not None]
    return pair.scaling, [(one.data_ptr(), 0 if one.is_inference() else one._version) for one in tensors]


@torch.no_grad()
def _check_order_of_rows(model: Any, state: Graft, rows: RowAdapters) -> None:
    """Check once for each layer that it gets the rows in the order of the batch; other models than of text pass.

    The sizes of the first dimension tell: two rows of three tokens are [2, …], or [6, …] with both in one dimension.
    """
    unknown = {its.path: layer for layer, its in rows.layers if its.path not in state.in_order}
    if not unknown or not hasattr(getattr(model, "config", None), "vocab_size"):
        return
    sizes: dict[str, int] = {}
    hooks = [layer.register_forward_pre_hook(partial(_note_size, sizes, path)) for path, layer in unknown.items()]
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        model(input_ids=torch.zeros(_ROWS, _TOKENS, dtype=torch.long, device=model.device))
    except Exception:  # the model needs other inputs, so that no text is computed with it
        return
    finally:
        for module, training in modes:
            module.training = training
        for hook in hooks:
            hook.remove()
    wrong = [path for path, size in sizes.items() if size not in (_ROWS, _ROWS * _TOKENS)]
    if wrong:
        raise TsugikiError(
            _(
                "{path} gets the tokens before the rows of the batch, so rows cannot have adapters of their own; "
                "use set_adapter"
            ).format(path=wrong[0])
        )
    state.in_order |= unknown.keys()


def _note_size(sizes: dict[str, int], path: str, layer: nn.Module, args: tuple[Any, ...]) -> None:
    sizes[path] = len(args[0])


def _with_pair(layer: Grafted, pair: LowRank, x: Tensor) -> Tensor:
    """Compute the layer with this pair, on a shallow copy, since other threads may be in the same layer."""
    copied = copy.copy(layer)
    vars(copied)["_modules"] = dict(layer._modules)
    activate_factors(copied, pair)
    y: Tensor = type(layer).forward(copied, x)  # type: ignore[arg-type]
    return y


@torch.no_grad()
def _stacks(layer: LoraLinear, pairs: Sequence[LowRank | None], like: Tensor) -> list[Stack]:
    """Stack each run of groups that have pairs, in the dtype and on the device of `like`."""
    stacks, start = [], 0
    for has_pair, run in groupby(pairs, lambda pair: pair is not None):
        pairs_of_run = list(run)
        groups = slice(start, start := start + len(pairs_of_run))
        if has_pair:
            stacks.append(_stack(layer, pairs_of_run, groups, like))  # type: ignore[arg-type]
    return stacks


def _stack(layer: LoraLinear, pairs: Sequence[LowRank], groups: slice, like: Tensor) -> Stack:
    for pair in pairs:
        if pair.A.device != like.device:
            pair.to(like.device)
    factors = [pair.factors() for pair in pairs]
    A = pad_sequence([A for A, _ in factors], batch_first=True)
    B = pad_sequence([pair.scaling * B.T for pair, (_, B) in zip(pairs, factors, strict=True)], batch_first=True)
    delta = None
    if any(pair.magnitude is not None for pair in pairs):
        weight = oriented(layer.base_layer)
        one = torch.ones(len(weight), device=like.device)
        delta = torch.stack([one if pair.magnitude is None else dora_factor(weight, pair) for pair in pairs]) - 1
        delta = delta[:, None].to(like.dtype)
    return Stack(groups, A.to(like.dtype), B.to(like.dtype), delta)
