"""One measurement, from names to results."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tsugiki.bench import memory
from tsugiki.bench.contenders import CONTENDERS, DEFAULT, GENERATORS, LIMIT, BenchmarkEntry
from tsugiki.bench.models import SHAPES, read_config
from tsugiki.bench.plot import plot
from tsugiki.bench.results import Kind, Results, collect
from tsugiki.bench.runner import Measured, measure
from tsugiki.bench.table import page
from tsugiki.bench.work import Work
from tsugiki.errors import TsugikiError
from tsugiki.train.record import describe_machine

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def bench(
    kind: Kind, names: Sequence[str], work: Work, rounds: int, command: str, say: Callable[[str], None]
) -> Results:
    """Measure the contenders called `names` (none: the usual ones), and the machine's limit where it is training.

    Args:
        kind: training, or generation.
        names: of contenders of that kind.
        work: what each is to do.
        rounds: steps of each that are counted.
        command: for the record.
        say: told what goes on.

    Raises:
        TsugikiError: unknown names, a length beyond the model's context, or no contender that could be measured.
    """
    contenders = chosen(kind, names)
    config = read_config(work.model)
    _check_length(work, config)
    weights = _parameters(config)
    left_out = {name: why for name, one in contenders.items() if (why := _too_large(work, one, weights))}
    jobs = {name: one for name, one in contenders.items() if name not in left_out}
    if not jobs:
        raise TsugikiError(f"nothing can be measured: {'; '.join(left_out.values())}")
    extra = {"limit": LIMIT} if kind == "train" else {}
    found = {one.name: one for one in measure({**jobs, **extra}, work, rounds, say)}
    found |= {name: Measured(name, problem=why) for name, why in left_out.items()}
    limit = found.pop("limit", Measured("limit"))
    results = collect(
        kind,
        work,
        [found[name] for name in contenders],
        limit.limits[-1] if limit.limits else {},
        command,
        describe_machine(),
    )
    if not any(row.tokens_per_second for row in results.rows):
        raise TsugikiError("nothing was measured: " + "; ".join(f"{row.name}: {row.problem}" for row in results.rows))
    return results


def chosen(kind: Kind, names: Sequence[str]) -> dict[str, BenchmarkEntry]:
    """The contenders with these names, in the order given.

    Raises:
        TsugikiError: a name that there is not; the message lists those that there are.
    """
    table = CONTENDERS if kind == "train" else GENERATORS
    unknown = [name for name in names if name not in table]
    if unknown:
        raise TsugikiError(f"no contender called {', '.join(map(repr, unknown))}; there are {', '.join(table)}")
    return {name: table[name] for name in names or (DEFAULT if kind == "train" else GENERATORS)}


def check_folder(out: Path) -> None:
    """Raise where results could not be written there.

    Raises:
        TsugikiError: it is a file, or it cannot be made or written.
    """
    if out.is_file():
        raise TsugikiError(f"{out} is a file; --out names a folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TsugikiError(f"{out} cannot be written: {error.strerror}; choose another --out") from error
    if not os.access(out, os.W_OK | os.X_OK):
        raise TsugikiError(f"{out} cannot be written; choose another --out")


def write(results: Results, out: Path) -> None:
    """`results.json`, `table.md` and `plot.svg`.

    Raises:
        TsugikiError: they cannot be written.
    """
    check_folder(out)
    results.write(out)
    (out / "table.md").write_text(page(results), encoding="utf-8")
    (out / "plot.svg").write_text(plot(results), encoding="utf-8")


def _check_length(work: Work, config: "PretrainedConfig") -> None:
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if context and work.length > context:
        raise TsugikiError(f"--length is {work.length}, but the context of {work.model} is {context} tokens")


def _parameters(config: "PretrainedConfig") -> int:
    """Weights of a model, none of which is made."""
    from tsugiki.base.loading import meta_model

    return sum(weight.numel() for weight in meta_model(config).parameters())


def _too_large(work: Work, contender: BenchmarkEntry, weights: int) -> str | None:
    """Why this contender cannot hold the model, if so."""
    float32 = contender.compute_dtype == "fp32" or contender.trains_all
    if work.model in SHAPES and not SHAPES[work.model].float32 and float32:
        return f"left out: {work.model} is measured in bfloat16 and int8 alone"
    free, needed = memory.available(), weights * contender.bytes_per_weight
    if free is not None and needed > free:
        return f"not enough memory: {needed / 1e9:.1f} GB for the weights, {free / 1e9:.1f} GB free"
    return None
