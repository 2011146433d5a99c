"""Compare two adapters, for `tsugiki adapters diff`."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tsugiki.adapters.algebra.difference import Difference, compare_layers, compare_tensors, overall, same_tensors
from tsugiki.adapters.files import not_finite, read_adapter_config, read_weights
from tsugiki.adapters.library import AdapterInfo, read_adapter_info
from tsugiki.adapters.lora_weights import LoraWeights, read_lora_weights
from tsugiki.adapters.metadata import BaseReference
from tsugiki.base.identity import why_different
from tsugiki.errors import TsugikiError, summarise_list
from tsugiki.io.json import value_text
from tsugiki.language import _, marked
from tsugiki.lora.config import LoraConfig
from tsugiki.methods.peft_keys import PREFIX
from tsugiki.report.adapter import block_order, ranks_text
from tsugiki.report.formatting import format_number
from tsugiki.report.table import Table

_ROUNDING = 1e-6  # smaller relative differences of updates are rounding errors
_DORA = marked(
    "one adapter is DoRA: its update also depends on the weights of the base, so low-rank parts and magnitude vectors "
    "are compared separately"
)


@dataclass(frozen=True)
class Comparison:
    """The differences between two adapters."""

    settings: Table
    """The settings that differ."""
    matrices: Table
    """A row for each layer and each other tensor, and a last row for all of them together."""
    notes: Sequence[str]


def compare_adapters(first: Path, second: Path) -> Comparison:
    """Read two adapters and compare their settings and tensors; ranks and bases may differ."""
    folders = (first, second)
    facts, configs = [read_adapter_info(path) for path in folders], [read_adapter_config(path) for path in folders]
    settings = _settings(facts, configs)
    notes = _about_bases(*(info.base for info in facts))
    tensors = [_read_finite_weights(path) for path in folders]
    if type(configs[0]) is not type(configs[1]):
        notes.append(_("the methods differ, so the tensors have different meanings and are not compared"))
        return Comparison(settings, _table([]), notes)
    if isinstance(configs[0], LoraConfig):
        one, other = (read_lora_weights(folder) for folder in folders)
        differences = compare_layers(one.layers, other.layers)
        differences += compare_tensors(_other_tensors(one), _other_tensors(other))
        if one.config.use_dora or other.config.use_dora:
            notes.append(_(_DORA))
    else:
        differences = compare_tensors(*tensors)
    differences.sort(key=lambda difference: block_order(difference.name.removeprefix(PREFIX)))
    notes += [
        message.format(count=sum(difference.only_in == place for difference in differences))
        for place, message in enumerate(
            (_("only the first adapter has {count:,} of these"), _("only the second adapter has {count:,} of these"))
        )
        if any(difference.only_in == place for difference in differences)
    ]
    notes += [
        _("{name} has different shapes: {shapes}").format(name=difference.name, shapes=difference.shapes)
        for difference in differences
        if difference.shapes
    ]
    if same_tensors(*tensors):
        notes.append(
            _("the tensors are bit-identical")
            if settings[1]
            else _("the tensors are bit-identical, and the settings are the same")
        )
    elif overall(differences).relative < _ROUNDING:
        notes.append(_("the tensors differ, but their updates are the same up to rounding"))
    return Comparison(settings, _table(differences), notes)


def _table(differences: Sequence[Difference]) -> Table:
    headers = [_("layer"), "‖ΔW₁‖", "‖ΔW₂‖", _("cosine"), "‖ΔW₁ - ΔW₂‖ / ‖ΔW₁‖"]
    rows = [*differences, overall(differences)] if differences else []
    return Table(
        headers,
        [
            [
                row.name.removeprefix(PREFIX),
                "–" if row.only_in == 1 else format_number(row.norms[0]),
                "–" if row.only_in == 0 else format_number(row.norms[1]),
                "–" if row.only_in is not None or row.cosine != row.cosine else f"{row.cosine:+.4f}",
                format_number(row.relative),
            ]
            for row in rows
        ],
    )


def _settings(facts: Sequence[AdapterInfo], configs: Sequence[Any]) -> Table:
    settings: list[Mapping[str, object]] = [
        {
            _("method"): info.method,
            _("rank"): ranks_text(info.ranks),
            _("base"): info.base.name,
            _("fingerprint of the base"): info.base.fingerprint,
            **dataclasses.asdict(config),
        }
        for info, config in zip(facts, configs, strict=True)
    ]
    names = {**settings[0], **settings[1]}
    cells = [[name, *(_setting_text(of_adapter.get(name)) for of_adapter in settings)] for name in names]
    return Table([_("setting"), _("first"), _("second")], [row for row in cells if row[1] != row[2]])


def _about_bases(first: BaseReference, second: BaseReference) -> list[str]:
    if why := why_different(first, second):
        return [_("the bases differ ({why}): equal updates can have different effects").format(why=why)]
    if not (first.fingerprint and second.fingerprint) and first.name != second.name:
        return [_("the names of the bases differ, so their weights may differ too")]
    return []


def _other_tensors(lora: LoraWeights) -> dict[str, Tensor]:
    """Return all tensors other than A and B: biases, whole modules, and DoRA's magnitude vectors."""
    magnitudes = {
        f"{path}.lora_magnitude_vector": layer.magnitude.flatten()
        for path, layer in lora.layers.items()
        if layer.magnitude is not None
    }
    return {**lora.others, **magnitudes}


def _read_finite_weights(folder: Path) -> dict[str, Tensor]:
    tensors = read_weights(folder)
    damaged = not_finite(tensors)
    if damaged:
        raise TsugikiError(_("{folder} is damaged: {damaged}").format(folder=folder, damaged=summarise_list(damaged)))
    return tensors


def _setting_text(value: object) -> str:
    """Format a setting as text; lists are sorted, because their order has no meaning."""
    if isinstance(value, list | tuple | set):
        value = sorted(value, key=str)
    return "–" if value is None else value_text(value)
