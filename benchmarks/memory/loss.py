"""Compare the chunked loss with the loss of whole logits, forward and backward: `python -m benchmarks.memory.loss`.

The default is a vocabulary of 262,144 (that of Gemma 3) and a width of 640, with 1,024 and with 8,192 tokens. Whole
logits are measured only if they fit in memory. Scratch memory is the peak minus the memory before the measurement.
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

from benchmarks.figures import Figures
from tsugiki.fast.head import Head
from tsugiki.fast.loss import chunked_loss, plain_loss
from tsugiki.report.table import Table
from tsugiki.training.tools.memory import available, peak, reset_peak, resident

Loss = Callable[[Tensor, Head, Tensor], Tensor]

HEADERS = {
    "en": ["tokens", "vocabulary", "dtype", "loss", "scratch, MiB", "ms"],
    "ja": ["トークン", "語彙", "型", "損失", "作業メモリ（MiB）", "ミリ秒"],
}
_BYTES_PER_LOGIT = 16  # of `plain_loss` at its peak: bfloat16, two float32 copies, and their gradients


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 8192])
    parser.add_argument("--vocabulary", type=int, default=262_144)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file to write the table to")
    options = parser.parse_args()
    torch.manual_seed(0)
    head = nn.Linear(options.width, options.vocabulary, bias=False, dtype=getattr(torch, options.dtype))
    head.requires_grad_(False)
    rows = []
    for tokens in options.tokens:
        for name, loss in (("chunked", chunked_loss), ("whole logits", plain_loss)):
            needed = _BYTES_PER_LOGIT * tokens * options.vocabulary if loss is plain_loss else 0
            fits = needed < (available() or needed + 1)
            found = (
                _measured(loss, head, tokens, options.repeats) if fits else (f"about {needed >> 20:,}", "out of memory")
            )
            rows.append([f"{tokens:,}", f"{options.vocabulary:,}", options.dtype, name, *found])
    print(Table(HEADERS["en"], rows).to_markdown())
    if options.out:
        Figures(HEADERS, rows, shlex.join(["python -m benchmarks.memory.loss", *sys.argv[1:]]).replace("'", "")).write(
            options.out
        )


def _measured(loss: Loss, head: nn.Linear, tokens: int, repeats: int) -> tuple[str, str]:
    """Return the scratch memory in MiB and the median milliseconds; the first repeat is not counted."""
    hidden = torch.randn(tokens, head.in_features, dtype=head.weight.dtype, requires_grad=True)
    labels = torch.randint(head.out_features, (tokens,))
    seconds = []
    reset_peak()
    before = resident() or 0
    for _ in range(repeats + 1):
        start = time.perf_counter()
        loss(hidden, Head(head), labels).backward()  # type: ignore[no-untyped-call]
        seconds.append(time.perf_counter() - start)
        hidden.grad = None
    scratch = (peak() or 0) - before
    return f"{scratch / 2**20:,.0f}", f"{1000 * statistics.median(seconds[1:]):,.0f}"


if __name__ == "__main__":
    main()
