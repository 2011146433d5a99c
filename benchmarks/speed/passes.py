"""Measure the operations of a training step and the bytes that each of them moves: `python -m benchmarks.speed.passes`.

One row of 512 tokens of a model with random weights is trained on with one thread. The bytes of an operation are those
of the tensors that it reads and writes; what stays in a cache in between counts as well. The seconds are those of the
processor in the second of two steps. Being measured makes small operations slower.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.speed.tsugiki_entry import run
from benchmarks.speed.workload import StepBarrier, StopRequested, Workload
from tsugiki.fast import activations
from tsugiki.native import native

_SHOWN = 0.004  # share of the time from which an operation has a row of its own
_PRODUCTS = {"mm", "addmm", "addmm_", "bmm", "_int_mm", "mkldnn::_linear_pointwise"}


@dataclass
class Total:
    """What all calls of an operation took."""

    calls: int = 0
    bytes: int = 0
    seconds: float = 0.0

    def add(self, size: int, seconds: float) -> None:
        """Add a call."""
        self.calls, self.bytes, self.seconds = self.calls + 1, self.bytes + size, self.seconds + seconds


Totals = defaultdict[str, Total]


class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds every operation of torch within the block to `totals`."""

    def __init__(self, totals: Totals) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.totals = totals

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute an operation, and count it unless it returns a view."""
        started = time.thread_time()
        result = func(*args, **(kwargs or {}))
        seconds = time.thread_time() - started
        aliases = [returned.alias_info for returned in func._schema.returns]
        name = func._schema.name.removeprefix("aten::")
        is_view = any(alias is not None and not alias.is_write for alias in aliases)
        if not is_view and "empty" not in name:
            read = list(_tensors(args[1:] if name in ("copy_", "fill_", "zero_") else args))
            written = list(_tensors([result]))
            dtypes = dict.fromkeys(str(tensor.dtype).removeprefix("torch.") for tensor in [*read, *written])
            label = name if name in _PRODUCTS else f"{name} {', '.join(dtypes)}"
            self.totals[label].add(sum(map(_bytes, [*read, *written])), seconds)
        return result


@contextmanager
def counted_native(totals: Totals) -> Iterator[None]:
    """Add the calls of C functions within the block to `totals`."""

    def counted(kind: str, dtype: str = "") -> Callable[..., None] | None:
        function = native(kind, dtype)
        if function is None:
            return None

        def call(*given: Any) -> None:
            started = time.thread_time()
            function(*given)
            seconds = time.thread_time() - started
            totals[f"C: {kind} {dtype}".rstrip()].add(_native_bytes(kind, dtype, given), seconds)

        return call

    with patch("tsugiki.native.native", counted), patch.object(activations, "native", counted):
        yield


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gpt2-small")
    parser.add_argument("--base-dtype", choices=["fp32", "bf16", "int8"], default="bf16")
    options = parser.parse_args()
    torch.set_num_threads(1)
    requests = iter(["step", "step", ""])
    totals: Totals = defaultdict(Total)

    class Barrier(StepBarrier):
        """Counts the second step."""

        def begin(self) -> None:
            super().begin()
            totals.clear()

    with counted_native(totals), Counting(totals):
        barrier = Barrier(lambda: next(requests), lambda message: None)
        with suppress(StopRequested):
            run(Workload(options.model, batch=1), barrier, base_dtype=options.base_dtype)
    print(table(totals))


def table(totals: Totals) -> str:
    """Return the operations as a table in Markdown, the longest first."""
    seconds = sum(total.seconds for total in totals.values())
    lines = ["| operation | calls | MB | ms | GB/s | share |", "| --- | ---: | ---: | ---: | ---: | ---: |"]
    rest = Total()
    for name, total in sorted(totals.items(), key=lambda item: -item[1].seconds):
        if total.seconds >= _SHOWN * seconds:
            lines.append(_line(name, total, seconds))
        else:
            rest = Total(rest.calls + total.calls, rest.bytes + total.bytes, rest.seconds + total.seconds)
    products = [total for name, total in totals.items() if name in _PRODUCTS]
    others = [total for name, total in totals.items() if name not in _PRODUCTS]
    lines.append(_line("others", rest, seconds))
    lines += [
        _line(name, Total(*(sum(getattr(t, f) for t in group) for f in ("calls", "bytes", "seconds"))), seconds)
        for name, group in (("all products", products), ("all passes", others))
    ]
    return "\n".join(lines)


def _line(name: str, total: Total, seconds: float) -> str:
    rate = total.bytes / max(total.seconds, 1e-9) / 1e9
    share = total.seconds / max(seconds, 1e-9)
    amounts = f"{total.calls:,} | {total.bytes / 1e6:,.0f} | {total.seconds * 1e3:,.0f}"
    return f"| {name} | {amounts} | {rate:.1f} | {share:.1%} |"


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _bytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor; an expanded one has fewer than its shape says."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _native_bytes(kind: str, dtype: str, given: tuple[Any, ...]) -> int:
    """Return the bytes that a call of a C function reads and writes; numbers for each row do not count."""
    size = {"float32": 4, "bfloat16": 2, "": 2}[dtype]
    if kind == "looked_up":
        return int(given[1]) * 3 * size
    before = 4 if kind == "added" and given[6] is not None else 0
    return int(given[1] * given[2]) * (size + before + (1 if kind == "rounded" else 4))


if __name__ == "__main__":
    main()
