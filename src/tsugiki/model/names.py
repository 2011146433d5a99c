r"""Names of modules and parameters: selecting them, their blocks, and names that PEFT changes when it loads them.

Adapter files contain regular expressions, and may come from anyone. `([a-z]+)+!` has 2ⁿ ways to match a name of n
letters, and `re` tries one after another. `regex`, which transformers requires, is `re` with a limit of time. It reads
the clock rarely: with 0.05 s, the slowest expressions end after 0.4 s. An ordinary name takes a few microseconds.
"""

import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeAlias, TypeVar

from pydantic import AfterValidator

from tsugiki.errors import TsugikiError, error_text
from tsugiki.model.architectures import model_type

if TYPE_CHECKING:
    from torch import nn


T = TypeVar("T")

Match: TypeAlias = Callable[[str], bool]
"""Returns whether a name or a text matches."""

_SECONDS = 0.05  # for a name, whose length is that of the path of a module
_SEARCH_SECONDS = 1.0  # for a text, which may be a thousand times as long
_MAX_LENGTH = 10_000  # of an expression
_MAX_REPEATS = 100_000
"""Limit on the product of all numbers in braces, because `regex` compiles `(a{90}){90}` as 8,100 letters."""


@lru_cache(maxsize=4096)
def compile_pattern(text: str) -> Match:
    """Return a function that returns whether the whole of a name matches a regular expression.

    A name that takes too long is an error, as are an expression that is none and one that is too long.
    """
    return partial(_in_time, _compile(text).fullmatch, _SECONDS, text)


@lru_cache(maxsize=4096)
def compile_search(text: str) -> Match:
    """Return a function that returns whether a part of a text matches a regular expression (see `compile_pattern`)."""
    return partial(_in_time, _compile(text).search, _SEARCH_SECONDS, text)


class PatternTable(Generic[T]):
    """Values by regular expression. As in PEFT, the first that matches a name, or its end after a dot, is used.

    A key that `name_pattern` returns is found by a dictionary look-up, so a table can have any number of such keys. The
    name of the setting is for messages.
    """

    def __init__(self, setting: str, patterns: Mapping[str, T]) -> None:
        self._names: dict[str, tuple[int, T]] = {}
        self._patterns: list[tuple[int, Match, T]] = []
        for order, (text, value) in enumerate(patterns.items()):
            name = re.sub(r"\\(.)", r"\1", text[1:])
            if name_pattern(name) == text:
                self._names.setdefault(name, (order, value))
                continue
            try:
                compile_pattern(text)
                self._patterns.append((order, compile_pattern(rf"(?:.*\.)?(?:{text})"), value))
            except TsugikiError as error:
                raise TsugikiError(f"{setting}[{_shown(text)}]: {error}") from error

    def look_up(self, name: str, default: T) -> T:
        """Return the value of the first expression that matches `name` or its end after a dot."""
        exact = self._names.get(name)
        for order, matches, value in self._patterns:
            if exact is not None and exact[0] < order:
                break
            if matches(name):
                return value
        return default if exact is None else exact[1]


def name_pattern(name: str) -> str:
    """Return a key for a `PatternTable`, and for PEFT's `rank_pattern`, that matches this name and no other."""
    return f"^{re.escape(name)}"


def _compile(text: str) -> Any:
    import regex  # here, because `tsugiki --help` imports this module

    if len(text) > _MAX_LENGTH:
        raise TsugikiError(
            "the regular expression {pattern} has {count:,} characters, above {longest:,}",
            pattern=_shown(text),
            count=len(text),
            longest=_MAX_LENGTH,
        )
    if math.prod(map(int, re.findall(r"\{(\d+)", text))) > _MAX_REPEATS:
        raise TsugikiError(
            "the regular expression {pattern} repeats too often; use a simpler one, or a list of names",
            pattern=_shown(text),
        )
    try:
        return regex.compile(text)
    except (regex.error, RecursionError) as error:
        raise TsugikiError(
            "{pattern} is not a regular expression: {error}", pattern=_shown(text), error=error
        ) from error


