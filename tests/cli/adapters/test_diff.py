"""`tsugiki adapters diff`."""

import re
from pathlib import Path

from tests.adapters.folders import write


def test_diff(run, two: Path):
    write(two / "wide", 3, r=8)
    status, out, _ = run("adapters", "diff", "soseki", "wide")
    assert status == 0
    assert re.search(r"rank +│ 4 +│ 8", out)
    assert re.search(r"overall +│ [\d.]+ │ [\d.]+ │ [+-]0\.\d{4} │ [\d.]+", out)
