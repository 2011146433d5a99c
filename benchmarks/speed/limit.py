"""The machine's limit: the time of the matrix products that a LoRA step needs, each in the fastest known way.

    x ──┬── W ───────┬── y          forward: x W, x A, (x A) B;  backward: dy W', dy B', dA, dB, (dy B') A'
        └── A ── B ──┘              W is frozen, so the product for its gradient is not needed

The shapes come from a forward pass of the model on torch's meta device. Gradients that no parameter needs, such as
that of the first layer's input, are left out. Attention's products are counted whole, [T, T]; a second figure counts
only the blocks on and below the diagonal. Softmax, norms, loss, dropout and copies are not counted.

A product may use any dtype that is precise enough (bfloat16 for int8 weights, if that is faster), either of two memory
layouts of the weight, and either all threads together or one thread for each slice of the rows. The fastest combination
counts. In float32, products of matrices use the library that Tsugiki has measured to be faster.
"""

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from benchmarks.models import read_model_config
from benchmarks.speed.workload import RANK, WARM_UP, StepBarrier, Workload
from tsugiki.annotations import PretrainedConfig
from tsugiki.dtypes import processor_has_bf16, torch_dtype
from tsugiki.errors import TsugikiError
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.targets import find_targets
from tsugiki.model.linear import features, is_conv1d
from tsugiki.model.meta import meta_model
from tsugiki.model.products import matrix_product, uses_onednn
from tsugiki.training.tools.processes import run_in_threads

ProductGroup: TypeAlias = Literal["frozen layers", "low rank", "attention", "causal attention", "head"]

_SLICE = 512  # rows of one thread's product
_RANDOM_VALUES = 1 << 16
_BLOCK = 128  # queries in one block of causal attention
_LARGE = 2048  # beyond this size of a side, the fastest layout no longer changes
_MIN_SECONDS = 0.005  # shortest measurement that is precise enough
_MAX_SECONDS = 0.1  # the measurement of one product ends after this time
_BEST_OF = 3
# Dtypes that may compute the products of a base in the given dtype.
_ALLOWED_DTYPES = {"fp32": ("fp32",), "bf16": ("bf16", "fp32"), "int8": ("int8", "bf16", "fp32")}


@dataclass(frozen=True)
class Product:
    """A matrix product [batch, m, k] @ [batch, k, n]."""

    group: ProductGroup
    m: int
    k: int
    n: int
    batch: int = 1
    sliced: Literal["m", "k", "batch"] = "m"
    """The dimension of tokens or batch rows, along which threads can share the product."""

    @property
    def frozen(self) -> bool:
        """Whether one operand is a frozen weight, which may be int8."""
        return self.group in ("frozen layers", "head")

    def smaller(self) -> "Product":
        """Return a product whose sides are bounded, but which has the same fastest layout."""
        return replace(self, m=min(self.m, _LARGE), k=min(self.k, _LARGE), n=min(self.n, _LARGE))


def limit(workload: Workload, barrier: StepBarrier) -> None:
    """Choose layouts during the warm-up steps, then measure; each step reports the best times so far."""
    if torch.accelerator.is_available():
        raise TsugikiError("the limit is measured on CPUs only, and this machine has an accelerator")
    counts = products(read_model_config(workload.model), workload.batch, workload.length)
    native = {"fp32": True, "bf16": processor_has_bf16(), "int8": torch.cpu._is_vnni_supported()}
    timings = Timings(counts, [dtype for dtype, supported in native.items() if supported])
    for _turn in range(WARM_UP):
        barrier.begin()
        timings.choose_layouts()
        barrier.end()
    while True:
        barrier.begin()
        timings.measure()
        barrier.end(limits=timings.limits(workload.tokens))


