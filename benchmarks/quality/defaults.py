"""Compare the defaults with other layers and rates: `python -m benchmarks.quality.defaults a.jsonl --out DIR`.

For each text `a.jsonl`, which is what a user would train on, there is a second one of the same author, `a.test.jsonl`,
that no run sees. A run of the embedded model with default settings, and one for each alternative, train on the first
one; everything else is the default, so each run keeps its best step. The figure of a run is the bits per character of
the second text with what the run kept. The last row has the mean change from the default to each alternative over the
texts, with its 95 % interval (Student's t; the texts are what varies).

The last column is an upper bound of what the default loses, because the second text chooses the lowest figure, and
nothing chooses the default's. `benchmarks.quality.default_texts` writes the texts. Runs that are finished in `--out`
are not repeated.
"""

import argparse
import shlex
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import tsugiki
from benchmarks.figures import Figures
from benchmarks.quality.default_texts import UNSEEN
from tsugiki.io.json import read_json, write_json
from tsugiki.report.table import Table
from tsugiki.training.record.interval import mean_interval
from tsugiki.training.record.run_record import RunRecord
from tsugiki.training.run.sweep import run_all
from tsugiki.training.settings.config import RunConfig
from tsugiki.training.settings.files import validated

HEADERS = {
    "en": [
        "text",
        "base",
        "default",
        "a third of the rate",
        "three times the rate",
        "attention alone",
        "without the head",
        "head at the full rate",
        "default above the lowest",
    ],
    "ja": [
        "テキスト",
        "ベースモデル",
        "既定の設定",
        "学習率 1/3",
        "学習率 3 倍",
        "注意機構だけ",
        "出力層なし",
        "出力層も同じ学習率",
        "最小値と既定の設定との差",
    ],
}
BLOCKS = ["c_attn", "c_proj", "c_fc"]
"""All linear layers in the blocks of the embedded model, a GPT-2."""


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", type=Path, help="texts, a file for each row of the table")
    parser.add_argument("--seeds", type=int, nargs="*", default=[42], help="the figures are means over these")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--figures", type=Path, help="JSON file to write the table to")
    options = parser.parse_args()
    bits: dict[str, list[float]] = {}
    bases: list[float] = []
    for data in options.data:
        test = data.with_suffix(".test.jsonl")
        bases.append(next(iter(tsugiki.evaluate(str(test), model="embedded").values())).bits_per_char)
        by_seed = [_bits_by_run(data, test, seed, options.out) for seed in options.seeds]
        bits[data.stem] = [fmean(same) for same in zip(*by_seed, strict=True)]
        rows = [_row(name, base, found) for (name, found), base in zip(bits.items(), bases, strict=True)]
        rows.append(_means(list(bits.values())))
        print(Table(HEADERS["en"], rows).to_markdown(), flush=True)
        if options.figures:
            command = f"python -m benchmarks.quality.defaults {shlex.join(sys.argv[1:])}"
            Figures(HEADERS, rows, command).write(options.figures)


def _bits_by_run(data: Path, test: Path, seed: int, out: Path) -> list[float]:
    """Train with the default and with each alternative, and return the bits per character of the test text."""
    default = _runs(data, seed, {"default": {}}, out)["default"]
    rate = default.restarts[0].learning_rate if default.restarts else default.chosen("learning_rate")
    alternatives = {
        "third": {"learning_rate": rate / 3},
        "three": {"learning_rate": 3 * rate},
        "attention": {"lora": {"target_modules": ["attn.c_attn", "attn.c_proj"]}, "learning_rate": rate},
        "blocks": {"lora": {"target_modules": BLOCKS}, "learning_rate": rate},
        "head": {"lora": {"target_modules": [*BLOCKS, "lm_head"]}, "learning_rate": rate},
    }
    records = [default, *_runs(data, seed, alternatives, out).values()]
    return [_test_bits(record, test) for record in records]


def _runs(data: Path, seed: int, changes: dict[str, dict[str, Any]], out: Path) -> dict[str, RunRecord]:
    """Train with each change of the settings, and return name -> record. The base is loaded once."""
    same = {"model": "embedded", "data": str(data), "seed": seed}
    return run_all(
        {
            name: validated(RunConfig, {**same, **change, "out": str(out / f"{data.stem} {seed} {name}")}, None)
            for name, change in changes.items()
        }
    )


def _test_bits(record: RunRecord, test: Path) -> float:
    """Return the bits per character of the text that no run sees, which are kept beside the run."""
    out, model = str(record.config.out), str(record.config.model)
    file = Path(out) / f"{test.stem}.json"
    if not file.exists():
        results = tsugiki.evaluate(str(test), model=model, adapter=out)
        write_json(file, {"bits_per_char": list(results.values())[-1].bits_per_char})
    return float(read_json(file)["bits_per_char"])


def _row(name: str, base: float, bits: list[float]) -> list[str]:
    above = bits[0] / min(bits) - 1
    if name in UNSEEN:
        author, kana, *_sizes = UNSEEN[name]
        name = f"{author or 'all authors'}, {kana} kana"
    return [name, f"{base:.3f}", *(f"{each:.3f}" for each in bits), f"{above:+.2%}"]


def _means(bits: list[list[float]]) -> list[str]:
    """Return the last row: the mean change from the default to each alternative, with its interval."""
    cells = []
    for found in list(zip(*bits, strict=True))[1:]:
        changes = [other / default[0] - 1 for other, default in zip(found, bits, strict=True)]
        interval = mean_interval(changes)
        ends = f" [{interval[0]:+.2%}, {interval[1]:+.2%}]" if interval else ""
        cells.append(f"{fmean(changes):+.2%}{ends}")
    above = fmean(default[0] / min(default) - 1 for default in bits)
    return ["mean change", "", "", *cells, f"{above:+.2%}"]


if __name__ == "__main__":
    main()
