"""Tables and the page of one adapter, and the table of the library: base, method, training, and updates by layer."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from tsugiki.adapters.algebra.matrices import effective_rank, singular_values, update_shape
from tsugiki.adapters.files import read_peft_config, read_weights
from tsugiki.adapters.library import AdapterInfo, LibraryEntry, read_adapter_info
from tsugiki.adapters.lora_weights import LayerFactors, read_lora_weights
from tsugiki.adapters.metadata import Provenance, read_metadata
from tsugiki.errors import TsugikiError
from tsugiki.io.cache import kept_of_folders
from tsugiki.io.file_names import RECORD_FILE
from tsugiki.io.formatting import format_duration, format_size
from tsugiki.language import _, counts, listed, marked
from tsugiki.lora.config import LoraConfig
from tsugiki.methods.peft_keys import PREFIX
from tsugiki.model.names import split_block
from tsugiki.report.formatting import format_number
from tsugiki.report.html import whole_page
from tsugiki.report.run import adapter_commands, run_sections
from tsugiki.report.sections import (
    Curves,
    Folded,
    Lead,
    Lines,
    Note,
    Part,
    Row,
    Section,
    Sentence,
    Series,
    section,
    selected,
)
from tsugiki.report.table import Table
from tsugiki.training.record.run_record import RunRecord, read_record

_LAYERS_EXPLAINED = marked(
    "‖ΔW‖ is the Frobenius norm of a layer's update, σ its singular values in descending order. The effective rank is "
    "the exponential of the entropy of σ / Σσ (Roy & Vetterli 2007)."
)

_DORA = marked(
    "DoRA also trains the norms of the rows of W + ΔW, which cannot be computed without W. ΔW is the low-rank part."
)

_BARS = "▁▂▃▄▅▆▇█"
_MAX_BARS = 16  # in one cell
_DIGITS = len("sha256:") + 12

_ZERO = marked("The adapter has no effect: every update is zero.")


@dataclass(frozen=True, eq=False)
class Layer:
    """The update of one layer and its singular values."""

    path: str
    block: int | None
    """The index of the model's block that contains the layer; None for layers outside blocks, such as the head."""
    kind: str
    """The layer's name relative to its block, such as `attn.c_attn`; the same in all blocks."""
    r: int
    shape: tuple[int, ...]
    values: Tensor
    """The singular values of ΔW in descending order."""

    @property
    def norm(self) -> float:
        """The Frobenius norm of ΔW."""
        return float(self.values.norm())

    @property
    def effective_rank(self) -> float:
        """The effective rank of ΔW (see `adapters.algebra.matrices`)."""
        return effective_rank(self.values)


@dataclass(frozen=True)
class AdapterReport:
    """Everything that is shown about an adapter."""

    folder: Path
    info: AdapterInfo
    provenance: Provenance | None
    """How the adapter was derived from other adapters or models; None if it was trained."""
    record: RunRecord | None
    """The record of the training run, if it is in the folder."""
    layers: Sequence[Layer]
    """The LoRA layers."""
    tensors: Mapping[str, Tensor]
    """All other tensors."""
    notes: Sequence[Sentence]


def inspect_adapter(folder: Path, advance: Callable[[int], None] = lambda done: None) -> AdapterReport:
    """Read an adapter and compute the singular values of its layers; `advance(1)` is called after each layer."""
    info, config = read_adapter_info(folder), read_peft_config(folder)
    layers, tensors, notes = [], read_weights(folder), list[Sentence]()
    if isinstance(config, LoraConfig):
        lora = read_lora_weights(folder)
        layers, tensors = decompose(lora.layers, advance), dict(lora.others)
        if config.use_dora:
            notes.append(Sentence(_(_DORA)))
        if not tensors and not any(layer.norm for layer in layers):
            notes.append(Note(_(_ZERO)))
    provenance = read_metadata(folder).provenance
    return AdapterReport(folder, info, provenance, record_of(folder), layers, tensors, notes)


def info_lines(adapter: AdapterReport) -> list[Row]:
    """Return labels and texts for the adapter's base, method, size, provenance and training."""
    info = adapter.info
    fingerprint = f", {info.base.fingerprint[:_DIGITS]}…" if info.base.fingerprint else ""
    lines = [
        (_("base"), (info.base.name or _("not named")) + fingerprint),
        (_("method"), info.method + (f", r {ranks_text(info.ranks)}" if info.ranks else "")),
        (_("targets"), ", ".join(info.targets) or "–"),
        (_("size"), _("{count:,} parameters, {size}", count=info.parameters, size=format_size(info.size))),
        (_("changed"), datetime.fromtimestamp(info.changed).strftime("%Y-%m-%d %H:%M")),
        (_("folder"), str(adapter.folder)),
    ]
    lines += [(_(label), text) for label, text in adapter.provenance.lines()] if adapter.provenance else []
    record = adapter.record
    if record is None:
        return lines
    lines.append((_("trained on"), record.config.data_text))
    if record.training:
        text = _(
            "{steps}, {tokens} in {duration}",
            steps=counts.steps(record.training.steps),
            tokens=counts.tokens(record.training.tokens),
            duration=format_duration(record.training.seconds),
        )
        lines.append((_("training"), text))
    lines.append((_("learning rate"), f"{record.chosen('learning_rate')}"))
    if record.data:
        held_out = record.data.held_out
        lines.append(
            (_("held out"), listed([counts.records(held_out.documents), counts.characters(held_out.characters)]))
        )
    return lines


