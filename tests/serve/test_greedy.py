"""Greedy texts of ten models by four prompts, in one batch, with and without a grammar, are those of each alone."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.serve.asking import at_once, greedy, texts
from tests.serve.conftest import save_adapter_of, start
from tests.tiny import save_tiny
from tsugiki import LoraConfig
from tsugiki.methods import IA3Config

PROMPTS = ("on the mountain", "春", "x", "a long beginning of a text that takes more than one block of the cache")
CONFIGS: list[Any] = [
    *(LoraConfig(r=rank, lora_alpha=64, target_modules="all-linear") for rank in (1, 2, 3, 8, 16)),
    LoraConfig(r=4, lora_alpha=32),
    LoraConfig(r=4, lora_alpha=32, use_rslora=True, target_modules="all-linear"),
    LoraConfig(r=2, lora_alpha=64, use_dora=True, target_modules="all-linear"),
    IA3Config(),
]
FORM = {"guided_regex": r"\([a-z]{3,9}: [0-9]{2,6}\)|[a-z ]{4,20}"}


@pytest.mark.slow
def test_ten_models_by_four_prompts(tmp_path: Path):
    base, library = save_tiny(tmp_path / "base", n_positions=256), tmp_path / "library"
    for number, config in enumerate(CONFIGS):
        save_adapter_of(base, library / f"a{number}", number, config)
    names = ["base", *(f"a{number}" for number in range(len(CONFIGS)))]
    asked = [{"model": name, "prompt": prompt} for name in names for prompt in PROMPTS]
    free: list[dict[str, Any]] = [{**one, "temperature": 0, "max_tokens": 20} for one in asked]
    with start(base, library, max_loaded=10, limits={"rows": 16, "waiting": 64}) as server:
        expected = [greedy(server, one["model"], 20, one["prompt"]) for one in asked]
        assert len(set(expected)) > 20
        for pause in (0.0, 1.0):  # all at once; and rows that join and leave
            assert texts(at_once(server, free, pause=pause)) == expected
        pytest.importorskip("llguidance")
        bound = [{**one, "extra_body": FORM} for one in free]
        alone = [text for one in bound for text in texts(at_once(server, [one]))]
        assert all(re.fullmatch(FORM["guided_regex"], text) or len(text) == 20 for text in alone)
        assert len(set(alone)) > 10
        for pause in (0.0, 1.0):
            assert texts(at_once(server, bound + free, pause=pause)) == alone + expected
