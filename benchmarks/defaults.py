"""Compare the default settings with a sweep over learning rates: `python -m benchmarks.defaults kyoka.jsonl --out DIR`.

For each text, a run with default settings and one for each rate and seed train on the same rows, with the same held-out
text; all other settings are the defaults, and each keeps its best step. The figure of a run is the held-out bits per
character of what it kept. The regret of the default is how much it is above the lowest figure of the sweep. Since the
held-out text chooses that one, and nothing chooses the default's, the regret is an upper bound.

Runs that are finished in `--out` are not repeated.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import Figures
from tsugiki.report.table import Table
from tsugiki.training.config import RunConfig
from tsugiki.training.config_files import validated
from tsugiki.training.evaluation.result import change_of_bits
from tsugiki.training.record import RunRecord
from tsugiki.training.workflows.compare import run_all

HEADERS = {
    "en": ["text", "steps", "base", "default", "lowest of the sweep", "default above it"],
    "ja": ["テキスト", "ステップ", "ベースモデル", "既定の設定", "掃引の最小値", "既定の設定との差"],
}
RATES = (3e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
AUTO = "auto"


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="texts, a file for each row of the table")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--rates", type=float, nargs="*", default=RATES)
    parser.add_argument("--seeds", type=int, nargs="*", default=[42])
    parser.add_argument("--block-size", type=int)
    parser.add_argument("--held-out", type=float, default=0.1)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--figures", type=Path, help="JSON file to write the table to")
    options = parser.parse_args()
    rows = []
    for data in options.data:
        records: dict[Any, list[RunRecord]] = {rate: [] for rate in (AUTO, *options.rates)}
        for seed in options.seeds:
            settings = {"model": options.model, "data": data, "seed": seed, "block_size": options.block_size}
            settings["held_out"] = options.held_out
            for rate, record in zip(records, _runs(settings, list(records), options.out), strict=True):
                records[rate].append(record)
        rows.append(_row(Path(data).stem, records))
        print(Table(HEADERS["en"], rows).to_markdown(), flush=True)
    if options.figures:
        command = f"python -m benchmarks.defaults {shlex.join(sys.argv[1:])}"
        Figures(HEADERS, rows, command).write(options.figures)


def _runs(settings: dict[str, Any], rates: Sequence[Any], out: Path) -> list[RunRecord]:
    """Train with each rate, and return the records. The base is loaded once."""
    runs = {}
    for rate in rates:
        name = f"{Path(settings['data']).stem} {Path(settings['model']).name} {settings['seed']} {rate}"
        runs[name] = validated(RunConfig, {**settings, "learning_rate": rate, "out": str(out / name)}, None)
    return list(run_all(runs).values())


def _row(name: str, records: dict[Any, list[RunRecord]]) -> list[str]:
    means = {rate: sum(_bits(record) for record in same) / len(same) for rate, same in records.items()}
    best = min((rate for rate in means if rate != AUTO), key=lambda rate: means[rate])
    first, default = records[best][0], records[AUTO][0]
    change = change_of_bits(first.evaluations[-1], default.evaluations[-1])
    # An interval belongs to one seed, and not to the means of several.
    several = len(records[AUTO]) > 1
    interval = "" if several or change.interval is None else " [{:+.2%}, {:+.2%}]".format(*change.interval)
    base = sum(record.evaluations[0].bits_per_char for record in records[AUTO]) / len(records[AUTO])
    return [
        name,
        f"{default.resolved_settings['steps']:,} of {default.chosen('batch_size')} rows",
        f"{base:.3f}",
        f"{means[AUTO]:.3f} (rate {default.chosen('learning_rate'):g}, step {default.kept_step})",
        f"{means[best]:.3f} (rate {best:g})",
        f"{means[AUTO] / means[best] - 1:+.2%}{interval}",
    ]


def _bits(record: RunRecord) -> float:
    return record.evaluations[-1].bits_per_char


if __name__ == "__main__":
    main()
