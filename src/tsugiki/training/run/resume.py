"""Continue the run that a folder holds: with the same settings, base and data as before."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from tsugiki.errors import TsugikiError, warn_caller
from tsugiki.io.file_names import MANIFEST_FILE, RECORD_FILE
from tsugiki.io.json import flat
from tsugiki.io.run_folder import CHECKPOINTS
from tsugiki.language import _
from tsugiki.training.record.run_record import RecordedConfig, RunRecord, parse_record, read_record
from tsugiki.training.settings.config import RunConfig
from tsugiki.training.step.checkpoint import Checkpoint, load_training_state, newest_checkpoint

LENGTH = ("epochs", "max_steps", "minutes")
"""The settings that give the length of a run."""
_MAY_CHANGE = frozenset(
    {
        *(*LENGTH, "reward_settings.rounds", "patience", "prompts", "report_to", "sample_steps", "sample_tokens"),
        *("save_steps", "reward"),  # rules are compared by their content (`run.reward`)
    }
)
"""The settings whose values may change when a run is continued."""


def recorded_settings(out: Path) -> dict[str, Any]:
    """Return the settings of the run in a folder, nested as in a YAML file, without those that are the defaults."""
    return without_defaults(recorded_run(out).config.to_dict())


def without_defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of a run, nested as in a YAML file, without those that are the defaults.

    The rank stays: a run that begins with an adapter would get that of the adapter instead.
    """
    defaults = RunConfig.model_construct().model_dump(mode="json", warnings=False)
    del defaults["lora"]["r"]
    return _different(settings, defaults)


def _different(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    different: dict[str, Any] = {}
    for name, value in settings.items():
        default = defaults.get(name)
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            value = _different(value, default)
            default = {}
        if value != default:
            different[name] = value
    return different


def earlier_run(name: str, config: RunConfig) -> RunRecord | None:
    """Return the record of the run that `config.out` already holds; None if it holds none.

    The run must have the same settings. An error calls the run `name`.
    """
    out = Path(config.out)
    if not (out / RECORD_FILE).is_file():
        return None
    record = read_record(out)
    changed = changed_settings(record.config.to_dict(), config.to_record())
    if changed:
        raise TsugikiError(
            "{name}: {out} holds a run with other settings: {changed}; delete it or rename this one",
            name=name,
            out=out,
            changed=changed,
        )
    return record


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any], may_change: Collection[str] = ()) -> str:
    """Return the differences between two recorded configs in one line; empty if only the folder differs.

    `may_change` has the full names of settings that are not compared.
    """
    old, new = flat(before), flat(now)
    compared = (name for name in {**new, **old} if name != "out" and name not in may_change)
    changed = [name for name in compared if new.get(name) != old.get(name)]
    return ", ".join(
        _("{name} (was {old!r}, now {new!r})", name=name, old=old.get(name), new=new.get(name)) for name in changed
    )


def resumed(settings: dict[str, Any], out: Path) -> tuple[RunRecord, Path | None]:
    """Return the record of an interrupted run, and its newest intact checkpoint (None: it has not written any).

    The record is read from the checkpoint, so it contains no results of later steps.
    """
    record, checkpoint = recorded_run(out), newest_checkpoint(out / CHECKPOINTS)
    recorded, kept = record.config.to_dict(), _record_of(checkpoint)
    # A checkpoint has a digest of its settings, and `run.json` has none.
    changed = changed_settings(kept.config.to_dict() if kept else recorded, settings, _MAY_CHANGE)
    if changed:
        raise TsugikiError("the run in {out} was started with other settings: {changed}", out=out, changed=changed)
    if record.status == "finished" and not _has_other_length(recorded, settings):
        steps = record.resolved_settings.get("steps", record.training.steps if record.training else 0)
        message = _(
            "the run in {out} is finished, after {steps} steps; a larger {flag:epochs} or "
            "{flag:max_steps}, or more {flag:minutes}, continues it"
        )
        if record.rounds:
            steps = record.rounds[-1].round
            message = _(
                "the run in {out} is finished, after round {steps}; more rounds in {flag:reward_settings} continue it"
            )
        raise TsugikiError(message.format(out=out, steps=steps))
    if checkpoint is None:
        record.forget_after(-1)
    elif kept is None:
        record.forget_after(checkpoint.step)
    else:
        record = kept
        if load_training_state(checkpoint.folder)[2]["callbacks_pending"]:
            record.forget_after(checkpoint.step - 1)  # the evaluations and samples after this step are repeated
    if _has_other_length(record.config.to_dict(), settings):
        record.resolved_settings.pop("steps", None)
    record.config = RecordedConfig.model_validate(settings)
    record.status = "running"
    return record, checkpoint.folder if checkpoint else None


def _has_other_length(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    rounds = [(settings.get("reward_settings") or {}).get("rounds") for settings in (before, now)]
    return rounds[0] != rounds[1] or any(before.get(name) != now.get(name) for name in LENGTH)


def recorded_run(out: Path) -> RunRecord:
    """Return the record of a run; if `run.json` cannot be read, the record in the newest intact checkpoint."""
    try:
        return read_record(out)
    except TsugikiError as error:
        checkpoint = newest_checkpoint(out / CHECKPOINTS)
        kept = _record_of(checkpoint)
        if checkpoint is None or kept is None:
            raise
        warn_caller(_("{error}; the run continues from {name}", error=error, name=checkpoint.folder.name))
        return kept


def _record_of(checkpoint: Checkpoint | None) -> RunRecord | None:
    """Return the record in a checkpoint; None without a checkpoint."""
    if checkpoint is None:
        return None
    return parse_record(checkpoint.record, checkpoint.folder / MANIFEST_FILE)
