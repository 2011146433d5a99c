"""Tools: the form of a call that the model must make, and the calls in the text that it writes.

A call that must be made (`tool_choice` required or a name) is held to the schema of its function, so every base can
make it. There is a line for each call, which has the arguments alone if only one function can be called:

    {"city":"Kyoto"}
    {"name":"weather","arguments":{"city":"Kyoto"}}

With `auto`, the model calls tools as its chat template writes calls, and transformers' parser of answers finds them, by
the tokenizer's `response_template`, one that transformers has, or one of `call_formats.json`: of Llama 3, and of
Mistral's models before and since the token [ARGS].
"""

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from tsugiki.annotations import PreTrainedTokenizerBase
from tsugiki.data.records import Message
from tsugiki.serve.protocol import Function

_MOST_CALLS = 8
"""The maximum number of calls in an answer that must have one."""
_CALL = re.compile(r'\{"name":"([^"]+)","arguments":')
_WRITTEN_LIKE = ("qwen3", "qwen3_5", "gemma4")
"""Model types with the ways of writing calls that transformers knows, beside that of the tokenizer."""
_FORMATS = Path(__file__).with_name("call_formats.json")


def calls_grammar(functions: Sequence[Function], several: bool) -> str:
    """Return the grammar of a call of these functions or, if there may be several, of at most `_MOST_CALLS`."""
    heads = [json.dumps(f'{{"name":"{function.name}","arguments":') for function in functions]
    calls = [f'{head} a{place} "}}"' for place, head in enumerate(heads)] if len(functions) > 1 else ["a0"]
    more = f'("\\n" call){{0,{_MOST_CALLS - 1}}}' if several else ""
    lines = [f"start: call {more}", f"call: {' | '.join(calls)}"]
    for place, function in enumerate(functions):
        schema = {"x-guidance": {"whitespace_flexible": False}, **_closed(function.parameters or {"type": "object"})}
        lines.append(f"a{place}: %json {json.dumps(schema)}")
    return "\n".join(lines)


def _closed(schema: Any) -> Any:
    """Return a schema in which objects have no other members than those that it names, unless it allows others."""
    if isinstance(schema, list):
        return [*map(_closed, schema)]
    if not isinstance(schema, dict):
        return schema
    found = {name: part if name in ("allOf", "enum", "const") else _closed(part) for name, part in schema.items()}
    return {"additionalProperties": False, **found} if "properties" in found else found


def plain_turns(turns: Sequence[Message]) -> list[Message]:
    """Return turns in which calls of tools and their results are plain texts, for templates that leave them out.

    A call is written as `calls_grammar` has it, in a line of its own. The results of calls are a turn of the user, with
    a line for each: `weather: rain`.
    """
    names: dict[str, str] = {}
    plain: list[Message] = []
    for are_results, group in groupby(turns, lambda turn: turn.role == "tool"):
        if are_results:
            plain.append(Message("user", "\n".join(_result_line(turn, names) for turn in group)))
            continue
        for turn in group:
            calls = turn.fields.get("tool_calls", [])
            names |= {call.get("id", ""): call["function"]["name"] for call in calls}
            lines = [json.dumps(_name_and_arguments(call), ensure_ascii=False) for call in calls]
            plain.append(Message(turn.role, "\n".join(filter(None, [turn.content, *lines]))))
    return plain


def _name_and_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    return {name: call["function"][name] for name in ("name", "arguments")}


def _result_line(turn: Message, names: Mapping[str, str]) -> str:
    """Return the result of a call with the name of its tool; `names` are those of the calls by their ids."""
    name = turn.fields.get("name") or names.get(turn.fields.get("tool_call_id", ""), "tool")
    return f"{name}: {turn.content}"


@dataclass
class Call:
    """A call of a tool, as far as it has been written."""

    name: str
    arguments: str
    """A JSON text."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:9])
    """Nine letters and digits, which Mistral's templates demand."""
    sent: int | None = None
    """How many characters of the arguments were streamed; None: not even the name."""


