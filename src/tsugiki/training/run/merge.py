"""Merge adapters into a new model folder, and verify the folder against the base with its adapters."""

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tsugiki.adapters.algebra.weighted_sum import load_weighted_sum
from tsugiki.adapters.files import read_config_fields
from tsugiki.adapters.merge_files import MergePlan, plan_merge, write_merged
from tsugiki.adapters.metadata import BaseReference, Metadata, Provenance, source_adapter, write_metadata
from tsugiki.base.identity import named_identity
from tsugiki.base.loading import default_device, load_model, load_tokenizer
from tsugiki.base.new_words import fit_vocabulary, has_tokenizer, load_saved_tokenizer
from tsugiki.data.read.files import Data
from tsugiki.data.seen_texts import learned_by, write_fingerprints
from tsugiki.dtypes import LoadDtype
from tsugiki.errors import TsugikiError
from tsugiki.fast.layers import add_adapter
from tsugiki.io.atomic import new_folder, refuse_existing
from tsugiki.io.progress import ProgressDisplay
from tsugiki.language import _
from tsugiki.lora.graft import DEFAULT_NAME
from tsugiki.model.inference import probe_logits
from tsugiki.training.data.windows import Window, read_windows
from tsugiki.training.record.result import Evaluation
from tsugiki.training.score.evaluate import evaluate


@dataclass(frozen=True)
class Merge:
    """The settings of a merge and of its verification."""

    base: str
    """Name of the base model."""
    adapters: Sequence[Path]
    """Folders of the adapters."""
    weights: Sequence[float] | None = None
    """Factor on the update of each adapter; None: 1 for all."""
    allow_base_mismatch: bool = False
    """Merge adapters that were trained on another base."""
    verify: bool = True
    """Compare the logits of the merged model with those of the base and its adapters."""
    data: Data | None = None
    """Text to compare the perplexity on as well; same formats as the data of a run."""
    characters: int | None = None
    """Approximate number of characters of this text to evaluate; None: all."""


@dataclass(frozen=True)
class Probe:
    """Largest differences between the logits of two models for the same token ids."""

    shift: float
    """Between the base and the base with its adapters."""
    error: float
    """Between the base with its adapters and the merged model."""


@dataclass(frozen=True)
class MergeReport:
    """The results of a merge."""

    changed: int
    """Number of tensors that the adapters change."""
    tensors: int
    """Number of tensors in the merged model."""
    rounding: float
    """Share of the change that is lost by rounding to the dtypes of the base."""
    probe: Probe | None
    """None if nothing was verified."""
    evaluations: tuple[Evaluation, Evaluation, Evaluation] | None
    """Evaluations of the base, of the base with its adapters, and of the merged model; None without text."""

    def to_json(self) -> dict[str, Any]:
        """Return the figures for `tsugiki.json`."""
        figures: dict[str, Any] = {"tensors_changed": self.changed, "share_lost_to_rounding": self.rounding}
        if self.probe is not None:
            figures |= {"largest_logit_change": self.probe.shift, "largest_logit_error": self.probe.error}
        if self.evaluations is not None:
            figures["perplexity"] = dict(
                zip(("base", "adapted", "merged"), (result.perplexity for result in self.evaluations), strict=True)
            )
        return figures


