"""What a wrong field of a request is called, and what it should be."""

import json
from typing import Any

import pytest

pytest.importorskip("starlette")
from tsugiki.serve import ApiError, ChatRequest, CompletionRequest, parse

USER = {"role": "user", "content": "a"}
TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("fields", "name", "fact"),
    [
        ({"prompt": ["a", 1]}, "prompt", "list of tokens"),
        ({"prompt": "a", "stop": ""}, "stop", "1 to 200"),
        ({"prompt": "a", "stop": ["a"] * 17}, "stop", "at most 16"),
        ({"prompt": "a", "temperature": 3}, "temperature", "less than or equal to 2"),
        ({"prompt": "a", "adapters": {"prompt": "x"}}, "adapters.prompt", "number"),
        ({}, "prompt", "required"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "required"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": []}]}, "messages.0.content", "required"),
        ({"messages": [USER], "tools": [{"type": "web_search"}]}, "tools.0.type", "'function'"),
        ({"messages": [USER], "tools": [{**TOOL, "function": {"name": "a b"}}]}, "tools.0.function.name", "match"),
        ({"messages": [USER], "tool_choice": {"type": "allowed_tools"}}, "tool_choice", "required, or"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content", '"type": "text"'),
    ],
)
def test_a_wrong_field_is_named_as_it_was_sent(fields: dict[str, Any], name: str, fact: str):
    kind = ChatRequest if "messages" in fields else CompletionRequest
    with pytest.raises(ApiError, match=fact) as caught:
        parse(kind, json.dumps({"model": "base", **fields}).encode())
    assert caught.value.param == name
    assert str(caught.value).startswith(f"{name}: ")


@pytest.mark.parametrize(
    ("fields", "ignored"),
    [
        ({"user": "a", "verbosity": "medium", "reasoning_effort": "low"}, {"user", "verbosity", "reasoning_effort"}),
        ({"keep_alive": "5m", "cache_prompt": True, "lora_int_id": 1}, {"keep_alive", "cache_prompt", "lora_int_id"}),
        ({"tools": [TOOL], "tool_choice": "none"}, {"tools"}),
        ({"tools": [], "best_of": 1, "typical_p": 1.0, "mirostat_mode": 0, "suffix": "", "n": None}, set()),
        ({"stop": ["a"] * 16, "stop_token_ids": [1]}, set()),
    ],
)
def test_fields_that_change_nothing_are_ignored(fields: dict[str, Any], ignored: set[str]):
    parsed = parse(CompletionRequest, json.dumps({"model": "base", "prompt": "a", **fields}).encode())
    assert {*parsed.ignored} == ignored


@pytest.mark.parametrize("seed", [-1, 0, 2**63 - 1, -(2**63)])
def test_seeds_of_choices_are_those_of_generate(seed: int):
    parsed = parse(CompletionRequest, json.dumps({"model": "base", "prompt": "a", "seed": seed}).encode())
    assert [parsed.sampling(choice).seed for choice in (0, 1)] == [seed, seed + 1]


def test_fields_of_messages_that_are_ignored():
    messages = [{**USER, "name": "b"}, {**USER, "name": "c", "x": 1}]
    parsed = parse(ChatRequest, json.dumps({"model": "base", "messages": messages, "user": "a"}).encode())
    assert parsed.ignored == ["user", "messages.name", "messages.x"]


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"functions": [TOOL]}, "functions"),
        ({"function_call": {"name": "f"}}, "function_call"),
        ({"best_of": 4, "n": 3}, "best_of"),
        ({"best_of": True}, "best_of"),
        ({"typical_p": 0.5}, "typical_p"),
        ({"messages": [{**USER, "role": "assistant", "function_call": {"name": "f"}}]}, "messages.0.function_call"),
    ],
)
def test_fields_that_would_change_the_result_are_errors(fields: dict[str, Any], name: str):
    with pytest.raises(ApiError) as caught:
        parse(ChatRequest, json.dumps({"model": "base", "messages": [USER], **fields}).encode())
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, name, "unsupported_parameter")
