"""What shares of other text keep.

    python -m benchmarks.quality.replay DATA --mix OTHER --retention-data TEXT --out DIR

A run with default settings trains for each share of other text (`--mix`), and what it has kept is evaluated on the
held-out text and on the retention text. Runs that are finished in `--out` are not repeated.
"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from benchmarks.figures import Figures
from tsugiki.report.formatting import format_change
from tsugiki.report.table import Table
from tsugiki.training.record.result import StepEvaluation, change_of_bits
from tsugiki.training.record.run_record import RunRecord, finished
from tsugiki.training.run.resume import earlier_run
from tsugiki.training.run.stages import train
from tsugiki.training.settings.config import RunConfig
from tsugiki.training.settings.files import validated

HEADERS = {
    "en": ["share of other text", "steps", "held-out text, bits/char", "retention text, bits/char"],
    "ja": ["ほかの文章の割合", "ステップ", "評価データ（ビット/文字）", "忘却確認用データ（ビット/文字）"],
}
SHARES = (0.0, 0.05, 0.1, 0.25)


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--mix", required=True, help="the other text")
    parser.add_argument("--retention-data", default="embedded")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--shares", type=float, nargs="*", default=SHARES)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--figures", type=Path, help="JSON file to write the table to")
    options = parser.parse_args()
    settings = {"model": options.model, "data": options.data, "retention_data": options.retention_data}
    rows = [_row(share, _run(settings, options.mix, share, options.out)) for share in options.shares]
    print(Table(HEADERS["en"], rows).to_markdown())
    if options.figures:
        command = f"python -m benchmarks.quality.replay {shlex.join(sys.argv[1:])}"
        Figures(HEADERS, rows, command).write(options.figures)


def _run(settings: dict[str, Any], mix: str, share: float, out: Path) -> RunRecord:
    own = {**settings, "out": str(out / f"{share:g}")} | ({"mix": f"{mix}:{share:g}"} if share else {})
    config = validated(RunConfig, own, None)
    earlier = earlier_run(f"{share:g}", config)
    return earlier if earlier and earlier.status == "finished" else train(config, resume=earlier is not None)


def _row(share: float, record: RunRecord) -> list[str]:
    return [
        f"{share:.0%}",
        f"{finished(record)[0].steps:,}",
        _change(record.evaluations),
        _change(record.retention_evaluations),
    ]


def _change(evaluations: list[StepEvaluation]) -> str:
    first, last = evaluations[0], evaluations[-1]
    return f"{first.bits_per_char:.3f} → {last.bits_per_char:.3f} ({format_change(change_of_bits(first, last))})"


if __name__ == "__main__":
    main()
