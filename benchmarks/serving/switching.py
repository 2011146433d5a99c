"""Measure several adapters on one base, in Tsugiki and in PEFT: `python -m benchmarks.serving.switching`.

Models of known shapes with random weights load eight LoRA adapters (r 8, the default target layers) from disk. The
table gives for both libraries:

- the time of switching from one adapter to another;
- tokens/s with all 8 rows on one adapter, with the rows on 8 adapters, and the ratio of the two: for a forward pass of
  8 x 128 tokens, and for `generate` with 32 new tokens after 8 prompts of 16 tokens. The time to set up a mixed batch
  is included;
- repeatedly loading and unloading an adapter while another one is loaded: seconds of the first and of the last ten
  cycles, and the memory of the process before and after all cycles.

The libraries are measured in turn. Figures are medians over the rounds; ratios are medians of each round's ratio.
"""

import argparse
import copy
import gc
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from benchmarks.figures import Figures
from benchmarks.models import SHAPES, build
from tsugiki import (
    LoraConfig,
    active_adapter,
    graft,
    load_adapter,
    mixed_batch,
    save_adapter,
    set_adapter,
    trainable_parameters,
    ungraft,
)
from tsugiki.lora.graft import remove_adapter
from tsugiki.report.table import Table
from tsugiki.training.tools.memory import reset_peak, resident

HEADERS = {
    "en": ["model", "dtype", "measurement", "Tsugiki", "PEFT"],
    "ja": ["モデル", "データ型", "測定項目", "Tsugiki", "PEFT"],
}
_NAMES = [f"adapter-{i}" for i in range(8)]
_LENGTH, _PROMPT, _NEW = 128, 16, 32
_SWITCHES = 200


@dataclass(frozen=True)
class Library:
    """A model with all adapters loaded, and the operations of one library on it."""

    model: Any
    switch: Callable[[str], None]
    mixed: Callable[[Callable[..., Any], Mapping[str, Any]], Any]
    """Calls a function with these arguments, with row i on adapter i."""
    load: Callable[[], None]
    unload: Callable[[], None]


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["gpt2-small", "smollm2-135m"], choices=list(SHAPES))
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"], choices=["bfloat16", "float32"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cycles", type=int, default=100, help="cycles of loading and unloading; 0 skips them")
    parser.add_argument("--out", type=Path, help="JSON file to write the table to")
    options = parser.parse_args()
    rows = []
    for name in options.models:
        for dtype in options.dtypes:
            for label, *figures in _measured(name, getattr(torch, dtype), options.rounds, options.cycles):
                rows.append([name, dtype, label, *figures])
                print(" | ".join(rows[-1]), file=sys.stderr)
    print(Table(HEADERS["en"], rows).to_markdown())
    if options.out:
        command = f"python -m benchmarks.serving.switching {shlex.join(sys.argv[1:])}".strip()
        Figures(HEADERS, rows, command).write(options.out)


@torch.no_grad()
def _measured(name: str, dtype: torch.dtype, rounds: int, cycles: int) -> Iterator[list[str]]:
    """Yield rows of the table: the measurement, Tsugiki's figure and PEFT's."""
    with TemporaryDirectory() as folder:
        base = build(name, dtype).eval()
        layers = _save_adapters(base, Path(folder))
        libraries = [_tsugiki(copy.deepcopy(base), Path(folder)), _peft(base, Path(folder))]
        ids = torch.randint(1, libraries[0].model.config.vocab_size, (8, _LENGTH))
        yield [f"switch ({layers} layers), µs", *(f"{1e6 * _switch(library):,.0f}" for library in libraries)]
        forward = {"input_ids": ids}
        yield from _compared(f"forward of 8 x {_LENGTH}", libraries, "__call__", forward, ids.numel(), rounds)
        yield from _compared(f"generate, {_NEW} new tokens", libraries, "generate", _prompts(ids), 8 * _NEW, rounds)
        if cycles:
            first, last, before, after = zip(*(_cycles(library, cycles) for library in libraries), strict=True)
            yield ["load and unload, s: mean of the first ten", *(f"{seconds:.3f}" for seconds in first)]
            yield [f"load and unload, s: mean of the last ten of {cycles}", *(f"{seconds:.3f}" for seconds in last)]
            yield ["memory of the process before, MB", *(f"{size / 1e6:,.0f}" for size in before)]
            yield ["memory of the process after, MB", *(f"{size / 1e6:,.0f}" for size in after)]


