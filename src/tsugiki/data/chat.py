"""Render a conversation with the tokenizer's chat template, and find the characters that count in the loss.

These are the characters that the model itself must generate: from the beginning of its turn to the token that ends the
turn, inclusive.

    <|im_start|>user⏎ Hello<|im_end|>⏎<|im_start|>assistant⏎ Good day<|im_end|>⏎
                                                             ~~~~~~~~~~~~~~~~~~

An answer begins where the template marks it with {% generation %}, or else where the rendering of the previous turns
with the generation prompt ends. Its content ends where the renderings with this and with another content become equal;
the first special token after that ends the turn. The texts of the messages are not searched for, because a text can
occur several times. Templates are programs. They run in Jinja's sandbox, as in transformers.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeAlias

from tsugiki.annotations import PreTrainedTokenizerBase
from tsugiki.data.records import AssistantTurns, Conversation
from tsugiki.errors import TsugikiError, error_text, unreadable
from tsugiki.language import _

AUTO, DEFAULT, NONE = "auto", "default", "none"
"""The names of the tokenizer's template or else `DEFAULT_TEMPLATE`, of the latter, and of no template, in settings."""
DEFAULT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '### ' + message['role'] + '\\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{{ '\\n\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant\\n' }}{% endif %}"
)
"""A chat template of plain text, for a base that has none: headings name the roles, and the end token ends an answer.

Its only special tokens are the begin token, if the tokenizer has one, and the end token. The markers of other
templates, such as <|im_start|>, would be many tokens for a base whose vocabulary does not have them.
"""

_MAX_TURNS = 1000  # each answer renders all turns before it again, which takes 2 s for 1,000 turns
_MAX_TEMPLATE = 1_000_000  # characters
_MAX_TEXT = 10_000_000  # characters

_Span: TypeAlias = tuple[int, int]
Messages: TypeAlias = list[dict[str, Any]]
"""The turns of a conversation as templates get them."""


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer's chat template, and the data for rendering it."""

    template: str
    variables: dict[str, Any]
    """The special tokens by name, for the template."""
    marked: bool
    """Whether the template marks answers with {% generation %}."""
    special: str
    """A regular expression that matches special tokens, which a message must not contain."""
    ending: str
    """A regular expression that matches tokens that can end a turn: special tokens, and others that were added to the
    vocabulary."""
    end: str | None
    """The tokenizer's end token."""
    tools: str = ""
    """The tools of the conversation, a JSON list; empty: none."""

    def shows_tools(self, messages: Messages, where: str) -> bool:
        """Return whether a conversation is another text with the tools than without; `where` names it in errors."""
        return _render(self, messages, where) != _render(replace(self, tools=""), messages, where)

    def shows_calls(self, messages: Messages, where: str) -> bool:
        """Return whether a conversation is another text with its calls of tools than without."""
        without = [{**turn, "tool_calls": None} for turn in messages]
        return _render(self, messages, where) != _render(self, without, where)


@dataclass(frozen=True)
class Rendering:
    """A conversation as text, up to the last turn that counts in the loss.

    `spans` are the character ranges (begin, end) that count in the loss.
    """

    text: str
    spans: tuple[tuple[int, int], ...]


def read_template_file(path: Path) -> str:
    """Read a chat template from a UTF-8 file, without running it."""
    try:
        if not path.is_file():
            raise TsugikiError("no chat template at {path}: there is no such file", path=path)
        with path.open(encoding="utf-8-sig") as file:
            template = file.read(_MAX_TEMPLATE + 1)
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or a name that no file can have
        raise unreadable(path, error) from error
    if len(template) > _MAX_TEMPLATE:
        raise TsugikiError(
            "the chat template in {path} has more than {max_template:,} characters; use another one",
            path=path,
            max_template=_MAX_TEMPLATE,
        )
    if not template.strip():
        raise TsugikiError("the chat template in {path} is empty; use another one", path=path)
    return template


