"""Rules score answers as they say, and one that fails is named with its prompt and answer."""

import itertools
import json
import sys
from datetime import date
from pathlib import Path
from random import Random
from typing import Any

import pytest
from pydantic import BaseModel, Field, ValidationError

from tests.errors import refused
from tests.files import write_rows
from tsugiki.data.read.answers import PromptRow, read_prompts
from tsugiki.preference.rewards import parse_rule, refuse_programs, reward_of, scores_of


def scores(rule: str, *answers: str, seconds: float = 10.0, notes: list[str] | None = None, **fields: Any) -> list[Any]:
    """The results of a rule for answers to one prompt."""
    row = PromptRow("Why?", fields, "prompts.jsonl:1")
    note = (notes if notes is not None else []).append
    return [one for (one,) in scores_of([parse_rule(rule)], [(row, answer) for answer in answers], "1", seconds, note)]


def python(folder: Path, text: str) -> str:
    path = folder / "rule.py"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_pattern_is_found_anywhere():
    assert scores("regex:[0-9]+$", "it is 12", "12 it is") == [1.0, 0.0]
    with refused(r"\(\["):
        parse_rule("regex:([")


@pytest.mark.parametrize(
    ("right", "answer", "score"),
    [
        *((right, right, 1.0) for right in ("○", "C++", "+", "☆☆☆", "👍", "-", "...", "１２", "yes", "HR-8415")),
        *(("○", answer, 0.0) for answer in ("×", "", "〇", "、。", "答えは○")),
        *(("◎", "△", 0.0), ("☆☆☆", "☆", 0.0), ("+", "-", 0.0), ("👍", "👎", 0.0), ("...", "", 0.0), ("C++", "C#", 0.0)),
        *(("C", "C++", 0.0), ("yes", "Oh, yes", 0.0), ("yes", "yes.", 0.0), ("あいう", "あ いう", 0.0)),
        *(("Anna  Berg", " ａｎｎａ berg\n", 1.0), ("㍻", "平成", 1.0), (True, "True", 1.0), (True, "1", 0.0)),
        # of a number, the last number of the answer
        *(
            (1200, "So it is 1,200.", 1.0),
            (12, "12 apples", 1.0),
            (12, "12 or 13", 0.0),
            (12, "", 0.0),
            (12, "12月", 1.0),
        ),
        *((2, "1-2", 1.0), (-5, "10-5", 0.0), (5, "10-5", 1.0), (-5, "答えは-5です", 1.0), (-5, "x = -5", 1.0)),
        *((-5, "\N{MINUS SIGN}5", 1.0), (5, "\N{MINUS SIGN}5", 0.0), (-5, "－５", 1.0), (19, "COVID-19", 1.0)),
        *((0.00001, "0.00001", 1.0), (1e16, "10000000000000000", 1.0), (1e3, "1e3", 1.0), (1000, "1,000.0", 1.0)),
        *((0.5, ".5", 1.0), (5, ".5", 0.0), (3, "2,3", 1.0), (23, "2,3", 0.0), (10, "10 m²", 1.0), (102, "10²", 0.0)),
        *(
            (2**53, str(2**53 + 1), 0.0),
            ("1,234", "1234", 1.0),
            ("−5", "-5", 1.0),
            ("a–b", "a–b", 1.0),
            (1, "1e99999", 0.0),
        ),
        # an expected value that is empty: the rule does not apply
        *(("", "", None), ("", "a", None), (" ", "", None), ([], "[]", None), ({}, "{}", None), (None, "null", None)),
        *(([1, "A"], '[1.0, "a"]', 1.0), ([1], "[true]", 0.0), ([1], "1", 0.0), ([1], "", 0.0)),
    ],
)
def test_an_answer_is_right_if_it_equals_the_field_or_ends_in_its_number(right: Any, answer: str, score: float | None):
    assert scores("field:right", answer, right=right) == [score]


def test_a_field_that_a_row_does_not_have_gives_no_score():
    assert scores("field:right", "x", other="x") == [None]