def _save_adapters(model: Any, folder: Path) -> int:
    """Save eight different adapters, and return the number of layers of each."""
    layers = 0
    for adapter in _NAMES:
        layers = len(active_adapter(graft(model, LoraConfig(r=8, lora_alpha=32))).pairs)
        for parameter in trainable_parameters(model).values():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
        save_adapter(model, folder / adapter)
        ungraft(model)
    return layers


def _tsugiki(model: Any, folder: Path) -> Library:
    for adapter in _NAMES:
        load_adapter(model, folder / adapter, adapter)

    def mixed(call: Callable[..., Any], inputs: Mapping[str, Any]) -> Any:
        with mixed_batch(model, _NAMES):
            return call(**inputs)

    def load() -> None:
        load_adapter(model, folder / _NAMES[0], "guest")

    return Library(model, lambda one: set_adapter(model, one), mixed, load, lambda: remove_adapter(model, "guest"))


def _peft(base: Any, folder: Path) -> Library:
    model = PeftModel.from_pretrained(base, str(folder / _NAMES[0]), adapter_name=_NAMES[0]).eval()
    for adapter in _NAMES[1:]:
        model.load_adapter(str(folder / adapter), adapter)

    def load() -> None:
        model.load_adapter(str(folder / _NAMES[0]), "guest")
        model.set_adapter("guest")

    def unload() -> None:
        model.delete_adapter("guest")

    return Library(model, model.set_adapter, lambda call, inputs: call(**inputs, adapter_names=_NAMES), load, unload)


def _switch(library: Library) -> float:
    """Return the median seconds of a switch."""
    seconds = []
    for i in range(_SWITCHES):
        start = time.perf_counter()
        library.switch(_NAMES[i % 8])
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _prompts(ids: Tensor) -> dict[str, Any]:
    prompts = ids[:, :_PROMPT]
    inputs = {"input_ids": prompts, "attention_mask": torch.ones_like(prompts), "do_sample": False, "pad_token_id": 0}
    return {**inputs, "min_new_tokens": _NEW, "max_new_tokens": _NEW}


def _compared(
    label: str,
    libraries: list[Library],
    method: str,
    inputs: Mapping[str, Any],
    tokens: int,
    rounds: int,
) -> list[list[str]]:
    """Return three rows: tokens/s on one adapter, on eight, and their ratio; the first round is not counted."""
    ones: list[list[float]] = [[] for _ in libraries]
    eights: list[list[float]] = [[] for _ in libraries]
    for counted in [False, *[True] * rounds]:
        for library, one, eight in zip(libraries, ones, eights, strict=True):
            call = getattr(library.model, method)
            library.switch(_NAMES[0])
            seconds = _seconds(lambda: call(**inputs)), _seconds(lambda: library.mixed(call, inputs))  # noqa: B023
            if counted:
                one.append(seconds[0])
                eight.append(seconds[1])
    speeds = [[f"{tokens / statistics.median(seconds):,.0f}" for seconds in each] for each in (ones, eights)]
    ratios = [statistics.median(a / b for a, b in zip(*pair, strict=True)) for pair in zip(ones, eights, strict=True)]
    return [
        [f"{label}, one adapter, tokens/s", *speeds[0]],
        [f"{label}, eight adapters, tokens/s", *speeds[1]],
        [f"{label}, ratio", *(f"{ratio:.2f}" for ratio in ratios)],
    ]


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _cycles(library: Library, cycles: int) -> tuple[float, float, int, int]:
    """Return the mean seconds of the first and the last ten cycles, and the memory in bytes before and after.

    One more cycle runs before these.
    """
    library.load()
    library.unload()
    before = _resident_memory()
    seconds = []
    for _ in range(cycles):
        start = time.perf_counter()
        library.load()
        library.unload()
        seconds.append(time.perf_counter() - start)
    return statistics.mean(seconds[:10]), statistics.mean(seconds[-10:]), before, _resident_memory()


def _resident_memory() -> int:
    gc.collect()
    reset_peak()  # returns freed memory to the system
    return resident() or 0


if __name__ == "__main__":
    main()
