"""The requests of OpenAI's API, as its clients send them.

Fields that are unknown here, such as `user` or `reasoning_effort`, are ignored, and a header of the answer names them.
A field that would change the result, and that this server cannot do, is an error unless its value is neutral.
"""

import asyncio
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticKnownError, from_json
from starlette.requests import Request

from tsugiki.generation.sampling import Sampling
from tsugiki.io.json import read_json
from tsugiki.io.validation import problem_text
from tsugiki.language import _, marked
from tsugiki.serve.errors import ApiError, invalid

MAX_BODY = 4 << 20  # bytes
_SECONDS = 30  # the longest time in which a body may arrive
_UNSUPPORTED: dict[str, list[Any]] = read_json(Path(__file__).with_name("neutral_values.json"))
"""Fields that would change the result -> values that change nothing, beside null."""
_OF_MESSAGES = ("function_call", "audio")
"""Fields of a message that are not passed to chat templates."""

_ACCEPTED = {
    "prompt": marked("a text, a list of 1 to 64 texts, a list of tokens, or a list of 1 to 64 lists of tokens"),
    "stop": marked("a text of 1 to 200 characters, or a list of at most 16"),
    "guided_json": marked("a JSON schema, as an object or a text"),
    "content": marked('a text, or a list of parts, each {"type": "text", "text": "…"}'),
    "input": marked("a text, or a list of items: messages, function_call, function_call_output"),
    "tool_choice": marked('none, auto, required, or {"type": "function", "function": {"name": "…"}}'),
}
"""The fields that accept several types, and what they accept."""

_Stop: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=200)]
_Tokens: TypeAlias = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
_Weight: TypeAlias = Annotated[float, Field(ge=-100, le=100)]
MixField: TypeAlias = Annotated[dict[str, _Weight], Field(min_length=1, max_length=8)]
"""Names of adapters, and the factors on their updates."""
_Seed: TypeAlias = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class Fields(BaseModel):
    """The fields of a request. Others are errors, and numbers are not converted."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class OpenFields(Fields):
    """The fields of a request of OpenAI's or vLLM's API. Others are kept in `model_extra` and ignored."""

    model_config = ConfigDict(extra="allow")


class StreamOptions(OpenFields):
    """Which fields a stream contains besides the text."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


_Schema: TypeAlias = dict[str, Any] | Literal[True]
"""A JSON schema; true allows any value."""


class PlainFormat(Fields):
    """A text."""

    type: Literal["text"]


class ObjectFormat(Fields):
    """Any JSON object or, as llama.cpp and others have it, JSON that follows a schema."""

    type: Literal["json_object"]
    content: Annotated[_Schema, Field(alias="schema")] = {"type": "object"}


class SchemaOfAnswer(Fields):
    """A JSON schema; the other fields change nothing, and every answer keeps to the schema."""

    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    content: Annotated[_Schema, Field(alias="schema")]


class SchemaFormat(Fields):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    json_schema: SchemaOfAnswer


_Choices: TypeAlias = Annotated[list[str], Field(min_length=1, max_length=1000)]


class StructuredOutputs(Fields):
    """Structured output as newer versions of vLLM name it."""

    json_schema: Annotated[_Schema | str | None, Field(alias="json")] = None
    json_object: bool | None = None
    regex: str | None = None
    choice: _Choices | None = None


