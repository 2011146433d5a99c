"""What fewer bits for the base cost: `python -m benchmarks.quality.bases --out DIR --text embedded kyoka.jsonl`.

The same LoRA run (same rows, rate and number of steps) on a base in each dtype. Held-out bits per character before it
and after it; the changes are relative to the base in fp32, on the same documents, with 95 % intervals. Runs that are
finished in `--out` are not repeated. `--text` takes a model and a text, and can be repeated; each pair has its own
settings in `--steps`, `--rows` and `--block-size`.
"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from benchmarks.figures import Figures
from tsugiki.report.table import Table
from tsugiki.training.record.result import change_of_bits
from tsugiki.training.record.run_record import RunRecord
from tsugiki.training.run.resume import earlier_run
from tsugiki.training.run.stages import train
from tsugiki.training.settings.config import RunConfig
from tsugiki.training.settings.files import validated

HEADERS = {
    "en": ["model, text", "base", "bits/char before", "beside fp32", "after", "beside fp32"],
    "ja": ["モデル、テキスト", "ベースモデル", "学習前のビット/文字", "fp32 との差", "学習後", "fp32 との差"],
}
DTYPES = ("fp32", "bf16", "int8", "nf4")


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", nargs=2, action="append", required=True, metavar=("MODEL", "TEXT"))
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--block-size", type=int, default=256)
    parser.add_argument("--held-out", type=float, default=0.3)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--figures", type=Path, help="JSON file to write the table to")
    options = parser.parse_args()
    rows = []
    for model, data in options.text:
        records = {dtype: _run(model, data, dtype, options) for dtype in DTYPES}
        rows += [_row(Path(model).stem, Path(data).stem, dtype, records) for dtype in DTYPES]
        print(Table(HEADERS["en"], rows).to_markdown(), flush=True)
    if options.figures:
        command = f"python -m benchmarks.quality.bases {shlex.join(sys.argv[1:])}"
        Figures(HEADERS, rows, command).write(options.figures)


def _run(model: str, data: str, dtype: str, options: argparse.Namespace) -> RunRecord:
    """Train, or return the record of an earlier run."""
    folder = options.out / f"{Path(model).stem} {Path(data).stem} {dtype}"
    settings = {
        "model": model,
        "data": data,
        "base_dtype": dtype,
        "out": str(folder),
        "max_steps": options.steps,
        "batch_size": options.rows,
        "block_size": options.block_size,
        "held_out": options.held_out,
        "validation": "none",
        "eval_steps": options.steps,
    }
    config = validated(RunConfig, settings, None)
    earlier = earlier_run(folder.name, config)
    return earlier if earlier and earlier.status == "finished" else train(config, resume=earlier is not None)


def _row(model: str, text: str, dtype: str, records: dict[str, RunRecord]) -> list[str]:
    exact, record = records["fp32"].evaluations, records[dtype].evaluations
    cells = [f"{model}, {text}", dtype]
    for at in (0, -1):
        cells += [f"{record[at].bits_per_char:.4f}", _change(exact[at], record[at]) if dtype != "fp32" else ""]
    return cells


def _change(before: Any, after: Any) -> str:
    change = change_of_bits(before, after)
    interval = " [{:+.2%}, {:+.2%}]".format(*change.interval) if change.interval else ""
    return f"{change.relative:+.2%}{interval}"


if __name__ == "__main__":
    main()