def use_template(tokenizer: PreTrainedTokenizerBase, setting: str | None) -> None:
    """Give a tokenizer another chat template, in place: a file, `DEFAULT_TEMPLATE` for `default`, or none for `none`.

    Without a setting it keeps its own; with `auto` as well, if it has one.
    """
    if setting == AUTO:
        tokenizer.chat_template = tokenizer.chat_template or DEFAULT_TEMPLATE
    elif setting in (DEFAULT, NONE):
        tokenizer.chat_template = DEFAULT_TEMPLATE if setting == DEFAULT else None
    elif setting is not None:
        tokenizer.chat_template = read_template_file(Path(setting).expanduser())


def read_template(tokenizer: PreTrainedTokenizerBase, source: str) -> ChatTemplate:
    """Return the tokenizer's chat template with its special tokens.

    `source` names the record that requires the template, for the error.
    """
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:
        raise TsugikiError(
            "{source} is a conversation, but the tokenizer has no chat template; give one with {flag:chat_template}, "
            "or choose {flag:chat_template default}, a plain one",
            source=source,
        ) from error
    if len(template) > _MAX_TEMPLATE:
        raise TsugikiError(
            "the chat template of the tokenizer has more than {max_template:,} characters; replace it",
            max_template=_MAX_TEMPLATE,
        )
    added = tokenizer.added_tokens_decoder.values()
    special = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)
    return ChatTemplate(
        template=template,
        variables={name: _texts(token) for name, token in tokenizer.special_tokens_map.items()},
        marked=re.search(r"\{%[-+]?\s*generation\b", template) is not None,
        special=_any_of(special),
        ending=_any_of(special | {token.content for token in added if token.content.strip()}),
        end=tokenizer.eos_token,
    )


def render(template: ChatTemplate, conversation: Conversation, assistant_turns: AssistantTurns) -> Rendering:
    """Render a conversation. The result is empty if no turn counts in the loss.

    If the template does not end the last turn with a special token, the tokenizer's end token is added.
    """
    answers = [index for index, message in enumerate(conversation.messages) if message.role == "assistant"]
    wanted = answers if assistant_turns == "all" else answers[-1:]
    targets = [index for index in wanted if conversation.messages[index].in_loss]
    if not targets:
        return Rendering("", ())
    rendered = conversation.messages[: targets[-1] + 1]
    special = re.compile(template.special)
    for number, message in enumerate(rendered, 1):
        if found := special.search(message.content) or special.search(message.of_tools):
            raise TsugikiError(
                "{source}: turn {number} ({role}) contains {group}, which is a special token of this tokenizer; "
                "remove it or the row ({flag:chat_template none} learns prompts and completions as they are)",
                source=conversation.source,
                number=number,
                role=message.role,
                group=found.group(),
            )
    messages = [message.fields for message in rendered]
    template = replace(template, tools=conversation.tools)
    _check_tools(template, messages, conversation.source)
    text, spans = _find_answers(template, conversation.source, messages, targets)
    return Rendering(text, tuple(spans))


def _check_tools(template: ChatTemplate, turns: Messages, source: str) -> None:
    """Check that the template shows the model the tools of a conversation and the calls of them, if there are any."""
    name = "tools" if template.tools and not template.shows_tools(turns, source) else ""
    if not name and any("tool_calls" in turn for turn in turns):
        name = "" if template.shows_calls(turns, source) else "tool_calls"
    if name:
        raise TsugikiError(
            "{source} has {name}, which the chat template leaves out; use a model or a {flag:chat_template} that knows "
            "them, or leave them out",
            source=source,
            name=name,
        )


def prompt_text(template: ChatTemplate, messages: Messages) -> str:
    """Render a conversation and the beginning of the answer that the model is to generate."""
    return _render(template, messages, "a prompt", add_generation_prompt=True)[0]


