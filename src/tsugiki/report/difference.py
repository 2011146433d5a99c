"""Two adapters beside each other, for `tsugiki adapters diff`."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tsugiki.adapters.algebra.difference import Difference, compare_layers, compare_tensors, overall, same_tensors
from tsugiki.adapters.format import not_finite, read_adapter_config, read_weights
from tsugiki.adapters.info import AdapterInfo, read_adapter_info
from tsugiki.adapters.lora_weights import LoraWeights, read_lora_weights
from tsugiki.errors import TsugikiError, summarise_list
from tsugiki.io.json import value_text
from tsugiki.lora.config import LoraConfig
from tsugiki.methods.method import PREFIX
from tsugiki.report.formatting import Table, figure
from tsugiki.report.layers import block_order
from tsugiki.report.library import ranks_text

_ROUNDING = 1e-6  # of a norm, below which two are one
_DORA = (
    "one is DoRA: what it changes depends on the base's weights too, and its low-rank parts and lengths are compared "
    "each by itself"
)


@dataclass(frozen=True)
class Comparison:
    """What is different between two adapters."""

    settings: Table
    """Those that differ."""
    matrices: Table
    """A row for each layer and each other tensor, and for all of them together."""
    notes: Sequence[str]


def compare_adapters(first: Path, second: Path) -> Comparison:
    """Read two adapters whole and compare them; ranks and bases may differ.

    Raises:
        TsugikiError: one is no adapter, or is broken.
    """
    folders = (first, second)
    facts, configs = [read_adapter_info(one) for one in folders], [read_adapter_config(one) for one in folders]
    settings = _settings(facts, configs)
    notes = _about_bases(*(one.base for one in facts))
    stored = [_finite(one) for one in folders]
    if type(configs[0]) is not type(configs[1]):
        notes.append("the methods differ, and with them what their tensors mean: these are not compared")
        return Comparison(settings, _table([]), notes)
    if isinstance(configs[0], LoraConfig):
        one, other = (read_lora_weights(folder) for folder in folders)
        differences = compare_layers(one.layers, other.layers)
        differences += compare_tensors(_no_pairs(one), _no_pairs(other))
        notes += [_DORA] * (one.config.use_dora or other.config.use_dora)
    else:
        differences = compare_tensors(*stored)
    differences.sort(key=lambda one: block_order(one.name.removeprefix(PREFIX)))
    notes += [
        f"only the {which} has {sum(one.only_in == place for one in differences):,} of these"
        for place, which in enumerate(("first", "second"))
        if any(one.only_in == place for one in differences)
    ]
    notes += [f"{one.name} has other shapes: {one.unlike}" for one in differences if one.unlike]
    if same_tensors(*stored):
        notes.append("the tensors are the same to the last bit" + ("" if settings[1] else ", and so are the settings"))
    elif overall(differences).relative < _ROUNDING:
        notes.append("the tensors are others, what they change is the same but for rounding")
    return Comparison(settings, _table(differences), notes)


def _table(differences: Sequence[Difference]) -> Table:
    headers = ["layer", "‖ΔW₁‖", "‖ΔW₂‖", "cosine", "‖ΔW₁ - ΔW₂‖ / ‖ΔW₁‖"]
    rows = [*differences, overall(differences)] if differences else []
    return headers, [
        [
            one.name.removeprefix(PREFIX),
            "–" if one.only_in == 1 else figure(one.norms[0]),
            "–" if one.only_in == 0 else figure(one.norms[1]),
            "–" if one.only_in is not None or one.cosine != one.cosine else f"{one.cosine:+.4f}",
            figure(one.relative),
        ]
        for one in rows
    ]


def _settings(facts: Sequence[AdapterInfo], configs: Sequence[Any]) -> Table:
    said: list[Mapping[str, object]] = [
        {
            "method": one.method,
            "rank": ranks_text(one.ranks),
            "base": one.base.name,
            "base's fingerprint": one.base.fingerprint,
            **dataclasses.asdict(config),
        }
        for one, config in zip(facts, configs, strict=True)
    ]
    names = {**said[0], **said[1]}
    cells = [[name, *(_plain(one.get(name)) for one in said)] for name in names]
    return ["setting", "first", "second"], [row for row in cells if row[1] != row[2]]


def _about_bases(first: Any, second: Any) -> list[str]:
    if first.fingerprint and second.fingerprint:
        return ["the bases differ: what is alike as a matrix need not act alike"] * (
            first.fingerprint != second.fingerprint
        )
    return ["they name different bases, and may not have the same weights under them"] * (first.name != second.name)


def _no_pairs(lora: LoraWeights) -> dict[str, Tensor]:
    """What is no pair: biases, modules, and DoRA's lengths."""
    lengths = {
        f"{path}.lora_magnitude_vector": layer.magnitude.flatten()
        for path, layer in lora.layers.items()
        if layer.magnitude is not None
    }
    return {**lora.others, **lengths}


def _finite(folder: Path) -> dict[str, Tensor]:
    tensors = read_weights(folder)
    broken = not_finite(tensors)
    if broken:
        raise TsugikiError(f"{folder} is broken: {summarise_list(broken)}")
    return tensors


def _plain(value: object) -> str:
    """A setting as text; lists of names in the order of their names, whichever the file had."""
    if isinstance(value, list | tuple | set):
        value = sorted(value, key=str)
    return "–" if value is None else value_text(value)
