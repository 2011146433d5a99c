"""The low-rank products of a layer in a batch whose rows have different adapters.

    y_i += s_i · B_i A_i x_i        for each group i of neighbouring rows with the same pair

`plain_rows` is the definition. `rows_product` computes it for linear layers. If each row has few new tokens, as when
text is generated, a C function reads the factors of each group where they are (`rows_added` of native.c). For more
tokens, the pairs are stacked, with smaller ranks padded with zeros, and multiplied together:

    low = x Aᵀ      y += low (s B)ᵀ

with x [groups, tokens, in], A [groups, r, in], B [groups, out, r] and y [groups, tokens, out].

Nothing is added to rows of the base, so they are bit-identical to the output of the frozen layer. A DoRA pair also
scales its rows by its factor, which is computed once (see `dora`).
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, groupby
from operator import attrgetter, is_
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tsugiki.lora.dora import dora_factor
from tsugiki.lora.frozen_layer import oriented
from tsugiki.lora.layer import Grafted, LoraLinear, activate_factors
from tsugiki.lora.pair import LowRank
from tsugiki.lora.product import FEW_ROWS, NATIVE_RANKS, NATIVE_SIZE
from tsugiki.native import native_for


@dataclass(frozen=True)
class RowPair:
    """A pair as the products use it, in the dtype and on the device of the layer's input."""

    A: Tensor
    """[r, in], contiguous."""
    B: Tensor
    """The transposed B, multiplied by the scaling, [r, out], contiguous."""
    magnitude_delta: Tensor | None
    """DoRA's g - 1, [out]. None without DoRA."""


@dataclass(frozen=True)
class Stack:
    """The pairs of neighbouring groups of rows, stacked; each of the groups has a pair."""

    groups: slice
    A: Tensor
    """[groups, r, in]"""
    B: Tensor
    """[groups, r, out]"""
    magnitude_delta: Tensor | None
    """DoRA's g - 1, [groups, 1, out]; 0 for a pair without DoRA. None if no pair has DoRA."""


@dataclass(frozen=True)
class RowPairs:
    """The pairs of the groups of rows of a layer, prepared for `rows_product`."""

    pairs: Sequence[RowPair | None]
    """The pair of each group; None: the base."""

    @cached_property
    def stacks(self) -> list[Stack]:
        """Each run of groups that have pairs, stacked."""
        stacks = []
        for has_pair, run in groupby(enumerate(self.pairs), lambda numbered: numbered[1] is not None):
            numbers, pairs = zip(*run, strict=True)
            if has_pair:
                stacks.append(_stack(pairs, slice(numbers[0], numbers[-1] + 1)))
        return stacks

    @cached_property
    def table(self) -> Tensor:
        """The address of A, the address of B and the rank of each group, int64 [3, groups]; 0 for the base."""
        values = [(pair.A.data_ptr(), pair.B.data_ptr(), len(pair.A)) if pair else (0, 0, 0) for pair in self.pairs]
        return torch.tensor(values).T.contiguous()

    @cached_property
    def addresses(self) -> tuple[int, ...]:
        """The addresses of the rows of `table`, for the C function."""
        return tuple(row.data_ptr() for row in self.table)

    @cached_property
    def native_size(self) -> int | None:
        """The number of elements of all factors; None if the C function cannot compute a pair, as one with DoRA."""
        found = [pair for pair in self.pairs if pair]
        if any(pair.magnitude_delta is not None or len(pair.A) > NATIVE_RANKS for pair in found):
            return None
        return sum(pair.A.numel() + pair.B.numel() for pair in found)


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


def rows_product(layer: LoraLinear, rows: RowPairs, x: Tensor, y: Tensor) -> Tensor:
    """Compute `plain_rows` for a linear layer, in place in y.

    Args:
        layer: the grafted layer.
        rows: the pairs of the groups of rows, in the dtype of x and y.
        x: the layer's input, [rows, …, in].
        y: the frozen layer's output for x, [rows, …, out], contiguous; overwritten.
    """
    groups, into, out = len(rows.pairs), x.shape[-1], y.shape[-1]
    tokens = x.numel() // (groups * into)
    call = _native_call(rows, x, tokens)
    if call is not None:
        x = x.contiguous()
        call(x.data_ptr(), groups, tokens, into, out, *rows.addresses, y.data_ptr())
        return y
    _add_stacks(layer, rows.stacks, x.reshape(groups, tokens, into), y.view(groups, tokens, out))
    return y


