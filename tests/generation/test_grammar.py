"""Texts that keep to a grammar: judged by jsonschema, `re` and `in`, which know nothing of it."""

import json
import re
from collections.abc import Sequence
from typing import Any

import jsonschema
import pytest
import torch

from tests.errors import assert_refused, refused
from tests.generation.test_engine import TOKENIZER, Client, model_with_adapters, prompts, serving
from tests.generation.tokenizers_of_kinds import KINDS
from tests.tiny import byte_tokenizer, seeded, tiny_model
from tsugiki.errors import TsugikiError
from tsugiki.generation import (
    Grammars,
    Sampling,
    choice_grammar,
    continue_rows,
    json_grammar,
    regex_grammar,
    room_for_digits,
    token_bytes,
)

pytest.importorskip("llguidance")

WORDS = 257


def objects(required: Sequence[str], **properties: Any) -> dict[str, Any]:
    """A schema of objects with these properties and no others."""
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


PERSON = objects(
    ["名前", "年", "作品"],
    名前={"type": "string", "maxLength": 4},
    年={"type": "integer", "minimum": 1867, "maximum": 1916},
    作品={"type": "array", "items": {"enum": ["こころ", "門", None]}, "minItems": 1, "maxItems": 3},
    評価={"type": "number", "minimum": 0, "exclusiveMaximum": 1},
    番号={"type": "string", "pattern": "^[0-9]{3}-[A-Z]+$", "maxLength": 8},
    住所=objects(["市"], 市={"const": "東京"}, 番地={"type": ["integer", "null"], "multipleOf": 5, "maximum": 100}),
)
VALUE = {"anyOf": [{"type": "boolean"}, {"type": "string", "enum": ["a", 'b"\\\n']}]}
TREE = {"$defs": {"node": objects(["value"], value=VALUE, next={"$ref": "#/$defs/node"})}, "$ref": "#/$defs/node"}
SMALL = {"type": "integer", "minimum": -9, "maximum": 9}
PAIR = {"type": "array", "prefixItems": [{"type": "null"}, SMALL], "items": False}


def written(model: Any, grammar: str, rows: int, **fields: Any) -> list[tuple[str, str]]:
    """The texts of requests at temperature 1, and why each ended."""
    grammars = Grammars(TOKENIZER, WORDS)
    matchers = [grammars.compile(grammar) for _row in range(rows)]
    given = {"max_tokens": 200, "ends": {0}, **fields}
    with serving(model, rows=16) as engine:
        clients = [
            Client([0, 5 + row], matcher=matcher, sampling=Sampling(1.0, 1.0, row), **given)
            for row, matcher in enumerate(matchers)
        ]
        engine.submit([client.request for client in clients])
        events = [client.all() for client in clients]
    return [("".join(event.text for event in row), row[-1].finish_reason) for row in events]


def write(matcher: Any, words: int) -> list[int]:
    """Random tokens that a matcher allows, until it is finished."""
    generator, written = seeded(0), list[int]()
    while not matcher.finished:
        scores = torch.randn(words, generator=generator)
        matcher.restrict(scores, ())
        written.append(int(torch.multinomial(scores.softmax(-1), 1, generator=generator)))
        matcher.advance(written[-1])
    return written


@pytest.mark.parametrize("schema", [PERSON, TREE, PAIR], ids=["person", "tree", "pair"])
def test_json_keeps_to_its_schema(schema: dict[str, Any]):
    model = tiny_model("gpt2", vocab_size=WORDS, n_positions=1024)
    found = written(model, json_grammar(schema), 20, max_tokens=600)
    whole = [json.loads(text) for text, reason in found if reason == "stop"]
    assert len(whole) >= 17
    for value in whole:
        jsonschema.validate(value, schema)
    assert len({text for text, _ in found}) > 3


def test_json_has_white_space_between_its_parts_only_if_the_schema_says_so():
    spaced = {**PAIR, "x-guidance": {"item_separator": ", "}}
    for schema, allowed, wrong in [(PAIR, "[null,1]", "[null, 1]"), (spaced, "[null, 1]", "[null,1]")]:
        grammar = json_grammar(schema)
        assert begun(grammar, allowed).finished
        with pytest.raises(TsugikiError):
            begun(grammar, wrong)


TIMES = {"format": "date-time", "type": "string"}
FRACTION = {"type": "number", "minimum": 0.01, "exclusiveMaximum": 0.05}


