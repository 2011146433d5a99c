"""The record of a run while it trains: kept up to date with its progress, and written to `run.json`."""

import time
from pathlib import Path

from tsugiki.training.record.run_record import RunRecord, TrainingFigures
from tsugiki.training.step.checkpoint import Progress
from tsugiki.training.tools.memory import process_peak

_SECONDS_BETWEEN_WRITES = 1  # flushing a file to the disk takes longer than a quick step


class RecordFile:
    """The record of a run, and its file in the folder of the run, which the main process alone writes."""

    def __init__(self, record: RunRecord, folder: Path, is_main_process: bool) -> None:
        """Nothing is written yet."""
        self.record, self._folder, self._writes = record, folder, is_main_process
        self._written = 0.0  # when the record was written last, in seconds of `time.monotonic`

    def write(self, progress: Progress) -> None:
        """Take the progress into the record, and write the file."""
        self._update(progress)
        if self._writes:
            self.record.write(self._folder)
        self._written = time.monotonic()

    def write_at_times(self, progress: Progress) -> None:
        """Take the progress into the record, and write the file, unless it has just been written."""
        self._update(progress)
        if time.monotonic() - self._written >= _SECONDS_BETWEEN_WRITES:
            self.write(progress)

    def _update(self, progress: Progress) -> None:
        self.record.loss_curve = list(progress.loss_curve)
        self.record.preference_curve = list(progress.preference_curve)
        self.record.training = TrainingFigures(
            steps=progress.step,
            loss=progress.loss,
            tokens=progress.tokens,
            seconds=progress.seconds,
            tokens_per_second=progress.tokens_per_second,
            peak_memory=process_peak(),
        )
