"""Runs of a comparison or a sweep that have finished before, and whether their results can be in one table."""

from collections.abc import Mapping

from tsugiki.base.identity import named_identity, why_different
from tsugiki.data.read.files import describe_data
from tsugiki.errors import TsugikiError, summarise_list
from tsugiki.language import _
from tsugiki.training.config import RunConfig
from tsugiki.training.model import load_run_tokenizer
from tsugiki.training.preparation import data_digest
from tsugiki.training.record import RunRecord
from tsugiki.training.resume import earlier_run


def earlier_runs(runs: Mapping[str, RunConfig]) -> dict[str, RunRecord | None]:
    """Return the record of each run that its folder already holds; None if it holds none.

    Args:
        runs: name -> settings; all have the same base model, the same data and the same tokens.

    Raises:
        TsugikiError: a folder holds a run with other settings, or a finished run with other data or another base than
            the present ones.
    """
    earlier = {name: earlier_run(name, config) for name, config in runs.items()}
    finished = {name: record for name, record in earlier.items() if record and record.status == "finished"}
    if finished:
        _check_unchanged(next(iter(runs.values())), finished)
    return earlier


def check_same_inputs(records: Mapping[str, RunRecord]) -> None:
    """Check that finished runs had the same training and held-out texts, and the same base.

    Raises:
        TsugikiError: the data or the base have changed between two runs.
    """
    first, *others = records
    changed = [name for name in others if _texts(records[name]) != _texts(records[first])]
    _refuse(changed, _("the data have changed since {first} was trained").format(first=first))
    changed = [name for name in others if _is_other_base(records[first], records[name])]
    _refuse(changed, _("the base model has changed since {first} was trained").format(first=first))


def _check_unchanged(config: RunConfig, finished: Mapping[str, RunRecord]) -> None:
    tokenizer = load_run_tokenizer(config)
    digest, base = data_digest(config, tokenizer), named_identity(config.model)
    digests = {name: record.data.digest for name, record in finished.items() if record.data is not None}
    changed = [name for name, before in digests.items() if before != digest]
    message = _("{data}, other data or the tokenizer has changed since they were trained")
    _refuse(changed, message.format(data=describe_data(config.data)))
    bases = {name: record.base for name, record in finished.items() if record.base is not None}
    changed = [name for name, before in bases.items() if why_different(before, base)]
    _refuse(changed, _("{model} has changed since they were trained").format(model=config.model))


def _texts(record: RunRecord) -> tuple[str, str] | None:
    return (record.data.train.fingerprint, record.data.held_out.fingerprint) if record.data is not None else None


def _is_other_base(one: RunRecord, other: RunRecord) -> bool:
    return one.base is not None and other.base is not None and bool(why_different(one.base, other.base))


def _refuse(names: list[str], why: str) -> None:
    if names:
        raise TsugikiError(
            _("{names}: {why}; delete these runs, or choose another out").format(names=summarise_list(names), why=why)
        )
