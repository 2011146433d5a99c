"""The code on the page for users of PEFT runs, and both libraries give the same results."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import ids, relative_error, save_tiny
from tsugiki.lora import is_grafted

DOCS = Path(__file__).parents[2] / "docs"
ENGLISH, JAPANESE = (DOCS / name for name in ("from-peft.md", "from-peft.ja.md"))


def blocks(page: Path) -> list[str]:
    """The code of the page: for each section that of PEFT, then that of Tsugiki."""
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)


def run(code: str, base: str) -> dict[str, Any]:
    names: dict[str, Any] = {"rows": [{"input_ids": row, "labels": row} for row in ids(rows=6)], "ids": ids()}
    exec(code.replace("rinna/japanese-gpt2-medium", base), names)
    return names


@pytest.mark.parametrize("saves", [0, 1], ids=["PEFT saves", "Tsugiki saves"])
def test_both_libraries_give_the_same(
    saves: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    base = save_tiny(tmp_path / "base")
    trains, loads = blocks(ENGLISH)[:2], blocks(ENGLISH)[2:]
    printed = []
    for code in (trains[1 - saves], trains[saves]):  # the adapter of the second one is kept
        shutil.rmtree("my-adapter", ignore_errors=True)
        run(code, base)
        printed.append([line for line in capsys.readouterr().out.splitlines() if line.startswith("trainable params")])
    assert printed[0] == printed[1] != []
    theirs, ours = (run(code, base) for code in loads)
    for name in ("before", "after"):
        assert relative_error(ours[name], theirs[name]) < 1e-5
    assert not torch.equal(ours["before"], ours["after"])
    with torch.no_grad():
        assert relative_error(ours["model"](input_ids=ids()).logits, theirs["model"](input_ids=ids()).logits) < 1e-5
    assert not is_grafted(ours["model"])


def test_both_pages_have_the_same_code():
    def without_comments(page: Path) -> list[str]:
        return [re.sub(r"  #.*", "", code) for code in blocks(page)]

    assert without_comments(ENGLISH) == without_comments(JAPANESE)