def test_of_an_object_the_share_of_its_fields_counts():
    record = {"name": "Anna Berg", "age": 3, "member": True}
    answers = {
        '{"age": 3, "member": true, "name": "anna berg"}': 1.0,
        '{"name": "Anna Berg", "age": "3", "member": 1}': pytest.approx(1 / 3),
        '{"name": "Anna Berg", "age": 3, "member": true, "job": 1}': 0.75,
        "no": 0.0,
    }
    assert scores("field:record", *answers, record=record) == [*answers.values()]


def grader(**changes: Any) -> dict[str, Any]:
    texts = {"input": "{{sample.output_text}}", "reference": "{{ item.right.0 }}"}
    return {"type": "string_check", "name": "same", **texts, "operation": "eq", **changes}


def graded(given: dict[str, Any], *answers: str, right: str = "") -> list[Any]:
    return scores(f"grader:{json.dumps(given)}", *answers, right={"0": right})


def alike(metric: str, text: str, other: str) -> float:
    (found,) = graded(grader(type="text_similarity", evaluation_metric=metric), text, right=other)
    return float(found)


def test_graders_of_openai_compare_texts():
    for operation, expected in {"eq": [1, 0, 0], "ne": [0, 1, 1], "like": [1, 1, 0], "ilike": [1, 1, 1]}.items():
        assert graded(grader(operation=operation), "Paris", "It is Paris", "paris", right="Paris") == expected
    assert graded(grader(input="{{item.right}}", reference='{"0": "日"}'), "", right="日") == [1.0], "as JSON"
    # from the documentation of rapidfuzz, and from Lin's paper on ROUGE (2004)
    assert alike("fuzzy_match", "this is a test", "this is a test!") == pytest.approx(0.9655171966552734, abs=1e-6)
    kill, end = ("Police kill the gunman.", "the gunman kill police"), "police killed the GUNMAN"
    assert [alike("rouge_l", text, end) for text in kill] == [0.75, 0.5]
    assert [alike(f"rouge_{n}", kill[0], end) for n in (1, 2, 3)] == [0.75, pytest.approx(1 / 3), 0]
    assert [alike("rouge_1", "猫が座る", "猫が寝る"), alike("rouge_5", "a", "a"), alike("fuzzy_match", "", "")] == [
        0.75,
        0,
        0,
    ]


def test_the_longest_common_subsequence_is_that_of_the_plain_algorithm():
    generator = Random(1)
    for _case in range(50):
        one, other = ("".join(generator.choices("abc", k=generator.randrange(1, 80))) for _text in "ab")
        table = [[0] * (len(other) + 1) for _letter in f"{one}."]
        for row, column in itertools.product(range(len(one)), range(len(other))):
            found = table[row][column] + 1 if one[row] == other[column] else 0
            table[row + 1][column + 1] = max(found, table[row][column + 1], table[row + 1][column])
        assert alike("fuzzy_match", one, other) == 2 * table[-1][-1] / len(one + other)


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        ("0.5 * same + min(near, 0.25) ^ 2", 0.5625), ("-(same - near) / 2", -0.25), (" exp(log(same)) + 2 - 1", 2.0),
        ("same / (near - 0.5)", "ZeroDivisionError"), ("9 ^ 9 ^ 9 ^ 9", "OverflowError"), ("log(0)", "ValueError"),
        ("same + other", "SyntaxError.*same, near, min"), ("__import__('os')", "SyntaxError"),
        ("same.real", "SyntaxError"), ("min(near, key=same)", "SyntaxError"), ("(same", "SyntaxError"),
        ("(-same) ^ near", "not a finite number"),
    ],
)  # fmt: skip
def test_a_formula_of_several_graders(formula: str, expected: float | str):
    near = grader(type="text_similarity", evaluation_metric="fuzzy_match", reference="aab")
    both = {"type": "multi", "graders": {"same": grader(), "near": near}, "calculate_output": formula}
    if isinstance(expected, float):
        assert graded(both, "a", right="a") == [expected]
    else:
        with refused(expected):
            graded(both, "a", right="a")


