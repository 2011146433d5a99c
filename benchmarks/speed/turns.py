"""Steps of Tsugiki with and without a fast path, in turns in one process: `python -m benchmarks.speed.turns`.

A way is a library for products in float32 and a number of rows at once: `torch:1`, `onednn:1`, `onednn:2`. A C function
that is not used may follow: `onednn:1:attention`; torch computes its definition then. A step has four rows of random
tokens, or `--batch`; one thread computes it. The seconds are those of the processor, so other programs matter less.
Each ratio is the median over the turns, with the lowest and the highest, of the seconds of the first way and of this
one in the same turn. The share is that of the product limit (`benchmarks.speed.limit`), also in processor time, with
causal attention.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.figures import Figures
from benchmarks.models import read_model_config
from benchmarks.speed import limit
from benchmarks.speed.tsugiki_entry import run
from benchmarks.speed.workload import StepBarrier, StopRequested, Workload
from tsugiki import native
from tsugiki.io import measurements
from tsugiki.model.products import LIBRARIES
from tsugiki.training.data.micro_batches import MicroBatch, MicroBatches
from tsugiki.training.tools import memory

_HEADERS = {
    "en": ["model", "base", "library:rows at once", "seconds of a step", "times as fast", "share of the limit"],
    "ja": [
        "モデル",
        "ベースモデル",
        "ライブラリ:一度に計算する行",
        "ステップの秒数",
        "速さの比",
        "限界との比",
    ],
}


class _Turns(StepBarrier):
    """Computes the steps of all ways in turns, after a turn as a warm-up."""

    def __init__(self, ways: Sequence[str], turns: int) -> None:
        super().__init__(lambda: "step", lambda message: None)
        self.todo = [way for _turn in range(turns + 1) for way in ways]
        self.find = native.native
        self.way = ways[0]
        self.seconds: dict[str, list[float]] = {way: [] for way in ways}

    def native(self, kind: str, dtype: str = "") -> Callable[..., None] | None:
        """Return a C function, unless the way does without it."""
        return None if kind in self.way.split(":")[2:] else self.find(kind, dtype)

    def begin(self) -> None:
        if not self.todo:
            raise StopRequested
        self.way = self.todo.pop(0)
        measurements.decide(LIBRARIES, self.way.startswith("onednn"))
        self.started = time.process_time()

    def end(self, **extra: Any) -> None:
        self.seconds[self.way].append(time.process_time() - self.started)


def main() -> None:
    """Print the table, and write it with `--out`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gpt2-small")
    parser.add_argument("--base-dtype", choices=["fp32", "bf16", "int8"], default="fp32")
    parser.add_argument("--ways", nargs="+", default=["torch:1", "onednn:1"])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    workload, turns = Workload(options.model, batch=options.batch), _Turns(options.ways, options.turns)
    share = MicroBatches._share

    def share_of_way(micro_batches: MicroBatches, step: int) -> list[MicroBatch]:
        micro_batches._dealt_rows = micro_batches.size = int(turns.way.split(":")[1])
        return share(micro_batches, step)

    of_way = patch.multiple(native, native=turns.native)
    with of_way, patch.object(MicroBatches, "_share", share_of_way), suppress(StopRequested):
        run(workload, turns, base_dtype=options.base_dtype)
    print(f"peak of the process: {(memory.peak() or 0) / 1e9:.2f} GB", file=sys.stderr)
    least = _limit(workload, options.base_dtype)
    first = turns.seconds[options.ways[0]][1:]
    rows = []
    for way in options.ways:
        found = turns.seconds[way][1:]
        ratios = sorted(one / other for one, other in zip(first, found, strict=True))
        ratio = f"{median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]"
        cells = [options.model, options.base_dtype, way, f"{median(found):.2f}", ratio, f"{least / median(found):.0%}"]
        rows.append(cells)
    command = f"python -m benchmarks.speed.turns --model {options.model} --base-dtype {options.base_dtype}"
    command += f" --batch {options.batch} --turns {options.turns} --ways {' '.join(options.ways)}"
    figures = Figures(_HEADERS, rows, command)
    print(figures.table("en").to_markdown())
    if options.out:
        figures.write(options.out)


def _limit(workload: Workload, dtype: str) -> float:
    """Return the processor seconds of the products of a step, each in the fastest known way."""
    counts = limit.products(read_model_config(workload.model), workload.batch, workload.length)
    measurements.decide(LIBRARIES, True)
    with patch.object(time, "perf_counter", time.process_time):
        timings = limit.Timings(counts, list(dict.fromkeys([dtype, "fp32" if dtype == "fp32" else "bf16"])))
        for _turn in range(2):
            timings.choose_layouts()
            timings.measure()
    return workload.tokens / float(timings.limits(workload.tokens)[dtype]["causal_tokens_per_second"])


if __name__ == "__main__":
    main()
