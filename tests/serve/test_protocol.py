"""What a wrong field of a request is called, and what it should be."""

import json
from typing import Any

import pytest

pytest.importorskip("starlette")
from tsugiki.serve import ApiError, ChatRequest, CompletionRequest, parse


@pytest.mark.parametrize(
    ("fields", "name", "fact"),
    [
        ({"prompt": 5}, "prompt", "list of tokens"),
        ({"prompt": ["a", 1]}, "prompt", "list of tokens"),
        ({"prompt": "a", "stop": ""}, "stop", "1 to 200"),
        ({"prompt": "a", "stop": ["a"] * 5}, "stop", "at most 4"),
        ({"prompt": "a", "temperature": 3}, "temperature", "less than or equal to 2"),
        ({"prompt": "a", "adapters": {"prompt": "x"}}, "adapters.prompt", "number"),
        ({"prompt": "a", "logit_bias": {"prompt": 1}}, "logit_bias.prompt.[key]", "pattern"),
        ({}, "prompt", "required"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": "hello"}, "messages", "list"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "required"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content", '"type": "text"'),
    ],
)
def test_a_wrong_field_is_named_as_it_was_sent(fields: dict[str, Any], name: str, fact: str):
    kind = ChatRequest if "messages" in fields else CompletionRequest
    with pytest.raises(ApiError, match=fact) as caught:
        parse(kind, json.dumps({"model": "base", **fields}).encode())
    assert caught.value.param == name
    assert str(caught.value).startswith(f"{name}: ")