def test_a_name_that_a_row_does_not_have_is_an_error():
    for name in ("item.rihgt", "sample.output_tools", "item.right.0.1"):
        with refused(r"prompts\.jsonl:1.*Error"):
            graded(grader(reference=f"{{{{{name}}}}}"), "a")
    with refused("the grader cannot be used.*EOF"):
        parse_rule("grader:{")


A = {"type": "object", "properties": {"x": {"type": "integer"}, "y": {"type": "string"}}, "required": ["x", "y"]}
REORDERED = '{"y": "a", "x": 1}'


def schema_scores(folder: Path, schema: dict[str, Any], *answers: str) -> list[Any]:
    path = folder / "s.json"
    path.write_text(json.dumps(schema), encoding="utf-8")
    return scores(f"schema:{path}", *answers)


@pytest.mark.parametrize(
    ("schema", "answer"),
    [
        ({"$defs": {"a": A}, "$ref": "#/$defs/a"}, REORDERED),
        ({"$defs": {"a": A}, "properties": {"b": {"$ref": "#/$defs/a"}}}, f'{{"b": {REORDERED}}}'),
        ({"$defs": {"a": A}, "items": {"$ref": "#/$defs/a"}}, f"[{REORDERED}]"),
        ({"anyOf": [A, {"type": "null"}]}, REORDERED),
        ({"oneOf": [{"type": "null"}, A]}, REORDERED),
        ({"allOf": [A]}, REORDERED),
        ({"prefixItems": [A]}, f"[{REORDERED}]"),
        ({"additionalProperties": A}, f'{{"b": {REORDERED}}}'),
        ({"const": {"x": 1, "y": "a"}}, REORDERED),
        ({"enum": [{"x": 1, "y": "a"}]}, REORDERED),
        (A, '{"x": 1.0, "y": "a"}'),
        ({"type": "integer"}, "1e3"),
        ({"type": "number", "minimum": 0}, "1e-7"),
    ],
)
def test_a_schema_allows_what_json_schema_says(schema: dict[str, Any], answer: str, tmp_path: Path):
    assert schema_scores(tmp_path, schema, answer, "[1", "") == [1.0, 0.0, 0.0]


def test_a_schema_of_pydantic_allows_what_the_model_does(tmp_path: Path):
    class Place(BaseModel):
        name: str
        metres: int = Field(ge=0)

    class Walk(BaseModel):
        first: Place
        rest: list[Place]
        day: date
        end: Place | None

    place = {"metres": 3, "name": "橋"}
    good = {"end": None, "rest": [place], "day": "2026-03-01", "first": place}
    bad = [
        {**good, "end": 1},
        {**good, "rest": [{}]},
        {**good, "day": "March"},
        {**good, "first": {**place, "metres": -1}},
    ]
    answers = [good, {**good, "end": place}, *bad, {"first": place}, []]
    texts = [json.dumps(answer) for answer in answers]

    def allows(text: str) -> float:
        try:
            return float(bool(Walk.model_validate_json(text)))
        except ValidationError:
            return 0.0

    assert schema_scores(tmp_path, Walk.model_json_schema(), *texts) == [allows(text) for text in texts]


def test_what_is_no_json_or_no_schema_or_takes_too_long(tmp_path: Path):
    numbers = {"type": "object", "properties": {"a": {"type": "number"}}}
    odd = ['{"a": NaN}', '{"a": Infinity}', '{"a": "\\ud800"}', "[" * 500, '{"a": 1} {"a": 1}', "x"]
    assert schema_scores(tmp_path, numbers, *odd) == [0.0] * 6
    with refused(r"s\.json.*unknown"):
        schema_scores(tmp_path, {"type": "unknown"}, "1")
    with refused(r"s\.json.*http://localhost:1/a"):  # which is not asked
        schema_scores(tmp_path, {"$ref": "http://localhost:1/a"}, "1")
    with refused("takes too long"):
        schema_scores(tmp_path, {"pattern": "^(a|a)+$"}, json.dumps("a" * 40 + "b"))


