"""The guides name the recommended bases with the figures that `tsugiki` alone shows."""

from pathlib import Path

import pytest

from tsugiki.base import RECOMMENDED
from tsugiki.model.architectures import ARCHITECTURES

ROOT = Path(__file__).parents[2]

TYPES = {"LFM2.5": "lfm2", "gemma-3": "gemma3_text", "japanese-gpt2": "gpt2", "SmolLM2": "llama"}
"""Parts of the names of the bases -> their types in transformers."""


def test_every_recommended_base_is_exported_as_the_guides_say():
    for base in RECOMMENDED:
        (type_,) = (one for part, one in TYPES.items() if part in base.name)
        assert ARCHITECTURES[type_].llama_cpp is not None, base.name


@pytest.mark.parametrize("page", ["docs/models.md", "docs/models.ja.md"])
def test_the_guides_have_the_figures_of_the_table(page: str):
    rows = [line.split(" | ") for line in (ROOT / page).read_text("utf-8").splitlines() if line.startswith("| ")]
    for base in RECOMMENDED:
        row = next(row for row in rows if base.name == row[0].strip("| []").partition("](")[0])
        assert row[-4:-2] == [f"{base.parameters}M", f"{base.download:,} MB"]
        assert row[-2].split()[0] == str(base.minutes)
        assert row[-1].startswith(base.license)