def merge_into_folder(merge: Merge, out: Path, progress: ProgressDisplay) -> MergeReport:
    """Write the merged model to the folder `out`, which must not exist. It appears only after the verification.

    Raises:
        TsugikiError: the adapters cannot be merged into this base (see `plan_merge`), values are not finite, the text
            cannot be read, or the folder exists or cannot be written. Nothing is left on disk.
    """
    if merge.data is not None and not merge.verify:
        message = _("--data cannot be combined with --no-verify, which loads no model; leave out one of the two")
        raise TsugikiError(message)
    refuse_existing(out)
    windows = [] if merge.data is None else read_windows(merge.data, merge.characters)
    with progress.stage(_("reading base and adapters"), None):
        plan = plan_merge(merge.base, merge.adapters, merge.weights, allow_base_mismatch=merge.allow_base_mismatch)
    if out.resolve().is_relative_to(plan.folder.resolve()):
        message = _("{out} is in the folder of the base, which must not change; choose another --out")
        raise TsugikiError(message.format(out=out))
    with new_folder(out) as part:
        with progress.stage(_("merging"), plan.size) as advance:
            rounding = write_merged(plan, part, advance)
        probe, evaluations = _verify(merge, plan, part, windows, progress) if merge.verify else (None, None)
        changed = len(plan.changed) + len(plan.added) + len(plan.in_memory)
        tensors = sum(len(shard.entries) for shard in plan.shards) + len(plan.added)
        report = MergeReport(changed, tensors, rounding.share, probe, evaluations)
        write_metadata(part, _metadata(merge, report))
        write_fingerprints(learned_by([plan.folder, *merge.adapters]), part)
    return report


def _verify(
    merge: Merge, plan: MergePlan, merged: Path, windows: Sequence[Window], progress: ProgressDisplay
) -> tuple[Probe, tuple[Evaluation, Evaluation, Evaluation] | None]:
    """Compare the base, the base with its adapters, and the merged model, with one model in memory at a time.

    The models are loaded in the dtype of their files. Float16 is converted to float32 if there is no accelerator,
    because processors multiply float16 very slowly.
    """
    device = default_device()
    halves = any(entry.dtype == "F16" for shard in plan.shards for entry in shard.entries.values())
    dtype: LoadDtype = "fp32" if halves and device.type == "cpu" else "auto"
    tokenizer = load_tokenizer(merge.base) if windows else None
    if tokenizer is not None and plan.new_words is not None and has_tokenizer(plan.new_words):
        tokenizer = load_saved_tokenizer(plan.new_words)
    if tokenizer is not None and plan.chat_template is not None:
        tokenizer.chat_template = plan.chat_template
    logits: list[Tensor] = []
    evaluations: list[Evaluation] = []

    def measure(model: Any, what: str) -> None:
        with progress.stage(what, len(windows) or None) as advance:
            logits.append(_finite(probe_logits(model), what))
            if tokenizer is not None:
                evaluations.append(evaluate(model, tokenizer, windows, advance=advance))

    model = load_model(merge.base, dtype).to(device)
    if plan.new_words is not None:
        fit_vocabulary(model, plan.config["vocab_size"])
    adapter = load_weighted_sum(model, merge.adapters, merge.weights, allow_base_mismatch=merge.allow_base_mismatch)
    measure(model, _("the base"))
    add_adapter(model, adapter, DEFAULT_NAME)
    measure(model, _("the base with its adapters"))
    del model, adapter
    gc.collect()
    measure(load_model(str(merged), dtype).to(device), _("the merged model"))
    base, adapted, final = logits
    probe = Probe(float((adapted - base).abs().max()), float((final - adapted).abs().max()))
    return probe, (evaluations[0], evaluations[1], evaluations[2]) if evaluations else None


def _finite(logits: Tensor | None, what: str) -> Tensor:
    if logits is None:
        message = _("{what} gives no logits to compare; --no-verify merges without comparing")
        raise TsugikiError(message.format(what=what))
    if not torch.isfinite(logits).all():
        raise TsugikiError(_("{what} gives logits that are not finite; nothing was written").format(what=what))
    return logits.float().cpu()


def _metadata(merge: Merge, report: MergeReport) -> Metadata:
    """Return the base, the adapters, their weights and the figures of the verification, for `tsugiki.json`."""
    weights = merge.weights or [1.0] * len(merge.adapters)
    sources = [
        source_adapter(folder, weight, read_config_fields(folder)["peft_type"])
        for folder, weight in zip(merge.adapters, weights, strict=True)
    ]
    return Metadata(
        base=BaseReference(name=merge.base, **dict(named_identity(merge.base))),
        provenance=Provenance(operation="merge", sources=tuple(sources)),
        figures=report.to_json(),
    )