def test_a_function_gets_the_prompt_the_answer_and_the_fields_that_it_takes(tmp_path: Path):
    sums = "def reward(prompt, answer, right, answer_):\n    return len(prompt + answer) + right + answer_"
    assert scores(python(tmp_path, sums), "ab", "", right=10, answer=100, more="unused") == [116.0, 114.0]
    other = python(tmp_path, "import random\ndef other(prompt, answer, **fields):\n    return random.random()")
    assert scores(f"{other}:other", "a", "b") == scores(f"{other}:other", "a", "b"), "random numbers come again"


def test_a_function_of_trl_runs_unchanged(tmp_path: Path):
    text = (
        "def reward(completions, solution, **kwargs):\n"
        "    texts = [one[0]['content'] if isinstance(one, list) else one for one in completions]\n"
        "    print('a line that is no score')\n"
        "    return [None if text == '' else float(text == right) for text, right in zip(texts, solution)]\n"
    )
    rule = python(tmp_path, text)
    assert scores(rule, "4", "5", "", solution="4") == [1.0, 0.0, None]
    row = PromptRow([{"role": "user", "content": "2+2"}], {"solution": "4"}, "p:1")
    assert scores_of([parse_rule(rule)], [(row, "4")], "1", 10, print) == [(1.0,)]


def test_a_function_of_trl_gets_all_answers_to_a_prompt_at_once(tmp_path: Path):
    counts = "def reward(prompts, completions, n):\n    return [len(set(completions))] * n[0]"
    one, other = (PromptRow(name, {"n": 2}, f"p:{name}") for name in ("one", "other"))
    answered = [(one, "a"), (one, "b"), (other, "a"), (other, "a")]
    found = scores_of([parse_rule(python(tmp_path, counts))], answered, "1", 10, print)
    assert found == [(2.0,), (2.0,), (1.0,), (1.0,)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("raise ValueError('odd')", "ValueError: odd"),
        ("return float('nan')", "nan"),
        ("return 'good'", "'good'"),
        ("import os; os._exit(3)", "process ended"),
        ("while True: pass", "0.3 s"),
    ],
)
def test_an_answer_for_which_a_rule_fails_has_no_reward(line: str, reason: str, tmp_path: Path):
    rule = python(tmp_path, f"def reward(prompt, answer):\n    if answer == '5':\n        {line}\n    return 1")
    notes: list[str] = []
    found = scores(rule, *map(str, range(10)), seconds=0.3, notes=notes)
    assert [isinstance(one, str) for one in found] == [answer == 5 for answer in range(10)]
    assert found[6:] == [1.0] * 4, "the answers after it are scored"
    assert reward_of([parse_rule(rule)], [found[5]]) is None
    assert all(part in notes[0] for part in (reason, "prompts.jsonl:1", "'Why?'", "'5'"))


def test_a_rule_that_fails_too_often_is_an_error(tmp_path: Path):
    rule = python(tmp_path, "def reward(prompts, completions):\n    return [1, 2]")
    with refused(r"failed for 3 of 3.*it returned 2 numbers"):
        scores(rule, "a", "b", "c")
    with refused(r"SyntaxError"):
        scores(python(tmp_path, "def reward(:"), "a")
    with refused("no_such"):
        scores(f"{python(tmp_path, '')}:no_such", "a")