@pytest.mark.parametrize("kind", ["bytes alone", "gpt-2"])
@pytest.mark.parametrize(
    ("schema", "pattern"),
    [
        ({"type": "integer"}, r"9{19}"),
        ({"type": "number"}, r"9{19}\.9{17}"),
        (FRACTION, r"0\.049{15}"),
        ({"anyOf": [FRACTION, {"type": "null"}]}, r"0\.049{15}"),
        ({"enum": [10**30, 10**40]}, r"10{30}|10{40}"),
        (TIMES, r'"[-0-9]{10}[Tt][:0-9]{8}\.\d{6}(Z|z|[+-]\d\d:\d\d)"'),
        ({"type": "string", "pattern": r"^\d\d:\d\d:\d\d\.\d{9}$"}, r'"[:0-9]{8}\.\d{9}"'),
        ({"type": "string", "pattern": r"^\d\d:\d\d:\d\d\.\d{1,9}$"}, r'"[:0-9]{8}\.\d{9}"'),
        ({"type": "string", "pattern": "^[0-9]+$", "maxLength": 60}, r'"\d{60}"'),
        ({"const": "\\" + "1" * 40}, r'"\\\\1{40}"'),
    ],
)
def test_a_model_that_likes_digits_ends_its_numbers(schema: dict[str, Any], pattern: str, kind: str):
    tokenizer = KINDS[kind]()
    words = len(tokenizer)
    tokens = token_bytes(tokenizer, words)
    liked = torch.tensor([float(b".0123456789".find(token[:1] or b"a")) for token in tokens])
    matcher = Grammars(tokenizer, words).compile(json_grammar(objects(["a", "b"], a=schema, b={"const": 1})))
    text = b""
    while not matcher.finished:
        scores = liked.clone()
        matcher.restrict(scores, ())
        token = int(scores.argmax())
        matcher.advance(token)
        text += tokens[token]
        assert len(text) < 200
    jsonschema.validate(json.loads(text), objects(["a", "b"], a=schema, b={"const": 1}))
    assert re.fullmatch(rf'\{{"a":(?:{pattern}),"b":1\}}', text.decode()), text


@pytest.mark.parametrize(
    ("text", "room"),
    [
        ("", 19),
        ('{"a":-12', 17),
        ("[0.", 17),
        ("1.5", 16),
        ("1.5e", 3),
        ("1E+30", 1),
        ('["12:34:56.', 6),
        ('["a\\"",1', 18),
    ],
)
def test_how_many_digits_may_follow(text: str, room: int):
    assert room_for_digits(text.encode()) == (room, text.startswith('["12'))


def test_digits_are_free_outside_json():
    text = '"json_schema":{' + "1" * 40
    for grammar in (regex_grammar(r'"json_schema":\{[0-9]+(a|b)'), choice_grammar([f"{text}1", f"{text}a"])):
        scores = torch.zeros(WORDS)
        begun(grammar, text).restrict(scores, ())
        assert scores[TOKENIZER("1").input_ids[0]] == 0


def begun(grammar: str, text: str) -> Any:
    """A matcher of the grammar after a text."""
    matcher = Grammars(TOKENIZER, WORDS).compile(grammar)
    for token in TOKENIZER(text).input_ids:
        matcher.advance(token)
    return matcher


def test_texts_that_match_a_regular_expression_and_one_of_some_texts():
    model = tiny_model("gpt2", vocab_size=WORDS, n_positions=256)
    pattern = r"(春|夏){2,3}/\d{3}[^ \u3040-\U0010ffff]?(?:a+|b*)"
    for text, reason in written(model, regex_grammar(pattern), 20):
        assert reason == "stop"
        assert re.fullmatch(pattern, text)
    texts = ["はい", "いいえ", 'a "b" \\ c\n', "[x]+|y", "は"]
    found = {text for text, _ in written(model, choice_grammar(texts), 40, max_tokens=40)}
    assert found <= set(texts)
    assert len(found) > 2


def test_a_text_can_end_where_it_is_complete_and_must_where_nothing_can_follow():
    model = tiny_model("gpt2", vocab_size=WORDS, n_positions=256)
    for ends in ({0}, ()):
        for text, reason in written(model, regex_grammar("a{2,5}"), 8, ends=ends, max_tokens=9):
            assert reason == "stop"
            assert (2 <= len(text) <= 5) if ends else text == "aaaaa"
    assert [reason for _text, reason in written(model, regex_grammar("a{9}"), 1, max_tokens=5)] == ["length"]
    a_word = set(TOKENIZER("a").input_ids)  # also the end of a text
    assert set(written(model, regex_grammar("[ab]{3}"), 8, ends=a_word, max_tokens=9)) == {("bbb", "stop")}
    assert written(model, regex_grammar("a{9}"), 1, stops=["aaa"]) == [("", "stop")]


def test_rows_with_and_without_a_grammar_and_with_adapters_are_those_of_each_alone():
    model = model_with_adapters("gpt2")
    grammars = Grammars(TOKENIZER, WORDS)
    chosen = json_grammar(PERSON), regex_grammar("[a-z]{3}(春|夏)+"), choice_grammar(["はい", "いいえ"])
    wanted = [grammar for one in chosen for grammar in (one, None)]
    names = ["a", "b", None, None, "c", "a"]

    def ask(engine: Any, row: int) -> Client:
        matcher = grammars.compile(wanted[row]) if wanted[row] else None
        given = prompts([5, 12, 7, 9, 20, 3])[row]
        client = Client(given, names[row], 30, matcher=matcher, ends={0})
        engine.submit([client.request])
        return client

    with serving(model, rows=4) as engine:
        alone = [ask(engine, row).tokens() for row in range(len(wanted))]
        together = [ask(engine, row) for row in range(len(wanted))]
        assert [client.tokens() for client in together] == alone