class Timings:
    """The shortest time so far of each product of a step in each dtype; `counts` gives the number of each product."""

    def __init__(self, counts: Mapping[Product, int], dtypes: Sequence[str]) -> None:
        self.counts, self.dtypes = counts, dtypes
        pairs = [(product, dtype) for product in counts for dtype in dtypes if dtype != "int8" or product.frozen]
        self.layout_seconds: dict[tuple[Product, str], list[float]] = {pair: [] for pair in pairs}
        """Seconds in each of `LAYOUTS`, measured on a smaller product of the same kind."""
        self.seconds = dict.fromkeys(pairs, math.inf)

    def choose_layouts(self) -> None:
        """Time a smaller product of the same kind in each layout."""
        for (product, dtype), before in self.layout_seconds.items():
            seconds = [_timed(*operands(product.smaller(), torch_dtype(dtype), layout)) for layout in LAYOUTS]
            self.layout_seconds[product, dtype] = [min(pair) for pair in zip(seconds, before or seconds, strict=True)]

    def measure(self) -> None:
        """Time each product in its fastest layout."""
        for (product, dtype), by_layout in self.layout_seconds.items():
            layout = LAYOUTS[by_layout.index(min(by_layout))]
            seconds = _timed(*operands(product, torch_dtype(dtype), layout))
            self.seconds[product, dtype] = min(seconds, self.seconds[product, dtype])

    def limits(self, tokens: int) -> dict[str, dict[str, Any]]:
        """Return for each dtype: tokens per second, the same with causal attention only, and each group's seconds."""
        found = {}
        for dtype in self.dtypes:
            groups: dict[str, float] = {}
            for product, count in self.counts.items():
                pairs = [(product, allowed) for allowed in _ALLOWED_DTYPES[dtype]]
                fastest = min(self.seconds[pair] for pair in pairs if pair in self.seconds)
                groups[product.group] = groups.get(product.group, 0.0) + count * fastest
            whole = sum(groups.values()) - groups["causal attention"]
            causal = sum(groups.values()) - groups["attention"]
            found[dtype] = {
                "tokens_per_second": tokens / whole,
                "causal_tokens_per_second": tokens / causal,
                "seconds": groups,
            }
        return found


def products(config: PretrainedConfig, batch: int, length: int, r: int = RANK) -> Counter[Product]:
    """Return the products of a LoRA step of rank r on the default target layers, with the number of each.

    A step has `batch` rows of `length` tokens.
    """
    model = meta_model(config).requires_grad_(False)
    model.set_attn_implementation("eager")
    targets, head = find_targets(model, LoraConfig()), model.get_output_embeddings()
    found: Counter[Product] = Counter()

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, target: bool) -> None:
        rows, (fan_in, fan_out) = inputs[0].numel() // inputs[0].shape[-1], features(layer)
        group: ProductGroup = "head" if layer is head else "frozen layers"
        found[Product(group, rows, fan_in, fan_out)] += 1
        if inputs[0].requires_grad:
            found[Product(group, rows, fan_out, fan_in)] += 1
        if target:
            found.update(_low_rank(rows, fan_in, fan_out, r, inputs[0].requires_grad))
            if not output.requires_grad:
                output.requires_grad_(True)  # with A and B trained, the output would require a gradient

    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) or is_conv1d(layer):
            layer.register_forward_hook(partial(count, target=name in targets))
    ids = torch.zeros((batch, length), dtype=torch.long, device="meta")
    # With a mask, transformers does not read the values of the positions; meta tensors have none.
    model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    found.update(_attention(config, batch, length))
    return found


def _low_rank(rows: int, fan_in: int, fan_out: int, r: int, input_gradient: bool) -> list[Product]:
    """Return the products of a pair A, B: h = x A', h B'; dh = dy B, dB = dy' h, dA = dh' x; dx = dh A if needed."""
    needed = [
        Product("low rank", rows, fan_in, r),
        Product("low rank", rows, r, fan_out),
        Product("low rank", rows, fan_out, r),
        Product("low rank", fan_out, rows, r, sliced="k"),
        Product("low rank", r, rows, fan_in, sliced="k"),
    ]
    return needed + ([Product("low rank", rows, r, fan_in)] if input_gradient else [])


