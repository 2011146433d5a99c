"""Rows of known schemas become records; other rows are one-line errors that name file and line."""

from typing import Any

import pytest

from tests.errors import refused
from tsugiki.data import Completion, Conversation, Document, Message, read_row

BE, ASK, SAY = Message("system", "be"), Message("user", "ask"), Message("assistant", "say")
USER, ASSISTANT = {"role": "user", "content": "ask"}, {"role": "assistant", "content": "say"}


CALL = {"id": "1", "function": {"name": "f", "arguments": {"x": 1}}}
CALLED = '{"tool_calls": [{"id": "1", "function": {"name": "f", "arguments": {"x": 1}}}]}'


def called(text: str) -> Message:
    return Message("assistant", text, of_tools=CALLED)


def talk(*turns: Message, tools: str = "") -> Conversation:
    return Conversation(turns, "f:1", tools=tools)


SILENT = Message("assistant", "say", in_loss=False)
ROLES = ("system", "developer", "tool", "assistant")
PARTS = {"role": "user", "content": [{"type": "text", "text": "as"}, "k"]}
RESULT = {"role": "tool", "content": "x", "name": "f"}
# as in a Parquet file, where each call and each tool has all fields
ALL_FIELDS = {"role": "assistant", "content": None, "tool_calls": [{**CALL, "type": None}]}
TOOLS = '[{"name": "f", "description": null, "parameters": {"type": "object"}}]'
TOOL = '[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]'


@pytest.mark.parametrize(
    ("row", "record"),
    [
        ({"text": "a\n"}, Document("a\n", "f:1")),
        ({"text": " \n", "title": "x"}, None),
        ({"text": "a", "prompt": "p", "completion": "c"}, Completion("p", "c", "f:1")),
        (
            {"prompt": "", "completion": " b", "messages": None, "system": "be"},
            Completion("", " b", "f:1", system="be"),
        ),
        ({"messages": [USER, ASSISTANT], "prompt": "ask", "text": "kept beside"}, talk(ASK, SAY)),
        ({"messages": [USER, {**ASSISTANT, "tool_calls": None, "name": "x"}], "tools": []}, talk(ASK, SAY)),
        (
            {"messages": [USER, ALL_FIELDS], "tools": TOOLS, "parallel_tool_calls": False},
            talk(ASK, called(""), tools=TOOL),
        ),
        (
            {"messages": [USER, {**ASSISTANT, "tool_calls": [CALL]}, RESULT]},
            talk(ASK, called("say"), Message("tool", "x", of_tools='{"name": "f"}')),
        ),
        ({"messages": [USER, {**ASSISTANT, "weight": 0}]}, talk(ASK, SILENT)),
        ({"messages": [PARTS, ASSISTANT]}, talk(ASK, SAY)),
        ({"messages": [{"role": role, "content": "x"} for role in ROLES]}, talk(*(Message(one, "x") for one in ROLES))),
        ({"prompt": [USER, ASSISTANT, USER], "completion": [ASSISTANT]}, talk(ASK, SILENT, ASK, SAY)),
        ({"conversations": [{"from": "human", "value": "ask"}, {"from": "gpt", "value": "say"}]}, talk(ASK, SAY)),
        ({"conversations": [USER, ASSISTANT], "system": "be"}, talk(BE, ASK, SAY)),
        ({"conversations": [{"from": "system", "value": "be"}, USER, ASSISTANT], "system": "is"}, talk(BE, ASK, SAY)),
        ({"instruction": "ask", "input": "", "output": "say", "text": "rendered", "history": []}, talk(ASK, SAY)),
        ({"instruction": "ask", "input": "this", "output": "say"}, talk(Message("user", "ask\n\nthis"), SAY)),
        ({"instruction": "ask", "output": "say", "system": "be"}, talk(BE, ASK, SAY)),
    ],
)
def test_known_rows(row: dict[str, Any], record: Any):
    assert read_row(row, "f:1") == record


@pytest.mark.parametrize("row", [{"text": "t"}, {"prompt": "p", "completion": "c"}, {"messages": [USER, ASSISTANT]}])
def test_other_short_texts_are_the_fields(row: dict[str, Any]):
    kept = {"title": "t" * 200, "year": 1900}
    record = read_row({**kept, "note": "n" * 201, "old": True, "empty": "", "none": None, **row}, "f:1")
    assert record is not None
    assert record.fields == {"title": "t" * 200, "year": "1900"}


def messages(*turns: Any) -> dict[str, Any]:
    return {"messages": list(turns)}


@pytest.mark.parametrize(
    ("row", "fact"),
    [
        ({}, "f:1 .*text, instruction and output, prompt and completion, conversations, messages"),
        ({"prompt": "x", "completion": None}, "f:1 has null as completion"),
        ({"prompt": "x", "completion": "y", "label": False}, "f:1 has an answer that is marked .*--preference kto"),
        ({"prompt": "x", "chosen": "y", "rejected": "z"}, "f:1 has a chosen .*--preference simpo"),
        ({"prompt": [USER], "completion": "x"}, "f:1: completion is a text"),
        ({"instruction": "x", "output": "y", "history": [["a", "b"]]}, "f:1 has a history"),
        ({"messages": [USER, ASSISTANT], "tools": [{"type": "function"}]}, "f:1 has tools of another shape"),
        ({"text": "a", "tools": [{"name": "f"}]}, "f:1 has tools, "),
        (messages({**USER, "tool_calls": [CALL]}, ASSISTANT), r"turn 1 \(user\) has tool_calls, .*assistant"),
        (messages(USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[1]"}]}), "of another shape"),
        ({"messages": "user: x"}, "f:1: messages is a text"),
        (messages(USER), "f:1 .*assistant"),
        (messages(ASSISTANT, USER), "f:1 begins with .*assistant"),
        (messages(USER, ASSISTANT, ASSISTANT), "f:1: turn 3 .*assistant"),
        (messages(USER, {"role": "bot", "content": "x"}), "f:1: turn 2 .*'bot'.* system, "),
        (messages(USER, {**ASSISTANT, "content": " \n"}), r"f:1: turn 2 \(assistant\) is empty"),
        (messages(USER, {**ASSISTANT, "content": 5}), r"f:1: turn 2 \(assistant\) .*number.*content"),
        (messages(USER, {**ASSISTANT, "weight": 0.5}), r"turn 2 \(assistant\) .*weight 0.5.* 0 or 1"),
        (messages({**USER, "content": [{"type": "text"}]}, ASSISTANT), r"turn 1 \(user\) .*part.* text"),
        (messages({**USER, "content": [{"type": "image_url"}]}, ASSISTANT), r"f:1: turn 1 \(user\) .*'image_url'"),
        ({"conversations": [{"from": "observation", "value": "x"}]}, "f:1: turn 1 .*'observation'"),
        ({"text": "a\ud800"}, r"f:1 .*\(\\ud800\)"),
    ],
)
def test_invalid_rows_are_errors_that_name_the_line(row: dict[str, Any], fact: str):
    with refused(fact) as caught:
        read_row(row, "f:1")
    message = str(caught.value)
    assert message.startswith("f:1")
    assert "\n" not in message
    assert "; " in message, "what to do"