@torch.no_grad()
def _add_stacks(layer: LoraLinear, stacks: Sequence[Stack], inputs: Tensor, outputs: Tensor) -> None:
    """Compute `rows_product` with stacked pairs, for inputs [groups, tokens, in] and outputs [groups, tokens, out]."""
    bias: Tensor | None = layer.base_layer.bias  # type: ignore[assignment]
    for stack in stacks:
        out = outputs[stack.groups]
        low = torch.bmm(inputs[stack.groups], stack.A.transpose(1, 2))
        out.baddbmm_(low, stack.B)
        if stack.magnitude_delta is not None:
            out.addcmul_(out if bias is None else out - bias, stack.magnitude_delta)


def _native_call(rows: RowPairs, x: Tensor, tokens: int) -> Callable[..., None] | None:
    """Return the C function if it is there and faster than torch for `tokens` tokens in each group."""
    size = rows.native_size
    if tokens > FEW_ROWS or size is None:
        return None
    if tokens * size > NATIVE_SIZE and torch.get_num_threads() > 1:  # the C function uses one thread
        return None
    return native_for("rows_added", x)


@torch.no_grad()
def prepare_rows(layer: LoraLinear, pairs: Sequence[LowRank | None], like: Tensor) -> RowPairs:
    """Convert the pairs of the groups of rows to the dtype and the device of `like`."""
    return RowPairs([None if pair is None else _prepare(layer, pair, like) for pair in pairs])


def is_like(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors have the same dtype and device."""
    return one.dtype == other.dtype and one.device == other.device


@dataclass(frozen=True)
class PairsState:
    """The state of some pairs when they were prepared, to detect a change.

    It is checked for every new token, so the check is made of few calls of Python.
    """

    scalings: list[float]
    parameters: list[Tensor | None]
    """All parameters of all pairs."""
    tensors: list[Tensor]
    """The parameters that are not None."""
    addresses: list[int]
    """The addresses of their elements."""
    versioned: list[Tensor]
    """The parameters that count changes in place; tensors that were made in inference mode do not."""
    versions: int
    """The sum of these counts."""

    @staticmethod
    def of(pairs: Sequence[LowRank]) -> "PairsState":
        """Return the present state of these pairs."""
        parameters = _parameters(pairs)
        tensors = [tensor for tensor in parameters if tensor is not None]
        versioned = [tensor for tensor in tensors if not tensor.is_inference()]
        return PairsState(
            [pair.scaling for pair in pairs],
            parameters,
            tensors,
            [*map(Tensor.data_ptr, tensors)],
            versioned,
            sum(map(_version, versioned)),
        )

    def is_present(self, pairs: Sequence[LowRank]) -> bool:
        """Return whether the pairs have not changed."""
        return (
            [pair.scaling for pair in pairs] == self.scalings
            and all(map(is_, _parameters(pairs), self.parameters))
            and sum(map(_version, self.versioned)) == self.versions
            and [*map(Tensor.data_ptr, self.tensors)] == self.addresses
        )


_version = attrgetter("_version")
_prepared: "WeakKeyDictionary[LowRank, tuple[PairsState, RowPair]]" = WeakKeyDictionary()
"""Pairs without DoRA in the dtype of the last input, so that another batch with the same adapters need not convert them
again."""


def _parameters(pairs: Sequence[LowRank]) -> list[Tensor | None]:
    return [*chain.from_iterable([pair._parameters.values() for pair in pairs])]


def _prepare(layer: LoraLinear, pair: LowRank, like: Tensor) -> RowPair:
    if pair.A.device != like.device:
        pair.to(like.device)
    before = _prepared.get(pair)
    if before is not None and is_like(before[1].A, like) and before[0].is_present([pair]):
        return before[1]
    A, B = pair.factors()
    delta = None
    if pair.magnitude is not None:
        delta = (dora_factor(oriented(layer.base_layer), pair) - 1).to(like.dtype)
    prepared = RowPair(A.detach().to(like.dtype).contiguous(), (pair.scaling * B.T).to(like.dtype).contiguous(), delta)
    if delta is None:  # the factor of DoRA depends on the layer's weight as well
        _prepared[pair] = PairsState.of([pair]), prepared
    return prepared


def _stack(pairs: Sequence[RowPair], groups: slice) -> Stack:
    A, B = (pad_sequence(factors, batch_first=True) for factors in ([p.A for p in pairs], [p.B for p in pairs]))
    deltas = [pair.magnitude_delta for pair in pairs]
    delta = None
    if any(one is not None for one in deltas):
        zero = torch.zeros_like(pairs[0].B[0])
        delta = torch.stack([zero if one is None else one for one in deltas])[:, None]
    return Stack(groups, A, B, delta)


def _with_pair(layer: Grafted, pair: LowRank, x: Tensor) -> Tensor:
    """Compute the layer with this pair, on a shallow copy, since other threads may be in the same layer."""
    copied = copy.copy(layer)
    vars(copied)["_modules"] = dict(layer._modules)
    activate_factors(copied, pair)
    y: Tensor = type(layer).forward(copied, x)  # type: ignore[arg-type]
    return y
