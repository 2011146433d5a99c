"""Record the machine, the base and the data of a run, and refuse to resume it with another base or other data."""

import warnings
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator

from tsugiki.base.checks import code_digest
from tsugiki.base.identity import identity_of, why_different
from tsugiki.base.resolve import settings_folder
from tsugiki.data.read.files import describe_data
from tsugiki.errors import TsugikiError, summarise_list
from tsugiki.language import _
from tsugiki.lowbit.quantization import count_parameters
from tsugiki.training.automatic import ResolvedConfig
from tsugiki.training.machine import describe_machine, library_versions
from tsugiki.training.packing import PackedDataset
from tsugiki.training.record import DataSummary, Parameters, RecordedBase, RunRecord

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def describe_run(
    accelerator: Accelerator,
    record: RunRecord,
    config: ResolvedConfig,
    model: "PreTrainedModel",
    data: PackedDataset,
    resolved: dict[str, Any],
) -> Parameters:
    """Write the machine, the base, the data and the resolved settings into the record.

    Returns:
        The numbers of parameters, which the record contains as well.

    Raises:
        TsugikiError: a resumed run has another base, other data, or other resolved settings than before.
    """
    _describe_versions(record)
    record.machine = describe_machine(accelerator.device, accelerator.num_processes)
    base_before, data_before = record.base, record.data
    code = code_digest(settings_folder(config.model, trust_remote_code=True)) if config.trust_remote_code else None
    identity = identity_of(model)  # of the base, whose weights the adapter does not change
    record.base = RecordedBase(name=config.model, dtype=str(model.dtype), code=code, **dict(identity))
    record.data = data.summary
    if base_before is not None and (
        _is_other_base(base_before, record.base) or _are_other_data(data_before, record.data)
    ):
        raise TsugikiError(
            _(
                "{data} or {model} has changed since the run in {out} was started; restore it, or start a new run with "
                "another --out"
            ).format(data=describe_data(config.data), model=config.model, out=config.out)
        )
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = count_parameters(model)
    record.parameters = Parameters(trainable=trainable, total=total, share=trainable / total)
    resolved_before = record.resolved_settings
    record.resolved_settings = resolved
    for name, value in resolved_before.items():
        now = record.resolved_settings.get(name)
        if value != now:
            raise TsugikiError(
                _(
                    "the run in {out} was started on another machine or with another base: {name} was {value} and "
                    "would be {now} here"
                ).format(out=config.out, name=name, value=value, now=now)
            )
    return record.parameters


def _describe_versions(record: RunRecord) -> None:
    """Record and warn that a library has another version than before the run was resumed."""
    before, now = record.versions, library_versions()
    changed = [
        _("{name} was {before} and is {now}").format(name=name, before=before.get(name), now=now[name])
        for name in now
        if before.get(name) != now[name]
    ]
    if changed:
        warnings.warn(
            _(
                "the run was started with other versions: {changed}; its result may differ from that of an "
                "uninterrupted run"
            ).format(changed=summarise_list(changed)),
            stacklevel=2,
        )
        record.earlier_versions.append(before)
        record.versions = now


def _is_other_base(before: RecordedBase, now: RecordedBase) -> bool:
    return bool(why_different(before, now)) or (before.dtype, before.code) != (now.dtype, now.code)


def _are_other_data(before: DataSummary | None, now: DataSummary) -> bool:
    return before is None or _compared(before) != _compared(now)


def _compared(data: DataSummary) -> dict[str, Any]:
    """Return the description of data without the fields that older records lack."""
    described = data.model_dump(exclude={"learns_conversations", "unknown_share", "piece_share", "left_out"})
    del described["held_out"]["known_to_base"]
    return described
