"""The machine's limit: the time of the matrix products alone that a LoRA step needs, each in the fastest way known.

    x ──┬── W ───────┬── y          forward: x W, x A, (x A) B;  backward: dy W', dy B', dA, dB, (dy B') A'
        └── A ── B ──┘              no product for the gradient of W, which nobody wants

The shapes are found by a forward pass of the model on torch's meta device; a gradient that nothing below needs, such as
that of the first layer's input, is left out. Attention's products are counted whole, [T, T], and as a second figure
only below the diagonal, in blocks. Nothing but products is counted: no softmax, no norm, no loss, no dropout, no copy.

A product may go in every dtype that serves it (bfloat16 may serve int8 weights, if that is faster), in two layouts of
the weight, with all threads at once or in slices of rows with one thread each; it is counted in the fastest of these.
"""

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from tsugiki.base.loading import meta_model
from tsugiki.bench.models import read_config
from tsugiki.bench.work import RANK, WARM_UP, StepBarrier, Work
from tsugiki.dtypes import processor_has_bf16, torch_dtype
from tsugiki.errors import TsugikiError
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.layer import features, is_conv1d
from tsugiki.lora.targets import find_targets
from tsugiki.train.threads import run_in_threads

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Part: TypeAlias = Literal["frozen layers", "low rank", "attention", "causal attention", "head"]

_SLICE = 512  # rows
_FEW = 1 << 16
_BLOCK = 128  # of causal attention
_LARGE = 2048  # of a side, from which on the fastest way is the same
_LONG_ENOUGH = 0.005  # seconds of work that can be told
_ENOUGH = 0.1  # seconds of measurements, after which the best of them is taken
_BEST_OF = 3
_SERVED_BY = {"fp32": ("fp32",), "bf16": ("bf16", "fp32"), "int8": ("int8", "bf16", "fp32")}


@dataclass(frozen=True)
class Product:
    """[batch, m, k] @ [batch, k, n]."""

    part: Part
    m: int
    k: int
    n: int
    batch: int = 1
    sliced: Literal["m", "k", "batch"] = "m"
    """The dimension that runs over tokens or rows, along which it can be cut."""

    @property
    def frozen(self) -> bool:
        """Whether one side is a frozen weight, which may be held in int8."""
        return self.part in ("frozen layers", "head")

    def smaller(self) -> "Product":
        """Large enough to show which way is the fastest."""
        return replace(self, m=min(self.m, _LARGE), k=min(self.k, _LARGE), n=min(self.n, _LARGE))


def limit(work: Work, gate: StepBarrier) -> None:
    """Look for the fastest ways while others warm up, then measure; what a step tells is the best of all so far."""
    if torch.accelerator.is_available():
        raise TsugikiError("the limit is measured for processors only, and there is an accelerator")
    timings = Timings(products(read_config(work.model), work.batch, work.length), native_dtypes())
    for _ in range(WARM_UP):
        gate.begin()
        timings.look_for_ways()
        gate.end()
    while True:
        gate.begin()
        timings.measure()
        gate.end(limits=timings.limits(work.tokens))


