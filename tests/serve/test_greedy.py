"""Greedy texts of ten models by four prompts, in one batch, with and without a grammar, are those of each alone."""

import asyncio
import random
import re
from pathlib import Path
from typing import Any

import pytest

from tests.serve.conftest import save_adapter_of, start
from tests.serve.test_server import greedy, ids, text_of
from tests.tiny import save_tiny
from tsugiki import LoraConfig
from tsugiki.methods import IA3Config

openai = pytest.importorskip("openai")
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
    base = save_tiny(tmp_path / "base", n_positions=256)
    library = tmp_path / "library"
    for number, config in enumerate(CONFIGS):
        save_adapter_of(base, library / f"a{number}", number, config)
    asked = [
        (name, prompt) for name in ("base", *(f"a{number}" for number in range(len(CONFIGS)))) for prompt in PROMPTS
    ]
    for server in start(base, library, max_loaded=10, limits={"rows": 16, "waiting": 64}):
        expected = [
            text_of(greedy(server, None if name == "base" else name, [0, *ids(prompt)], 20)) for name, prompt in asked
        ]
        assert len(set(expected)) > 20

        async def ask(requests: list[Any], longest_pause: float, url: str = server.url) -> list[str]:
            async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0, timeout=300) as client:

                async def one(model: str, beginning: str, form: dict[str, str]) -> str:
                    await asyncio.sleep(random.uniform(0, longest_pause))
                    answer = await client.completions.create(
                        model=model, prompt=beginning, temperature=0, max_tokens=20, extra_body=form
                    )
                    return str(answer.choices[0].text)

                return await asyncio.gather(*(one(*request) for request in requests))

        free = [(*request, {}) for request in asked]
        for longest_pause in (0.0, 1.0):  # all at once; and rows that join and leave
            assert asyncio.run(ask(free, longest_pause)) == expected
        pytest.importorskip("llguidance")
        bound = [(*request, FORM) for request in asked]
        alone = [asyncio.run(ask([request], 0.0))[0] for request in bound]
        assert all(re.fullmatch(FORM["guided_regex"], text) or len(text) == 20 for text in alone)
        assert len(set(alone)) > 10
        for longest_pause in (0.0, 1.0):
            assert asyncio.run(ask(bound + free, longest_pause)) == alone + expected
