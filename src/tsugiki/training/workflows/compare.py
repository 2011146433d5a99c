"""Compare several methods: a run for each, with the same data and the same number of steps (see `several`)."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel

from tsugiki.io.atomic import check_writable
from tsugiki.io.file_names import ADAPTER_FILE, MODEL_FILES
from tsugiki.io.json import write_json
from tsugiki.io.locks import sole_use
from tsugiki.methods.table import family_of
from tsugiki.training.evaluation.interval import Change, Interval
from tsugiki.training.evaluation.result import change_of_loss
from tsugiki.training.processes import require_one_process
from tsugiki.training.progress import RunProgress
from tsugiki.training.record import RunRecord, finished
from tsugiki.training.workflows.compare_config import ComparisonConfig
from tsugiki.training.workflows.several import run_all

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
    """All tokens, also those that are not in the loss."""
    peak_memory: int
    perplexity_before: float
    perplexity_after: float
    loss_before: float
    loss_after: float
    loss_interval: Interval | None
    """95 % interval of `loss_after`."""
    retention_loss_before: float | None
    """Loss on the text of `retention_data`; it rises with what a method forgets."""
    retention_loss_after: float | None
    retention_change: Change | None
    """Relative change of that loss."""


class Comparison(BaseModel):
    """The content of `comparison.json`."""

    format: int = 2
    rows: list[ComparisonRow]


def compare(config: ComparisonConfig, progress: RunProgress | None = None) -> dict[str, RunRecord]:
    """Run each method that has not finished yet, and write `comparison.json` to `config.out`.

    Args:
        config: the settings.
        progress: where to show the progress; None: a new display on standard error for each run.

    Returns:
        Name -> record, in the order of the methods.

    Raises:
        TsugikiError: invalid settings, a folder that holds another run or one with other data, an error in a run,
            or several processes.
    """
    require_one_process("compare")
    runs = config.runs()
    out = Path(config.out)
    check_writable(out)
    with sole_use(out):
        records = run_all(runs, progress)
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
        tokens_per_second=record.all_tokens_per_second(),
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
