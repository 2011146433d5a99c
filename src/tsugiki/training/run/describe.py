"""The description of a run in its record, which a run that is continued must share."""

from typing import Any

from tsugiki.base.checks import code_digest
from tsugiki.base.identity import identity_of, why_different
from tsugiki.base.resolve import settings_folder
from tsugiki.data.read.files import describe_data
from tsugiki.errors import TsugikiError, summarise_list, warn_caller
from tsugiki.language import _
from tsugiki.lowbit.quantization import count_parameters
from tsugiki.training.record.run_record import (
    DataSummary,
    Parameters,
    RecordedBase,
    RunRecord,
    describe_machine,
    library_versions,
)
from tsugiki.training.run.stage_results import Base, Ready
from tsugiki.training.run.start import Start
from tsugiki.training.tools.processes import check_agreement


def describe(start: Start, base: Base, ready: Ready) -> None:
    """Write the machine, the base, the data and what was chosen into the record, and check that all processes agree.

    A resumed run must have the same base, data and choices as before.
    """
    record, config, model, accelerator = start.record, start.config, base.model, start.accelerator
    _describe_versions(record)
    record.machine = describe_machine(start.device, accelerator.num_processes)
    base_before, data_before = record.base, record.data
    code = code_digest(settings_folder(config.model, trust_remote_code=True)) if config.trust_remote_code else None
    identity = identity_of(model)  # of the base, whose weights the adapter does not change
    record.base = RecordedBase(name=config.model, dtype=str(model.dtype), code=code, **dict(identity))
    record.data = base.data.summary
    if base_before is not None and (
        _is_other_base(base_before, record.base)
        or data_before is None
        or _compared(data_before) != _compared(record.data)
    ):
        message = _(
            "{data} or {model} has changed since the run in {out} was started; restore it, or start a new run with "
            "another {flag:out}"
        )
        raise TsugikiError(message.format(data=describe_data(config.data), model=config.model, out=config.out))
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = count_parameters(model)
    record.parameters = Parameters(trainable=trainable, total=total, share=trainable / total)
    record.resolved_settings = dict(ready.resolved)
    for name, value in start.before.items():
        now = ready.resolved.get(name)
        if value != now:
            message = _(
                "the run in {out} was started on another machine or with another base: {name} was {value} and "
                "would be {now} here"
            )
            raise TsugikiError(message.format(out=config.out, name=name, value=value, now=now))
    check_agreement(
        accelerator,
        {
            **record.config.to_dict(),
            "shard": config.shard,
            "data": record.data,
            _("base model"): record.base,
            _("settings that depend on the machine"): ready.resolved,
        },
    )


def _describe_versions(record: RunRecord) -> None:
    """Record and warn that a library has another version than before the run was resumed."""
    before, now = record.versions, library_versions()
    changed = [
        _("{name} was {before} and is {now}").format(name=name, before=before.get(name), now=now[name])
        for name in now
        if before.get(name) != now[name]
    ]
    if changed:
        message = _(
            "the run was started with other versions: {changed}; its result may differ from that of an "
            "uninterrupted run"
        )
        warn_caller(message.format(changed=summarise_list(changed)))
        record.earlier_versions.append(before)
        record.versions = now


def _is_other_base(before: RecordedBase, now: RecordedBase) -> bool:
    return bool(why_different(before, now)) or (before.dtype, before.code) != (now.dtype, now.code)


def _compared(data: DataSummary) -> dict[str, Any]:
    """Return the description of data without the fields that older records lack."""
    return data.model_dump(
        exclude={"learns_answers", "learns_conversations", "unknown_share", "piece_share", "left_out"}
    )
