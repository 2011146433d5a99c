"""Programs in the guides are whole Python, and those for other libraries run as printed, on a machine without a GPU."""

import ast
import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from tests.adapters.trl_runs import ANSWERS, PROMPTS, grafted_start
from tests.tiny import byte_tokenizer

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("README*.md"), *(ROOT / "docs").glob("*.md")])


def programs(page: Path) -> list[str]:
    return re.findall(r"(?ms)^```python\n((?!>>> ).*?)^```", page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", [page for page in PAGES if programs(page)], ids=lambda page: page.name)
def test_every_program_is_whole(page: Path):
    for code in programs(page):
        ast.parse(code if code[0] != " " else f"if True:\n{code}")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the guide is read without a GPU")
@pytest.mark.parametrize("page", ["adapters.md", "adapters.ja.md"])
def test_the_trainers_of_trl_are_made_as_printed(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("trl")
    monkeypatch.chdir(tmp_path)
    chosen, rejected = zip(*ANSWERS * 2, strict=True)
    rows = {"prompt": PROMPTS, "chosen": chosen, "rejected": rejected}
    names = {
        "model": grafted_start("fresh", tmp_path),
        "tokenizer": byte_tokenizer(),
        "pairs": Dataset.from_dict(rows),
        "prompts": Dataset.from_dict({"prompt": PROMPTS}),
        "reward": lambda completions, **_: [0.0 for _ in completions],
    }
    (code,) = (code for code in programs(ROOT / "docs" / page) if "DPOConfig" in code)
    for part in code.split("\n\n"):  # each trainer of its own model
        exec(part, names)
        if "trainer =" in part:
            assert names["trainer"].train_dataset is not None
            names["model"] = grafted_start("fresh", tmp_path)
