"""The loss in chunks against whole logits, forward and backward: `python -m benchmarks.loss`.

For a vocabulary of 262,144 (Gemma 3's) and a width of 640: at 8,192 tokens, where whole logits are asked for only if
memory holds them, and at 1,024. Scratch is what the process holds at its peak above what it held before.
"""

import argparse
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from tsugiki.bench.figures import Figures
from tsugiki.bench.memory import available, peak, reset_peak, resident
from tsugiki.bench.table import markdown
from tsugiki.fast.loss import Head, chunked_loss, plain_loss

Loss = Callable[[Tensor, Head, Tensor], Tensor]

HEADERS = {
    "en": ["tokens", "vocabulary", "dtype", "loss", "scratch MiB", "ms"],
    "ja": ["トークン", "語彙", "型", "損失", "作業メモリー（MiB）", "ミリ秒"],
}
_WHOLE = 16  # bytes a logit that the definition holds at once: in bfloat16, two float32 copies and their gradients


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 8192])
    parser.add_argument("--vocabulary", type=int, default=262_144)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a JSON file for the table")
    options = parser.parse_args()
    torch.manual_seed(0)
    head = nn.Linear(options.width, options.vocabulary, bias=False, dtype=getattr(torch, options.dtype))
    head.requires_grad_(False)
    rows = []
    for tokens in options.tokens:
        for name, loss in (("in chunks", chunked_loss), ("whole logits", plain_loss)):
            needed = _WHOLE * tokens * options.vocabulary if loss is plain_loss else 0
            fits = needed < (available() or needed + 1)
            found = _measured(loss, head, tokens, options.repeats) if fits else (f"about {needed >> 20:,}", "no memory")
            rows.append([f"{tokens:,}", f"{options.vocabulary:,}", options.dtype, name, *found])
    print(markdown((HEADERS["en"], rows)))
    if options.out:
        Figures(HEADERS, rows, shlex.join(["python -m benchmarks.loss", *sys.argv[1:]]).replace("'", "")).write(
            options.out
        )


def _measured(loss: Loss, head: nn.Linear, tokens: int, repeats: int) -> tuple[str, str]:
    """Scratch in MiB and median milliseconds; the first time is not counted."""
    hidden = torch.randn(tokens, head.in_features, dtype=head.weight.dtype, requires_grad=True)
    labels = torch.randint(head.out_features, (tokens,))
    seconds = []
    reset_peak()
    before = resident() or 0
    for _ in range(repeats + 1):
        began = time.perf_counter()
        loss(hidden, Head(head), labels).backward()
        seconds.append(time.perf_counter() - began)
        hidden.grad = None
    scratch = (peak() or 0) - before
    return f"{scratch / 2**20:,.0f}", f"{1000 * statistics.median(seconds[1:]):,.0f}"


if __name__ == "__main__":
    main()
