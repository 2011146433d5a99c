"""Sizes and durations for people."""

import pytest

from tsugiki.io import format_duration, format_gigabytes, format_size


@pytest.mark.parametrize(
    ("count", "text"), [(512, "0.5 kB"), (8_651_000, "8.65 MB"), (999_999, "1000.0 kB"), (3_500_000_000, "3.50 GB")]
)
def test_sizes(count: int, text: str):
    assert format_size(count) == text
    assert format_gigabytes(120_000_000) == "0.12 GB"


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (600, "10 min"), (9000, "2.5 h")])
def test_durations(seconds: float, text: str):
    assert format_duration(seconds) == text