class Answer:
    """The content and the calls in a text, as far as it has been written."""

    def __init__(self) -> None:
        self.text, self.content, self.reasoning = "", "", ""
        self.calls: list[Call] = []
        self._sent = {"content": 0, "reasoning_content": 0}

    def add(self, text: str, last: bool) -> None:
        """Read what follows; `last` says that it is the end."""
        raise NotImplementedError

    def message(self) -> dict[str, Any]:
        """Return the fields of the whole message besides its role."""
        calls = [{"id": call.id, "type": "function", "function": _function(call)} for call in self.calls]
        return {
            "content": self.content or (None if calls else ""),
            **({"tool_calls": calls} if calls else {}),
            **({"reasoning_content": self.reasoning} if self.reasoning else {}),
        }

    def delta(self) -> dict[str, Any]:
        """Return what has been read since the last time, as a stream has it."""
        found: dict[str, Any] = {}
        for name, text in (("reasoning_content", self.reasoning), ("content", self.content)):
            if new := text[self._sent[name] :]:
                found[name], self._sent[name] = new, len(text)
        calls = []
        for index, call in enumerate(self.calls):
            more: dict[str, Any] = {"function": {"arguments": call.arguments[call.sent or 0 :]}}
            if call.sent is None:
                more = {"id": call.id, "type": "function", "function": _function(call)}
            if call.sent is None or len(call.arguments) > call.sent:
                calls.append({"index": index, **more})
            call.sent = len(call.arguments)
        return {**found, **({"tool_calls": calls} if calls else {})}


def _function(call: Call) -> dict[str, str]:
    return {"name": call.name, "arguments": call.arguments}


class ForcedCalls(Answer):
    """The calls in a text of `calls_grammar`."""

    def __init__(self, functions: Sequence[Function]) -> None:
        super().__init__()
        self.only = functions[0].name if len(functions) == 1 else None

    def add(self, text: str, last: bool) -> None:
        """Read what follows; the brace that ends a line is not part of the arguments."""
        self.text += text
        lines = self.text.split("\n") if self.text else []
        begun = [(begin[1], line[begin.end() : -1]) for line in lines if (begin := _CALL.match(line))]
        for place, (name, arguments) in enumerate([(self.only, line) for line in lines] if self.only else begun):
            if place == len(self.calls):
                self.calls.append(Call(name, ""))
            self.calls[place].arguments = arguments


class WrittenCalls(Answer):
    """The content, the reasoning and the calls in a text, by a parser of transformers.

    A call that cannot be read, because it is not JSON or was cut off, is content, as it was written.
    """

    def __init__(self, parser: Any) -> None:
        super().__init__()
        self.parser = parser
        self._given = self._read = 0  # characters that the parser got, and those of them before an unfinished call

    def add(self, text: str, last: bool) -> None:
        """Read what follows."""
        self.text += text
        try:
            for letter in text if self.parser else "":
                self._given += 1
                self._take(self.parser.feed(letter))
            if last and self.parser:
                self._take(self.parser.finalize()[1])
        except (ValueError, KeyError, TypeError):
            self.parser = None
        if self.parser is None:
            self.content, self._read = self.content + self.text[self._read :], len(self.text)

    def _take(self, events: Sequence[dict[str, Any]]) -> None:
        for event in events:
            match event:
                case {"type": "region_chunk", "field": "content", "text": text}:
                    self.content += text
                case {"type": "region_chunk", "field": "reasoning_content", "text": text}:
                    self.reasoning += text
                case {"type": "region_close", "field": "tool_calls", "value": value}:
                    self.calls += [*map(_call, value if isinstance(value, list) else [value])]
                case _:
                    continue
            self._read = self._given


def _call(value: Any) -> Call:
    name, arguments = value["function"]["name"], value["function"].get("arguments", {})
    return Call(str(name), arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False))


def response_template(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any] | None:
    """Return transformers' description of how calls are written that can read those of the chat template.

    It is that of the tokenizer, or else one for models whose tokenizer has none. None: none can.
    """
    from types import SimpleNamespace

    from transformers.cli.serving.utils import get_response_template

    function = {"name": "f", "arguments": {"x": "y"}}
    turns = [{"role": "user", "content": "a"}]
    call = {"id": Call("", "").id, "type": "function", "function": function}
    answer = {"role": "assistant", "content": "", "tool_calls": [call]}
    try:
        configs = [SimpleNamespace(model_type=kind) for kind in _WRITTEN_LIKE]
        for config in configs:
            config.config = config  # transformers 5.24 takes a model
        known = [get_response_template(tokenizer, config) for config in configs]
        before = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        written = tokenizer.apply_chat_template([*turns, answer], tokenize=False).removeprefix(before)
        for template in [*known, *json.loads(_FORMATS.read_text(encoding="utf-8"))]:
            found = WrittenCalls(tokenizer.get_response_parser(template, prefix=before))
            found.add(written, last=True)
            if [(call.name, json.loads(call.arguments)) for call in found.calls] == [("f", {"x": "y"})]:
                return dict(template)
    except Exception:  # a template is a program and can raise any exception, and a description can be wrong
        return None
    return None
