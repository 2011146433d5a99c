"""Compare the speed of an evaluation with that of a training step: `python -m benchmarks.evaluation`.

A LoRA run with the default settings of `tsugiki train` trains on rows of 512 random tokens. Its model evaluates windows
of the quickstart's text, as `tsugiki train` does between its steps. Steps and evaluations take turns; medians.
"""

import argparse
import shlex
import statistics
import sys
import time
from functools import partial
from importlib.resources import files
from pathlib import Path

import torch

from benchmarks.figures import Figures
from tsugiki.base.loading import load_tokenizer
from tsugiki.base.resolve import EMBEDDED
from tsugiki.bench.models import build
from tsugiki.bench.tsugiki_entry import random_blocks
from tsugiki.bench.workload import Workload
from tsugiki.dtypes import torch_dtype
from tsugiki.fast.document_masks import detect_document_masking
from tsugiki.report.table import Table
from tsugiki.training.choose.choices import choices_for
from tsugiki.training.data.windows import read_windows
from tsugiki.training.model.trainable import load_dtype, make_trainable
from tsugiki.training.score.evaluate import evaluate
from tsugiki.training.settings.config import RunConfig
from tsugiki.training.settings.files import validated
from tsugiki.training.step.setup import build_loop
from tsugiki.training.tools.processes import start_accelerator

HEADERS = {
    "en": ["model", "threads", "evaluation, tokens/s", "training, tokens/s", "ratio"],
    "ja": ["モデル", "スレッド", "評価（トークン/秒）", "学習（トークン/秒）", "比"],
}


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[EMBEDDED, "gpt2-small"], help="as in `tsugiki bench`")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--characters", type=int, default=12 * 512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file to write the table to")
    options = parser.parse_args()
    rows = []
    for model in options.models:
        for threads, speeds in _measured(model, options.threads, options.characters, options.repeats).items():
            evaluation, training = map(statistics.median, zip(*speeds, strict=True))
            ratio = statistics.median(one / other for one, other in speeds)
            rows.append([model, str(threads), f"{evaluation:,.0f}", f"{training:,.0f}", f"{ratio:.2f}"])
    print(Table(HEADERS["en"], rows).to_markdown())
    if options.out:
        command = shlex.join(["python -m benchmarks.evaluation", *sys.argv[1:]]).replace("'", "")
        Figures(HEADERS, rows, command).write(options.out)


def _measured(name: str, threads: list[int], characters: int, repeats: int) -> dict[int, list[tuple[float, float]]]:
    """Return the speeds of evaluation and training, side by side, for each number of threads."""
    workload = Workload(name)
    given = {
        "model": name,
        "data": "random",
        "out": "none",
        "batch_size": workload.batch,
        "max_steps": 10_000,
        "learning_rate": 1e-4,
    }
    config = validated(RunConfig, given, None)
    accelerator = start_accelerator(config.device)
    model = build(name, torch_dtype(load_dtype(config))).to(accelerator.device)
    blocks = random_blocks(workload, model.config.vocab_size)
    masking = detect_document_masking(model, workload.length)
    make_trainable(model, config)
    loop = build_loop(
        accelerator, config, choices_for(config, model, len(blocks), blocks.block_size), model, blocks, masking
    )
    tokenizer = load_tokenizer(EMBEDDED)  # its token ids are in the vocabulary of every known shape
    windows = read_windows(str(files("tsugiki") / "assets" / "quickstart"), characters)
    look = partial(evaluate, model, tokenizer, windows)
    speeds: dict[int, list[tuple[float, float]]] = {number: [] for number in threads}
    for repeat in range(repeats + 1):
        for number in threads:
            torch.set_num_threads(number)
            start = time.perf_counter()
            tokens = look().tokens
            middle = time.perf_counter()
            loop.train_step()
            loop.read_losses()
            end = time.perf_counter()
            if repeat:
                speeds[number].append((tokens / (middle - start), workload.tokens / (end - middle)))
    return speeds


if __name__ == "__main__":
    main()
