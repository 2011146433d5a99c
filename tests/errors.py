"""What every error of Tsugiki's must be."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tsugiki.errors import TsugikiError


@contextmanager
def refused(fact: str) -> Iterator[pytest.ExceptionInfo[TsugikiError]]:
    """Assert that a block raises a `TsugikiError` of one line, in which the regular expression `fact` is found."""
    with pytest.raises(TsugikiError, match=fact) as caught:
        yield caught
    assert "\n" not in str(caught.value)


def assert_refused(fact: str, function: Callable[..., object], *arguments: Any, **settings: Any) -> None:
    """Assert that a call is `refused`."""
    with refused(fact):
        function(*arguments, **settings)
