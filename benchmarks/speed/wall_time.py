"""Compare tools by the wall time of whole processes: `python -m benchmarks.speed.wall_time --out wall_time.json`.

Each tool is started by its public command, once with few steps and once with more; the difference of the two times is
that of the steps between them. Loading, evaluation and saving are in both and cancel. The tools take turns, with the
machine to themselves, so that each frees and gets memory as it does for its users.

The model is GPT-2 small with random weights, 4 rows of 512 tokens a step, base in bfloat16, LoRA of rank 8 on the
chapter's layers with dropout 0.1, and the texts of the quickstart. In `peft-eager-malloc` and `peft-sdpa-malloc` glibc
keeps freed memory, as in `peft-bf16-malloc` of `benchmarks.speed`.
"""

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.figures import Figures
from benchmarks.models import build
from benchmarks.speed.entries import TRAINING_ENTRIES
from benchmarks.speed.peft_trainer import LENGTH, ROWS
from tsugiki.base.loading import load_tokenizer
from tsugiki.base.resolve import EMBEDDED
from tsugiki.report.table import Table

HEADERS = {
    "en": ["command", "tokens/s", "seconds of a step, by round", "ratio to the fastest competitor"],
    "ja": ["コマンド", "トークン/秒", "1 ステップの秒数（各回）", "最も速い競合との比"],
}


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = "peft-eager-malloc,peft-sdpa-malloc,trl,tsugiki"
    parser.add_argument("--tools", default=default, help=f"from {', '.join(COMMANDS)}")
    parser.add_argument("--steps", type=int, nargs=2, default=[10, 26])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--model", default="gpt2-small", help="a shape of `python -m benchmarks.speed --list`")
    parser.add_argument("--out", type=Path, help="JSON file to write the table to")
    options = parser.parse_args()
    few, many = options.steps
    found: dict[str, list[float]] = {name: [] for name in options.tools.split(",")}
    if unknown := [name for name in found if name not in COMMANDS]:
        parser.error(f"unknown tool {', '.join(unknown)}; choose from {', '.join(COMMANDS)}")
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model, data = write_model(options.model, folder / "model"), str(files("tsugiki") / "assets" / "quickstart")
        for number in range(options.rounds):
            for name, seconds in found.items():
                times = [
                    seconds_of(
                        COMMANDS[name](model, data, steps, folder / f"{name}-{number}-{steps}"),
                        ENVIRONMENTS.get(name, {}),
                    )
                    for steps in (few, many)
                ]
                seconds.append((times[1] - times[0]) / (many - few))
                print(f"{name}: {times[0]:.1f} s, {times[1]:.1f} s", file=sys.stderr, flush=True)
    rows = _rows(found)
    print(Table(HEADERS["en"], rows).to_markdown())
    if options.out:
        Figures(HEADERS, rows, f"python -m benchmarks.speed.wall_time {shlex.join(sys.argv[1:])}").write(options.out)


def write_model(shape: str, folder: Path) -> str:
    """Write a model of a known shape with random weights and the tokenizer of the embedded one; return its folder."""
    build(shape, torch.bfloat16).save_pretrained(folder)
    load_tokenizer(EMBEDDED).save_pretrained(folder)
    return str(folder)


def _peft(attention: str) -> Callable[[str, str, int, Path], list[str]]:
    def command(model: str, data: str, steps: int, out: Path) -> list[str]:
        script = [sys.executable, "-m", "benchmarks.speed.peft_trainer"]
        return [*script, model, data, str(steps), "--attention", attention]

    return command


def _trl(model: str, data: str, steps: int, out: Path) -> list[str]:
    return [
        *("trl", "sft", "--model_name_or_path", model, "--dataset_name", data, "--output_dir", str(out)),
        *("--max_steps", str(steps), "--per_device_train_batch_size", str(ROWS), "--max_length", str(LENGTH)),
        *("--packing", "true", "--packing_strategy", "wrapped", "--gradient_checkpointing", "false"),
        *("--dtype", "bfloat16", "--use_cpu", "true", "--learning_rate", "1e-4", "--save_strategy", "no"),
        *("--use_peft", "true", "--lora_r", "8", "--lora_alpha", "32", "--lora_dropout", "0.1"),
        *("--lora_target_modules", "c_attn", "c_proj", "--report_to", "none"),
    ]


def _tsugiki(dtype: str | None) -> Callable[[str, str, int, Path], list[str]]:
    def command(model: str, data: str, steps: int, out: Path) -> list[str]:
        return [
            *(sys.executable, "-m", "tsugiki", "train", "--model", model, "--data", data, "--out", str(out)),
            *("--max-steps", str(steps), "--batch-size", str(ROWS), "--block-size", str(LENGTH), "--as-chapter"),
            *("--target-modules", "c_attn,c_proj", "--held-out-characters", "1000", "--save-steps", str(steps)),
            *(("--base-dtype", dtype) if dtype else ()),
        ]

    return command


COMMANDS: Mapping[str, Callable[[str, str, int, Path], list[str]]] = {
    "peft-eager": _peft("eager"),
    "peft-sdpa": _peft("sdpa"),
    "peft-eager-malloc": _peft("eager"),
    "peft-sdpa-malloc": _peft("sdpa"),
    "trl": _trl,
    "tsugiki": _tsugiki("bf16"),
    "tsugiki-int8": _tsugiki("int8"),
}


_KEEP = TRAINING_ENTRIES["peft-bf16-malloc"].environment
ENVIRONMENTS: Mapping[str, Mapping[str, str]] = {"peft-eager-malloc": _KEEP, "peft-sdpa-malloc": _KEEP}
"""Variables of the processes of a tool."""


def seconds_of(command: list[str], environment: Mapping[str, str]) -> float:
    """Return the wall time of a command with these environment variables.

    Raises:
        SystemExit: it failed; the message has the end of what it printed.
    """
    started = time.perf_counter()
    process = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **environment}
    )
    if process.returncode:
        raise SystemExit(f"{shlex.join(command)} exited with {process.returncode}: {process.stdout[-2000:]}")
    return time.perf_counter() - started


def _rows(found: Mapping[str, list[float]]) -> list[list[str]]:
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    others = [seconds for name, seconds in medians.items() if not name.startswith("tsugiki")]
    fastest = min(others) if others else None
    return [
        [
            name,
            f"{ROWS * LENGTH / medians[name]:,.0f}",
            ", ".join(f"{one:.2f}" for one in seconds),
            f"{fastest / medians[name]:.2f}" if fastest else "–",
        ]
        for name, seconds in found.items()
    ]


if __name__ == "__main__":
    main()
