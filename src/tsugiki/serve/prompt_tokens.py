"""Convert the prompts of requests to tokens, and tokens to text; and the endpoint that does only this."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tsugiki.annotations import PreTrainedModel, PreTrainedTokenizerBase
from tsugiki.data.chat import read_template
from tsugiki.data.encoding import document_start, encode
from tsugiki.data.read.schemas import read_of_tools, read_tools
from tsugiki.data.records import Message
from tsugiki.generation.prompt import configured_ends, prompt_tokens
from tsugiki.generation.sampling import TextStream
from tsugiki.language import _
from tsugiki.serve.errors import ApiError, invalid
from tsugiki.serve.protocol import ChatMessage, TokenizeRequest, Tool, read
from tsugiki.serve.served_adapters import ServedAdapters, ServedModel
from tsugiki.serve.tools import plain_turns, response_template

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
_ROLES = {"developer": "system"}
_tokenizing = Lock()  # a tokenizer must not be called by two threads at once


@dataclass(frozen=True)
class Prompt:
    """The prompt of a row."""

    ids: list[int]
    """All tokens, including the one that begins a document."""
    shown: list[int]
    """The tokens that `echo` returns."""
    text: str
    ends: frozenset[int]
    """Tokens that end the text."""
    calls: dict[str, Any] | None = None
    """How the model writes calls of tools, for transformers' parser; None: it cannot call any."""


def text_prompts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, given: Sequence[str | list[int]]
) -> list[Prompt]:
    """Return prompts that are given as texts or tokens."""
    ends = frozenset({tokenizer.eos_token_id, *configured_ends(model)} - {None})
    prompts = []
    for prompt in given:
        if isinstance(prompt, str):
            _check_text(prompt, "prompt")
            with _tokenizing:
                ids = encode(tokenizer, [prompt])[0]
            prompts.append(Prompt([document_start(tokenizer), *ids], ids, prompt, ends))
        else:
            check_tokens(model, prompt, "prompt")
            prompts.append(Prompt(prompt, prompt, whole_text(tokenizer, prompt), ends))
    return prompts


def check_tokens(model: PreTrainedModel, tokens: Iterable[int], param: str) -> None:
    """Raise an ApiError unless all tokens of the field `param` are in the vocabulary."""
    vocabulary = model.config.get_text_config().vocab_size
    largest = max(tokens, default=0)
    if largest >= vocabulary:
        message = _(
            "{name}: there is no token {token}; the vocabulary has {count}", name=param, token=largest, count=vocabulary
        )
        raise invalid(message, param)


def chat_prompt(
    model: PreTrainedModel,
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[ChatMessage],
    tools: Sequence[Tool] = (),
    offered: bool = False,
    continued: bool = False,
) -> Prompt:
    """Return the prompt that asks for the next message of a conversation; `name` is the model's in the request.

    The chat template shows the model the tools if it can. `offered`: the model itself decides whether it calls one, so
    the template must show them, and `Prompt.calls` is set. If the answer is `continued`, the last message is its
    beginning.
    """
    if tokenizer.chat_template is None:
        message = _(
            "{name!r} has no chat template; use /v1/completions, name an adapter that learned conversations, "
            "or start the server with --chat-template",
            name=name,
        )
        raise ApiError(400, message, param="model", code="no_chat_template")
    if continued != (messages[-1].role == "assistant") or (continued and len(messages) == 1):
        message = _(
            "the last message is the assistant's own, so there is nothing to answer; with continue_final_message: true "
            "it is continued"
        )
        if continued:
            message = _("there is no beginning of an answer; the last of several messages must be the assistant's")
        raise ApiError(400, message, "messages")
    turns, begun = [], messages[-1].text if continued else ""
    _check_text(begun, "messages")
    for place, turn in enumerate(messages[:-1] if continued else messages):
        of_tools = read_of_tools(turn.model_dump(), turn.role, f"messages.{place}")
        _check_text(turn.text + of_tools, "messages")
        turns.append(Message(_ROLES.get(turn.role, turn.role), turn.text, of_tools=of_tools))
    given, shown, has_result = read_tools([tool.function.tool for tool in tools], "tools"), "", turns[-1].role == "tool"
    _check_text(given, "tools")
    with _tokenizing:
        template = read_template(tokenizer, "messages")
        called = [turn.fields for turn in turns]
        if any("tool_calls" in turn for turn in called) and not template.shows_calls(called, "messages"):
            turns = plain_turns(turns)
        if given:
            fields = [turn.fields for turn in turns]
            shown = given if replace(template, tools=given).shows_tools(fields, "messages") else ""
        calls = response_template(tokenizer) if offered and shown else None
        if offered and tools and calls is None and not has_result:  # the model answers by the result without them
            message = _(
                "the chat template of {name!r} leaves out tools; set tool_choice to required or to a name, or remove "
                "them"
            )
            if shown:
                message = _(
                    "transformers does not know how {name!r} writes calls of tools; set tool_choice to required or to "
                    "a name, or add a response_template to its tokenizer_config.json"
                )
            raise ApiError(400, message.format(name=name), "tools", "unsupported_parameter")
        tokens = prompt_tokens(model, tokenizer, turns, tools=shown)
        ids = [*tokens.ids, *(encode(tokenizer, [begun])[0] if begun else ())]
    return Prompt(ids, ids, "", tokens.ends, calls)


