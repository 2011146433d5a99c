"""Regular expressions are searched for in another process, which is ended after a while."""

import re
import time

import pytest

from tsugiki.training import TooSlowError, search
from tsugiki.training.evaluation import expressions


def test_results_are_those_of_re():
    pairs = [(["^a", "猫"], "三毛猫\n"), ([r"\d{4}"], "in 1900"), (["^b"], "ab"), ([r"(?i)YES\b"], "yes."), ([""], "")]
    expected = [any(re.search(one, text) for one in several) for several, text in pairs]
    assert search(pairs) == expected == [True, True, False, True, True]
    assert search([]) == []


def test_a_slow_expression_is_ended_and_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(expressions, "_SECONDS", 2)
    start = time.monotonic()
    with pytest.raises(TooSlowError, match="2 s") as raised:
        search([(["a"], "a"), (["(a+)+b"], "a" * 60), (["a"], "a")])
    assert raised.value.index == 1
    assert time.monotonic() - start < 60
