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
from tsugiki.base.loading import default_device, load_model
from tsugiki.base.new_words import fit_vocabulary
from tsugiki.dtypes import LoadDtype
from tsugiki.errors import TsugikiError
from tsugiki.fast.layers import add_adapter
from tsugiki.io.atomic import new_folder, refuse_existing
from tsugiki.io.progress import ProgressDisplay
from tsugiki.language import _
from tsugiki.lora.graft import DEFAULT_NAME
from tsugiki.model.inference import probe_logits


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

    def to_json(self) -> dict[str, Any]:
        """Return the figures for `tsugiki.json`."""
        figures: dict[str, Any] = {"tensors_changed": self.changed, "share_lost_to_rounding": self.rounding}
        if self.probe is not None:
            figures |= {"largest_logit_change": self.probe.shift, "largest_logit_error": self.probe.error}
        return figures


def merge_into_folder(merge: Merge, out: Path, progress: ProgressDisplay) -> MergeReport:
    """Write the merged model to the folder `out`, which must not exist. It appears only after the verification.

    Raises:
        TsugikiError: the adapters cannot be merged into this base (see `plan_merge`), values are not finite, or the
            folder exists or cannot be written. Nothing is left on disk.
    """
    refuse_existing(out)
    with progress.stage(_("reading base and adapters"), None):
        plan = plan_merge(merge.base, merge.adapters, merge.weights, allow_base_mismatch=merge.allow_base_mismatch)
    if out.resolve().is_relative_to(plan.folder.resolve()):
        raise TsugikiError("{out} is in the folder of the base, which must not change; choose another --out", out=out)
    with new_folder(out) as part:
        with progress.stage(_("merging"), plan.size) as advance:
            rounding = write_merged(plan, part, advance)
        probe = _verify(merge, plan, part, progress) if merge.verify else None
        changed = len(plan.changed) + len(plan.added) + len(plan.in_memory)
        tensors = sum(len(shard.entries) for shard in plan.shards) + len(plan.added)
        report = MergeReport(changed, tensors, rounding.share, probe)
        write_metadata(part, _metadata(merge, report))
    return report


def _verify(merge: Merge, plan: MergePlan, merged: Path, progress: ProgressDisplay) -> Probe:
    """Compare the base, the base with its adapters, and the merged model, with one model in memory at a time.

    The models are loaded in the dtype of their files. Float16 is converted to float32 if there is no accelerator,
    because processors multiply float16 very slowly.
    """
    device = default_device()
    halves = any(entry.dtype == "F16" for shard in plan.shards for entry in shard.entries.values())
    dtype: LoadDtype = "fp32" if halves and device.type == "cpu" else "auto"

    def logits(model: Any, what: str) -> Tensor:
        with progress.stage(what, None):
            return _finite(probe_logits(model), what)

    model = load_model(merge.base, dtype).to(device)
    if plan.new_words is not None:
        fit_vocabulary(model, plan.config["vocab_size"])
    adapter = load_weighted_sum(model, merge.adapters, merge.weights, allow_base_mismatch=merge.allow_base_mismatch)
    base = logits(model, _("the base"))
    add_adapter(model, adapter, DEFAULT_NAME)
    adapted = logits(model, _("the base with its adapters"))
    del model, adapter
    gc.collect()
    final = logits(load_model(str(merged), dtype).to(device), _("the merged model"))
    return Probe(float((adapted - base).abs().max()), float((final - adapted).abs().max()))


def _finite(logits: Tensor | None, what: str) -> Tensor:
    if logits is None:
        raise TsugikiError("{what} gives no logits to compare; --no-verify merges without comparing", what=what)
    if not torch.isfinite(logits).all():
        raise TsugikiError("{what} gives logits that are not finite; nothing was written", what=what)
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
