"""OpenAI's newer interface, `/v1/responses`: a request becomes a chat, and the chunks of its answer become events.

Nothing is stored, so a request has the whole conversation, and cannot continue another one by its id.
"""

import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field

from tsugiki.serve.completions import Generation, chunks
from tsugiki.serve.protocol import (
    CalledFunction,
    ChatRequest,
    Function,
    ObjectFormat,
    OpenFields,
    PlainFormat,
    SchemaOfAnswer,
    SharedFields,
    validated,
)

_Event: TypeAlias = dict[str, Any]


class _Text(OpenFields):
    type: Literal["input_text", "output_text"]
    text: str


_Content: TypeAlias = str | list[_Text]


class _Message(OpenFields):
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: _Content

    def add_to(self, messages: list[dict[str, Any]]) -> None:
        messages.append({"role": self.role, "content": _joined(self.content)})


class _Call(CalledFunction):
    type: Literal["function_call"]
    call_id: str

    def add_to(self, messages: list[dict[str, Any]]) -> None:
        if messages[-1:] == [] or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant"})
        call = {"id": self.call_id, "function": {"name": self.name, "arguments": self.arguments}}
        messages[-1].setdefault("tool_calls", []).append(call)


class _Result(OpenFields):
    type: Literal["function_call_output"]
    call_id: str
    output: _Content

    def add_to(self, messages: list[dict[str, Any]]) -> None:
        messages.append({"role": "tool", "tool_call_id": self.call_id, "content": _joined(self.output)})


class _Reasoning(OpenFields):
    type: Literal["reasoning"]

    def add_to(self, messages: list[dict[str, Any]]) -> None:
        """Leave it out, as chat templates do with that of earlier turns."""


class _Tool(Function):
    type: Literal["function"]


class _Schema(SchemaOfAnswer):
    type: Literal["json_schema"]


class _Form(OpenFields):
    format: Annotated[PlainFormat | ObjectFormat | _Schema, Field(discriminator="type")] = PlainFormat(type="text")


class ResponsesRequest(SharedFields):
    """A request to `/v1/responses`."""

    input: str | Annotated[list[_Message | _Call | _Result | _Reasoning], Field(min_length=1, max_length=1000)]
    instructions: str | None = None
    max_output_tokens: Annotated[int | None, Field(ge=1)] = None
    tools: list[_Tool] = Field(default=[])
    tool_choice: Literal["none", "auto", "required"] | _Tool = "auto"
    text: _Form = _Form()
    n: Literal[1] = 1

    def as_chat(self) -> ChatRequest:
        """Return the chat that gives the same answer; fields of sampling are the same."""
        own = {"input", "instructions", "max_output_tokens", "text"}
        fields = self.model_dump(exclude_unset=True, exclude=own, by_alias=True)
        messages = [{"role": "system", "content": self.instructions}] if self.instructions else []
        items = [_Message(role="user", content=self.input)] if isinstance(self.input, str) else self.input
        for item in items:
            item.add_to(messages)
        form = self.text.format
        if isinstance(form, _Schema):
            fields["response_format"] = {"type": "json_schema", "json_schema": {"schema": form.content}}
        else:
            fields["response_format"] = form.model_dump(by_alias=True)
        if isinstance(self.tool_choice, _Tool):
            fields["tool_choice"] = {"type": "function", "function": {"name": self.tool_choice.name}}
        fields |= {"messages": messages, "tools": [tool.tool for tool in self.tools]}
        return validated(ChatRequest, {**fields, "max_completion_tokens": self.max_output_tokens})


def _joined(content: _Content) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


async def whole_response(parsed: ResponsesRequest, generation: Generation) -> dict[str, Any]:
    """Return the answer to a request that is not streamed."""
    event: _Event = {}
    async for found in response_events(parsed, generation):
        event = found
    return dict(event["response"])


async def response_events(parsed: ResponsesRequest, generation: Generation) -> AsyncIterator[_Event]:
    """Yield the events of a stream; the last one has the whole answer."""
    number = 0
    async for event in _events(parsed, generation):
        yield {**event, "sequence_number": number}
        number += 1


