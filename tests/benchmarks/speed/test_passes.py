"""The bytes that operations move, counted by hand."""

from collections import defaultdict

import torch
from benchmarks.speed.passes import Counting, Total, Totals, counted_native, table

from tsugiki.lowbit import integer_passes


def test_bytes_are_those_of_what_is_read_and_written():
    a, b, out = torch.ones(3, 5), torch.ones(5, 7), torch.ones(3, 5, dtype=torch.bfloat16)
    totals: Totals = defaultdict(Total)
    with Counting(totals):
        _ = a @ b
        _ = a.view(15).mul_(2)
        out.copy_(a)
    assert {name: (total.calls, total.bytes) for name, total in totals.items()} == {
        "mm": (1, 4 * (15 + 35 + 21)),
        "mul_ float32": (1, 4 * 2 * 15),
        "copy_ float32, bfloat16": (1, 4 * 15 + 2 * 15),
    }
    assert len(table(totals).splitlines()) >= 2 + 3


def test_c_functions_are_counted(monkeypatch):
    def native(kind: str, dtype: str = "") -> object:
        return lambda *given: None

    monkeypatch.setattr("benchmarks.speed.passes.native", native)
    totals: Totals = defaultdict(Total)
    with counted_native(totals):
        integer_passes.rounded(torch.ones(3, 5, dtype=torch.bfloat16))
        product, column = torch.ones(3, 5, dtype=torch.int32), torch.ones(3, 1)
        integer_passes.added(product, column, column, torch.ones(5), torch.ones(3, 5), torch.ones(3, 5))
    assert {name: total.bytes for name, total in totals.items()} == {
        "C: rounded bfloat16": 15 * 3,
        "C: added float32": 15 * 12,
    }
