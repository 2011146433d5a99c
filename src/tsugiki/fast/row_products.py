"""The low-rank products of a layer in a batch whose rows have different adapters.

    y_i += s_i · B_i A_i x_i        for each group i of neighbouring rows with the same pair

`plain_rows` is the definition. `rows_product` computes it for linear layers. If each group has few new tokens, as when
text is generated, and in one thread also short prompts, a C function reads the factors of each group where they are
(`rows_added` of native.c). For more tokens, the pairs are stacked, with smaller ranks padded with zeros, and multiplied
together:

    low = x Aᵀ      y += low (s B)ᵀ

with x [groups, tokens, in], A [groups, r, in], B [groups, out, r] and y [groups, tokens, out].

Each call reads the factors anew, so a pair may change between two calls in any way: torch does not count the changes
that a fused optimiser or a write through `.data` or NumPy makes. Only DoRA's factor is kept, with copies of the numbers
from which it was computed. Each call also looks up where the factors are, which takes half as long as reading them
(docs/log.md). A server, whose adapters do not change while they are used, does so once for each pair (`known`).

Nothing is added to rows of the base, so they are bit-identical to the output of the frozen layer.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tsugiki.fast.product import FEW_ROWS, NATIVE_RANKS, NATIVE_SIZE
from tsugiki.lora.layer import LoraLinear, activate_factors
from tsugiki.lora.pair import Grafted, LowRank
from tsugiki.lora.variants import dora_factor
from tsugiki.model.linear import oriented
from tsugiki.model.undo import with_modules
from tsugiki.native import can_read, native_for

MOST_WORK = 1024
"""The C function is used up to this number of tokens of a group times the largest rank, in float32 and in one thread.
Above it, torch's products of stacked pairs are as fast (docs/log.md)."""


class Place(NamedTuple):
    """Where the C function finds the factors of a pair."""

    A: int
    """The address of A; 0 for the base."""
    B: int
    r: int
    scaling: float
    fits: bool
    """Whether the C function can read the factors."""


@dataclass(frozen=True)
class Places:
    """Where the C function finds the factors of the groups of rows."""

    state: list[float]
    """The addresses, the sizes and the scalings of the factors for which the table was made."""
    table: bytes
    """The address of A, the address of B, the rank and the scaling of each group, [4, groups]; 0 for the base."""
    size: int | None
    """The number of elements of all factors; None if the C function cannot read one of them."""
    rank: int
    """The largest rank."""


@dataclass
class RowPairs:
    """The pairs of the groups of rows of a layer."""

    pairs: Sequence[LowRank | None]
    """The pair of each group of neighbouring rows, all of the same size; None: the base."""
    known: dict[LowRank, Place] | None = None
    """A cache from a pair to the addresses of its factors; None: they are looked up in each call. The tensors and the
    scalings of cached pairs must not change."""
    distinct: list[LowRank] = field(init=False)
    """The pairs, each once."""
    with_dora: list[tuple[int, LowRank]] = field(init=False)
    """The groups whose pairs have DoRA."""
    places: Places | None = None
    """Where the factors were in the last call of the C function."""
    excesses: dict[LowRank, tuple[list[Tensor], Tensor]] = field(default_factory=dict)
    """Of each pair with DoRA: copies of its parameters, and g - 1 for these, [out]."""

    def __post_init__(self) -> None:
        self.distinct = list(dict.fromkeys(pair for pair in self.pairs if pair is not None))
        dora = {pair for pair in self.distinct if pair._parameters["magnitude"] is not None}
        self.with_dora = [(group, pair) for group, pair in enumerate(self.pairs) if pair in dora]


@torch.no_grad()
def plain_rows(layer: Grafted, pairs: Sequence[LowRank | None], x: Tensor, y: Tensor) -> Tensor:
    """Compute each group of rows with its pair, by the definition, in evaluation mode.

    All groups of neighbouring rows of the input x [rows, …] have the same size; a pair of None stands for the base. y
    is the frozen layer's output for x, [rows, …].
    """
    groups = zip(pairs, x.chunk(len(pairs)), y.chunk(len(pairs)), strict=True)
    return torch.cat([base_rows if pair is None else _with_pair(layer, pair, rows) for pair, rows, base_rows in groups])


def rows_product(layer: LoraLinear, rows: RowPairs, x: Tensor, y: Tensor) -> Tensor:
    """Compute `plain_rows` for a linear layer, x [rows, …, in], in place in y.

    y [rows, …, out] has the dtype of x and is contiguous.
    """
    groups, into, out = len(rows.pairs), x.shape[-1], y.shape[-1]
    tokens = x.numel() // (groups * into)
    short_prompt = tokens <= MOST_WORK and x.dtype == torch.float32 and torch.get_num_threads() == 1
    call = native_for("rows_added", x) if tokens <= FEW_ROWS or short_prompt else None
    places = _find_places(rows, into, out) if call else None
    if call and places and _is_faster(places, tokens):
        x = x.contiguous()
        call(x.data_ptr(), groups, tokens, into, out, places.table, y.data_ptr())
    else:
        _add_stacks(rows.pairs, x.reshape(groups, tokens, into), y.view(groups, tokens, out))
    if rows.with_dora:
        _rescale(layer, rows, y)
    return y


