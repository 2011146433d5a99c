"""Compare preference tuning by the wall time of whole processes: `python -m benchmarks.speed.preference_wall_time`.

Each tool is started by its public command on few pairs and on more, for one epoch. The difference of the two times is
that of the pairs between them: their reference and their training. Loading and saving are in both and cancel.

The pairs are made of the texts of the quickstart: prompts and answers of half to one and a half of `--characters`, at
random. So TRL has to pad; its `group_by_length` is an error for pairs. The model is SmolLM2 135M with random weights,
with LoRA of rank 8 on all linear layers. A step has 4 pairs; Tsugiki's has 4 rows of about one pair.
"""

import argparse
import json
import random
import shlex
import statistics
import sys
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.figures import Figures
from benchmarks.speed.wall_time import seconds_of, write_model
from benchmarks.speed.workload import ALPHA, LEARNING_RATE, RANK
from tsugiki.dtypes import preferred_compute_dtype
from tsugiki.report.table import Table

HEADERS = {
    "en": ["command", "pairs/s", "whole process, s", "ratio"],
    "ja": ["コマンド", "組/秒", "プロセス全体の秒数", "比"],
}
_BATCH, _HELD_OUT = 4, 2
_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs=2, default=[4, 20])
    parser.add_argument("--characters", type=int, default=128, help="mean length of a prompt, and of an answer")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--model", default="smollm2-135m", help="a shape of `python -m benchmarks.speed --list`")
    parser.add_argument("--out", type=Path, help="JSON file to write the table to")
    options = parser.parse_args()
    found: dict[str, list[list[float]]] = {name: [] for name in COMMANDS}
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = write_model(options.model, folder / "model")
        data = [_write_pairs(folder / str(count), count, options.characters) for count in options.pairs]
        for number in range(options.rounds):
            for name, times in found.items():
                outs = [folder / f"{name}-{number}-{count}" for count in options.pairs]
                times.append([seconds_of(COMMANDS[name](model, *pair), {}) for pair in zip(data, outs, strict=True)])
                print(f"{name}: {times[-1]}", file=sys.stderr, flush=True)
    few, many = options.pairs
    speeds = {name: [(many - few) / (more - less) for less, more in times] for name, times in found.items()}
    first = statistics.median(speeds["trl-dpo"])
    rows = [
        [
            name,
            f"{statistics.median(speeds[name]):.3g}",
            ", ".join(f"{more:.0f}" for _less, more in times),
            f"{statistics.median(speeds[name]) / first:.2f}",
        ]
        for name, times in found.items()
    ]
    print(Table(HEADERS["en"], rows).to_markdown())
    if options.out:
        Figures(HEADERS, rows, f"python -m benchmarks.speed.preference_wall_time {shlex.join(sys.argv[1:])}").write(
            options.out
        )


def _write_pairs(folder: Path, count: int, characters: int) -> Path:
    """Write pairs, and some more that are held out, as JSON Lines; return the folder."""
    texts = sorted((files("tsugiki") / "assets" / "quickstart").iterdir(), key=lambda file: file.name)
    text = "".join(file.read_text("utf-8") for file in texts if file.name.endswith(".txt")).replace("\n", "")
    chance, place = random.Random(0), 0

    def piece() -> str:
        nonlocal place
        first, place = place, place + chance.randint(characters // 2, 3 * characters // 2)
        return (text * 2)[first % len(text) :][: place - first]

    rows = [{name: piece() for name in ("prompt", "chosen", "rejected")} for _ in range(count + _HELD_OUT)]
    for name, some in (("train", rows[_HELD_OUT:]), ("held_out", rows[:_HELD_OUT])):
        (folder / name).mkdir(parents=True)
        lines = [json.dumps({**row, "length": sum(map(len, row.values()))}, ensure_ascii=False) for row in some]
        (folder / name / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def _trl(*more: str) -> Callable[[str, Path, Path], list[str]]:
    def command(model: str, data: Path, out: Path) -> list[str]:
        bf16 = "true" if preferred_compute_dtype() == "bf16" else "false"
        return [
            *("trl", "dpo", "--model_name_or_path", model, "--dataset_name", str(data / "train"), "--output_dir"),
            *(str(out), "--num_train_epochs", "1", "--per_device_train_batch_size", str(_BATCH), "--bf16", bf16),
            *("--use_cpu", "true", "--learning_rate", str(LEARNING_RATE), "--save_strategy", "no"),
            *("--use_peft", "true", "--lora_r", str(RANK), "--lora_alpha", str(ALPHA), "--lora_target_modules"),
            *(*_LAYERS, "--report_to", "none", *more),
        ]

    return command


def _tsugiki(model: str, data: Path, out: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "tsugiki", "train", "--preference", "dpo", "--preference-settings", "likelihood=0"),
        *("--model", model, "--data", str(data / "train" / "train.jsonl"), "--out", str(out), "--epochs", "1"),
        *("--held-out", str(data / "held_out" / "held_out.jsonl"), "--validation", "none", "--allow-overlap"),
        *("--batch-size", str(_BATCH), "--r", str(RANK), "--lora-alpha", str(ALPHA)),
        *("--learning-rate", str(LEARNING_RATE), "--save-steps", "1000", "--eval-steps", "1000"),
    ]


COMMANDS: Mapping[str, Callable[[str, Path, Path], list[str]]] = {
    "trl-dpo": _trl(),
    "trl-dpo-best": _trl("--gradient_checkpointing", "false", "--precompute_ref_log_probs", "true"),
    "tsugiki-dpo": _tsugiki,
}


if __name__ == "__main__":
    main()