def _attention(config: PretrainedConfig, batch: int, length: int) -> Counter[Product]:
    """Return Q K', P V, dP = dO V', dQ = dS K, dK = dS' Q and dV = P' dO: whole, and in blocks up to the diagonal."""
    text = config.get_text_config()
    layers, heads = text.num_hidden_layers, text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    found: Counter[Product] = Counter()
    blocks = [(min(_BLOCK, length - first), min(first + _BLOCK, length)) for first in range(0, length, _BLOCK)]
    whole = [(length, length)]
    groups: list[tuple[ProductGroup, list[tuple[int, int]]]] = [("attention", whole), ("causal attention", blocks)]
    for group, sizes in groups:
        for queries, keys in sizes:
            for m, k, n in ((queries, width, keys), (queries, keys, width), (keys, queries, width)):
                found[Product(group, m, k, n, batch * heads, "batch")] += 2 * layers
    return found


@dataclass(frozen=True)
class ProductLayout:
    """The layout of a product in memory, and its distribution to threads."""

    transposed: bool
    """Whether the second operand is stored as [n, k]."""
    sliced: bool
    """Whether each thread multiplies its own slice; otherwise all threads share each product."""


LAYOUTS = [ProductLayout(transposed, sliced) for transposed in (False, True) for sliced in (False, True)]

Pairs: TypeAlias = Sequence[tuple[Tensor, Tensor]]


def operands(product: Product, dtype: torch.dtype, layout: ProductLayout) -> tuple[Pairs, int]:
    """Return the pairs of tensors to multiply, and the number of threads that take one pair each.

    The number is 1 if all threads share each product.
    """
    batch, m, k, n = product.batch, product.m, product.k, product.n
    # In the gradients of A and B, the activations are stored as [tokens, width].
    a = _random((batch, k, m), dtype).mT if product.sliced == "k" else _random((batch, m, k), dtype)
    b = _random((batch, n, k), dtype).mT if layout.transposed else _random((batch, k, n), dtype)
    if product.sliced != "batch":
        a, b = a[0], b[0]
    return (_slices(a, b, product), torch.get_num_threads()) if layout.sliced else ([(a, b)], 1)


def _random(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return a tensor of repeated random values, because drawing every value would take longer than the product."""
    values = torch.randint(-9, 9, (_RANDOM_VALUES,), dtype=torch.int8).to(dtype)
    count = math.prod(shape)
    return values.repeat(count // _RANDOM_VALUES + 1)[:count].view(shape)


def _slices(a: Tensor, b: Tensor, product: Product) -> Pairs:
    if product.sliced == "m":
        return [(rows, b) for rows in torch.split(a, _SLICE)]
    if product.sliced == "k":
        return list(zip(torch.split(a, _SLICE, dim=1), torch.split(b, _SLICE), strict=True))
    each = -(-product.batch // torch.get_num_threads())
    return list(zip(torch.split(a, each), torch.split(b, each), strict=True))


def _timed(pairs: Pairs, threads: int) -> float:
    """Return the time of all these products in seconds: the best of several measurements of sufficient length."""
    shares = [share for share in (pairs[first::threads] for first in range(threads)) if share]
    # Outputs are reused, because writing to newly allocated memory takes longer.
    outs = [_output(*share[0]) for share in shares]
    once = _measured(shares, outs, 1)
    repeats = max(1, int(_MIN_SECONDS / once))
    seconds: list[float] = []
    while len(seconds) < _BEST_OF and sum(seconds) < _MAX_SECONDS:
        seconds.append(_measured(shares, outs, repeats))
    return min(seconds) / repeats


def _output(a: Tensor, b: Tensor) -> Tensor:
    return torch.empty((*a.shape[:-1], b.shape[-1]), dtype=torch.int32 if a.dtype == torch.int8 else a.dtype)


def _measured(shares: Sequence[Pairs], outs: Sequence[Tensor], repeats: int) -> float:
    """Return the time of `repeats` rounds in seconds, with one thread for each share of the products."""
    tasks = [partial(_multiply, share, out, repeats) for share, out in zip(shares, outs, strict=True)]
    start = time.perf_counter()
    list(run_in_threads(tasks))
    return time.perf_counter() - start


@torch.no_grad()
def _multiply(share: Pairs, out: Tensor, repeats: int) -> None:
    product = torch._int_mm if out.dtype == torch.int32 else torch.matmul
    for _turn in range(repeats):
        for a, b in share:
            if a.dim() == 2 and uses_onednn(a, b.mT):
                matrix_product(a, b.mT)
            else:
                product(a, b, out=out[: a.shape[0]])