def _find_places(rows: RowPairs, into: int, out: int) -> Places:
    """Return where the factors are now.

    This runs for each layer and each token, so the comparison with the last call is made of few calls of Python.
    """
    if rows.known is not None:
        return rows.places or _tabulate(rows, rows.known, [], into, out)
    parameters = [pair._parameters for pair in rows.distinct]
    factors: list[Any] = [of_pair[name] for of_pair in parameters for name in ("A", "B")]
    state = [*map(Tensor.data_ptr, factors), *map(_nbytes, factors), *[pair.scaling for pair in rows.distinct]]
    if rows.places is not None and rows.places.state == state:
        return rows.places
    return _tabulate(rows, {}, state, into, out)


def _tabulate(rows: RowPairs, known: dict[LowRank, Place], state: list[float], into: int, out: int) -> Places:
    """Look up the factors of pairs that are not in `known`, and write the table of all groups for the C function."""
    for pair in rows.distinct:
        if pair not in known:
            known[pair] = _place(pair, into, out)
    places = [_BASE if pair is None else known[pair] for pair in rows.pairs]
    A, B, ranks, scalings, fits = zip(*places, strict=True)
    table = struct.pack(f"={3 * len(places)}q{len(places)}d", *A, *B, *ranks, *scalings)
    rows.places = Places(state, table, sum(ranks) * (into + out) if all(fits) else None, max(ranks))
    return rows.places


_BASE = Place(0, 0, 0, 0.0, True)


def _place(pair: LowRank, into: int, out: int) -> Place:
    A, B, r = pair.A, pair.B, len(pair.A)
    fits = can_read(A, torch.float32, r, into) and can_read(B, torch.float32, out, r) and r <= NATIVE_RANKS
    is_sum = pair.A0 is not None  # PiSSA's factors are sums
    return Place(A.data_ptr(), B.data_ptr(), r, pair.scaling, fits and not is_sum)


_nbytes = attrgetter("nbytes")


def _is_faster(places: Places, tokens: int) -> bool:
    """Return whether the C function, which uses one thread, can be used and is not slower than torch."""
    if places.size is None:
        return False
    if torch.get_num_threads() > 1:
        return tokens * places.size <= NATIVE_SIZE
    return tokens <= FEW_ROWS or tokens * places.rank <= MOST_WORK


@torch.no_grad()
def _add_stacks(pairs: Sequence[LowRank | None], inputs: Tensor, outputs: Tensor) -> None:
    """Add the low-rank products of stacked pairs, for inputs [groups, tokens, in] and outputs [groups, tokens, out]."""
    for has_pair, run in groupby(enumerate(pairs), lambda numbered: numbered[1] is not None):
        numbers, found = zip(*run, strict=True)
        if has_pair:
            groups = slice(numbers[0], numbers[-1] + 1)
            A, B = _stack(found, inputs)
            outputs[groups].baddbmm_(torch.bmm(inputs[groups], A.mT), B)


def _stack(pairs: Sequence[LowRank], like: Tensor) -> tuple[Tensor, Tensor]:
    """Return A [groups, r, in] and s Bᵀ [groups, r, out], in the dtype of `like` and on its device."""
    for pair in pairs:
        if pair.A.device != like.device:
            pair.to(like.device)
    factors = [pair.factors() for pair in pairs]
    scaled: Sequence[Tensor] = torch._foreach_mul([B.T for _, B in factors], [pair.scaling for pair in pairs])
    stacked = []
    for each in ([A for A, _ in factors], scaled):
        same = all(len(factor) == len(each[0]) for factor in each)
        stacked.append((torch.stack([*each]) if same else pad_sequence([*each], batch_first=True)).to(like.dtype))
    return stacked[0], stacked[1]


@torch.no_grad()
def _rescale(layer: LoraLinear, rows: RowPairs, y: Tensor) -> None:
    """Multiply the rows of pairs with DoRA by g, which is computed again if a number of the pair has changed."""
    bias: Tensor | None = layer.base_layer.bias
    groups = y.chunk(len(rows.pairs))
    for group, pair in rows.with_dora:
        values = [parameter for parameter in pair._parameters.values() if parameter is not None]
        copies, excess = rows.excesses.get(pair, (None, y))
        is_like = excess.dtype == y.dtype and excess.device == y.device
        if copies is None or not is_like or not all(map(torch.equal, values, copies)):
            excess = (dora_factor(oriented(layer.base_layer), pair) - 1).to(y.dtype)
            rows.excesses[pair] = [value.clone() for value in values], excess
        adapted = groups[group]
        adapted.addcmul_(adapted if bias is None else adapted - bias, excess)


def _with_pair(layer: Grafted, pair: LowRank, x: Tensor) -> Tensor:
    """Compute the layer with this pair, on a shallow copy, since other threads may be in the same layer."""
    copied = with_modules(layer, {})
    activate_factors(copied, pair)
    y: Tensor = type(layer).forward(copied, x)
    return y