class SharedFields(OpenFields):
    """The fields of all requests for text."""

    model: str
    adapters: MixField | None = None
    """Weights of the adapters to mix, by name. `model` must then be the base."""
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    max_tokens: Annotated[int | None, Field(ge=0)] = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1, le=2**31)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float | None, Field(ge=0.01, le=100)] = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    logit_bias: Annotated[
        dict[Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]],
        Field(max_length=300),
    ] = {}
    seed: _Seed | None = None
    stop: _Stop | Annotated[list[_Stop], Field(max_length=16)] = []
    n: Annotated[int, Field(ge=1, le=8)] = 1
    stop_token_ids: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=64)] = []
    ignore_eos: bool = False
    min_tokens: Annotated[int, Field(ge=0)] = 0
    response_format: Annotated[PlainFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")] = PlainFormat(
        type="text"
    )
    guided_json: _Schema | str | None = None
    guided_regex: str | None = None
    guided_choice: _Choices | None = None
    structured_outputs: StructuredOutputs = StructuredOutputs()

    @property
    def ignored(self) -> list[str]:
        """The names of the fields that have no effect."""
        return [*(self.model_extra or {})]

    @property
    def stops(self) -> list[str]:
        """The stop strings."""
        return [self.stop] if isinstance(self.stop, str) else self.stop

    def sampling(self, choice: int) -> Sampling:
        """Return the sampling settings of one of the `n` choices: `seed` plus the number of the choice, from 0."""
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=max(0, self.top_k),
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias={int(token): bias for token, bias in self.logit_bias.items()},
            seed=None if self.seed is None else self.seed + choice,
        )


class CompletionRequest(SharedFields):
    """A request to `/v1/completions`."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=64)]
        | _Tokens
        | Annotated[list[_Tokens], Field(min_length=1, max_length=64)]
    )
    logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    echo: bool = False
    add_special_tokens: Literal[True] = True

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, each as text or tokens."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        parts: list[Any] = list(self.prompt)
        return [parts] if isinstance(parts[0], int) else parts


class TextPart(OpenFields):
    """A part of a message."""

    type: Literal["text"]
    text: str


class CalledFunction(OpenFields):
    """The name of a function and its arguments, a JSON text."""

    name: str
    arguments: str


class ToolCall(OpenFields):
    """A call in a message of the assistant."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(OpenFields):
    """A turn of a conversation. An assistant's turn with calls needs no content."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    content: Annotated[
        str | Annotated[list[TextPart], Field(min_length=1)] | None, Field(default=None, validate_default=True)
    ]

    @field_validator("content", mode="before")
    @classmethod
    def _is_given(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None and not (info.data.get("role") == "assistant" and info.data.get("tool_calls")):
            raise PydanticKnownError("missing")
        return value

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or ())


class Function(OpenFields):
    """A function that the model can call; `parameters` is the JSON schema of its arguments."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
    parameters: dict[str, Any] | None = None
    _given: dict[str, Any] = PrivateAttr({})

    @model_validator(mode="wrap")
    @classmethod
    def _keep(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        function = handler(value)
        function._given = {name: part for name, part in value.items() if name != "type"}
        return function

    @property
    def tool(self) -> dict[str, Any]:
        """The function as a tool, with its fields in the order in which they were sent: templates show them so."""
        return {"type": "function", "function": self._given}


class Tool(OpenFields):
    """A tool that the model can call."""

    type: Literal["function"]
    function: Function


class ChatRequest(SharedFields):
    """A request to `/v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1000)]
    chat_template_of: str | None = None
    """The model whose chat template is used; None: that of `model`."""
    continue_final_message: bool = False
    """The last message is the beginning of the answer, as in vLLM."""
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0
    add_special_tokens: Literal[False] = False
    tools: Annotated[list[Tool], Field(max_length=128)] = []
    tool_choice: Literal["none", "auto", "required"] | Tool = "auto"
    parallel_tool_calls: bool = False
    """Whether `required` can be several calls. OpenAI's default is true, and one call is within it."""

    @property
    def ignored(self) -> list[str]:
        """The names of the fields that have no effect, also of those in messages."""
        of_messages = [f"messages.{name}" for message in self.messages for name in message.model_extra or {}]
        if self.tools and self.tool_choice == "none":
            of_messages.append("tools")
        return [*super().ignored, *dict.fromkeys(of_messages)]

    @property
    def forced(self) -> list[Function]:
        """The functions of which one must be called; none if the model decides itself whether it calls one."""
        if isinstance(self.tool_choice, Tool):
            name = self.tool_choice.function.name
            return [tool.function for tool in self.tools if tool.function.name == name][:1]
        return [tool.function for tool in self.tools] if self.tool_choice == "required" else []


class TokenizeRequest(OpenFields):
    """A request to `/tokenize`, with `prompt` or `messages`."""

    model: str | None = None
    """The base if it is None."""
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1000)] | None = None
    chat_template_of: str | None = None
    """As in a `ChatRequest`."""
    add_special_tokens: bool | None = None
    """If it is None, for `prompt` only."""


