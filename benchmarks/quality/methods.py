"""Compare methods at learning rates that were tuned: `python -m benchmarks.quality.methods kyoka.jsonl --out DIR`.

Each method trains with its automatic learning rate, and with the rates of the grid relative to it; everything else is
the default. The validation text chooses the rate, and the held-out text gives the figure: bits per character of what
the run kept. Runs that are finished in `--out` are not repeated.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import Figures
from tsugiki.report.table import Table
from tsugiki.training.record.result import change_of_bits
from tsugiki.training.record.run_record import RunRecord, finished
from tsugiki.training.run.resume import earlier_run
from tsugiki.training.run.stages import train
from tsugiki.training.settings.config import AUTO, RunConfig
from tsugiki.training.settings.files import validated

HEADERS = {
    "en": [
        "method",
        "trainable parameters",
        "text",
        "tuned rate",
        "base",
        "automatic rate",
        "change at the tuned rate",
    ],
    "ja": [
        "手法",
        "学習するパラメータ",
        "テキスト",
        "選んだ学習率",
        "ベースモデル",
        "自動の学習率",
        "選んだ値での変化",
    ],
}
METHODS = (
    *("lora", "rslora", "dora", "lora+", "pissa", "orthogonal", "lora-fa"),
    *("prompt-tuning", "pfeiffer", "ia3", "bitfit", "full"),
)
FACTORS = (0.3, 3.0)
_OTHER_SETTINGS = {"rslora": {"lora": {"lora_alpha": 8}}}  # the same scale as the others' alpha 32 at rank 16


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="texts")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--methods", nargs="*", default=METHODS)
    parser.add_argument("--factors", type=float, nargs="*", default=FACTORS)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--figures", type=Path, help="JSON file to write the table to")
    options = parser.parse_args()
    rows = []
    for method in options.methods:
        for data in options.data:
            rows.append(_row(method, Path(data), options.model, options.factors, options.out))
            print(Table(HEADERS["en"], rows[-1:]).to_markdown().splitlines()[-1], flush=True)
    if options.figures:
        command = f"python -m benchmarks.quality.methods {shlex.join(sys.argv[1:])}"
        Figures(HEADERS, rows, command).write(options.figures)


def _row(method: str, data: Path, model: str, factors: Sequence[float], out: Path) -> list[str]:
    def run(rate: Any) -> RunRecord:
        folder = out / f"{data.stem} {method} {rate}"
        settings = {"model": model, "data": str(data), "method": method, **_OTHER_SETTINGS.get(method, {})}
        config = validated(RunConfig, {**settings, "learning_rate": rate, "out": str(folder)}, None)
        earlier = earlier_run(folder.name, config)
        return earlier if earlier and earlier.status == "finished" else train(config, resume=earlier is not None)

    automatic = run(AUTO)
    rate = automatic.chosen("learning_rate")
    records = [automatic, *(run(float(f"{rate * factor:.2g}")) for factor in factors)]
    best = min(records, key=lambda record: min(entry.loss for entry in record.validations[1:]))
    change = change_of_bits(best.evaluations[0], best.evaluations[-1])
    return [
        method,
        f"{finished(best)[1].trainable:,}",
        data.stem,
        f"{best.chosen('learning_rate'):g}",
        f"{best.evaluations[0].bits_per_char:.3f}",
        f"{automatic.evaluations[-1].bits_per_char:.3f}",
        f"{best.evaluations[-1].bits_per_char:.3f} ({change.relative:+.1%})",
    ]


if __name__ == "__main__":
    main()