async def _events(parsed: ResponsesRequest, generation: Generation) -> AsyncIterator[_Event]:
    output: list[_Output] = []
    status = "completed"
    for name in ("created", "in_progress"):
        yield {"type": f"response.{name}", "response": _answer(parsed, generation, [], "in_progress")}
    async for chunk in chunks(generation):
        choice = chunk["choices"][0]
        if choice["finish_reason"] == "length":
            status = "incomplete"
        for kind, text, call in _parts(choice["delta"]):
            if not output or "id" in call or output[-1].kind != kind:
                for event in output[-1].end() if output else ():
                    yield event
                output.append(_Output(kind, call, len(output)))
                for event in output[-1].begin():
                    yield event
            yield output[-1].add(text)
    for event in output[-1].end() if output else ():
        yield event
    yield {"type": f"response.{status}", "response": _answer(parsed, generation, output, status)}


def _parts(delta: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield the kind and the text of each part of a chunk, and the call if it is one."""
    for kind, name in (("reasoning", "reasoning_content"), ("message", "content")):
        if delta.get(name):
            yield kind, delta[name], {}
    for call in delta.get("tool_calls", ()):
        yield "function_call", call["function"]["arguments"], call


_NAMES = {
    "message": ("msg", "output_text"),
    "reasoning": ("rs", "reasoning_text"),
    "function_call": ("fc", "function_call_arguments"),
}
"""Kinds of items -> how their ids begin, and what their text is called."""


class _Output:
    """An item of the output: a text, a text of reasoning, or a call."""

    def __init__(self, kind: str, call: dict[str, Any], index: int) -> None:
        prefix, self.name = _NAMES[kind]
        self.kind, self.index, self.text, self.status = kind, index, "", "in_progress"
        self.id = f"{prefix}_{uuid.uuid4().hex}"
        self.fixed: dict[str, Any] = {"summary": []} if kind == "reasoning" else {"role": "assistant"}
        if call:
            self.fixed = {"call_id": call["id"], "name": call["function"]["name"]}
        self.scores: dict[str, Any] = {"logprobs": []} if kind == "message" else {}

    @property
    def part(self) -> dict[str, Any]:
        return {"type": self.name, "text": self.text, **({"annotations": []} if self.scores else {}), **self.scores}

    @property
    def item(self) -> dict[str, Any]:
        written = {"arguments": self.text} if self.is_call else {"content": [self.part] if self.text else []}
        return {"id": self.id, "type": self.kind, "status": self.status, **self.fixed, **written}

    @property
    def is_call(self) -> bool:
        return "call_id" in self.fixed

    def begin(self) -> Iterator[_Event]:
        yield {"type": "response.output_item.added", "output_index": self.index, "item": self.item}
        if not self.is_call:
            yield self._event("content_part.added", part=self.part)

    def add(self, text: str) -> _Event:
        self.text += text
        return self._event(f"{self.name}.delta", delta=text, **self.scores)

    def end(self) -> Iterator[_Event]:
        self.status = "completed"
        if self.is_call:
            yield self._event(f"{self.name}.done", name=self.fixed["name"], arguments=self.text)
        else:
            yield self._event(f"{self.name}.done", text=self.text, **self.scores)
            yield self._event("content_part.done", part=self.part)
        yield {"type": "response.output_item.done", "output_index": self.index, "item": self.item}

    def _event(self, event: str, /, **fields: Any) -> _Event:
        place = {} if self.is_call else {"content_index": 0}
        return {"type": f"response.{event}", "item_id": self.id, "output_index": self.index, **place, **fields}


def _answer(parsed: ResponsesRequest, generation: Generation, output: list[_Output], status: str) -> dict[str, Any]:
    """Return the object `response`, as far as it has been written."""
    usage = generation.usage
    cached = {"cached_tokens": usage["prompt_tokens_details"]["cached_tokens"], "cache_write_tokens": 0}
    counted = {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": cached,
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage["total_tokens"],
    }
    choice = parsed.tool_choice
    assert isinstance(generation.parsed, ChatRequest)
    return {
        "id": generation.id.replace("chatcmpl-", "resp_"),
        "object": "response",
        "created_at": generation.created,
        "status": status,
        "model": parsed.model,
        "output": [one.item for one in output],
        "usage": None if status == "in_progress" else counted,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": parsed.instructions,
        "max_output_tokens": parsed.max_output_tokens,
        "parallel_tool_calls": generation.parsed.parallel_tool_calls,
        "tool_choice": choice if isinstance(choice, str) else choice.model_dump(exclude_none=True),
        "tools": [{"strict": None, **tool.model_dump()} for tool in parsed.tools],
        "temperature": parsed.temperature,
        "top_p": parsed.top_p,
        "metadata": {},
    }
