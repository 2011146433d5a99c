"""Convert the prompts of requests to tokens, and tokens to text."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

from tsugiki.data.encoding import document_start, encode
from tsugiki.data.records import Message
from tsugiki.generation.prompt import configured_ends, prompt_tokens
from tsugiki.language import _
from tsugiki.serve.errors import ApiError
from tsugiki.serve.protocol import ChatMessage

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

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


def text_prompts(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", given: Sequence[str | list[int]]
) -> list[Prompt]:
    """Return prompts that are given as texts or tokens.

    Raises:
        ApiError: a text contains a lone surrogate, or a token is not in the vocabulary.
    """
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
            prompts.append(Prompt(prompt, prompt, decoded(tokenizer, prompt), ends))
    return prompts


def check_tokens(model: "PreTrainedModel", tokens: Iterable[int], param: str) -> None:
    """Raise an ApiError unless all tokens of the field `param` are in the vocabulary."""
    vocabulary = model.config.get_text_config().vocab_size
    largest = max(tokens, default=0)
    if largest >= vocabulary:
        message = _("{name}: there is no token {token}; the vocabulary has {count}").format(
            name=param, token=largest, count=vocabulary
        )
        raise ApiError(400, message, param, "invalid_value")


def chat_prompt(
    model: "PreTrainedModel", name: str, tokenizer: "PreTrainedTokenizerBase", messages: Sequence[ChatMessage]
) -> Prompt:
    """Return the prompt that asks for the next message of a conversation.

    Args:
        model: the model.
        name: the model's name in the request, for errors.
        tokenizer: its tokenizer, with the chat template.
        messages: at least one.

    Raises:
        ApiError: there is no chat template, the last message is the assistant's, or a text has a lone surrogate.
    """
    if tokenizer.chat_template is None:
        raise ApiError(
            400,
            _(
                "{name!r} has no chat template; use /v1/completions, name an adapter that learned conversations, "
                "or start the server with --chat-template"
            ).format(name=name),
            param="model",
            code="no_chat_template",
        )
    if messages[-1].role == "assistant":
        raise ApiError(400, _("the last message is the assistant's own, so there is nothing to answer"), "messages")
    for message in messages:
        _check_text(message.text, "messages")
    turns = [Message(_ROLES.get(message.role, message.role), message.text) for message in messages]
    with _tokenizing:
        tokens = prompt_tokens(model, tokenizer, turns)
    return Prompt(tokens.ids, tokens.ids, "", tokens.ends)


def token_text(tokenizer: "PreTrainedTokenizerBase", token: int) -> str:
    """Return the text of a token within a text; for a part of a character, its name in the vocabulary.

    It is what a second such token adds, because some tokenizers drop the space at the beginning of a text: "the" and
    " the" would have the same text.
    """
    if is_part(tokenizer, token):
        return str(tokenizer.convert_ids_to_tokens(token))
    return decoded(tokenizer, [token, token])[len(decoded(tokenizer, [token])) :]


def is_part(tokenizer: "PreTrainedTokenizerBase", token: int) -> bool:
    """Return whether a token is a part of a character."""
    return _INCOMPLETE in decoded(tokenizer, [token])


def decoded(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> str:
    """Return the text of tokens, special ones included."""
    text: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def _check_text(text: str, param: str) -> None:
    """Check that a text has no lone surrogates, which JSON can contain and tokenizers do not accept."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        message = _("{name}: a character is incomplete (a lone surrogate)").format(name=param)
        raise ApiError(400, message, param, "invalid_value") from error
