"""The guides name the recommended bases with the figures that `tsugiki` alone shows."""

from pathlib import Path

import pytest

from tsugiki.base import RECOMMENDED
from tsugiki.model.architectures import ARCHITECTURES

ROOT = Path(__file__).parents[2]

TYPES = {"LFM2.5": "lfm2", "gemma-3": "gemma3_text", "japanese-gpt2": "gpt2", "SmolLM2": "llama"}
"""Parts of the names of the bases -> their types in transformers."""


@pytest.mark.parametrize(
    ("page", "said"), [("docs/models.md", "is not written as GGUF"), ("docs/models.ja.md", "は GGUF に書き出せません")]
)
def test_the_guides_say_which_bases_are_not_exported(page: str, said: str):
    note = next(line for line in (ROOT / page).read_text("utf-8").splitlines() if said in line)
    for base in RECOMMENDED:
        (type_,) = (one for part, one in TYPES.items() if part in base.name)
        is_exported = type_ in ARCHITECTURES and ARCHITECTURES[type_].llama_cpp is not None
        assert is_exported != (base.name.partition("/")[2] in note), base.name


@pytest.mark.parametrize("page", ["docs/models.md", "docs/models.ja.md"])
def test_the_guides_have_the_figures_of_the_table(page: str):
    rows = [line.split(" | ") for line in (ROOT / page).read_text("utf-8").splitlines() if line.startswith("| ")]
    for base in RECOMMENDED:
        row = next(row for row in rows if base.name == row[0].strip("| []").partition("](")[0])
        assert row[-4:-2] == [f"{base.parameters}M", f"{base.download:,} MB"]
        assert row[-2].split()[0] == str(base.minutes)
        assert row[-1].startswith(base.license)
