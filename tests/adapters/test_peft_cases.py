"""PEFT's own test cases (see `peft_cases` for how to get them): none may be wrong, in outputs or in gradients."""

import os

import pytest

from tests.adapters.peft_cases import cases, run
from tests.adapters.peft_matrix import kind_of

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("name", cases() if "TSUGIKI_PEFT_TESTS" in os.environ else [])
def test_a_case_of_peft_is_not_wrong(name: str):
    outcomes = run(cases()[name])
    assert {kind_of(outcome) for outcome in outcomes}.isdisjoint({"wrong", "gradients", "exception"}), outcomes
