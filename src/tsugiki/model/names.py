"""Names of modules and parameters: selecting them by settings, and finding the block that a name is in."""

from collections.abc import Iterable, Sequence
from typing import Annotated, TypeAlias

from pydantic import AfterValidator

from tsugiki.errors import TsugikiError
from tsugiki.model.patterns import compile_pattern


def _checked(value: Sequence[str] | str) -> Sequence[str] | str:
    """Return a setting's value, if it is a list or a regular expression."""
    if isinstance(value, str):
        try:
            compile_pattern(value)
        except TsugikiError as error:
            raise ValueError(str(error)) from error  # pydantic adds the name of the setting
    return value


Names: TypeAlias = Annotated[Sequence[str] | str, AfterValidator(_checked)]
"""A selection of names: a list of names or name endings, or one regular expression for the whole name."""


def matches(name: str, wanted: Names) -> bool:
    """Return whether `wanted` selects `name`.

    A list selects a name that is equal to one of its entries, or that ends with a dot and one of them: `c_attn` selects
    `transformer.h.0.attn.c_attn`. A string is a regular expression that must match the whole name.

    Raises:
        TsugikiError: it is not a regular expression, or takes too long (see `model.patterns`).
    """
    if isinstance(wanted, str):
        return compile_pattern(wanted)(name)
    return any(name == ending or name.endswith(f".{ending}") for ending in wanted)


def shortest_endings(names: Iterable[str], others: Iterable[str]) -> list[str]:
    """Return a short list that selects `names` and none of `others`.

    Names with the same last component are shortened to as few components as end none of `others`.
    """
    by_last: dict[str, list[str]] = {}
    for name in names:
        by_last.setdefault(name.rpartition(".")[2], []).append(name)
    similar: dict[str, list[str]] = {last: [] for last in by_last}
    for name in others:
        similar.get(name.rpartition(".")[2], []).append(name)
    return sorted(ending for last, own in by_last.items() for ending in _shorten(own, similar[last]))


def _shorten(names: list[str], others: list[str]) -> set[str]:
    longest = max(name.count(".") for name in names) + 1
    for length in range(1, longest):
        endings = {".".join(name.split(".")[-length:]) for name in names}
        if endings.isdisjoint(".".join(name.split(".")[-length:]) for name in others):
            return endings
    return set(names)


def split_block(name: str) -> tuple[str, int | None, str]:
    """Split a module's name at the first number in it, which is the index of the block that the module is in.

    `model.layers.3.mlp.up_proj` gives `("model.layers", 3, "mlp.up_proj")`. A later number may be that of an expert.

    Returns:
        The path of the list of blocks, the index, and the module's name inside the block. Without a number in the
        name: `("", None, name)`.
    """
    parts = name.split(".")
    first = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
    if first is None:
        return "", None, name
    return ".".join(parts[:first]), int(parts[first]), ".".join(parts[first + 1 :])