class NameRequest(Fields):
    """A request of the page that names a run or an adapter."""

    name: str


_Parsed = TypeVar("_Parsed", bound=BaseModel)


async def read(kind: type[_Parsed], request: Request) -> _Parsed:
    """Read and parse the body of a request."""
    return parse(kind, await read_body(request))


async def read_body(request: Request, most: int = MAX_BODY, seconds: int = _SECONDS) -> bytes:
    """Return the body of a request: at most `most` bytes, which must arrive within some seconds."""
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                body += part
                if len(body) > most:
                    message = _("the body has more than {count:,} bytes", count=most)
                    raise ApiError(413, message, code="too_large")
    except TimeoutError as error:
        raise ApiError(408, _("the body did not arrive within {seconds} s", seconds=seconds)) from error
    return bytes(body)


def parse(kind: type[_Parsed], body: bytes) -> _Parsed:
    """Parse the body of a request."""
    try:
        fields = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, _("the body is not JSON: {reason}", reason=str(error)[:200])) from error
    if not isinstance(fields, dict):
        raise ApiError(400, _("the body must be a JSON object"))
    fields = {name: value for name, value in fields.items() if value is not None}
    if fields.get("best_of") == fields.get("n"):  # no choice is left out
        fields.pop("best_of", None)
    unused = {"tools"} if fields.get("tool_choice") == "none" else set()  # the model shall not call any of them
    if fields.get("continue_final_message") is True:
        unused.add("add_generation_prompt")  # vLLM wants it to be false there
    for name in _UNSUPPORTED.keys() & fields.keys() - unused - kind.model_fields.keys():
        _check_neutral(name, fields.pop(name))
    if isinstance(messages := fields.get("messages"), list):
        for place, message in enumerate(messages):
            for name in _OF_MESSAGES:
                if isinstance(message, dict) and message.get(name):
                    raise _unsupported(f"messages.{place}.{name}")
    return validated(kind, fields)


def validated(kind: type[_Parsed], fields: dict[str, Any]) -> _Parsed:
    """Return a request with these fields."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise _invalid(error.errors(include_url=False, include_input=False)[0]) from None


def _check_neutral(name: str, value: Any) -> None:
    """Check that the value of an unsupported field changes nothing."""
    for neutral in _UNSUPPORTED[name]:
        if value == neutral and isinstance(value, bool) == isinstance(neutral, bool):
            return
    raise _unsupported(name)


def _invalid(problem: ErrorDetails) -> ApiError:
    """Return the error for a field that is wrong or missing."""
    path = [str(part)[:60] for part in problem["loc"]]
    depth = next(
        (at for at, part in enumerate(path[:-1], 1) if part in _ACCEPTED and path[0] in (part, "messages")), None
    )
    name = ".".join(path[: depth or 4])
    if depth:  # pydantic names the type that it tried first
        text = _("input should be {form}", form=_(_ACCEPTED[path[depth - 1]]))
    elif problem["type"] == "extra_forbidden":
        return _unsupported(name)
    else:
        text = problem_text(problem)
    return invalid(_("{name}: {problem}", name=name, problem=text), name)


def _unsupported(name: str) -> ApiError:
    return ApiError(
        400,
        _("the parameter {name} is not supported; leave it out", name=name),
        param=name,
        code="unsupported_parameter",
    )
