"""Compare several methods: one run for each, with the same data and the same number of steps.

Every run has a separate process, so that its time and its peak memory can be measured. Runs that have finished are not
repeated; an interrupted run is resumed.
"""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from tsugiki.errors import TsugikiError
from tsugiki.io.atomic import check_writable, write_text
from tsugiki.io.file_names import ADAPTER_FILE, MODEL_FILES
from tsugiki.io.json import write_json
from tsugiki.io.locks import sole_use
from tsugiki.language import _
from tsugiki.methods.table import family_of
from tsugiki.train.config import RunConfig
from tsugiki.train.evaluation.interval import Change, Interval
from tsugiki.train.evaluation.result import change_of_loss
from tsugiki.train.processes import require_one_process
from tsugiki.train.record import RunRecord, finished, read_record
from tsugiki.train.workflows.compare_config import ComparisonConfig
from tsugiki.train.workflows.earlier import check_same_inputs, earlier_runs

COMPARISON_FILE = "comparison.json"


class ComparisonRow(BaseModel):
    """The results of one method. Times are in seconds, sizes in bytes, losses in nats per token."""

    name: str
    family: str
    """The family of its method (`methods.table.family_of`)."""
    trainable: int
    """Number of trained parameters."""
    share: float
    """Their share of all parameters."""
    file_size: int
    """Size of the weights of the adapter, or of the model."""
    learning_rate: float
    seconds: float
    tokens_per_second: float
    peak_memory: int
    perplexity_before: float
    perplexity_after: float
    loss_before: float
    loss_after: float
    loss_interval: Interval | None
    """95 % interval of `loss_after`."""
    retention_loss_before: float | None
    """Loss on the text of `retention_data`. What a method forgets raises it."""
    retention_loss_after: float | None
    retention_change: Change | None
    """Relative change of that loss."""


class Comparison(BaseModel):
    """The content of `comparison.json`."""

    format: int = 2
    rows: list[ComparisonRow]


def compare(config: ComparisonConfig) -> dict[str, RunRecord]:
    """Run each method that has not finished yet, and write `comparison.json` to `config.out`.

    Returns:
        Name -> record, in the order of the methods.

    Raises:
        TsugikiError: invalid settings, a folder that holds another run or one with other data, a run that failed, or
            several processes.
    """
    require_one_process("compare")
    runs = config.runs()
    out = Path(config.out)
    check_writable(out)
    with sole_use(out):
        earlier = earlier_runs(runs)
        records = {name: _run_method(name, run, earlier[name]) for name, run in runs.items()}
        check_same_inputs(records)
        write_json(out / COMPARISON_FILE, Comparison(rows=comparison_rows(records)).model_dump(mode="json"))
    return records


def comparison_rows(records: Mapping[str, RunRecord]) -> list[ComparisonRow]:
    """Return the results of finished runs, by the names of their methods."""
    return [_row(name, record) for name, record in records.items()]


def _row(name: str, record: RunRecord) -> ComparisonRow:
    training, parameters = finished(record)
    before, after = record.evaluations[0], record.evaluations[-1]
    retention = record.retention_evaluations
    return ComparisonRow(
        name=name,
        family=family_of(record.config.method),
        trainable=parameters.trainable,
        share=parameters.share,
        file_size=_file_size(record.folder()),
        learning_rate=record.chosen("learning_rate"),
        seconds=training.seconds,
        tokens_per_second=training.tokens_per_second,
        peak_memory=training.peak_memory,
        perplexity_before=before.perplexity,
        perplexity_after=after.perplexity,
        loss_before=before.loss,
        loss_after=after.loss,
        loss_interval=after.loss_interval,
        retention_loss_before=retention[0].loss if retention else None,
        retention_loss_after=retention[-1].loss if retention else None,
        retention_change=change_of_loss(retention[0], retention[-1]) if retention else None,
    )


def _file_size(folder: Path) -> int:
    """Return the size of the adapter's weights, or of the model's, which may be in several files."""
    adapter = folder / ADAPTER_FILE
    found = [adapter] if adapter.is_file() else folder.glob(MODEL_FILES)
    return sum(path.stat().st_size for path in found)


def _run_method(name: str, run: RunConfig, earlier: RunRecord | None) -> RunRecord:
    """Start, resume or reuse the run of one method, in a separate process."""
    out = Path(run.out)
    if earlier and earlier.status == "finished":
        print(_("{name}: already finished in {out}").format(name=name, out=out), file=sys.stderr)
        return earlier
    settings = out.with_name(f"{out.name}.yaml")
    write_text(settings, yaml.safe_dump(_explicit_settings(run), allow_unicode=True, sort_keys=False))
    line = _("{name}: resuming") if earlier else _("{name}: starting")
    print(line.format(name=name), file=sys.stderr)
    # -P: a yaml.py in the working directory is not imported.
    command = [sys.executable, "-P", "-m", "tsugiki", "train", str(settings), *(["--resume"] if earlier else [])]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise TsugikiError(
            _("{name} did not finish (see its message above); run the command again to continue").format(name=name)
        )
    return read_record(out)


def _explicit_settings(run: RunConfig) -> dict[str, Any]:
    """Return the settings that were set explicitly, as a YAML file has them."""
    return run.model_dump(mode="json", exclude_unset=True)
