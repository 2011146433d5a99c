"""Inspect one adapter: its base, method, training run, and updates by layer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from torch import Tensor

from tsugiki.adapters.files import read_peft_config, read_weights
from tsugiki.adapters.info import AdapterInfo, read_adapter_info
from tsugiki.adapters.lora_weights import read_lora_weights
from tsugiki.adapters.metadata import Provenance, read_metadata
from tsugiki.io.atomic import write_text
from tsugiki.io.formatting import format_duration, format_size
from tsugiki.language import _, counts, marked
from tsugiki.lora.config import LoraConfig
from tsugiki.methods.peft_keys import PREFIX
from tsugiki.report.formatting import format_number
from tsugiki.report.layers import Layer, decompose, kinds_table, layer_plots, layers_table
from tsugiki.report.library import ranks_text, record_of
from tsugiki.report.page import page, render_macro
from tsugiki.report.record_text import summary_sentence
from tsugiki.report.run import adapter_commands, record_sections
from tsugiki.report.table import Table
from tsugiki.training.record import RunRecord

LAYERS_EXPLAINED = marked(
    "‖ΔW‖ is the Frobenius norm of a layer's update, σ its singular values in descending order. The effective rank is "
    "the exponential of the entropy of σ / Σσ (Roy & Vetterli 2007)."
)
_DORA = marked(
    "DoRA also trains the norms of the rows of W + ΔW, which cannot be computed without W. ΔW is the low-rank part."
)
_DIGITS = len("sha256:") + 12
_ZERO = marked("The adapter has no effect: every update is zero.")


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
    notes: Sequence[str]


def inspect_adapter(folder: Path, advance: Callable[[int], None] = lambda done: None) -> AdapterReport:
    """Read an adapter and compute the singular values of its layers; `advance(1)` is called after each layer.

    Raises:
        TsugikiError: the folder does not contain an adapter, or the adapter is damaged.
    """
    info, config = read_adapter_info(folder), read_peft_config(folder)
    layers, tensors, notes = [], read_weights(folder), []
    if isinstance(config, LoraConfig):
        lora = read_lora_weights(folder)
        layers, tensors = decompose(lora.layers, advance), dict(lora.others)
        if config.use_dora:
            notes.append(_(_DORA))
        if not tensors and not any(layer.norm for layer in layers):
            notes.append(_(_ZERO))
    provenance = read_metadata(folder).provenance
    return AdapterReport(folder, info, provenance, record_of(folder), layers, tensors, notes)


def info_lines(adapter: AdapterReport) -> list[tuple[str, str]]:
    """Return labels and texts for the adapter's base, method, size, provenance and training."""
    info = adapter.info
    fingerprint = f", {info.base.fingerprint[:_DIGITS]}…" if info.base.fingerprint else ""
    lines = [
        (_("base"), (info.base.name or _("not named")) + fingerprint),
        (_("method"), info.method + (f", r {ranks_text(info.ranks)}" if info.ranks else "")),
        (_("targets"), ", ".join(info.targets) or "–"),
        (_("size"), _("{count:,} parameters, {size}").format(count=info.parameters, size=format_size(info.size))),
        (_("changed"), datetime.fromtimestamp(info.changed).strftime("%Y-%m-%d %H:%M")),
        (_("folder"), str(adapter.folder)),
    ]
    lines += [(_(label), text) for label, text in adapter.provenance.lines()] if adapter.provenance else []
    record = adapter.record
    if record is None:
        return lines
    lines.append((_("trained on"), record.config.data_text))
    if record.training:
        training = record.training
        lines.append(
            (
                _("training"),
                _("{steps}, {tokens} in {duration}").format(
                    steps=counts.steps(training.steps),
                    tokens=counts.tokens(training.tokens),
                    duration=format_duration(training.seconds),
                ),
            )
        )
    lines.append((_("learning rate"), f"{record.chosen('learning_rate')}"))
    if record.data:
        held_out = record.data.held_out
        lines.append((_("held out"), f"{counts.records(held_out.documents)}, {counts.characters(held_out.characters)}"))
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


def write_adapter_page(path: Path, adapter: AdapterReport) -> None:
    """Write the page of an adapter.

    Raises:
        TsugikiError: the page cannot be written; an existing page is unchanged.
    """
    write_text(path, adapter_page(adapter))


def adapter_page(adapter: AdapterReport) -> str:
    """Render the page of an adapter."""
    layers, tensors, record = adapter.layers, adapter.tensors, adapter.record
    sections = [(_("Adapter"), render_macro("pairs", info_lines(adapter)))]
    if layers:
        body = render_macro("figures", layer_plots(layers)) + render_macro("table", *kinds_table(layers))
        body += render_macro(
            "folded", _("all {count:,} layers").format(count=len(layers)), render_macro("table", *layers_table(layers))
        )
        sections.append((_("Updates by layer"), body + render_macro("paragraph", _(LAYERS_EXPLAINED))))
    if tensors:
        sections.append((_("Tensors"), render_macro("table", *tensors_table(tensors))))
    sections += record_sections(record) if record else []
    base = adapter.info.base.name
    sections.append((_("Usage"), render_macro("code", adapter_commands(base, adapter.folder, "…"))))
    lead = (
        summary_sentence(record)
        if record
        else _("{method} on {base}.").format(method=adapter.info.method, base=base or _("an unnamed base"))
    )
    return page(_("Adapter · {name}").format(name=adapter.folder.resolve().name), lead, sections, adapter.notes)
