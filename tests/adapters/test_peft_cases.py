"""PEFT's own test cases (see `peft_cases` for how to get them): none may be wrong, in outputs or in gradients."""

import pytest

from tests.adapters.peft_cases import cases, has_peft_tests, kind_of, run

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

_WRONG = {"wrong", "gradients", "exception"}


@pytest.mark.parametrize("name", cases() if has_peft_tests() else [])
def test_a_case_of_peft_is_not_wrong(name: str):
    outcomes = run(cases()[name])
    assert {kind_of(outcome) for outcome in outcomes}.isdisjoint(_WRONG), outcomes