class Timings:
    """The best seconds so far of each product in each dtype.

    Args:
        wanted: products, and how many of each a step needs.
        dtypes: those that the processor multiplies natively.
    """

    def __init__(self, wanted: Mapping[Product, int], dtypes: Sequence[str]) -> None:
        self.wanted, self.dtypes = wanted, dtypes
        pairs = [(product, dtype) for product in wanted for dtype in dtypes if dtype != "int8" or product.frozen]
        self.ways: dict[tuple[Product, str], list[float]] = {pair: [] for pair in pairs}
        """Of each way, on a smaller product of its kind."""
        self.seconds = dict.fromkeys(pairs, math.inf)

    def look_for_ways(self) -> None:
        """Time each product's ways on a smaller one."""
        for (product, dtype), before in self.ways.items():
            seconds = [_timed(*arranged(product.smaller(), torch_dtype(dtype), way)) for way in WAYS]
            self.ways[product, dtype] = [min(pair) for pair in zip(seconds, before or seconds, strict=True)]

    def measure(self) -> None:
        """Time each product in its fastest way."""
        for (product, dtype), ways in self.ways.items():
            way = WAYS[ways.index(min(ways))]
            seconds = _timed(*arranged(product, torch_dtype(dtype), way))
            self.seconds[product, dtype] = min(seconds, self.seconds[product, dtype])

    def limits(self, tokens: int) -> dict[str, dict[str, Any]]:
        """For each dtype: tokens a second, the same with causal attention, and the seconds of each part.

        Args:
            tokens: of a step.
        """
        return {dtype: self._limit(dtype, tokens) for dtype in self.dtypes}

    def _limit(self, dtype: str, tokens: int) -> dict[str, Any]:
        parts: dict[str, float] = {}
        for product, count in self.wanted.items():
            serving = [self.seconds[product, other] for other in _SERVED_BY[dtype] if (product, other) in self.seconds]
            parts[product.part] = parts.get(product.part, 0.0) + count * min(serving)
        whole = sum(seconds for part, seconds in parts.items() if part != "causal attention")
        return {
            "tokens_per_second": tokens / whole,
            "causal_tokens_per_second": tokens / (whole - parts["attention"] + parts["causal attention"]),
            "seconds": parts,
        }


def products(config: "PretrainedConfig", batch: int, length: int, r: int = RANK) -> Counter[Product]:
    """The products of a step of LoRA on the default layers, and how many of each.

    Args:
        config: of the model.
        batch: rows.
        length: tokens a row.
        r: the rank.

    Raises:
        TsugikiError: no default layers are known for the architecture.
    """
    model = meta_model(config, attn_implementation="eager").requires_grad_(False)
    targets, head = find_targets(model, LoraConfig()), model.get_output_embeddings()
    found: Counter[Product] = Counter()

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, target: bool) -> None:
        rows, (fan_in, fan_out) = inputs[0].numel() // inputs[0].shape[-1], features(layer)
        part: Part = "head" if layer is head else "frozen layers"
        found[Product(part, rows, fan_in, fan_out)] += 1
        if inputs[0].requires_grad:
            found[Product(part, rows, fan_out, fan_in)] += 1
        if target:
            found.update(_low_rank(rows, fan_in, fan_out, r, inputs[0].requires_grad))
            if not output.requires_grad:
                output.requires_grad_(True)  # as the pair beside it would make it

    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) or is_conv1d(layer):
            layer.register_forward_hook(partial(count, target=name in targets))
    ids = torch.zeros((batch, length), dtype=torch.long, device="meta")
    # The mask keeps transformers from looking at positions, which have no values here.
    model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    found.update(_attention(config, batch, length))
    return found


def native_dtypes() -> list[str]:
    """The dtypes that this processor multiplies without converting them first."""
    return ["fp32", *(["bf16"] if processor_has_bf16() else []), *(["int8"] if torch.cpu._is_vnni_supported() else [])]


def _low_rank(rows: int, fan_in: int, fan_out: int, r: int, input_gradient: bool) -> list[Product]:
    """The products of a pair: x A', h B'; dh = dy B, dB = dy' h, dA = dh' x, and dx = dh A where it is needed."""
    needed = [
        Product("low rank", rows, fan_in, r),
        Product("low rank", rows, r, fan_out),
        Product("low rank", rows, fan_out, r),
        Product("low rank", fan_out, rows, r, sliced="k"),
        Product("low rank", r, rows, fan_in, sliced="k"),
    ]
    return needed + ([Product("low rank", rows, r, fan_in)] if input_gradient else [])