def test_a_command_writes_a_number_for_each_line(tmp_path: Path):
    program = tmp_path / "score"
    command = f"command:{sys.executable} {program}"
    lengths = "import json, sys\nfor row in map(json.loads, sys.stdin):\n    print(len(row['answer']) + row['more'])\n"
    program.write_text(lengths)
    assert scores(command, "a", "bcd; rm -rf $HOME", more=1) == [2.0, 18.0]
    for text, seconds, said in (
        (lengths, 10, "status 1, and 0 numbers for 2 answers"),  # the rows have no field `more`
        ("print(1)", 10, "1 numbers for 2 answers"),
        ("import time\ntime.sleep(9)", 0.2, "longer than 0.4 s"),
        ("print('null')\nprint('nan')", 10, "nan"),
    ):
        program.write_text(text)
        with refused(said):
            scores(command, "a", "b", seconds=seconds)
    with refused("cannot be started"):
        scores("command:no-such-program", "a")


def test_weights_add_up_and_rules_can_leave_answers_out():
    rules = [parse_rule(text) for text in ("0.5*regex:a", "-1 * regex:b", "field:right")]
    assert [(rule.weight, rule.text) for rule in rules] == [(0.5, "regex:a"), (-1.0, "regex:b"), (1.0, "field:right")]
    assert reward_of(rules, [1.0, 1.0, None]) == -0.5
    assert reward_of(rules, [None, None, None]) is None


@pytest.mark.parametrize("text", ["exact:4", "regex:", "rule.txt", "0.5*", ""])
def test_what_is_no_rule_is_an_error(text: str):
    with refused("no rule"):
        parse_rule(text)


def test_a_changed_rule_has_another_identity(tmp_path: Path):
    path = python(tmp_path, "def reward(prompt, answer): return 1")
    rules = (path, f"command:cat {path}", f"schema:{path}")
    before = [parse_rule(text).identity() for text in rules[:2]]
    python(tmp_path, "def reward(prompt, answer): return 2")
    assert all(parse_rule(text).identity() != old for text, old in zip(rules, before, strict=False))


def test_only_a_command_may_name_a_program(tmp_path: Path):
    refuse_programs(["regex:a", "0.5*field:right"], "run.yaml")
    for rule in (python(tmp_path, ""), "2*command:cat"):
        with refused("run.yaml"):
            refuse_programs(rule, "run.yaml")


def test_a_program_gets_every_character_of_a_row(tmp_path: Path):
    odd = "a\u2028b\x85c\u2029"
    length = "def reward(prompt, answer, note):\n    return len(note) + len(answer)"
    assert scores(python(tmp_path, length), odd, note=odd) == [12.0]
    code = "import json, sys\nfor line in sys.stdin.buffer:\n    print(len(json.loads(line)['note']))"
    (tmp_path / "score").write_text(code)
    assert scores(f"command:{sys.executable} {tmp_path / 'score'}", odd, note=odd) == [6.0]


def test_a_lone_surrogate_in_a_row_of_prompts_is_refused(tmp_path: Path):
    path = tmp_path / "p.jsonl"
    turns = [{"role": "user", "content": "\ud800"}]
    others = ({"note": "\udfff"}, {"\ud8ff": 1}, {"prompt": "a\ud800"}, {"prompt": turns})
    for row in ({"prompt": "a", **other} for other in others):
        path.write_text(json.dumps({"prompt": "b"}) + "\n" + json.dumps(row) + "\n")
        with refused(r"p\.jsonl:2 contains an unpaired surrogate"):
            read_prompts(str(path))


def test_prompts_are_texts_or_messages_and_keep_their_fields(tmp_path: Path):
    path = tmp_path / "p.jsonl"
    turns = [{"role": "user", "content": "x" * 300}]
    write_rows(path, ({"prompt": "a", "right": {"n": 1}}, {"prompt": turns}))
    one, other = read_prompts(str(path))
    assert (one.prompt, one.fields, other.prompt, other.fields) == ("a", {"right": {"n": 1}}, turns, {})
    assert other.text == "x" * 300
    path.write_text(json.dumps({"prompt": [{"role": "assistant", "content": "a"}]}))
    with refused(r"p\.jsonl:1"):
        read_prompts(str(path))
    (tmp_path / "t.txt").write_text("a text")
    with refused(r"t\.txt"):
        read_prompts(str(tmp_path / "t.txt"))
