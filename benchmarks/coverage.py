"""How often the 95 % intervals of evaluations hold the true figure, by simulation: `python -m benchmarks.coverage`.

A document has a length and a figure per token, such as its loss, or its loss after a run divided by the loss before it.
Both are drawn at random, and so is the correlation between them if there is one. The true figure is that of endlessly
many such documents, of which a few are held out. Each cell has the share of the intervals that hold it: those of a
percentile bootstrap over the documents, which are shown for comparison, and those of Tsugiki.
"""

import argparse
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from benchmarks.figures import Figures
from tsugiki.report.table import Table
from tsugiki.training.evaluation.interval import ratio_intervals

Array: TypeAlias = npt.NDArray[np.float64]

DOCUMENTS = (2, 3, 5, 10, 20)
HEADERS = {
    "en": ["figures", "σ of log length", "correlation", *(f"n = {count}" for count in DOCUMENTS)],
    "ja": ["文書の値の分布", "長さの対数の σ", "相関", *(f"n = {count}" for count in DOCUMENTS)],
}
_RESAMPLES = 1000


@dataclass(frozen=True)
class Case:
    """A population of documents."""

    exponential: bool = False
    """Whether the figures of the documents are distributed exponentially, and not normally."""
    lengths: float = 0.0
    """Standard deviation of the logarithm of their lengths, which are distributed normally; 0: all are equal."""
    correlation: float = 0.0
    """Of this logarithm and the figure."""

    def cells(self) -> list[str]:
        """Return the first cells of its row in the table."""
        return ["exponential" if self.exponential else "normal", f"{self.lengths:g}", f"{self.correlation:g}"]


CASES = [
    Case(exponential, lengths, correlation)
    for exponential in (False, True)
    for lengths, correlation in ((0.0, 0.0), (0.5, 0.0), (1.0, 0.0), (1.0, 0.5), (1.0, -0.5))
]


def draw(case: Case, documents: int, repetitions: int, seed: int = 0) -> tuple[Array, Array, float]:
    """Return the parts and wholes of held-out texts, each [repetitions, documents], and the true figure."""
    generator = np.random.default_rng(seed)
    size = repetitions, documents
    length = generator.standard_normal(size)
    effect = generator.exponential(size=size) - 1 if case.exponential else generator.standard_normal(size)
    effect = case.correlation * length + np.sqrt(1 - case.correlation**2) * effect
    wholes = np.exp(case.lengths * length)
    centre, spread = 1.0, 0.1
    # For a log-normal length exp(s g), E[exp(s g) g] / E[exp(s g)] is s.
    return wholes * (centre + spread * effect), wholes, centre + spread * case.correlation * case.lengths


def bootstrap(parts: Array, wholes: Array) -> Array:
    """Return the ends of percentile intervals [2, repetitions] of resampled documents, the same in each repetition."""
    documents = parts.shape[1]
    counts = np.random.default_rng(1).multinomial(documents, np.full(documents, 1 / documents), size=_RESAMPLES)
    ratios = (parts @ counts.T.astype(np.float64)) / (wholes @ counts.T.astype(np.float64))
    ends: Array = np.percentile(ratios, [2.5, 97.5], axis=1)
    return ends


def coverage(intervals: Array, truth: float) -> float:
    """Return the share of intervals [2, repetitions] that hold the true figure."""
    return float(np.mean((intervals[0] <= truth) & (truth <= intervals[1])))


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=20_000)
    parser.add_argument("--figures", type=Path, help="JSON file to write the table to")
    options = parser.parse_args()
    rows = []
    for case in CASES:
        cells = case.cells()
        for documents in DOCUMENTS:
            parts, wholes, truth = draw(case, documents, options.repetitions)
            before, now = (coverage(find(parts, wholes), truth) for find in (bootstrap, ratio_intervals))
            cells.append(f"{before:.0%} / {now:.0%}")
        rows.append(cells)
    print(Table(HEADERS["en"], rows).to_markdown())
    if options.figures:
        command = f"python -m benchmarks.coverage {shlex.join(sys.argv[1:])}"
        Figures(HEADERS, rows, command).write(options.figures)


if __name__ == "__main__":
    main()
