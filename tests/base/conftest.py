"""What the tests of quantised layers share."""

import pytest
import torch

from tsugiki.base import integer_products, product_dtype
from tsugiki.base.integer_products import exact_integers


@pytest.fixture
def integers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiply integers, also where floats are faster, or where the processor's integer product is not exact."""
    if not exact_integers():
        monkeypatch.setattr(torch, "_int_mm", lambda q, w: (q.double() @ w.double()).to(torch.int32))
        monkeypatch.setattr(integer_products, "exact_integers", lambda: True)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        monkeypatch.setitem(product_dtype._decided, dtype, True)
