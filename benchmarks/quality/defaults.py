"""Compare the defaults with a sweep over layers and rates: `python -m benchmarks.quality.defaults a.jsonl --out DIR`.

For each text `a.jsonl`, which is what a user would train on, there is a second one of the same author, `a.test.jsonl`,
that no run sees. A run with default settings, and one for each choice of layers, learning rate and seed train on the
first one. Everything else is the default: each run keeps its best step. The figure of a run is the bits per character
of the second text with what the run kept. Since this text chooses the lowest figure of the sweep, and nothing chooses
the default's, the difference is an upper bound. `benchmarks.quality.default_texts` writes the texts.

Runs that are finished in `--out` are not repeated.
"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

import tsugiki
from benchmarks.figures import Figures
from tsugiki.io.json import read_json, write_json
from tsugiki.report.table import Table
from tsugiki.training.record.run_record import RunRecord
from tsugiki.training.run.several import run_all
from tsugiki.training.settings.config import RunConfig
from tsugiki.training.settings.files import validated

HEADERS = {
    "en": ["text", "steps", "base", "default", "lowest of the sweep", "default above it"],
    "ja": ["テキスト", "ステップ", "ベースモデル", "既定の設定", "掃引の最小値", "既定の設定との差"],
}
LAYERS = ("c_attn,c_proj", "c_attn,c_proj,c_fc", "c_attn,c_proj,c_fc,lm_head")
FACTORS = (0.33, 1, 3)


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", type=Path, help="texts, a file for each row of the table")
    parser.add_argument("--model", default="embedded")
    parser.add_argument(
        "--layers",
        nargs="*",
        default=LAYERS,
        help="names of target modules with commas between them; without any, the defaults alone run",
    )
    parser.add_argument("--factors", type=float, nargs="*", default=FACTORS, help="on the default's learning rate")
    parser.add_argument("--seeds", type=int, nargs="*", default=[42])
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--figures", type=Path, help="JSON file to write the table to")
    options = parser.parse_args()
    rows = []
    for data in options.data:
        test = data.with_suffix(".test.jsonl")
        base = next(iter(tsugiki.evaluate(str(test), model=options.model).values())).bits_per_char
        bits: dict[str, list[float]] = {}
        for seed in options.seeds:
            settings = {"model": options.model, "data": str(data), "seed": seed}
            default = _runs(settings, {"default": {}}, options.out)["default"]
            rate = default.restarts[0].learning_rate if default.restarts else default.chosen("learning_rate")
            swept, records = {}, {"default": default}
            for layers in options.layers:
                for factor in options.factors:
                    name = f"{layers}, rate × {factor:g}"
                    is_default = _head_factor(default) == 1 and _layers(default) == set(layers.split(","))
                    if factor == 1 and not default.restarts and is_default:
                        records[name] = default
                    else:
                        swept[name] = _settings(layers, factor * rate)
            for name, record in {**records, **(_runs(settings, swept, options.out) if swept else {})}.items():
                bits.setdefault(name, []).append(_test_bits(record, test))
        rows.append(_row(data.stem, default, base, {name: sum(same) / len(same) for name, same in bits.items()}))
        print(Table(HEADERS["en"], rows).to_markdown(), flush=True)
    if options.figures:
        command = f"python -m benchmarks.quality.defaults {shlex.join(sys.argv[1:])}"
        Figures(HEADERS, rows, command).write(options.figures)


def _layers(record: RunRecord) -> set[str]:
    return set(record.resolved_settings["target_modules"])


def _head_factor(record: RunRecord) -> float:
    return float(record.resolved_settings.get("head_factor", 1.0))


def _settings(layers: str, rate: float) -> dict[str, Any]:
    names = layers.split(",")
    return {"lora": {"target_modules": names if len(names) > 1 else layers}, "learning_rate": rate}


def _runs(settings: dict[str, Any], changes: dict[str, dict[str, Any]], out: Path) -> dict[str, RunRecord]:
    """Train with each change of the settings, and return name -> record. The base is loaded once."""
    start = f"{Path(settings['data']).stem} {Path(settings['model']).name} {settings['seed']}"
    configs = {
        name: validated(RunConfig, {**settings, **change, "out": str(out / f"{start} {name}")}, None)
        for name, change in changes.items()
    }
    return run_all(configs)


def _test_bits(record: RunRecord, test: Path) -> float:
    """Return the bits per character of the text that no run sees, which are kept beside the run."""
    out, model = str(record.config.out), str(record.config.model)
    file = Path(out) / f"{test.stem}.json"
    if not file.exists():
        results = tsugiki.evaluate(str(test), model=model, adapter=out)
        write_json(file, {"bits_per_char": list(results.values())[-1].bits_per_char})
    return float(read_json(file)["bits_per_char"])


def _row(name: str, default: RunRecord, base: float, bits: dict[str, float]) -> list[str]:
    best = min((each for each in bits if each != "default"), key=lambda each: bits[each], default=None)
    layers = "without head" if "lm_head" not in _layers(default) else "with head"
    if _head_factor(default) != 1:
        layers = f"head at {_head_factor(default):g} of the rate"
    steps, rows = default.resolved_settings["steps"], default.chosen("batch_size")
    return [
        name,
        f"{steps:,} of {rows} rows",
        f"{base:.3f}",
        f"{bits['default']:.3f} ({layers}, rate {default.chosen('learning_rate'):g})",
        f"{bits[best]:.3f} ({best})" if best else "–",
        f"{bits['default'] / bits[best] - 1:+.2%}" if best else "–",
    ]


if __name__ == "__main__":
    main()
