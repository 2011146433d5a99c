"""Several methods on one budget and one held-out text, each as a run of its own, and what came of them in a table.

Every run is a process of its own, so that its time and its peak memory are its own. A run that is finished is taken as
it is, one that was cut goes on.
"""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from tsugiki.errors import TsugikiError
from tsugiki.io.atomic import check_writable, make_folder, write_text
from tsugiki.io.file_names import ADAPTER_FILE, MODEL_FILES
from tsugiki.io.json import write_json
from tsugiki.methods.table import family_of
from tsugiki.train.config import RunConfig
from tsugiki.train.evaluation.interval import Interval, change_interval
from tsugiki.train.record import RunRecord, read_record
from tsugiki.train.run import earlier_run
from tsugiki.train.workflows.compare_config import ComparisonConfig

COMPARISON_FILE = "comparison.json"


@dataclass(frozen=True)
class Row:
    """One method's line. Times in seconds, sizes in bytes, losses in nats a token."""

    name: str
    family: str
    """Of its method (`methods.table.family_of`)."""
    trainable: int
    share: float
    file_size: int
    learning_rate: float
    seconds: float
    tokens_per_second: float
    peak_memory: int
    perplexity_before: float
    perplexity_after: float
    loss_before: float
    loss_after: float
    loss_interval: Interval | None
    retention_loss_before: float | None
    """On the base's own kind of text: what a method forgets raises it."""
    retention_loss_after: float | None
    retention_change_interval: Interval | None
    """95 % interval of the relative change of the loss on that text."""


def compare(config: ComparisonConfig) -> dict[str, RunRecord]:
    """Carry out, or take over, the run of each method; the table is then in `config.out`.

    Returns:
        The records, in the order of the methods.

    Raises:
        TsugikiError: settings that cannot be, a folder with another run, or a run that failed.
    """
    runs = config.runs()
    out = Path(config.out)
    earlier = {name: earlier_run(name, run) for name, run in runs.items()}
    check_writable(out)
    make_folder(out)
    records = {name: _carried_out(name, run, earlier[name]) for name, run in runs.items()}
    _refuse_other_data(records)
    write_json(out / COMPARISON_FILE, {"format": 1, "rows": [asdict(row) for row in rows(records)]})
    return records


def rows(records: Mapping[str, RunRecord]) -> list[Row]:
    """The table of these finished runs."""
    return [_row(name, record) for name, record in records.items()]


def _row(name: str, record: RunRecord) -> Row:
    before, after = record.evaluations[0], record.evaluations[-1]
    own = record.retention_evaluations
    training = record.training
    return Row(
        name=name,
        family=family_of(record.config.get("method", "")),
        trainable=record.parameters["trainable"],
        share=record.parameters["share"],
        file_size=_file_size(Path(record.config["out"])),
        learning_rate=record.config["learning_rate"],
        seconds=training["seconds"],
        tokens_per_second=training["tokens_per_second"],
        peak_memory=training["peak_memory"],
        perplexity_before=before["perplexity"],
        perplexity_after=after["perplexity"],
        loss_before=before["loss"],
        loss_after=after["loss"],
        loss_interval=after["loss_interval"],
        retention_loss_before=own[0]["loss"] if own else None,
        retention_loss_after=own[-1]["loss"] if own else None,
        retention_change_interval=change_interval(own[0]["documents"], own[-1]["documents"]) if own else None,
    )


def _file_size(folder: Path) -> int:
    """Of the adapter's weights, or of the model's, which may be in several files."""
    adapter = folder / ADAPTER_FILE
    found = [adapter] if adapter.is_file() else folder.glob(MODEL_FILES)
    return sum(path.stat().st_size for path in found)


def _carried_out(name: str, run: RunConfig, earlier: RunRecord | None) -> RunRecord:
    out = Path(run.out)
    if earlier and earlier.status == "finished":
        print(f"{name}: already done, taken from {out}", file=sys.stderr)
        return earlier
    settings = out.with_name(f"{out.name}.yaml")
    write_text(settings, yaml.safe_dump(_given(run), allow_unicode=True, sort_keys=False))
    print(f"{name}: {'going on' if earlier else 'beginning'}", file=sys.stderr)
    command = [sys.executable, "-m", "tsugiki", "train", str(settings), *(["--resume"] if earlier else [])]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise TsugikiError(f"{name} did not finish (its own message stands above); what is done is kept, run again")
    return read_record(out)


def _given(run: RunConfig) -> dict[str, Any]:
    """The settings of a run as a file has them: what is the default is left out."""
    return run.model_dump(mode="json", exclude_unset=True)


def _refuse_other_data(records: Mapping[str, RunRecord]) -> None:
    """All runs have learned and been measured by the same texts."""
    kinds = ("train", "held_out")
    seen = {name: tuple(record.data[kind]["fingerprint"] for kind in kinds) for name, record in records.items()}
    first = next(iter(seen))
    other = [name for name in seen if seen[name] != seen[first]]
    if other:
        raise TsugikiError(
            f"{', '.join(other)}: made on another state of the data than {first}; delete these runs and run again"
        )
