"""Answers as clients that nobody here wrote expect them: curl, OpenAI's types, and the requests of Open WebUI."""

import json
import shutil
import subprocess
from typing import Any

import httpx2
import pytest
from pydantic import BaseModel

from tests.serve.conftest import Running

CONTEXT = "a mountain"


def test_curl(server: Running):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")

    def curl(path: str, body: dict[str, Any], *options: str) -> str:
        command = ["curl", "-sS", *options, server.url + path, "--json", json.dumps(body)]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    body = {"model": "poet", "prompt": CONTEXT, "max_tokens": 8, "seed": 1}
    whole = json.loads(curl("/v1/completions", body))["choices"][0]["text"]
    lines = curl("/v1/completions", {**body, "stream": True}, "-N").split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    parts = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    assert "".join(part["choices"][0]["text"] for part in parts) == whole
    assert curl("/v1/completions", {"model": "nobody", "prompt": ""}, "-o", "/dev/null", "-w", "%{http_code}") == "404"


def check_known(answer: BaseModel, path: str = "answer") -> None:
    """Check that OpenAI's types have all fields of an answer."""
    assert not answer.model_extra, f"{path}: {answer.model_extra}"
    for name, value in answer:
        for place, one in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(one, BaseModel):
                check_known(one, f"{path}.{name}.{place}")


@pytest.mark.parametrize(("stream", "logprobs"), [(False, True), (True, False), (True, True)])
def test_answers_are_valid_by_the_types_of_openai(server: Running, stream: bool, logprobs: bool):
    pytest.importorskip("openai")
    from openai.types import Completion
    from openai.types.chat import ChatCompletion, ChatCompletionChunk

    common: dict[str, Any] = {"max_tokens": 4, "n": 2, "stream": stream}
    if stream:
        common["stream_options"] = {"include_usage": True}
    text: dict[str, Any] = {"model": "poet", "prompt": CONTEXT}
    chat: dict[str, Any] = {"model": "歌人", "messages": [{"role": "user", "content": "hi"}]}
    if logprobs:
        text |= {"logprobs": 2}
        chat |= {"logprobs": True, "top_logprobs": 2}
    kinds = (Completion, ChatCompletionChunk if stream else ChatCompletion)
    for path, body, kind in zip(("completions", "chat/completions"), (text, chat), kinds, strict=True):
        answer = httpx2.post(f"{server.url}/v1/{path}", json=body | common, timeout=60)
        lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n")[:-2]] if stream else [answer.text]
        assert len(lines) >= (3 if stream else 1)  # at least an event for each of the two answers, and the usage
        for line in lines:
            if kind is Completion:  # the type has no null, which the streams of OpenAI's own server have
                line = line.replace('"finish_reason":null', '"finish_reason":"stop"')
            check_known(kind.model_validate_json(line, strict=True))


def test_models_and_errors_are_valid_by_the_types_of_openai(server: Running):
    pytest.importorskip("openai")
    from openai.types import Model
    from openai.types.shared import ErrorObject

    for card in httpx2.get(f"{server.url}/v1/models").json()["data"]:
        assert {*(Model.model_validate(card, strict=True).model_extra or {})} == {"root", "parent", "max_model_len"}
    error = httpx2.post(f"{server.url}/v1/completions", json={"model": "nobody", "prompt": "a"}).json()["error"]
    check_known(ErrorObject.model_validate(error, strict=True))


def test_what_open_webui_sends(server: Running):
    """Its requests, written down from its source: the list of models, a chat as a stream, and the title of a chat."""
    headers = {"Authorization": "Bearer none", "HTTP-Referer": "https://openwebui.com/", "X-Title": "Open WebUI"}
    with httpx2.Client(base_url=f"{server.url}/v1", headers=headers, timeout=60) as client:
        assert "歌人" in [model["id"] for model in client.get("/models").json()["data"]]
        messages = [{"role": "system", "content": "短く。"}, {"role": "user", "content": "春"}]
        user = {"name": "a", "id": "1", "email": "a@example.org", "role": "admin"}
        chat = {
            "stream": True,
            "model": "歌人",
            "messages": messages,
            "stream_options": {"include_usage": True},
            "temperature": 0.8,
            "top_p": 0.9,
            "frequency_penalty": 0,
            "presence_penalty": 0,
            "stop": ["</s>"],
            "max_tokens": 4096,
            "seed": 1,
            "logit_bias": {},
            "reasoning_effort": "medium",
            "user": user,
        }  # with more tokens than the model's context has
        answer = client.post("/chat/completions", json=chat)
        events = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
        assert events.pop() == "[DONE]"
        chunks = [json.loads(event) for event in events]
        assert any(chunk["choices"][0]["delta"].get("content") for chunk in chunks[:-1])
        assert chunks[-1]["usage"]["completion_tokens"] > 0
        assert answer.headers["x-ignored-fields"] == "reasoning_effort, user"
        title = {"model": "歌人", "messages": messages, "stream": False, "max_completion_tokens": 1000}
        message = client.post("/chat/completions", json=title).json()["choices"][0]["message"]
        assert message["role"] == "assistant"