def tensors_table(tensors: Mapping[str, Tensor]) -> Table:
    """Return a table with a row for each tensor, named without PEFT's prefix."""
    rows = [
        [
            key.removeprefix(PREFIX),
            "×".join(map(str, tensor.shape)),
            str(tensor.dtype).removeprefix("torch."),
            format_number(float(tensor.double().norm())),
            format_number(float(tensor.double().abs().max()) if tensor.numel() else 0.0),
        ]
        for key, tensor in tensors.items()
    ]
    return Table([_("tensor"), _("shape"), _("dtype"), _("norm"), _("largest value")], rows)


def adapter_page(adapter: AdapterReport) -> str:
    """Render the page of an adapter."""
    base = adapter.info.base.name
    usage = section("usage", _("Usage"), adapter_commands(base, adapter.folder, "…"))
    title = _("Adapter · {name}", name=adapter.folder.resolve().name)
    return whole_page(title, [*adapter_sections(adapter), usage])


def adapter_sections(adapter: AdapterReport) -> list[Section]:
    """Return everything that is shown about an adapter, and about its training run."""
    of_run = run_sections(adapter.record) if adapter.record else []
    base = adapter.info.base.name or _("an unnamed base")
    unmeasured = section("result", "", Lead(_("{method} on {base}.", method=adapter.info.method, base=base)))
    return [
        *selected(of_run, "answers", "samples"),
        *(selected(of_run, "result") or [unmeasured]),
        section("notes", "", *adapter.notes),
        section("adapter", _("Adapter"), Lines(info_lines(adapter))),
        section("layers", _("Updates by layer"), *_layer_parts(adapter.layers)),
        section("tensors", _("Tensors"), tensors_table(adapter.tensors)),
        *(one for one in of_run if one.name not in ("answers", "samples", "result", "notes")),
    ]


def decompose(layers: Mapping[str, LayerFactors], advance: Callable[[int], None] = lambda done: None) -> list[Layer]:
    """Compute the singular values of each layer, and sort the layers by block; `advance(1)` is called after each."""
    split_paths = {path: split_block(path) for path in layers}
    block_lists = {owner for owner, block, _ in split_paths.values() if block is not None}
    decomposed = []
    for path, layer in layers.items():
        owner, block, rest = split_paths[path]
        kind = rest if block is None or len(block_lists) == 1 else f"{owner}.*.{rest}"
        decomposed.append(Layer(path, block, kind, layer.r, update_shape(layer), singular_values(layer)))
        advance(1)
    return sorted(decomposed, key=lambda result: block_order(result.path))


def block_order(path: str) -> tuple[bool, int, str]:
    """Return a sort key for names of layers: by block, with layers outside blocks at the end."""
    _owner, block, _rest = split_block(path)
    return block is None, block or 0, path


def layers_table(layers: Sequence[Layer]) -> Table:
    """Return a table with a row for each layer."""
    headers = [_("layer"), _("shape"), "r", "‖ΔW‖", "σ₁", _("effective rank"), "σ / σ₁"]
    rows = [
        [
            layer.path,
            "×".join(map(str, layer.shape)),
            str(layer.r),
            format_number(layer.norm),
            format_number(float(layer.values[0])),
            f"{layer.effective_rank:.2f}",
            bars(layer.values.tolist()),
        ]
        for layer in layers
    ]
    return Table(headers, rows)


def kinds_table(layers: Sequence[Layer]) -> Table:
    """Return a table with a row for each kind of layer: means, and a bar for each block."""
    by_block = _("by block")
    headers = [_("kind"), _("layers"), _("mean ‖ΔW‖"), by_block, _("mean effective rank"), by_block]
    rows = []
    for kind, group in by_kind(layers).items():
        norms, ranks = [layer.norm for layer in group], [layer.effective_rank for layer in group]
        cells = [kind, str(len(group)), format_number(fmean(norms)), bars(norms), f"{fmean(ranks):.2f}", bars(ranks)]
        rows.append(cells)
    return Table(headers, rows)


def _layer_parts(layers: Sequence[Layer]) -> Iterator[Part]:
    """Yield the curves of norms, ranks and singular values, one line for each kind of layer, and their tables."""
    if not layers:
        return
    kinds = by_kind(layers)
    norms = [_by_block(kind, group, [layer.norm for layer in group]) for kind, group in kinds.items()]
    ranks = [_by_block(kind, group, [layer.effective_rank for layer in group]) for kind, group in kinds.items()]
    yield Curves(_("‖ΔW‖ by block"), norms)
    yield Curves(_("Effective rank of ΔW by block"), ranks)
    spectra = [_mean_spectrum(kind, group) for kind, group in kinds.items()]
    yield Curves(_("Singular values relative to the largest, mean"), spectra)
    yield kinds_table(layers)
    yield Folded(_("all {count:,} layers", count=len(layers)), [layers_table(layers)])
    yield Sentence(_(_LAYERS_EXPLAINED))


