"""How often 95 % intervals of evaluations hold the true figure, simulated: `python -m benchmarks.quality.coverage`.

A document has a length and a figure per token, such as its loss, or its loss after a run divided by the loss before it.
Both are drawn at random, and so is the correlation between them if there is one. The true figure is that of endlessly
many such documents, of which a few are held out. Each cell has the share of the intervals that hold it: those of a
percentile bootstrap over the documents, which are shown for comparison, and those of Tsugiki.

`--pairs` prints a table for pairs of answers, several of which share a prompt: seven of ten are right, and whether
those of one prompt are right is correlated. Wilson's intervals, as if all were independent, stand beside Tsugiki's.
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
from tsugiki.training.record.interval import effective_trials, ratio_intervals, wilson_interval

Array: TypeAlias = npt.NDArray[np.float64]

DOCUMENTS = (2, 3, 5, 10, 20)
HEADERS = {
    "en": ["figures", "σ of log length", "correlation", *(f"n = {count}" for count in DOCUMENTS)],
    "ja": ["文書の値の分布", "長さの対数の σ", "相関", *(f"n = {count}" for count in DOCUMENTS)],
}
_RESAMPLES = 1000
SHARE = 0.7
CORRELATIONS = (0.0, 0.3, 0.6, 0.9)
PAIR_HEADERS = {
    "en": ["prompts", "pairs of each", *(f"correlation {value:g}" for value in CORRELATIONS)],
    "ja": ["プロンプト", "それぞれの組", *(f"相関 {value:g}" for value in CORRELATIONS)],
}


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


def draw_pairs(prompts: int, each: int, correlation: float, repetitions: int, seed: int = 0) -> Array:
    """Return whether pairs are right [repetitions, prompts, each]; the share of a prompt is distributed as beta."""
    generator = np.random.default_rng(seed)
    shares = np.full((repetitions, prompts, 1), SHARE)
    if correlation:
        total = 1 / correlation - 1
        shares = generator.beta(SHARE * total, (1 - SHARE) * total, shares.shape)
    return (generator.random((repetitions, prompts, each)) < shares).astype(np.float64)


def pair_intervals(right: Array, grouped: bool = True) -> Array:
    """Return the ends of the intervals [2, repetitions] of the share of the pairs that are right."""
    prompts = np.repeat(np.arange(right.shape[1]), right.shape[2]).tolist() if grouped else []
    ends = []
    for values in right.reshape(len(right), -1):
        trials = effective_trials(values.tolist(), prompts)
        ends.append(wilson_interval(values.mean() * trials, trials))
    return np.array(ends).T


def pair_rows(repetitions: int) -> list[list[str]]:
    """Return the table for pairs of answers."""
    rows = []
    for prompts, each in ((5, 4), (12, 4), (40, 4)):
        drawn = [draw_pairs(prompts, each, correlation, repetitions) for correlation in CORRELATIONS]
        both = [[coverage(pair_intervals(right, grouped), SHARE) for grouped in (False, True)] for right in drawn]
        rows.append([str(prompts), str(each), *(f"{before:.0%} / {now:.0%}" for before, now in both)])
    return rows


def coverage(intervals: Array, truth: float) -> float:
    """Return the share of intervals [2, repetitions] that hold the true figure."""
    return float(np.mean((intervals[0] <= truth) & (truth <= intervals[1])))


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=20_000)
    parser.add_argument("--figures", type=Path, help="JSON file to write the table to")
    parser.add_argument("--pairs", action="store_true", help="the table for pairs of answers")
    options = parser.parse_args()
    rows = pair_rows(options.repetitions) if options.pairs else []
    headers = PAIR_HEADERS if options.pairs else HEADERS
    for case in [] if options.pairs else CASES:
        cells = case.cells()
        for documents in DOCUMENTS:
            parts, wholes, truth = draw(case, documents, options.repetitions)
            before, now = (coverage(find(parts, wholes), truth) for find in (bootstrap, ratio_intervals))
            cells.append(f"{before:.0%} / {now:.0%}")
        rows.append(cells)
    print(Table(headers["en"], rows).to_markdown())
    if options.figures:
        command = f"python -m benchmarks.quality.coverage {shlex.join(sys.argv[1:])}"
        Figures(headers, rows, command).write(options.figures)


if __name__ == "__main__":
    main()
