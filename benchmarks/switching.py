"""Many adapters on one base, beside PEFT: `python -m benchmarks.switching`.

For shapes of known models with random weights, and eight LoRA adapters (r 8, the default target layers) that are saved
once and loaded from disk:

- switching from one adapter to another;
- tokens/s of 8 rows on one adapter and of 8 rows on 8 adapters, and their ratio: of a forward of 8 x 128 tokens, and of
  `generate`, 32 new tokens after 8 prompts of 16 tokens. What a mixed batch takes to be set up is part of its time;
- loading and unloading one adapter again and again beside another: seconds of the first and of the last ten cycles, and
  what the process holds before and after all.

Those that are compared take turns; figures are medians of the rounds, ratios the medians of each round's.
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

from tsugiki import (
    LoraConfig,
    graft,
    load_adapter,
    mixed_batch,
    save_adapter,
    set_adapter,
    trainable_parameters,
    ungraft,
)
from tsugiki.bench.figures import Figures
from tsugiki.bench.memory import reset_peak, resident
from tsugiki.bench.models import SHAPES, build
from tsugiki.bench.table import markdown
from tsugiki.lora.graft import remove_adapter

HEADERS = {
    "en": ["model", "dtype", "what", "Tsugiki", "PEFT"],
    "ja": ["モデル", "型", "何を", "Tsugiki", "PEFT"],
}
_NAMES = [f"adapter-{i}" for i in range(8)]
_LENGTH, _PROMPT, _NEW = 128, 16, 32
_SWITCHES = 200


@dataclass(frozen=True)
class Side:
    """A model that holds all adapters, and how one side does each thing."""

    model: Any
    switch: Callable[[str], None]
    mixed: Callable[[Callable[..., Any], Mapping[str, Any]], Any]
    """Calls something with these arguments, row i on adapter i."""
    load: Callable[[], None]
    unload: Callable[[], None]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["gpt2-small", "smollm2-135m"], choices=list(SHAPES))
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"], choices=["bfloat16", "float32"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cycles", type=int, default=100, help="of loading and unloading; 0: none")
    parser.add_argument("--out", type=Path, help="a JSON file for the table")
    options = parser.parse_args()
    rows = []
    for name in options.models:
        for dtype in options.dtypes:
            for what, *figures in _measured(name, getattr(torch, dtype), options.rounds, options.cycles):
                rows.append([name, dtype, what, *figures])
                print(" | ".join(rows[-1]), file=sys.stderr)
    print(markdown((HEADERS["en"], rows)))
    if options.out:
        Figures(HEADERS, rows, shlex.join(["python -m benchmarks.switching", *sys.argv[1:]]).replace("'", "")).write(
            options.out
        )


@torch.no_grad()
def _measured(name: str, dtype: torch.dtype, rounds: int, cycles: int) -> Iterator[list[str]]:
    """What was measured, Tsugiki's figure and PEFT's."""
    with TemporaryDirectory() as folder:
        base = build(name, dtype).eval()
        layers = _save_adapters(base, Path(folder))
        sides = [_tsugiki(copy.deepcopy(base), Path(folder)), _peft(base, Path(folder))]
        ids = torch.randint(1, sides[0].model.config.vocab_size, (8, _LENGTH))
        yield [f"a switch ({layers} layers), µs", *(f"{1e6 * _switch(side):,.0f}" for side in sides)]
        forward = {"input_ids": ids}
        yield from _compared(f"forward of 8 x {_LENGTH}", sides, "__call__", forward, ids.numel(), rounds)
        yield from _compared(f"generate, {_NEW} new", sides, "generate", _prompts(ids), 8 * _NEW, rounds)
        if cycles:
            first, last, before, after = zip(*(_cycles(side, cycles) for side in sides), strict=True)
            yield ["a load and unload, s: the first ten", *(f"{seconds:.3f}" for seconds in first)]
            yield [f"the last ten of {cycles}", *(f"{seconds:.3f}" for seconds in last)]
            yield ["process before them, MB", *(f"{size / 1e6:,.0f}" for size in before)]
            yield ["after", *(f"{size / 1e6:,.0f}" for size in after)]


def _save_adapters(model: Any, folder: Path) -> int:
    """Save eight adapters that all say something else; returns how many layers each has."""
    layers = 0
    for adapter in _NAMES:
        layers = len(graft(model, LoraConfig(r=8, lora_alpha=32)).pairs)
        for parameter in trainable_parameters(model).values():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
        save_adapter(model, folder / adapter)
        ungraft(model)
    return layers


def _tsugiki(model: Any, folder: Path) -> Side:
    for adapter in _NAMES:
        load_adapter(model, folder / adapter, adapter)

    def mixed(call: Callable[..., Any], given: Mapping[str, Any]) -> Any:
        with mixed_batch(model, _NAMES):
            return call(**given)

    def load() -> None:
        load_adapter(model, folder / _NAMES[0], "guest")

    return Side(model, lambda one: set_adapter(model, one), mixed, load, lambda: remove_adapter(model, "guest"))


def _peft(base: Any, folder: Path) -> Side:
    model = PeftModel.from_pretrained(base, str(folder / _NAMES[0]), adapter_name=_NAMES[0]).eval()
    for adapter in _NAMES[1:]:
        model.load_adapter(str(folder / adapter), adapter)

    def load() -> None:
        model.load_adapter(str(folder / _NAMES[0]), "guest")
        model.set_adapter("guest")

    def unload() -> None:
        model.delete_adapter("guest")

    return Side(model, model.set_adapter, lambda call, given: call(**given, adapter_names=_NAMES), load, unload)


def _switch(side: Side) -> float:
    """Median seconds."""
    seconds = []
    for i in range(_SWITCHES):
        began = time.perf_counter()
        side.switch(_NAMES[i % 8])
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _prompts(ids: Tensor) -> dict[str, Any]:
    prompts = ids[:, :_PROMPT]
    given = {"input_ids": prompts, "attention_mask": torch.ones_like(prompts), "do_sample": False, "pad_token_id": 0}
    return {**given, "min_new_tokens": _NEW, "max_new_tokens": _NEW}


def _compared(
    what: str,
    sides: list[Side],
    method: str,
    given: Mapping[str, Any],
    tokens: int,
    rounds: int,
) -> list[list[str]]:
    """Tokens/s on one adapter, on eight, and their ratio, of each side; a first round is not counted."""
    ones, eights = ([[] for _ in sides] for _ in range(2))
    for counted in [False, *[True] * rounds]:
        for side, one, eight in zip(sides, ones, eights, strict=True):
            call = getattr(side.model, method)
            side.switch(_NAMES[0])
            seconds = _seconds(lambda: call(**given)), _seconds(lambda: side.mixed(call, given))  # noqa: B023
            if counted:
                one.append(seconds[0])
                eight.append(seconds[1])
    speeds = [[f"{tokens / statistics.median(seconds):,.0f}" for seconds in each] for each in (ones, eights)]
    ratios = [statistics.median(a / b for a, b in zip(*pair, strict=True)) for pair in zip(ones, eights, strict=True)]
    return [
        [f"{what}, one adapter, tokens/s", *speeds[0]],
        ["on eight", *speeds[1]],
        ["ratio", *(f"{ratio:.2f}" for ratio in ratios)],
    ]


def _seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _cycles(side: Side, cycles: int) -> tuple[float, float, int, int]:
    """Mean seconds of the first and of the last ten, bytes of the process before and after; one cycle before them."""
    side.load()
    side.unload()
    before = _held()
    seconds = []
    for _ in range(cycles):
        began = time.perf_counter()
        side.load()
        side.unload()
        seconds.append(time.perf_counter() - began)
    return statistics.mean(seconds[:10]), statistics.mean(seconds[-10:]), before, _held()


def _held() -> int:
    gc.collect()
    reset_peak()  # gives back what is free
    return resident() or 0


if __name__ == "__main__":
    main()
