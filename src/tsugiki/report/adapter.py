"""One adapter: what it is, how it came about, what it showed, and what it changes where."""

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from tsugiki.adapters.algebra.spectrum import singular_values
from tsugiki.adapters.format import read_peft_config, read_weights
from tsugiki.adapters.info import AdapterInfo, read_adapter_info
from tsugiki.adapters.lora_weights import read_lora_weights
from tsugiki.errors import TsugikiError
from tsugiki.io.atomic import write_text
from tsugiki.io.file_names import METADATA_FILE
from tsugiki.io.formatting import format_duration, format_size
from tsugiki.io.json import read_json
from tsugiki.lora.config import LoraConfig
from tsugiki.methods.method import PREFIX
from tsugiki.report.formatting import Table, figure
from tsugiki.report.layers import Layer, kinds_table, layer_plots, layers_table, with_spectra
from tsugiki.report.library import ranks_text, record_of
from tsugiki.report.page import Section, page, pairs, part, table
from tsugiki.report.run import record_sections, summary_sentence
from tsugiki.train.record import RunRecord

LAYERS_EXPLAINED = (
    "‖ΔW‖ is the Frobenius norm of a layer's update, σ its singular values, the largest first. The effective rank is "
    "the exponential of the entropy of σ / Σσ (Roy & Vetterli 2007)."
)
_DORA = (
    "DoRA gives the rows of W + ΔW lengths of their own, which cannot be told without W: ΔW here is its low-rank part."
)
_DIGITS = len("sha256:") + 12
_NOTHING = "It changes nothing: every update is zero."


@dataclass(frozen=True)
class AdapterReport:
    """All that is shown of an adapter."""

    name: str
    folder: Path
    facts: AdapterInfo
    made: Mapping[str, Any]
    """How it came about, where it was made of other adapters or models."""
    record: RunRecord | None
    """Of the run that trained it."""
    layers: Sequence[Layer]
    """LoRA's."""
    tensors: Mapping[str, Tensor]
    """Those that belong to no pair of LoRA's."""
    notes: Sequence[str]


def inspect_adapter(folder: Path, advance: Callable[[int], None] = lambda done: None) -> AdapterReport:
    """Read an adapter whole and measure its layers.

    Args:
        folder: the adapter's.
        advance: is called with 1 when a layer is done.

    Raises:
        TsugikiError: no adapter there, or a broken one.
    """
    facts, config = read_adapter_info(folder), read_peft_config(folder)
    layers, tensors, notes = [], read_weights(folder), []
    if isinstance(config, LoraConfig):
        lora = read_lora_weights(folder)
        spectra = {}
        for path, layer in lora.layers.items():
            spectra[path] = singular_values(layer)
            advance(1)
        layers, tensors = with_spectra(lora.layers, spectra), dict(lora.others)
        notes = [_DORA] * config.use_dora + [_NOTHING] * (not tensors and not any(layer.norm for layer in layers))
    return AdapterReport(folder.resolve().name, folder, facts, _made(folder), record_of(folder), layers, tensors, notes)


def facts_lines(portrait: AdapterReport) -> list[tuple[str, str]]:
    """What it is and how it came about: labels and texts."""
    facts = portrait.facts
    fingerprint = f", {facts.base.fingerprint[:_DIGITS]}…" if facts.base.fingerprint else ""
    lines = [
        ("base", (facts.base.name or "not said") + fingerprint),
        ("method", facts.method + (f", r {ranks_text(facts.ranks)}" if facts.ranks else "")),
        ("targets", ", ".join(facts.targets) or "–"),
        ("size", f"{facts.parameters:,} numbers, {format_size(facts.size)}"),
        ("changed", datetime.fromtimestamp(facts.changed).strftime("%Y-%m-%d %H:%M")),
        ("folder", str(portrait.folder)),
    ]
    lines += [(f"made: {key}", _plain(value)) for key, value in portrait.made.items()]
    record = portrait.record
    if record is None:
        return lines
    lines.append(("trained on", record.config.data))
    if record.training:
        training = record.training
        lines.append(
            ("training", f"{training.steps:,} steps, {training.tokens:,} tokens in {format_duration(training.seconds)}")
        )
    lines.append(("learning rate", f"{record.config.learning_rate:g}"))
    if record.data:
        held_out = record.data.held_out
        lines.append(("held out", f"{held_out.documents:,} records, {held_out.characters:,} characters"))
    return lines


def tensors_table(tensors: Mapping[str, Tensor]) -> Table:
    """A row for each tensor, under its name without PEFT's prefix."""
    rows = [
        [
            key.removeprefix(PREFIX),
            "×".join(map(str, tensor.shape)),
            str(tensor.dtype).removeprefix("torch."),
            figure(float(tensor.double().norm())),
            figure(float(tensor.double().abs().max())),
        ]
        for key, tensor in tensors.items()
    ]
    return ["tensor", "shape", "dtype", "norm", "largest"], rows


def write_adapter_page(path: Path, portrait: AdapterReport) -> None:
    """Write the adapter's page.

    Raises:
        TsugikiError: it cannot be written; one that was there is still there.
    """
    sections = [Section("What it is", pairs(facts_lines(portrait)))]
    if portrait.layers:
        body = part("figures", layer_plots(portrait.layers)) + table(*kinds_table(portrait.layers))
        body += part("folded", f"all {len(portrait.layers):,} layers", table(*layers_table(portrait.layers)))
        sections.append(Section("What it changes where", body + part("paragraph", LAYERS_EXPLAINED)))
    if portrait.tensors:
        sections.append(Section("Its tensors", table(*tensors_table(portrait.tensors))))
    record = portrait.record
    sections += record_sections(record) if record else []
    sections.append(Section("How to use it", part("code", _commands(portrait))))
    base = portrait.facts.base.name or "a base that it does not name"
    lead = summary_sentence(record) if record else f"{portrait.facts.method} on {base}."
    write_text(path, page(f"Adapter · {portrait.name}", lead, sections, portrait.notes))


def _commands(portrait: AdapterReport) -> str:
    base, adapter = shlex.quote(portrait.facts.base.name or "BASE"), shlex.quote(str(portrait.folder))
    return (
        f"tsugiki generate --model {base} --adapter {adapter} --prompt …\n"
        f"tsugiki eval --adapter {adapter} --data other.txt\n"
        f"tsugiki merge --model {base} --adapter {adapter} --out merged"
    )


def _made(folder: Path) -> Mapping[str, Any]:
    try:
        made = read_json(folder / METADATA_FILE, missing="").get("made")
    except TsugikiError:
        return {}
    return made if isinstance(made, dict) else {}


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