def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """Return the text of a token within a text; for a part of a character, its name in the vocabulary.

    It is what a second such token adds, because some tokenizers drop the space at the beginning of a text: "the" and
    " the" would have the same text.
    """
    if is_part(tokenizer, token):
        return str(tokenizer.convert_ids_to_tokens(token))
    return decoded(tokenizer, [token, token])[len(decoded(tokenizer, [token])) :]


def is_part(tokenizer: PreTrainedTokenizerBase, token: int) -> bool:
    """Return whether a token is a part of a character."""
    return _INCOMPLETE in decoded(tokenizer, [token])


def decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Return the text of tokens, special ones included."""
    text: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def whole_text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Return the text of tokens, special ones included, up to a character that is incomplete at the end.

    Some tokenizers decode a run of bytes as a whole, so that one incomplete character spoils all those before it.
    """
    text = decoded(tokenizer, ids)
    return "".join(new_texts(tokenizer, ids)) if _INCOMPLETE in text else text


def new_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> Iterator[str]:
    """Yield what each token adds to the text, and what is left at the end; an incomplete character adds nothing."""
    stream, special = TextStream(tokenizer, ()), frozenset(tokenizer.all_special_ids)
    for token in ids:
        yield token_text(tokenizer, token) if token in special else stream.add(token)
    yield stream.finish()


def _check_text(text: str, param: str) -> None:
    """Check that a text has no lone surrogates, which JSON can contain and tokenizers do not accept."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        message = _("{name}: a character is incomplete (a lone surrogate)", name=param)
        raise invalid(message, param) from error


def tokenize_route(adapters: ServedAdapters) -> Route:
    """Return the route of `/tokenize`, which has vLLM's shape."""
    model = adapters.engine.model

    async def tokenize(request: Request) -> Response:
        parsed = await read(TokenizeRequest, request)
        async with adapters.held(adapters.base.name if parsed.model is None else parsed.model) as served:
            ids = await asyncio.to_thread(_ids, parsed, served)
        return JSONResponse({"count": len(ids), "max_model_len": adapters.engine.longest, "tokens": ids})

    def _ids(parsed: TokenizeRequest, served: ServedModel) -> list[int]:
        if (parsed.prompt is None) == (parsed.messages is None):
            raise invalid(_("give either prompt or messages"), "prompt")
        if parsed.messages is not None:
            if parsed.add_special_tokens:
                raise invalid(
                    _("the chat template decides on special tokens; leave {name} out", name="add_special_tokens"),
                    "add_special_tokens",
                )
            tokenizer = adapters.tokenizer(served, parsed.chat_template_of)
            return chat_prompt(model, served.name, tokenizer, parsed.messages).ids
        assert parsed.prompt is not None
        prompt = text_prompts(model, served.tokenizer, [parsed.prompt])[0]
        # `shown` are the tokens of the text alone; `ids` begin with the special token that begins a document.
        return prompt.shown if parsed.add_special_tokens is False else prompt.ids

    return Route("/tokenize", tokenize, methods=["POST"])
