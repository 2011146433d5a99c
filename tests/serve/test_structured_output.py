"""Structured output: JSON of a schema, a match of a regular expression, or one of some texts."""

import json
import re
import sys
import threading
from enum import StrEnum
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field

from tests.serve.asking import PROMPT, ids, openai
from tsugiki.generation import Grammars

pytest.importorskip("llguidance")

PATTERN = "(春|夏){2}[a-c]{1,3}"


class Season(StrEnum):
    spring = "春"
    autumn = "秋"


class Poem(BaseModel):
    """A form as users of OpenAI's client write it."""

    題: Season
    lines: Annotated[list[bool], Field(min_length=1, max_length=2)]
    year: Annotated[int, Field(ge=1, le=99)] | None


def ask(client: Any, **form: Any) -> Any:
    return client.completions.create(model="base", prompt=PROMPT, max_tokens=20, extra_body=form).choices[0]


def refusal(client: Any, **form: Any) -> Any:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **form)
    return caught.value


def test_openai_parses_an_answer_into_its_model(client: Any):
    fields = {"model": "歌人", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 200}
    answers = [client.chat.completions.parse(**fields, response_format=Poem, seed=seed) for seed in range(4)]
    whole = [one.choices[0] for one in answers if one.choices[0].finish_reason == "stop"]
    assert whole
    assert all(isinstance(one.message.parsed, Poem) for one in whole)


def test_a_stream_and_several_choices_keep_to_a_form(client: Any):
    fields = {"model": "poet", "prompt": PROMPT, "n": 3, "seed": 5, "max_tokens": 60, "logprobs": 1}
    fields["extra_body"] = {"guided_regex": PATTERN}
    whole = [choice.text for choice in client.completions.create(**fields).choices]
    assert all(re.fullmatch(PATTERN, text) for text in whole)
    assert len(set(whole)) > 1
    parts = ["", "", ""]
    for chunk in client.completions.create(**fields, stream=True):
        for choice in chunk.choices:
            parts[choice.index] += choice.text
    assert parts == whole


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": [1, 2]}}}},
        {"response_format": {"type": "json_object", "schema": {"enum": [1, 2]}}},
        {"guided_json": {"enum": [1, 2]}},
        {"guided_json": '{"enum": [1, 2]}'},
        {"guided_regex": "[12]"},
        {"guided_choice": ["1", "2"]},
        {"structured_outputs": {"json": {"enum": [1, 2]}}},
        {"structured_outputs": {"regex": "[12]"}},
        {"structured_outputs": {"choice": ["1", "2"]}},
    ],
)
def test_every_field_for_a_form(client: Any, fields: dict[str, Any]):
    answer = ask(client, **fields)
    assert (answer.text in ("1", "2"), answer.finish_reason) == (True, "stop")


def test_any_json_object(client: Any):
    fields = {"model": "base", "prompt": PROMPT, "temperature": 0, "max_tokens": 200, "logit_bias": {"94": 100}}
    for form in ({"response_format": {"type": "json_object"}}, {"structured_outputs": {"json_object": True}}):
        answer = client.completions.create(**fields, extra_body=form)
        assert answer.choices[0].text.startswith("{")
        if answer.choices[0].finish_reason == "stop":
            assert isinstance(json.loads(answer.choices[0].text), dict)


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"schema": True}}},
        {"response_format": {"type": "json_object", "schema": True}},
        {"guided_json": True},
        {"guided_json": "true"},
        {"structured_outputs": {"json": True}},
    ],
)
def test_the_schema_true_allows_any_value(client: Any, fields: dict[str, Any]):
    begin, end = map(str, ids("[]"))
    answer = ask(client, **fields, logit_bias={begin: 50, end: 100})
    assert (json.loads(answer.text), answer.finish_reason) == ([], "stop")


@pytest.mark.parametrize(
    ("name", "fields", "named"),
    [
        ("response_format", {"response_format": {"type": "json_schema"}}, "json_schema"),
        ("response_format", {"response_format": {"type": "yaml"}}, "type"),
        ("guided_json", {"guided_json": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
        ("guided_json", {"guided_json": "[1"}, "list"),
        ("guided_json", {"guided_json": 3}, "JSON"),
        ("guided_json", {"guided_json": {"enum": [*range(30_000)]}}, "more than 120,000 characters"),
        ("guided_regex", {"guided_regex": "(?<=a)b"}, "look-around"),
        ("guided_choice", {"guided_choice": []}, "1"),
        ("guided_regex", {"guided_regex": "a", "response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_what_cannot_be_a_form_is_a_400_of_one_line(client: Any, name: str, fields: dict[str, Any], named: str):
    error = refusal(client, **fields)
    assert error.param.startswith(name)
    assert named in error.message
    assert "\n" not in error.message


def test_without_the_package_the_extra_is_named(client: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    error = refusal(client, guided_regex="a{7}")
    assert error.param == "guided_regex"
    assert "tsugiki[serve]" in error.message


def test_others_are_answered_while_a_grammar_compiles(client: Any, monkeypatch: pytest.MonkeyPatch):
    begun, go_on, compile_grammar = threading.Event(), threading.Event(), Grammars.compile

    def slow(grammars: Any, grammar: str) -> Any:
        begun.set()
        assert go_on.wait(60)
        return compile_grammar(grammars, grammar)

    assert ask(client, guided_choice=["known"]).text == "known"
    monkeypatch.setattr(Grammars, "compile", slow)
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(ask(client, guided_choice=["new"]).text))
    thread.start()
    try:
        assert begun.wait(60)
        assert ask(client).text
        assert ask(client, guided_choice=["known"]).text == "known"
        assert not found
    finally:
        go_on.set()
        thread.join(60)
    assert found == ["new"]
