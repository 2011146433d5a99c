"""Results: from seconds to figures, the table and the plot."""

import re
from xml.etree import ElementTree

import pytest
from benchmarks.speed.entries import TRAINING_ENTRIES
from benchmarks.speed.results import Results, collect, plot, results_page, results_table
from benchmarks.speed.runner import Measurement
from benchmarks.speed.workload import Workload

LIMITS = {
    "fp32": {"tokens_per_second": 400.0, "causal_tokens_per_second": 450.0, "seconds": {}},
    "bf16": {"tokens_per_second": 1000.0, "causal_tokens_per_second": 1200.0, "seconds": {}},
}


def example() -> Results:
    measured = [
        Measurement("chapter", {}, [[10.0, 8.0], [10.0, 16.0]], 10**9, 3 * 10**9, 2 * 10**9),
        Measurement("trl", problem="not installed (pip install -e '.[dev]')"),
        Measurement("tsugiki", {"base_dtype": "bf16"}, [[4.0, 5.0], [4.0, 2.0]], 5 * 10**8, 15 * 10**8, 10**9),
        Measurement("tsugiki-full-fp32", {}, [[8.0]], None, None, None),
    ]
    machine = {"processor": "EPYC", "threads": 2}
    workload, command = Workload("gpt2-small", 4, 512), "python -m benchmarks.speed --rounds 3"
    return collect(workload, workload.tokens, TRAINING_ENTRIES, measured, LIMITS, command, machine)


def test_medians_ratios_and_shares():
    chapter, trl, ours, full = example().rows
    assert chapter.tokens_per_second == pytest.approx(2048 / 10)
    assert (chapter.slowest, chapter.fastest) == pytest.approx((2048 / 16, 2048 / 8))
    assert (chapter.ratio, ours.ratio) == pytest.approx((1, 10 / 4))
    assert ours.ratio_range == pytest.approx((9 / 4.5, 13 / 3))
    assert (chapter.ratio_range, full.ratio_range) == (None, None), "one block has no range"
    assert chapter.share == pytest.approx(204.8 / 400), "float32 against the limit of float32"
    assert ours.share == pytest.approx(512 / 1000), "and what it chose for itself, bfloat16, against bfloat16's"
    assert full.share is None, "the limit is LoRA's"
    assert (trl.tokens_per_second, trl.ratio, trl.share) == (None, None, None)


def test_the_table():
    headers, rows = results_table(example())
    assert len({line.count(" | ") for line in results_table(example()).to_markdown().splitlines()}) == 1
    assert "python -m benchmarks.speed --rounds 3" in results_page(example())
    cells = [dict(zip(headers, row, strict=True)) for row in rows]
    assert cells[0] == {
        "": "chapter", "tokens/s": "205", "slowest to fastest": "128 – 256", "ratio": "1.00", "share of limit": "51%",
        "peak memory": "3.00 GB", "above the model": "2.00 GB", "settings": "–",
    }  # fmt: skip
    assert cells[1]["settings"] == "not installed (pip install -e '.[dev]')"
    assert cells[1]["tokens/s"] == "–"
    assert cells[2]["settings"] == "base_dtype bf16"
    assert cells[2]["ratio"] == "2.50 [2.00, 4.33]"
    assert [line[""] for line in cells[4:]] == ["limit, fp32", "limit, bf16"]
    assert cells[5]["tokens/s"] == "1,000"
    assert cells[5]["settings"] == "with causal attention: 1,200"


def test_bars_are_proportional_to_their_figures():
    svg = plot(example())
    ElementTree.fromstring(svg)
    assert "#00fe" not in svg, "all placeholder colours are replaced"
    assert "prefers-color-scheme: dark" in svg
    bar = r'd="M ([\d.]+) [\d.]+ \s*L ([\d.]+) [^"]*" clip-path[^>]*fill: var\(--s[18]\)'
    bars = [float(right) - float(left) for left, right in re.findall(bar, svg)]
    assert [bar / bars[0] for bar in bars] == pytest.approx([1, 10 / 4, 10 / 8], rel=1e-3)
    for text in ("chapter", "tsugiki", "limit bf16", "tokens per second"):
        assert f">{text}</text>" in svg
    assert "trl" not in svg
    assert plot(example()) == svg