def _attention(config: "PretrainedConfig", batch: int, length: int) -> Counter[Product]:
    """Q K' and P V; dP = dO V' and dQ = dS K; dK = dS' Q and dV = P' dO; whole, and below the diagonal."""
    text = config.get_text_config()
    layers, heads = text.num_hidden_layers, text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    found: Counter[Product] = Counter()
    blocks = [(min(_BLOCK, length - first), min(first + _BLOCK, length)) for first in range(0, length, _BLOCK)]
    parts: list[tuple[Part, list[tuple[int, int]]]] = [("attention", [(length, length)]), ("causal attention", blocks)]
    for part, blocks in parts:
        for queries, keys in blocks:
            for m, k, n in ((queries, width, keys), (queries, keys, width), (keys, queries, width)):
                found[Product(part, m, k, n, batch * heads, "batch")] += 2 * layers
    return found


@dataclass(frozen=True)
class Way:
    """How a product may be carried out."""

    transposed: bool
    """The second side lies as [n, k]."""
    sliced: bool
    """Slices of rows, each on a thread of its own, side by side; else all threads in the whole product."""


WAYS = [Way(transposed, sliced) for transposed in (False, True) for sliced in (False, True)]

Pairs: TypeAlias = Sequence[tuple[Tensor, Tensor]]


def arranged(product: Product, dtype: torch.dtype, way: Way) -> tuple[Pairs, int]:
    """What is to be multiplied, and how many threads take it side by side (1: all threads take it together)."""
    batch, m, k, n = product.batch, product.m, product.k, product.n
    # Of a gradient of a pair, the activations lie as [tokens, width].
    a = _numbers((batch, k, m), dtype).mT if product.sliced == "k" else _numbers((batch, m, k), dtype)
    b = _numbers((batch, n, k), dtype).mT if way.transposed else _numbers((batch, k, n), dtype)
    if product.sliced != "batch":
        a, b = a[0], b[0]
    return (_slices(a, b, product), torch.get_num_threads()) if way.sliced else ([(a, b)], 1)


def _numbers(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Random numbers that come again and again: to draw all of a head's would take longer than its product."""
    few = torch.randint(-9, 9, (_FEW,), dtype=torch.int8).to(dtype)
    count = math.prod(shape)
    return few.repeat(count // _FEW + 1)[:count].view(shape)


def _slices(a: Tensor, b: Tensor, product: Product) -> Pairs:
    if product.sliced == "m":
        return [(part, b) for part in torch.split(a, _SLICE)]
    if product.sliced == "k":
        return list(zip(torch.split(a, _SLICE, dim=1), torch.split(b, _SLICE), strict=True))
    each = -(-product.batch // torch.get_num_threads())
    return list(zip(torch.split(a, each), torch.split(b, each), strict=True))


def _timed(pairs: Pairs, threads: int) -> float:
    """Seconds of all these products: the best of some measurements, each long enough to be told."""
    shares = [share for share in (pairs[first::threads] for first in range(threads)) if share]
    # Results go where others were: memory that is touched for the first time costs more.
    outs = [torch.empty(_shape(*share[0]), dtype=_result(share[0][0])) for share in shares]
    once = _measured(shares, outs, 1)
    repeats = max(1, int(_LONG_ENOUGH / once))
    seconds: list[float] = []
    while len(seconds) < _BEST_OF and sum(seconds) < _ENOUGH:
        seconds.append(_measured(shares, outs, repeats))
    return min(seconds) / repeats


def _measured(shares: Sequence[Pairs], outs: Sequence[Tensor], repeats: int) -> float:
    """Seconds of so many rounds of every share's products, the shares side by side."""
    tasks = [partial(_multiply, share, out, repeats) for share, out in zip(shares, outs, strict=True)]
    began = time.perf_counter()
    run_in_threads(tasks)
    return time.perf_counter() - began


@torch.no_grad()
def _multiply(share: Pairs, out: Tensor, repeats: int) -> None:
    product = torch._int_mm if out.dtype == torch.int32 else torch.matmul
    for _ in range(repeats):
        for a, b in share:
            product(a, b, out=out[: a.shape[0]])


def _shape(a: Tensor, b: Tensor) -> tuple[int, ...]:
    return (*a.shape[:-1], b.shape[-1])


def _result(a: Tensor) -> torch.dtype:
    return torch.int32 if a.dtype == torch.int8 else a.dtype
