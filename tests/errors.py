"""What every error of Tsugiki's must be."""

from collections.abc import Callable
from typing import Any

import pytest

from tsugiki.errors import TsugikiError


def assert_refused(fact: str, function: Callable[..., object], *arguments: Any, **settings: Any) -> None:
    """Assert that a call raises a `TsugikiError` of one line, in which the regular expression `fact` is found."""
    with pytest.raises(TsugikiError, match=fact) as caught:
        function(*arguments, **settings)
    assert "\n" not in str(caught.value)