def test_log_probabilities_are_those_of_the_model_without_the_grammar():
    model = tiny_model("gpt2", vocab_size=WORDS)
    matcher = Grammars(TOKENIZER, WORDS).compile(regex_grammar("ab"))
    with serving(model) as engine:
        client = Client([0, 3], matcher=matcher, logprobs=2)
        engine.submit([client.request])
        first = client.all()[0].token
    with torch.no_grad():
        expected = torch.log_softmax(model(torch.tensor([[0, 3]])).logits[0, -1], -1)
    assert first.token == TOKENIZER("a").input_ids[0]
    assert first.logprob == pytest.approx(float(expected[first.token]), abs=1e-4)
    assert first.top[0][1] == pytest.approx(float(expected.max()), abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_of_tokens_are_what_a_tokenizer_writes(kind: str):
    tokenizer = KINDS[kind]()
    words = len(tokenizer) + 5
    tokens = token_bytes(tokenizer, words)
    assert len(tokens) == words
    assert tokens[tokenizer.eos_token_id] == tokens[-1] == b""
    name, text = ("朝", "庭師の 音") if kind == "unigram" else ("名前", "風の 音\n")
    free = {"type": "string", "minLength": 20, "maxLength": 30}
    schema = objects([name, "b"], **{name: {"const": text}}, b=free)
    written = write(Grammars(tokenizer, words).compile(json_grammar(schema)), words)
    found = tokenizer.decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert b"".join(tokens[token] for token in written).decode() == found
    value = json.loads(found)
    assert value[name] == text
    assert 20 <= len(value["b"]) <= 30


def test_what_a_grammar_prescribes_has_the_tokens_that_the_tokenizer_gives_it():
    tokenizer = KINDS["embedded"]()
    ids = tokenizer('"名前"', add_special_tokens=False).input_ids
    grammar = json_grammar(objects(["名前"], 名前={"const": "東京の朝"}))
    written = write(Grammars(tokenizer, len(tokenizer)).compile(grammar), len(tokenizer))
    assert json.loads(tokenizer.decode(written)) == {"名前": "東京の朝"}
    assert any(written[start : start + len(ids)] == ids for start in range(len(written)))


@pytest.mark.parametrize(
    ("grammar", "named"),
    [
        (lambda: json_grammar({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (lambda: json_grammar({"$ref": "https://example.org/schema"}), "example.org"),
        (lambda: json_grammar({"type": "string", "pattern": "(?=a)b"}), "look-around"),
        (lambda: json_grammar("[1"), "list"),
        (lambda: json_grammar({"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"}), "to itself"),
        (lambda: regex_grammar("("), "unclosed group"),
        (lambda: regex_grammar("\ud800"), "surrogate"),
        (lambda: choice_grammar(["檸" * 500_000] * 2), "large"),
    ],
)
def test_what_no_grammar_can_express_is_one_line_that_names_it(grammar: Any, named: str):
    assert_refused(named, lambda: Grammars(byte_tokenizer(), WORDS).compile(grammar()))


def test_what_is_found_only_while_a_text_is_written_is_an_error_of_its_row_alone():
    for tokenizer, grammar, said in (
        (KINDS["unigram"](), choice_grammar(["檸檬"]), "vocabulary"),
        (KINDS["unigram"](), choice_grammar(["朝檸檬"]), "vocabulary"),
        (TOKENIZER, regex_grammar("(a?){500}a{500}"), "too complex"),
    ):
        with refused(said):
            write(Grammars(tokenizer, len(tokenizer)).compile(grammar), len(tokenizer))


def test_compiled_grammars_are_kept_and_their_number_is_bounded():
    grammars = Grammars(byte_tokenizer(), WORDS)
    first = grammars.compile(regex_grammar("a{0}b"))
    first.advance(TOKENIZER("b").input_ids[0])
    assert (first.finished, grammars.find(regex_grammar("a{0}b")).finished) == (True, False)
    for number in range(1, 100):
        grammars.compile(regex_grammar(f"a{{{number}}}b"))
    assert grammars.find(regex_grammar("a{0}b")) is None
    assert grammars.find(regex_grammar("a{99}b")) is not None


def test_a_model_without_an_ordinary_cache_keeps_to_a_grammar(monkeypatch: pytest.MonkeyPatch):
    import tsugiki.generation.generate as generate

    monkeypatch.setattr(generate, "_batch_mode", lambda model, rows: None)
    model = tiny_model("gpt2", vocab_size=WORDS)
    sampling = Sampling(1.0, 1.0, 0, grammar=regex_grammar("(春|夏){3}"))
    (text,) = continue_rows(model, TOKENIZER, [[0, 5]], 30, sampling, {0})
    assert re.fullmatch("(春|夏){3}", text)
