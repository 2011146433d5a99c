"""Structured output: the grammar that a request sets for its answers, compiled outside the engine's thread."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from tsugiki.annotations import PreTrainedTokenizerBase
from tsugiki.errors import TsugikiError
from tsugiki.generation.grammar import Grammars, Matcher, choice_grammar, json_grammar, regex_grammar
from tsugiki.language import _
from tsugiki.serve.errors import ApiError, invalid
from tsugiki.serve.protocol import ChatRequest, CompletionRequest, ObjectFormat, SchemaFormat
from tsugiki.serve.tools import calls_grammar

_OBJECT = {"type": "object"}


class GrammarCompiler:
    """Compiles the grammars of requests, one at a time, so that large ones leave the other threads free."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, words: int) -> None:
        self._grammars = Grammars(tokenizer, words)
        self._compiling = asyncio.Lock()

    async def matchers(self, parsed: CompletionRequest | ChatRequest, rows: int) -> list[Matcher | None]:
        """Return a matcher for each row of a request, or None for each if any text will do."""
        name, read, value = requested_grammar(parsed)
        if value is None:
            return [None] * rows
        try:
            grammar = read(value)
            found = self._grammars.find(grammar)
            if found is None:
                async with self._compiling:
                    found = await asyncio.to_thread(self._grammars.compile, grammar)
        except TsugikiError as error:
            raise _invalid(name, str(error)) from error
        return [found.copy() for _row in range(rows)]


def requested_grammar(parsed: CompletionRequest | ChatRequest) -> tuple[str, Callable[[Any], str], Any]:
    """Return the field that sets the structure of the answers, the function that makes a grammar of it, and its value.

    The value is None if no field sets one.
    """
    form, newer = parsed.response_format, parsed.structured_outputs
    schema = form.content if isinstance(form, ObjectFormat) else None
    if isinstance(form, SchemaFormat):
        schema = form.json_schema.content
    given: list[tuple[str, Callable[[Any], str], Any]] = [
        ("response_format", json_grammar, schema),
        ("guided_json", json_grammar, parsed.guided_json),
        ("guided_regex", regex_grammar, parsed.guided_regex),
        ("guided_choice", choice_grammar, parsed.guided_choice),
        ("structured_outputs", json_grammar, _OBJECT if newer.json_object else newer.json_schema),
        ("structured_outputs", regex_grammar, newer.regex),
        ("structured_outputs", choice_grammar, newer.choice),
    ]
    if isinstance(parsed, ChatRequest):
        names = [tool.function.name for tool in parsed.tools]
        if len({*names}) < len(names):
            raise _invalid("tools", _("two tools have the same name; give each its own"))
        if parsed.tool_choice not in ("none", "auto") and not parsed.forced:
            raise _invalid("tool_choice", _("there is no such tool in tools"))
        several = parsed.parallel_tool_calls
        given.append(("tool_choice", partial(calls_grammar, several=several), parsed.forced or None))
    found = [one for one in given if one[2] is not None]
    if found and isinstance(parsed, ChatRequest) and parsed.tools and parsed.tool_choice == "auto":
        message = _("an answer of this form cannot call a tool; leave out the tools, or set tool_choice")
        raise _invalid(found[0][0], message)
    if len(found) > 1:
        raise _invalid(found[1][0], _("{name} already sets the structure of the answer", name=found[0][0]))
    return found[0] if found else given[0]


def _invalid(name: str, problem: str) -> ApiError:
    return invalid(_("{name}: {problem}", name=name, problem=problem), name)