def _find_answers(
    template: ChatTemplate, source: str, messages: Messages, targets: Sequence[int]
) -> tuple[str, list[_Span]]:
    """Return the text and the spans of `render` for the turns with these indices; the last index is the last turn."""
    if len(messages) > _MAX_TURNS and len(targets) > 1:
        raise TsugikiError(
            "{source} has {count:,} turns, and {max_turns:,} are the most in which every answer is found; split the "
            "conversation, or train on the last turn only (assistant_turns: last)",
            source=source,
            count=len(messages),
            max_turns=_MAX_TURNS,
        )
    whole, marks = _render(template, messages, source)
    spans: list[_Span] = []
    for index in targets:
        where = _("{source}: turn {number}", source=source, number=index + 1)
        start, stop, ended = _span(template, messages[: index + 1], whole, marks, where)
        if not ended:
            if index != targets[-1]:
                raise TsugikiError(
                    "{where} is not ended by a special token in this chat template, so its end cannot be trained; "
                    "train on the last turn only (assistant_turns: last)",
                    where=where,
                )
            if template.end is None:
                raise TsugikiError(
                    "{where} has no end: neither the chat template nor the tokenizer has an end token", where=where
                )
            whole = whole[:stop] + template.end
            stop = len(whole)
        spans.append((start, stop))
    return whole, spans


def _span(template: ChatTemplate, turns: Messages, whole: str, marks: list[_Span], where: str) -> tuple[int, int, bool]:
    """Return the begin and end in `whole`, in characters, of the answer that is the last of `turns`, and whether a
    token ends it.
    """
    finished, finished_marks = _render(template, turns, where)
    content_stop = len(finished) - _tail_length(template, turns, finished, where)
    ending = re.compile(template.ending).search(finished, content_stop)
    stop = ending.end() if ending else content_stop
    answers = sum(turn["role"] == "assistant" for turn in turns)
    if len(finished_marks) == answers <= len(marks):
        start, mark_stop = marks[answers - 1]
        in_whole = mark_stop + stop - finished_marks[-1][1]
        if start < in_whole and (ending is None or whole.endswith(ending.group(), start, in_whole)):
            return start, in_whole, ending is not None
    else:
        prompt, _spans = _render(template, turns[:-1], where, add_generation_prompt=True)
        start = len(prompt)
        if start >= content_stop or not finished.startswith(prompt):
            raise TsugikiError(
                "{where}: this chat template renders the answer differently from its own generation prompt, so no "
                "model could generate it; use a template that marks answers with {{% generation %}}",
                where=where,
            )
        if whole.startswith(finished[:stop]):
            return start, stop, ending is not None
    raise TsugikiError(
        "{where} is rendered differently by this chat template when more turns follow; train on the last turn only "
        "(assistant_turns: last)",
        where=where,
    )


def _tail_length(template: ChatTemplate, turns: Messages, finished: str, where: str) -> int:
    """Return how many characters follow the last turn's content and calls: the same ones follow another content."""
    content = turns[-1]["content"]
    lasts = content[-1:], content.rstrip()[-1:]
    other = next(letter for letter in "abc" if letter not in lasts)
    changed, _spans = _render(template, [*turns[:-1], {"role": turns[-1]["role"], "content": other}], where)
    backwards = zip(reversed(finished), reversed(changed), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], backwards))


def _render(
    template: ChatTemplate, messages: Messages, where: str, add_generation_prompt: bool = False
) -> tuple[str, list[_Span]]:
    """Return the rendered text, and the character ranges that the template marks as generated."""
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        texts, marks = render_jinja_template(
            conversations=[messages],
            tools=json.loads(template.tools) if template.tools else None,
            chat_template=template.template,
            return_assistant_tokens_mask=template.marked,
            add_generation_prompt=add_generation_prompt,
            **template.variables,
        )
    except Exception as error:  # a template is a program and can raise any exception
        what = error_text(error).rstrip(".") or type(error).__name__
        raise TsugikiError(
            "{where}: the chat template cannot render the conversation: {what}", where=where, what=what
        ) from error
    if len(texts[0]) > _MAX_TEXT:
        raise TsugikiError(
            "{where}: the chat template renders more than {max_text:,} characters", where=where, max_text=_MAX_TEXT
        )
    return texts[0], marks[0] if marks else []


def _texts(token: Any) -> Any:
    """Return a special token, or a list of them, as text."""
    return [str(item) for item in token] if isinstance(token, list | tuple) else str(token)


def _any_of(tokens: Iterable[str]) -> str:
    longest_first = sorted((token for token in tokens if token), key=len, reverse=True)
    return "|".join(map(re.escape, longest_first)) or "(?!)"
