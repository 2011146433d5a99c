"""Default targets beside PEFT's: they are the same layers or more, or the difference is explained."""

import pytest

from tests.models.peft_targets import EXPLAINED, comparable, compare


@pytest.mark.parametrize(("model_type", "task"), comparable())
def test_every_layer_that_peft_adapts_by_default_is_adapted(model_type: str, task: str):
    found = compare(model_type, task)
    assert found.both
    assert bool(found.peft_alone) == ((model_type, task) in EXPLAINED), found.peft_alone


def test_what_is_explained_is_in_pefts_table():
    assert EXPLAINED.keys() <= set(comparable())