def _in_time(search: Callable[..., object], seconds: float, text: str, name: str) -> bool:
    """Return whether `search`, a method of the compiled `text`, finds a match in `name` within the limit of time."""
    try:
        return search(name, timeout=seconds) is not None
    except TimeoutError as error:
        raise TsugikiError(
            "the regular expression {pattern} takes too long for {name}; use a simpler one",
            pattern=_shown(text),
            name=_shown(name),
        ) from error


def _shown(text: str) -> str:
    return error_text(repr(text), 80)


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
    """Return the endings of the names with the fewest components that end none of `others`; else the whole names."""
    longest = max(name.count(".") for name in names) + 1
    for length in range(1, longest):
        endings = {_ending(name, length) for name in names}
        if endings.isdisjoint(_ending(name, length) for name in others):
            return endings
    return set(names)


def _ending(name: str, length: int) -> str:
    """Return the last components of a name, `length` of them."""
    return ".".join(name.split(".")[-length:])


def split_block(name: str) -> tuple[str, int | None, str]:
    """Split a module's name at the first number in it, which is the index of the block that the module is in.

    `model.layers.3.mlp.up_proj` gives `("model.layers", 3, "mlp.up_proj")`; a name without a number gives
    `("", None, name)`. A later number may be that of an expert.
    """
    parts = name.split(".")
    first = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
    if first is None:
        return "", None, name
    return ".".join(parts[:first]), int(parts[first]), ".".join(parts[first + 1 :])


def named_like_experts(model: "nn.Module", layers: Iterable[str]) -> list[str]:
    """Return the layers that PEFT would take for experts if `target_modules` named them.

    Such layers are stored as `target_parameters`, where PEFT leaves names as they are.

    Models whose experts are one parameter had a layer for each expert in older releases, such as `experts.0.gate_proj`.
    In `target_modules`, PEFT replaces these names, and that of the router, by the parameter's name, even for other
    layers with such names: the gate of an attention, a shared expert, the dense feed-forward network of the first
    block.
    """
    transformers = sys.modules.get("transformers.conversion_mapping")  # no model of transformers without it
    if transformers is None or model_type(model) == "qwen2_moe":  # PEFT makes an exception for this type
        return []
    rules = set(map(_patterns, transformers.get_checkpoint_conversion_mapping(model_type(model)) or []))
    for kind in ("mixtral", "qwen2_moe"):
        rules_of_kind = transformers.get_checkpoint_conversion_mapping(kind)
        merged = {_patterns(rule) for rule in rules_of_kind if hasattr(rule, "operations")}
        if merged <= rules:
            experts = {source.split(".")[-2] for sources, _ in merged for source in sources}
            return [name for name in layers if name.rpartition(".")[2] in experts | {"gate"}]
    return []


def renamed_when_loaded(model: "nn.Module", layers: Iterable[str]) -> list[str]:
    """Return the layers whose factors PEFT drops when it loads them, because a rule for checkpoints renames them again.

    Such a rule is meant for the names of old checkpoints, but matches those of the model, too. PEFT accepts a renaming
    that only removes a prefix.
    """
    rules = [rule for rule in conversion_rules(model) if not hasattr(rule, "operations")]
    changed: dict[str, bool] = {}  # layers that differ in indices alone are renamed alike

    def is_changed(layer: str) -> bool:
        kind = re.sub(r"\d+", "0", layer)
        if kind not in changed:
            renamed = key = f"{layer}.lora_A.weight"
            for rule in rules:
                renamed = rule.rename_source_key(renamed)[0]
            changed[kind] = not key.endswith(renamed)
        return changed[kind]

    return [layer for layer in layers if is_changed(layer)]


def conversion_rules(model: "nn.Module") -> list[Any]:
    """Return transformers' rules for the names of weights of this model; an empty list for other models."""
    conversion = sys.modules.get("transformers.conversion_mapping")  # no model of transformers without it
    if conversion is None or not hasattr(model, "base_model_prefix"):
        return []
    return list(conversion.get_model_conversion_mapping(model))


def _patterns(rule: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the source and the target patterns of transformers' rule for names in checkpoints."""
    return tuple(rule.source_patterns), tuple(rule.target_patterns)
