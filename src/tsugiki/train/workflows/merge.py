"""Adapters merged into a model folder, and the folder held against base and adapter before it is there to be used."""

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tsugiki.adapters.algebra.weighted_sum import load_weighted_sum
from tsugiki.adapters.format import read_config_fields
from tsugiki.adapters.lora_weights import source
from tsugiki.adapters.merge.to_folder import MergePlan, plan_merge, rounding_of, write_merged
from tsugiki.base.fingerprint import named_fingerprint
from tsugiki.base.inference import probe_logits
from tsugiki.base.loading import default_device, load_model, load_tokenizer
from tsugiki.dtypes import LoadDtype
from tsugiki.errors import TsugikiError
from tsugiki.io.atomic import new_folder
from tsugiki.io.file_names import METADATA_FILE
from tsugiki.io.json import write_json
from tsugiki.io.progress import ProgressDisplay
from tsugiki.lora.graft import DEFAULT_NAME, add_adapter
from tsugiki.train.evaluation.evaluate import Window, evaluate, read_windows
from tsugiki.train.evaluation.result import Evaluation


@dataclass(frozen=True)
class Merge:
    """What is to be merged, and what it is to be held against."""

    base: str
    adapters: Sequence[Path]
    weights: Sequence[float] | None = None
    """A factor on the update of each adapter; None: 1."""
    allow_base_mismatch: bool = False
    allow_quantized_base: bool = False
    """Merge into weights that are held in few bits, where much of a change is lost."""
    verify: bool = True
    """Compare logits, for which the model is loaded: as it is stored, or in float32 where that is float16 and there is
    no accelerator, since processors have no quick products of that."""
    data: str | None = None
    """Text whose perplexity is compared as well; as in a run's config."""
    characters: int | None = None
    """At most about so many of it."""


@dataclass(frozen=True)
class Probe:
    """Largest changes of a probe's logits."""

    shift: float
    """From base to adapted."""
    error: float
    """From adapted to merged."""


@dataclass(frozen=True)
class MergeReport:
    """What became of a merge."""

    changed: int
    """Tensors that the adapters change."""
    tensors: int
    """Tensors of the base."""
    rounding: float
    """Share of the change that is lost where weights are rounded to their types."""
    probe: Probe | None
    """None where nothing was verified."""
    evaluations: tuple[Evaluation, Evaluation, Evaluation] | None
    """Of the base, with the adapters, and merged; None without text."""

    def to_json(self) -> dict[str, Any]:
        """The figures."""
        figures: dict[str, Any] = {"tensors_changed": self.changed, "share_lost_to_rounding": self.rounding}
        if self.probe is not None:
            figures |= {"largest_logit_change": self.probe.shift, "largest_logit_error": self.probe.error}
        if self.evaluations is not None:
            figures["perplexity"] = dict(
                zip(("base", "adapted", "merged"), (one.perplexity for one in self.evaluations), strict=True)
            )
        return figures


def merge_into_folder(merge: Merge, out: Path, progress: ProgressDisplay) -> MergeReport:
    """Write the merged model as the new folder `out`, which appears when all is done and verified.

    Raises:
        TsugikiError: what `plan_merge` refuses, values that are not finite, text that cannot be read, or a folder that
            is there already or cannot be written. Nothing is left then.
    """
    windows = _windows(merge)
    with progress.stage("reading base and adapters", None):
        plan = plan_merge(merge.base, merge.adapters, merge.weights, allow_base_mismatch=merge.allow_base_mismatch)
    _refuse_inside(plan.folder, out)
    if plan.coded and not merge.allow_quantized_base:
        raise _refused(plan, progress)
    with new_folder(out) as part:
        with progress.stage("merging", plan.size) as advance:
            rounding = write_merged(plan, part, advance)
        probe, evaluations = _verify(merge, plan, part, windows, progress) if merge.verify else (None, None)
        changed = len(plan.changed) + len(plan.added) + len(plan.in_memory)
        tensors = sum(len(shard.entries) for shard in plan.shards) + len(plan.added)
        report = MergeReport(changed, tensors, rounding.share, probe, evaluations)
        write_json(part / METADATA_FILE, {"format": 1, "merged": _origin(merge, plan), "figures": report.to_json()})
    return report


def _windows(merge: Merge) -> list[Window]:
    if merge.data is None:
        return []
    if not merge.verify:
        raise TsugikiError("--data compares models in memory, which --no-verify does without; leave out one of the two")
    return read_windows(merge.data, merge.characters)


def _refuse_inside(folder: Path, out: Path) -> None:
    if out.resolve().is_relative_to(folder.resolve()):
        raise TsugikiError(f"{out} is in the folder of the base, which stays as it is; choose another --out")


def _refused(plan: MergePlan, progress: ProgressDisplay) -> TsugikiError:
    with progress.stage("what rounding would lose", len(plan.coded)) as advance:
        lost = rounding_of(plan, advance).share
    return TsugikiError(
        f"{plan.base} holds {len(plan.coded):,} of these weights in few bits: rounded to them again, they would lose "
        f"{lost:.1%} of what the adapter changes; merge into the model that it was made from, keep the adapter beside "
        "it, or have it all the same with --allow-quantized-base"
    )


def _verify(
    merge: Merge, plan: MergePlan, merged: Path, windows: Sequence[Window], progress: ProgressDisplay
) -> tuple[Probe, tuple[Evaluation, Evaluation, Evaluation] | None]:
    """Base, adapted and merged, one model in memory at a time."""
    device = default_device()
    halves = any(entry.dtype == "F16" for shard in plan.shards for entry in shard.entries.values())
    dtype: LoadDtype = "fp32" if halves and device.type == "cpu" else "auto"
    tokenizer = load_tokenizer(merge.base) if windows else None
    logits: list[Tensor] = []
    evaluations: list[Evaluation] = []

    def look(model: Any, what: str) -> None:
        with progress.stage(what, len(windows) or None) as advance:
            logits.append(_finite(probe_logits(model), what))
            if tokenizer is not None:
                evaluations.append(evaluate(model, tokenizer, windows, advance=advance))

    model = load_model(merge.base, dtype).to(device)
    adapter = load_weighted_sum(model, merge.adapters, merge.weights, allow_base_mismatch=merge.allow_base_mismatch)
    look(model, "the base")
    add_adapter(model, adapter, DEFAULT_NAME)
    look(model, "the base with its adapters")
    del model, adapter
    gc.collect()
    look(load_model(str(merged), dtype).to(device), "the merged model")
    base, adapted, done = logits
    probe = Probe(float((adapted - base).abs().max()), float((done - adapted).abs().max()))
    return probe, (evaluations[0], evaluations[1], evaluations[2]) if evaluations else None


def _finite(logits: Tensor | None, what: str) -> Tensor:
    if logits is None:
        raise TsugikiError(f"{what} gives no logits to verify by; --no-verify merges without")
    if not torch.isfinite(logits).all():
        raise TsugikiError(f"{what} gives logits that are not finite; nothing was written")
    return logits.float().cpu()


def _origin(merge: Merge, plan: MergePlan) -> dict[str, Any]:
    """What was merged into what, so that it could be done again."""
    weights = merge.weights or [1.0] * len(merge.adapters)
    return {
        "base": {"name": merge.base, "fingerprint": named_fingerprint(merge.base)},
        "adapters": [
            {
                **source(folder),
                "peft_type": read_config_fields(folder)["peft_type"],
                "weight": weight,
            }
            for folder, weight in zip(merge.adapters, weights, strict=True)
        ],
    }