def by_kind(layers: Sequence[Layer]) -> dict[str, list[Layer]]:
    """Group layers by kind."""
    kinds: dict[str, list[Layer]] = {}
    for layer in layers:
        kinds.setdefault(layer.kind, []).append(layer)
    return kinds


def bars(values: Sequence[float]) -> str:
    """Draw a bar of block characters for each value, relative to the largest; of many values, evenly spaced ones."""
    if len(values) > _MAX_BARS:
        values = [values[round(i * (len(values) - 1) / (_MAX_BARS - 1))] for i in range(_MAX_BARS)]
    top = max(values, default=0)
    if not top > 0:
        return " " * len(values)
    return "".join(_BARS[max(0, round(value / top * len(_BARS)) - 1)] if value > 0 else " " for value in values)


def _by_block(kind: str, layers: Sequence[Layer], figures: Sequence[float]) -> Series:
    pairs = zip(layers, figures, strict=True)
    return Series(kind, [(layer.block, value) for layer, value in pairs if layer.block is not None])


def _mean_spectrum(kind: str, layers: Sequence[Layer]) -> Series:
    """Return the mean of σ_i / σ₁ by i, over the layers that have an i-th singular value and an update."""
    spectra = [layer.values / layer.values[0] for layer in layers if layer.values[0] > 0]
    longest = max(map(len, spectra), default=0)
    means = [torch.stack([values[i] for values in spectra if len(values) > i]).mean() for i in range(longest)]
    return Series(kind, [(i + 1, float(mean)) for i, mean in enumerate(means)])


def library_table(entries: Sequence[LibraryEntry]) -> Table:
    """Return a table with a row for each adapter that is not damaged."""
    headers = [_("name"), _("method"), "r", _("targets"), _("base"), _("size"), _("perplexity"), _("changed")]
    rows, figures = [], _figures(entries)
    for entry in entries:
        if entry.info:
            info = entry.info
            perplexities = [format_number(result["perplexity"]) for result in figures[entry.name]]
            rows.append(
                [
                    entry.name,
                    info.method,
                    ranks_text(info.ranks),
                    ", ".join(info.targets) or "–",
                    info.base.name or "–",
                    format_size(info.size),
                    " → ".join(perplexities) or "–",
                    datetime.fromtimestamp(info.changed).strftime("%Y-%m-%d"),
                ]
            )
    return Table(headers, rows)


def entry_lines(entries: Sequence[LibraryEntry]) -> Iterator[str]:
    """Yield a JSON object about each adapter in one line; unknown values, and `broken` of an intact one, are null."""
    figures = _figures(entries)
    for entry in entries:
        info = entry.info
        fields: dict[str, Any] = {"name": entry.name, "path": str(entry.folder), "broken": entry.broken or None}
        if info:
            before_and_after = [
                {name: value if math.isfinite(value) else None for name, value in result.items()}
                for result in figures[entry.name]
            ]
            fields |= {
                "method": info.method,
                "ranks": info.ranks,
                "targets": info.targets,
                "base": info.base.name,
                "base_fingerprint": info.base.fingerprint,
                "parameters": info.parameters,
                "bytes": info.size,
                "held_out": dict(zip(("before", "after"), before_and_after, strict=False)) or None,
                "changed": datetime.fromtimestamp(info.changed).astimezone().isoformat(timespec="seconds"),
            }
        line = json.dumps(fields, ensure_ascii=False)
        yield line.encode(errors="backslashreplace").decode()  # a name can contain bytes that are not valid text


def ranks_text(ranks: Sequence[int]) -> str:
    """Format the rank, or the lowest and the highest one; a dash if there is none."""
    if not ranks:
        return "–"
    return str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]}–{ranks[-1]}"


def record_of(folder: Path) -> RunRecord | None:
    """Return the training record in an adapter's folder; None if there is none or it cannot be read."""
    try:
        return read_record(folder) if (folder / RECORD_FILE).is_file() else None
    except TsugikiError:
        return None


def _figures(entries: Sequence[LibraryEntry]) -> dict[str, Any]:
    """Return the figures of the first and the last evaluation in the runs of intact adapters, by their names."""

    def read(folder: Path) -> list[dict[str, float]]:
        record = record_of(folder)
        evaluations = record.evaluations if record else []
        ends = evaluations if len(evaluations) < 2 else [evaluations[0], evaluations[-1]]
        return [{name: getattr(result, name) for name in ("loss", "perplexity", "bits_per_char")} for result in ends]

    folders = {entry.name: entry.folder for entry in entries if entry.info}
    library = next((folder.parent.resolve() for folder in folders.values()), None)
    return kept_of_folders("evaluations", repr(library), folders, read)
