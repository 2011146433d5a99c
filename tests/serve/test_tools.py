"""Calls of tools: those that a request demands of any base, and those that a model chooses."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.chat_templates import LLAMA_TOOLS, MISTRAL_ARGS, MISTRAL_TOOLS, TOOLS, Shape, tokenizer_of
from tests.serve.asking import at_once, connect, openai
from tests.serve.calling_model import ASK, CALLED, CITY, COUNT, LIGHT, RESULT, WEATHER, save_calling_model
from tests.serve.conftest import Running, start
from tests.serve.test_clients import check_known
from tsugiki.serve import WrittenCalls, completions, response_template

pytest.importorskip("llguidance")
validate = pytest.importorskip("jsonschema").validate

NAMED = {"type": "function", "function": {"name": "weather"}}
CITY_CALL = '{"city": "Kyoto"}'


def streamed(answer: Any) -> tuple[str, list[tuple[str, str]], str]:
    """The content, the calls and the reason of the end of a stream, put together as clients do."""
    content, calls, reason = "", {}, ""
    for chunk in answer:
        check_known(chunk)
        for choice in chunk.choices:
            content += choice.delta.content or ""
            reason = choice.finish_reason or reason
            for part in choice.delta.tool_calls or []:
                if part.index not in calls:
                    assert part.id
                    assert part.type == "function"
                    calls[part.index] = [part.function.name, ""]
                calls[part.index][1] += part.function.arguments
    return content, [(name, arguments) for name, arguments in calls.values()], reason


def whole(answer: Any) -> tuple[str, list[tuple[str, str]], str]:
    check_known(answer)
    (choice,) = answer.choices
    calls = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or []]
    return choice.message.content or "", calls, choice.finish_reason


@pytest.mark.parametrize(("stream", "read"), [(False, whole), (True, streamed)])
def test_a_model_calls_a_tool_and_answers_by_its_result(caller: Running, stream: bool, read: Any):
    create, fields = connect(caller).chat.completions.create, {"model": "base", "temperature": 0, "stream": stream}
    content, calls, reason = read(create(messages=[ASK], tools=[WEATHER], **fields))
    assert (content, calls, reason) == ("", [("weather", CITY_CALL)], "tool_calls")
    answered = create(messages=[*CALLED, RESULT], tools=[WEATHER], **fields)
    assert read(answered) == ("No.", [], "stop")
    cut = read(create(messages=[ASK], tools=[WEATHER], max_tokens=13, **fields))
    assert cut == ('<tool_call>\n{"name": "w', [], "length")


@pytest.mark.parametrize(
    ("fields", "names", "most"),
    [
        ({"tool_choice": NAMED}, {"weather"}, 1),
        ({"tool_choice": "required"}, {"weather", "light"}, 1),
        ({"tool_choice": {**NAMED, "function": {"name": "light"}}, "parallel_tool_calls": True}, {"light"}, 8),
    ],
)
def test_a_call_that_is_demanded_on_a_template_without_tools(
    server: Running, fields: dict[str, Any], names: set[str], most: int
):
    create, counts, called = connect(server).chat.completions.create, set(), set()
    for seed in range(4):
        asked = {"model": "歌人", "messages": [ASK], "tools": [LIGHT, WEATHER], "seed": seed, "max_tokens": 150}
        content, calls, reason = whole(create(**asked, **fields))
        assert (content, reason) == ("", "tool_calls")
        for name, arguments in calls:
            validate(json.loads(arguments), {**(CITY if name == "weather" else COUNT), "additionalProperties": False})
            called.add(name)
        counts.add(len(calls))
        assert streamed(create(**asked, **fields, stream=True)) == (content, calls, reason)
    assert called <= names
    assert (max(counts) > 1) == (most > 1)
    assert max(counts) <= most


@pytest.mark.parametrize(
    ("name", "fields", "fact"),
    [
        ("tools", {"tools": [WEATHER]}, "'歌人' leaves out tools"),
        ("tool_choice", {"tools": [WEATHER], "tool_choice": {**NAMED, "function": {"name": "f"}}}, "no such tool"),
        ("tool_choice", {"tools": [], "tool_choice": "required"}, "no such tool"),
        ("tools", {"tools": [WEATHER, WEATHER], "tool_choice": "required"}, "same name"),
    ],
)
def test_what_is_refused(server: Running, name: str | None, fields: dict[str, Any], fact: str):
    with pytest.raises(openai.BadRequestError, match=fact) as caught:
        connect(server).chat.completions.create(**{"model": "歌人", "messages": [ASK], **fields})
    assert caught.value.param == name


def test_an_agent_goes_on_with_a_template_that_knows_no_tools(server: Running):
    """Calls and results are plain turns there, so a loop of demanded calls comes to its end."""
    create, fields = connect(server).chat.completions.create, {"model": "歌人", "temperature": 0, "tools": [WEATHER]}
    called = create(messages=[ASK], tool_choice=NAMED, **fields)
    (call,) = called.choices[0].message.tool_calls
    messages = [ASK, called.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    for choice in ("auto", "required", "none"):
        content, calls, _reason = whole(create(messages=messages, tool_choice=choice, max_tokens=40, **fields))
        assert bool(calls) == (choice == "required")
        assert bool(content) == (choice != "required")
    written = {"name": "weather", "arguments": json.loads(call.function.arguments)}
    plain = [ASK, {"role": "assistant", "content": json.dumps(written, ensure_ascii=False)}]
    plain.append({"role": "user", "content": "weather: rain"})
    texts = [create(messages=one, max_tokens=40, **{**fields, "tools": []}) for one in (messages, plain)]
    assert texts[0].choices[0].message == texts[1].choices[0].message
    assert texts[0].usage.prompt_tokens == texts[1].usage.prompt_tokens


def test_tools_that_are_too_large_are_refused_before_the_prompt_is_made(
    server: Running, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(completions, "chat_prompt", None)
    large = {"type": "function", "function": {"name": "f", "parameters": {"enum": [*range(30_000)]}}}
    fields = {"model": "歌人", "messages": [ASK], "tools": [large], "tool_choice": "required"}
    with pytest.raises(openai.BadRequestError, match="more than 120,000 characters") as caught:
        connect(server).chat.completions.create(**fields)
    assert caught.value.param == "tool_choice"


def test_a_form_and_tools_that_the_model_may_call(caller: Running):
    fields = {"model": "base", "messages": [ASK], "tools": [WEATHER], "response_format": {"type": "json_object"}}
    with pytest.raises(openai.BadRequestError, match="cannot call a tool"):
        connect(caller).chat.completions.create(**fields)
    answer = connect(caller).chat.completions.create(**fields, tool_choice="none", max_tokens=4)
    assert answer.choices[0].message.content.startswith("{")


def test_tools_that_must_not_be_called_are_not_shown(caller: Running):
    create, fields = connect(caller).chat.completions.create, {"model": "base", "messages": [ASK], "max_tokens": 1}
    without = create(**fields).usage.prompt_tokens
    assert create(**fields, tools=[WEATHER], tool_choice="none").usage.prompt_tokens == without
    assert create(**fields, tools=[WEATHER]).usage.prompt_tokens > without
    assert create(**fields, tools=[WEATHER], tool_choice="required").usage.prompt_tokens > without


F_CALL, G_CALL = ("f", '{"x": {"y": "<b>}"}}'), ("g", "{}")
WRITTEN, OTHER = f'{{"name": "f", "arguments": {F_CALL[1]}}}', '{"name": "g", "arguments": {}}'
NO_CALL = "<tool_call>\n{f}\n</tool_call> then"
QWEN, LLAMA, INST = "<|im_start|>assistant\n", "<|start_header_id|>assistant<|end_header_id|>\n\n", "[/INST]"
PARAMETERS = f'{{"name": "f", "parameters": {F_CALL[1]}}}'
BOTH = f"<tool_call>\n{WRITTEN}\n</tool_call>\n<tool_call>\n{OTHER}\n</tool_call>"


@pytest.mark.parametrize(
    ("shape", "prefix", "text", "content", "calls"),
    [
        (TOOLS, QWEN, "a < b", "a < b", []),
        (TOOLS, QWEN, f"a <tool_call>\n{WRITTEN}\n</tool_call>", "a", [F_CALL]),
        (TOOLS, QWEN, f"<think>\nhm\n</think>\n\nWell.\n{BOTH}", "\n\nWell.", [F_CALL, G_CALL]),
        (TOOLS, QWEN, f"a{NO_CALL}", f"a{NO_CALL}", []),
        (TOOLS, QWEN, "a<tool_call>5</tool_call>", "a<tool_call>5</tool_call>", []),
        (TOOLS, QWEN, f"a<tool_call>{WRITTEN}</tool_call>{NO_CALL}", f"a{NO_CALL}", [F_CALL]),
        (TOOLS, QWEN, f"a<tool_call>{WRITTEN[:9]}", f"a<tool_call>{WRITTEN[:9]}", []),
        (LLAMA_TOOLS, LLAMA, PARAMETERS, "", [F_CALL]),
        (LLAMA_TOOLS, LLAMA, f"{PARAMETERS}<|eot_id|>", "", [F_CALL]),
        (LLAMA_TOOLS, LLAMA, 'So {"b": 1}.', 'So {"b": 1}.', []),
        (LLAMA_TOOLS, LLAMA, PARAMETERS[:30], PARAMETERS[:30], []),
        (MISTRAL_TOOLS, INST, f"[TOOL_CALLS] [{WRITTEN}, {OTHER}]", "", [F_CALL, G_CALL]),
        (MISTRAL_TOOLS, INST, f"a[TOOL_CALLS] [{WRITTEN}]</s>", "a", [F_CALL]),
        (MISTRAL_TOOLS, INST, f"[TOOL_CALLS] [{OTHER}, {{}}]", f"[TOOL_CALLS] [{OTHER}, {{}}]", []),
        (
            MISTRAL_ARGS,
            INST,
            f"[TOOL_CALLS]f[ARGS]{F_CALL[1]}[TOOL_CALLS]g[CALL_ID]123456789[ARGS]{{}}",
            "",
            [F_CALL, G_CALL],
        ),
        (MISTRAL_ARGS, INST, "[TOOL_CALLS]f[ARG", "[TOOL_CALLS]f[ARG", []),
    ],
)
@pytest.mark.parametrize("length", [1, 3, 1000])
def test_calls_as_models_write_them(shape: Shape, prefix: str, text: str, content: str, calls: list[Any], length: int):
    """The parts of a text do not depend on the pieces in which it comes, and the deltas add up to it."""
    tokenizer = tokenizer_of(shape)
    answer = WrittenCalls(tokenizer.get_response_parser(response_template(tokenizer), prefix=prefix))
    deltas = []
    for place in range(0, len(text), length):
        answer.add(text[place : place + length], last=place + length >= len(text))
        deltas.append(answer.delta())
    message = answer.message()
    found = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", [])]
    assert (message["content"] or "", found) == (content, calls)
    assert message.get("reasoning_content", "") == ("\nhm\n" if "<think>" in text else "")
    assert "".join(delta.get("content", "") for delta in deltas) == content


@pytest.mark.slow
@pytest.mark.parametrize("shape", [LLAMA_TOOLS, MISTRAL_TOOLS], ids=["llama", "mistral"])
def test_a_model_with_another_template_calls_a_tool_and_answers_by_its_result(shape: Shape, tmp_path: Path):
    with start(save_calling_model(tmp_path / "base", shape), tmp_path) as server:
        fields = {"model": "base", "temperature": 0, "tools": [WEATHER]}
        create = connect(server).chat.completions.create
        assert streamed(create(messages=[ASK], stream=True, **fields)) == ("", [("weather", CITY_CALL)], "tool_calls")
        called = create(messages=[ASK], **fields)
        assert whole(called) == ("", [("weather", CITY_CALL)], "tool_calls")
        message = called.choices[0].message
        result = {**RESULT, "tool_call_id": message.tool_calls[0].id}
        content, calls, reason = whole(create(messages=[ASK, message, result], **fields))
        assert (content.strip(), calls, reason) == ("No.", [], "stop")


def test_eight_adapters_with_tools_beside_them_are_as_alone(caller: Running):
    forms: list[dict[str, Any]] = [
        {"tools": [WEATHER]},
        {"tools": [LIGHT, WEATHER], "tool_choice": "required"},
        {"tools": [WEATHER], "tool_choice": NAMED},
        {"extra_body": {"guided_choice": ["はい", "いいえ"]}},
        {},
    ] * 4
    names = [f"a{number}" for number in range(8)] + ["base"] * 8 + ["a7", "a5", "a3", "a1"]

    fields = {"messages": [ASK], "temperature": 0, "max_tokens": 60}
    asked = [{**fields, "model": name, **form} for name, form in zip(names, forms, strict=True)]
    alone = [whole(answer) for one in asked for answer in at_once(caller, [one], chat=True)]
    assert [*map(whole, at_once(caller, asked, chat=True))] == alone
    assert alone[10] == ("", [("weather", CITY_CALL)], "tool_calls")  # the base, which learned it
    for (content, calls, _reason), form in zip(alone, forms, strict=True):
        assert calls or "tool_choice" not in form
        assert content in ("はい", "いいえ") or "extra_body" not in form
    assert len({content for content, _calls, _reason in alone}) > 4
