"""Compare steps of `tsugiki pretrain` with the machine's limit: `python -m benchmarks.pretraining [--data TEXTS]`.

The shape of the embedded model trains as in `examples/embedded_base/pretrain.yaml`: Muon, 8 rows of 512 tokens a step.
The limit is the time of the matrix products that the gradients need: output, input gradient and weight gradient of each
linear layer and of the head, and the six of attention in the blocks of `tsugiki.fast.attention`. They have the sizes of
a micro-batch and its dtype, as many threads as the steps, and the faster of two layouts. Norms, activations, softmax,
losses, sums of gradients and the optimiser are not part of the limit. Times are of the processor, in turns.
"""

import argparse
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tsugiki.bench.limit import Product, ProductLayout, operands, products
from tsugiki.model.linear import features, is_conv1d
from tsugiki.training.model.rows import rows_of_micro_batch
from tsugiki.training.run.stages import prepared
from tsugiki.training.run.train_steps import loop_of
from tsugiki.training.settings.config import RunConfig
from tsugiki.training.tools.threads import run_in_threads

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROWS, LENGTH = 8, 512


def main() -> None:
    """Print the times of each turn, then the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="as for `tsugiki pretrain`; by default one sentence, often")
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.txt")
        text.write_text("".join(f"{i}: 庭師は枝を{i * 7 % 10}本切り、風の音を聞いた。\n" for i in range(8000)))
        settings = {"model": "embedded", "data": options.data or str(text), "out": folder, "validation": "none"}
        full = {"method": "full", "optimizer": "muon", "learning_rate": 6e-3, "max_steps": 1000}
        config = RunConfig.model_validate(settings | full | {"block_size": LENGTH, "batch_size": ROWS})
        loop = loop_of(prepared(config))
    at_once = rows_of_micro_batch(LENGTH, adapter=False)
    needed = needed_products(loop.model, at_once)
    dtype, threads = loop.gradients.computing.dtype, torch.get_num_threads()
    pairs = [{product: _pairs(product, dtype) for product in needed} for _thread in range(threads)]
    turns: list[tuple[float, float]] = []
    print(f"{threads} threads, {dtype}, seconds of the processor: step, limit, limit / step")
    for turn in range(options.turns + 1):
        started = time.process_time()
        loop.train_step()
        loop.read_losses()
        step = time.process_time() - started
        of_threads = run_in_threads([partial(_seconds, needed, mine) for mine in pairs])
        limit = sum(of_threads) / threads * ROWS / at_once
        if turn:  # the first one fills caches
            turns.append((step, limit / step))
            print(f"{step:.3f} {limit:.3f} {limit / step:.1%}", flush=True)
    step, share = map(median, zip(*turns, strict=True))
    print(f"median: {ROWS * LENGTH / step:,.0f} tokens for a second of the processor, {share:.1%} of the limit")


def needed_products(model: "PreTrainedModel", rows: int) -> Counter[Product]:
    """Return the products of the gradients of some rows when all weights train, with the number of each."""
    counts = products(model.config, rows, LENGTH)
    found = Counter({product: count for product, count in counts.items() if product.group == "causal attention"})
    tokens = rows * LENGTH
    for layer in model.modules():
        if isinstance(layer, nn.Linear) or is_conv1d(layer):
            width, out = features(layer)
            sizes = (tokens, width, out), (tokens, out, width), (width, tokens, out)
            found.update(Product("frozen layers", *size, sliced="k" if size[1] == tokens else "m") for size in sizes)
    return found


def _pairs(product: Product, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """Return the factors of a product in each layout."""
    return [operands(product, dtype, ProductLayout(transposed, sliced=False))[0][0] for transposed in (False, True)]


def _seconds(needed: Counter[Product], pairs: dict[Product, list[tuple[Tensor, Tensor]]]) -> float:
    """Return the processor time of all products in one thread, each in its faster layout."""
    return sum(count * min(_of_one(*pair) for pair in pairs[product]) for product, count in needed.items())


def _of_one(a: Tensor, b: Tensor) -> float:
    out = a @ b
    started = time.thread_time()
    torch.matmul(a, b, out=out)
    return time.thread_time() - started


if __name__ == "__main__":
    main()
