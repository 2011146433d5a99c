"""A conversation as the tokenizer's chat template writes it, and which characters of it are learned.

Learned is what the model itself has to write: from where its turn begins to the token that ends the turn, inclusive.

    <|im_start|>user⏎ Hello<|im_end|>⏎<|im_start|>assistant⏎ Good day<|im_end|>⏎
                                                             ~~~~~~~~~~~~~~~~~~

Where a template marks its answers ({% generation %}) they begin there, else where the rendering of the turns before,
with the prompt for an answer, ends. Where an answer's content ends is seen by rendering it again with another content:
what the two renderings have in common at their ends follows the content. The first special token there ends the turn.
Nothing is found by searching for texts, which may stand in the content too.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any, TypeAlias

from tsugiki.data.records import AssistantTurns, Conversation
from tsugiki.errors import TsugikiError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_Span: TypeAlias = tuple[int, int]
_Messages: TypeAlias = list[dict[str, str]]


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer's template with what is needed to render it.

    `variables` are the special tokens by name, for the template; `special` finds special tokens, which no message may
    hold; `ending` finds what can end a turn: these and other tokens that were added to the vocabulary.
    """

    template: str
    variables: dict[str, Any]
    marked: bool
    special: re.Pattern[str]
    ending: re.Pattern[str]
    end: str | None


@dataclass(frozen=True)
class Rendering:
    """A conversation as text, up to the last turn that is learned, and the learned stretches (begin, end) of it."""

    text: str
    spans: tuple[tuple[int, int], ...]


def read_template(tokenizer: "PreTrainedTokenizerBase", source: str) -> ChatTemplate:
    """The tokenizer's chat template; `source` is the record that needs it, for the error.

    Raises:
        TsugikiError: it has none, or several without a default.
    """
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:
        raise TsugikiError(
            f"{source} is a conversation, but the tokenizer has no chat template; "
            "take a base model that has one, or give prompt and completion as texts"
        ) from error
    added = tokenizer.added_tokens_decoder.values()
    special = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)
    return ChatTemplate(
        template=template,
        variables=dict(tokenizer.special_tokens_map),
        marked=re.search(r"\{%[-+]?\s*generation\b", template) is not None,
        special=_any_of(special),
        ending=_any_of(special | {token.content for token in added if token.content.strip()}),
        end=tokenizer.eos_token,
    )


def render(template: ChatTemplate, conversation: Conversation, assistant_turns: AssistantTurns) -> Rendering:
    """The text of a conversation and what is learned of it; without any text where nothing is.

    A last turn that the template does not end with a special token is ended with the tokenizer's end token.

    Args:
        template: of the tokenizer.
        conversation: with at least one turn of the assistant.
        assistant_turns: learn all of the assistant's turns, or the last of the conversation only.

    Raises:
        TsugikiError: a message holds a special token; the template refuses the conversation, or it renders a turn
            that is to be learned otherwise than a model would have had to write it.
    """
    answers = [index for index, message in enumerate(conversation.messages) if message.role == "assistant"]
    wanted = answers if assistant_turns == "all" else answers[-1:]
    learned = [index for index in wanted if conversation.messages[index].learned]
    if not learned:
        return Rendering("", ())
    shown = conversation.messages[: learned[-1] + 1]
    for number, message in enumerate(shown, 1):
        if found := template.special.search(message.content):
            raise TsugikiError(
                f"{conversation.source}: turn {number} ({message.role}) holds {found.group()}, which is a special "
                "token of this tokenizer; take it out, or the row"
            )
    messages = [{"role": message.role, "content": message.content} for message in shown]
    whole, marks = _render(template, messages, conversation.source)
    spans: list[_Span] = []
    for index in learned:
        where = f"{conversation.source}: turn {index + 1}"
        start, stop, ended = _span(template, messages[: index + 1], whole, marks, where)
        if not ended:
            if index != learned[-1]:
                raise TsugikiError(
                    f"{where} is not ended by a special token in this chat template, so its end cannot be learned; "
                    "learn the last turn only (assistant_turns: last)"
                )
            if template.end is None:
                raise TsugikiError(f"{where} has no end: neither chat template nor tokenizer has a token for it")
            whole = whole[:stop] + template.end
            stop = len(whole)
        spans.append((start, stop))
    return Rendering(whole, tuple(spans))


def _span(
    template: ChatTemplate, turns: _Messages, whole: str, marks: list[_Span], where: str
) -> tuple[int, int, bool]:
    """Begin and end, in the whole rendering, of the answer that is the last of `turns`, and whether a token ends it."""
    finished, finished_marks = _render(template, turns, where)
    content_stop = len(finished) - _tail_length(template, turns, finished, where)
    ending = template.ending.search(finished, content_stop)
    stop = ending.end() if ending else content_stop
    answers = sum(turn["role"] == "assistant" for turn in turns)
    if len(finished_marks) == answers <= len(marks):
        start, mark_stop = marks[answers - 1]
        in_whole = mark_stop + stop - finished_marks[-1][1]
        if start < in_whole and (ending is None or whole.endswith(ending.group(), start, in_whole)):
            return start, in_whole, ending is not None
    else:
        prompt, _ = _render(template, turns[:-1], where, add_generation_prompt=True)
        start = len(prompt)
        if start >= content_stop or not finished.startswith(prompt):
            raise TsugikiError(
                f"{where}: this chat template writes the answer otherwise than after its own prompt for one, so no "
                "model could have written it; use a template that marks its answers ({% generation %})"
            )
        if whole.startswith(finished[:stop]):
            return start, stop, ending is not None
    raise TsugikiError(
        f"{where} is written otherwise by this chat template once more turns follow; "
        "learn the last turn only (assistant_turns: last)"
    )


def _tail_length(template: ChatTemplate, turns: _Messages, finished: str, where: str) -> int:
    """How many characters follow the content of the last turn: as many as do with another content."""
    content = turns[-1]["content"]
    lasts = content[-1], content.rstrip()[-1]
    other = next(letter for letter in "abc" if letter not in lasts)
    changed, _ = _render(template, [*turns[:-1], {**turns[-1], "content": other}], where)
    backwards = zip(reversed(finished), reversed(changed), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], backwards))


def _render(
    template: ChatTemplate, messages: _Messages, where: str, add_generation_prompt: bool = False
) -> tuple[str, list[_Span]]:
    """The text, and the stretches that the template marks as generated."""
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        texts, marks = render_jinja_template(
            conversations=[messages],
            chat_template=template.template,
            return_assistant_tokens_mask=template.marked,
            add_generation_prompt=add_generation_prompt,
            **template.variables,
        )
    except Exception as error:  # a template is a program of someone else's; it may fail in any way
        what = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        raise TsugikiError(f"{where}: the chat template refuses the conversation: {what}") from error
    return texts[0], marks[0] if marks else []


def _any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted((token for token in tokens if token), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
