"""Requests by OpenAI's client, and what transformers' `generate` answers to them."""

import asyncio
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.serve.conftest import Running
from tests.tiny import byte_tokenizer
from tsugiki import load_adapter
from tsugiki.base import load_model

openai = pytest.importorskip("openai")
PROMPT = "on the mountain"


def connect(server: Running, key: str = "none") -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=60)


def at_once(server: Running, requests: Iterable[dict[str, Any]], chat: bool = False, pause: float = 0) -> Any:
    """The answers to requests that are sent together, or each after a random pause up to one of some seconds."""

    async def ask() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0, timeout=300) as client:
            create = client.chat.completions.create if chat else client.completions.create

            async def one(fields: dict[str, Any]) -> Any:
                await asyncio.sleep(random.uniform(0, pause))
                return await create(**fields)

            return await asyncio.gather(*map(one, requests))

    return asyncio.run(ask())


def texts(answers: Iterable[Any]) -> list[str]:
    return [answer.choices[0].text for answer in answers]


def ids(text: str) -> list[int]:
    found: list[int] = byte_tokenizer()(text, add_special_tokens=False).input_ids
    return found


def text_of(tokens: list[int]) -> str:
    text: str = byte_tokenizer().decode([token for token in tokens if token], skip_special_tokens=True)
    return text.rstrip("\N{REPLACEMENT CHARACTER}")


def model_of(server: Running, folder: Path | None) -> Any:
    """The base in a model of its own, with the adapter in a folder."""
    model = load_model(server.base)
    return load_adapter(model, folder) if folder else model


@torch.no_grad()
def greedy(server: Running, name: str | None, new: int = 12, prompt: str = PROMPT, folder: Path | None = None) -> str:
    """The text that transformers' `generate` continues a prompt with, by an adapter of the library or in `folder`."""
    given = torch.tensor([[0, *ids(prompt)]])
    model = model_of(server, folder or (server.library / name if name not in (None, "base") else None))
    fields = {"attention_mask": torch.ones_like(given), "pad_token_id": 0, "max_new_tokens": new}
    out = model.generate(given, do_sample=False, **fields)
    return text_of(out[0, given.shape[1] :].tolist())


def assert_scores(server: Running, folder: Path, prompt: list[int], found: Any) -> None:
    """Check the log-probabilities of the tokens of a prompt, and those of the likeliest ones, by a model of its own."""
    with torch.no_grad():
        expected = torch.log_softmax(model_of(server, folder)(torch.tensor([prompt])).logits[0], -1)
    assert found.token_logprobs[0] is None
    for place, token in enumerate(prompt[1:]):
        assert found.token_logprobs[place + 1] == pytest.approx(float(expected[place, token]), abs=1e-4)
        best = max(found.top_logprobs[place + 1].values())
        assert best == pytest.approx(float(expected[place].max()), abs=1e-4)
