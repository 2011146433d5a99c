"""`tsugiki adapters scale`."""

from pathlib import Path

import pytest
import torch

from tests.cli.adapters.spoiled import Run, adapted, assert_refused, spoiled
from tests.tiny import relative_error


def test_twice_negated_is_the_adapter(run: Run, base: str, pair: tuple[str, str], library: Path):
    assert run("adapters", "scale", "a", "--by", "-1", "--out", "not-a")[0] == 0
    assert run("adapters", "scale", "not-a", "--by", "-1", "--out", "again")[0] == 0
    assert torch.equal(adapted(base, library / "again"), adapted(base, library / "a"))
    assert relative_error(adapted(base, library / "not-a"), adapted(base, library / "a")) > 1e-2


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        (("scale", "a", "--by", "0", "--out", "x"), "0"),
        (("scale", "a", "--by", "nan", "--out", "x"), "nan"),
        (("scale", "a", "--by", "1e39", "--out", "x"), "lora_alpha"),
        (("scale", "DORA", "--by", "2", "--out", "x"), "use_dora is true"),
    ],
)
@pytest.mark.usefixtures("pair")
def test_bad_input_is_one_line_and_changes_nothing(
    arguments: tuple[str, ...], fact: str, run: Run, library: Path, tmp_path: Path
):
    assert_refused(run, tmp_path, [spoiled(library / "a", tmp_path, word) for word in arguments], fact)
