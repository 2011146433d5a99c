"""The tokens of a prompt: plain text, or a conversation that the chat template renders."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from tsugiki.adapters.saved_tokenizer import saved_chat_template
from tsugiki.annotations import PreTrainedModel, PreTrainedTokenizerBase
from tsugiki.data.chat import prompt_text, read_template
from tsugiki.data.encoding import document_end, document_start, encode, encode_records
from tsugiki.data.records import Conversation, Message
from tsugiki.errors import TsugikiError
from tsugiki.model.context import context_length

Prompt: TypeAlias = str | Sequence[Message]
"""A text to continue, or the turns of a conversation that the assistant answers."""


@dataclass(frozen=True)
class PromptTokens:
    """The tokens of a prompt, and those that end the answer."""

    ids: list[int]
    ends: frozenset[int]
    """The tokens that end an answer; none for plain text, which always ends at the token that ends a document."""


def prompt_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    source: str = "the prompt",
    tools: str = "",
) -> PromptTokens:
    """Return the tokens of a prompt in the same form as before an answer in training.

    A tokenizer `with_chat_template` has the template of an adapter. The last message must not be the assistant's.
    `source` is the name of the prompt in errors, and `tools` are those of the conversation (`Conversation.tools`).
    """
    if isinstance(prompt, str):
        return PromptTokens([document_start(tokenizer), *encode(tokenizer, [prompt])[0]], frozenset())
    template = replace(read_template(tokenizer, source), tools=tools)
    text = prompt_text(template, [message.fields for message in prompt])
    # The token that ends an answer differs between templates, so a short answer is rendered to find it.
    answered = Conversation((*prompt, Message("assistant", "a")), source, tools=tools)
    answer = encode_records(tokenizer, [answered], "last")[0]
    end = [token for token, in_loss in zip(answer.ids, answer.loss_mask, strict=True) if in_loss][-1]
    return PromptTokens(encode(tokenizer, [text])[0], frozenset({end, *configured_ends(model)}))


def tokens_of_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[tuple[Prompt, str, str]],
    system: str | None = None,
) -> tuple[list[list[int]], set[int]]:
    """Return the tokens of prompts, each with its name in errors and its tools, and the tokens that end an answer.

    A prompt that is a text is the user's turn if the tokenizer has a chat template, as in training; `system` is the
    message before it.
    """
    rows, ends = list[list[int]](), {document_end(tokenizer), *configured_ends(model)}
    for prompt, source, tools in prompts:
        asked = as_prompt(prompt, bool(tokenizer.chat_template), system) if isinstance(prompt, str) else prompt
        found = prompt_tokens(model, tokenizer, asked, source, tools)
        check_fits(model, len(found.ids) + 1, source)
        rows.append(found.ids)
        ends |= found.ends
    return rows, ends


def check_fits(model: PreTrainedModel, tokens: int, source: str) -> None:
    """Raise a TsugikiError if a prompt and an answer of so many tokens together do not fit into the model's context."""
    if tokens > (context := context_length(model)):
        raise TsugikiError(
            "{source}: prompt and answer have {tokens:,} tokens or more, above the model's context of {context:,}; "
            "shorten or remove the prompt",
            source=source,
            tokens=tokens,
            context=context,
        )


def learned_conversations(adapter: Path | None, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether prompts are turns of a conversation: the adapter in a folder was trained on some, or, without an
    adapter, the model's tokenizer has a chat template.
    """
    if adapter is not None:
        return saved_chat_template(adapter) is not None
    return bool(tokenizer.chat_template)


def as_prompt(text: str, as_turn: bool, system: str | None = None) -> Prompt:
    """Return a text to continue; or, `as_turn`, the user's turn of a conversation, after the system message if any."""
    if not as_turn:
        return text
    return [*([Message("system", system)] if system else []), Message("user", text)]


def configured_ends(model: PreTrainedModel) -> set[int]:
    """Return the tokens that end a text according to the model's settings for generation."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    return set() if ends is None else set(ends) if isinstance(ends, list) else {int(ends)}
