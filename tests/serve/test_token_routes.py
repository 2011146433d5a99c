"""`/tokenize`, in vLLM's shape."""

from typing import Any

import httpx2
import pytest

from tests.serve.conftest import CONTEXT, Running
from tests.tiny import byte_tokenizer

TEXT = "春 spring"
ASK = [{"role": "user", "content": "a"}]


def post(server: Running, **body: Any) -> httpx2.Response:
    return httpx2.post(f"{server.url}/tokenize", json=body, timeout=60)


def test_tokens(server: Running):
    expected = byte_tokenizer()(TEXT, add_special_tokens=False).input_ids
    answer = post(server, prompt=TEXT, add_special_tokens=False).json()
    assert answer["tokens"] == expected
    assert (answer["count"], answer["max_model_len"]) == (len(expected), CONTEXT)
    assert post(server, model="poet", prompt=TEXT).json()["tokens"] == [0, *expected]


def test_tokens_of_a_conversation(server: Running):
    tokens = post(server, model="歌人", messages=ASK).json()["tokens"]
    body = {"model": "歌人", "messages": ASK, "max_tokens": 1}
    usage = httpx2.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()["usage"]
    assert len(tokens) == usage["prompt_tokens"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"prompt": "a", "messages": ASK}, 400),
        ({"model": "nobody", "prompt": "a"}, 404),
        ({"model": "歌人", "messages": ASK, "add_special_tokens": True}, 400),
    ],
)
def test_what_is_refused(server: Running, body: dict[str, Any], status: int):
    answer = post(server, **body)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]
