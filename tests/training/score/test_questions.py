"""Questions with expected answers: what a file may hold, and answers that are written or chosen in each mode."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.data.chat_templates import TOOLS, tokenizer_of
from tests.errors import refused
from tests.serve.calling_model import ASK, CALLED, LIGHT, WEATHER
from tests.tiny import byte_tokenizer, logits, tiny_model
from tsugiki.data import Completion, Conversation, Message, read_row
from tsugiki.training import Answers, Question, answer_questions, change_of_share, question_of, read_questions

TALK = [{"role": "user", "content": "When?"}]


def written(folder: Path, *rows: Any) -> Path:
    """A file with these rows."""
    file = folder / "q.jsonl"
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return file


def test_all_kinds(tmp_path: Path):
    rows = [
        {"prompt": "2 + 2 =", "expected": "4"},
        {"prompt": "", "expected": ["a", "b"], "mode": "contains"},
        {"messages": TALK, "expected": r"\d{4}", "mode": "regex"},
        {"prompt": TALK, "choices": ["red", "loud"], "expected": "red"},
    ]
    file, talk = written(tmp_path, rows[0], "", *rows[1:]), (Message("user", "When?"),)
    one, two, three, four = read_questions(file)
    assert one == Question(f"{file}:1", "2 + 2 =", "exact", ("4",))
    assert two == Question(f"{file}:3", "", "contains", ("a", "b"))
    assert three == Question(f"{file}:4", talk, "regex", (r"\d{4}",))
    assert (four.prompt, four.mode, four.choices) == (talk, "choice", ("red", "loud"))
    with refused("nowhere.jsonl cannot be read"):
        read_questions(tmp_path / "nowhere.jsonl")
    assert one.answered("5") == Completion("2 + 2 =", "5", one.source)
    assert four.answered("red") == Conversation((*four.prompt, Message("assistant", "red")), four.source)


@pytest.mark.parametrize(
    ("row", "facts"),
    [
        ({"prompt": "a"}, ":1.*no expected"),
        ({"prompt": "a", "expected": []}, ":1.*expected"),
        ({"prompt": "a", "expected": " "}, ":1.*expected"),
        ({"prompt": 3, "expected": "a"}, ":1.*no prompt"),
        ({"messages": [], "expected": "a"}, ":1.*no prompt"),
        ({"messages": [*TALK, {"role": "assistant", "content": "x"}], "expected": "a"}, ":1.*assistant"),
        ({"messages": [{"role": "wizard", "content": "x"}], "expected": "a"}, ":1.*wizard"),
        ({"prompt": "a", "expected": "a", "mode": "fuzzy"}, ":1.*'fuzzy'.*exact, contains, regex, choice"),
        ({"prompt": "a", "expected": "(", "mode": "regex"}, ":1.*not a regular expression.*position"),
        ({"prompt": "a", "expected": "a", "mode": "choice"}, ":1.*no choices"),
        ({"prompt": "a", "expected": "a", "choices": ["a"]}, ":1.*two or more"),
        ({"prompt": "a", "expected": "a", "choices": ["a", "a"]}, ":1.*two or more different"),
        ({"prompt": "a", "expected": "c", "choices": ["a", "b"]}, ":1.*'c'"),
        ({"prompt": "a", "expected": "a", "choices": ["a", "b"], "mode": "exact"}, ":1.*exact"),
        ({"prompt": "\ud800", "expected": "a"}, ":1.*surrogate"),
        ("", "is empty"),
        ("[1]", ":1.*JSON object"),
    ],
)
def test_bad_input_is_one_line_with_the_place(row: Any, facts: str, tmp_path: Path):
    with refused(facts):
        read_questions(written(tmp_path, row))


TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


def says(model: Any, text: str, tokenizer: Any = None) -> Any:
    """Let a model write this text and then its end token, whatever it is asked: the n-th token after "=" or "a:"."""
    tokenizer = tokenizer or byte_tokenizer()
    words = model.config.vocab_size
    script = [*tokenizer(text, add_special_tokens=False).input_ids, 0]
    markers = {tokenizer(mark, add_special_tokens=False).input_ids[0] for mark in "=:"}

    def forward(module: Any, args: Any, given: dict[str, Any], output: Any) -> Any:
        new = given["input_ids"]
        state["ids"] = torch.cat([state["ids"], new], 1) if new.shape[1] == 1 else new
        for row, tokens in enumerate(state["ids"].tolist()):
            last = max(index for index, token in enumerate(tokens) if token in markers)
            at = min(len(tokens) - 1 - last, len(script) - 1)
            output.logits[row, -1] = torch.nn.functional.one_hot(torch.tensor(script[at]), words).float() * 50
        return output

    state: dict[str, Any] = {}
    model.register_forward_hook(forward, with_kwargs=True)
    return model


def answered(folder: Path, model: Any, *rows: dict[str, Any], tokens: int = 12) -> Answers:
    return answer_questions(model, byte_tokenizer(TEMPLATE), read_questions(written(folder, *rows)), tokens)


def test_written_answers_are_compared_in_each_mode(tmp_path: Path):
    rows = [
        {"prompt": "2 + 2 =", "expected": "4"},
        {"prompt": "the sum =", "expected": ["5", "4"]},
        {"prompt": "=", "expected": "four", "mode": "exact"},
        {"prompt": "x =", "expected": "4", "mode": "contains"},
        {"prompt": "y =", "expected": "44", "mode": "contains"},
        {"messages": TALK, "expected": r"^\s*\d\s*$", "mode": "regex"},
        {"messages": TALK, "expected": [r"\d\d"], "mode": "regex"},
    ]
    found = answered(tmp_path, says(tiny_model(vocab_size=257), " 4 "), *rows)
    assert [one.answer for one in found.answers] == [" 4 "] * 7
    assert [one.correct for one in found.answers] == [True, True, False, True, False, True, False]
    assert (found.questions, found.correct, found.share) == (7, 4, 4 / 7)
    assert [one.question for one in found.answers] == [*(row["prompt"] for row in rows[:5]), *[TALK[-1]["content"]] * 2]


@pytest.mark.parametrize("prompt", ["雨", TALK])
def test_the_choice_is_the_most_probable_text(prompt: Any, tmp_path: Path):
    model, tokenizer = tiny_model(vocab_size=257), byte_tokenizer()
    asked, ends = tokenizer("u:When?").input_ids, tokenizer("a:").input_ids
    start = [*asked, 0, *ends] if prompt is TALK else [0, *tokenizer("雨").input_ids]

    def log_probability(choice: str) -> float:
        ids = [*start, *tokenizer(choice).input_ids]
        scores = logits(model, torch.tensor([ids]))[0].double().log_softmax(-1)
        return sum(float(scores[i - 1, ids[i]]) for i in range(len(start), len(ids)))

    worst, second, third, best = sorted(["red", "loud", "雨", "a"], key=log_probability)
    choices = [second, best, worst, third]  # the best is neither the first nor the last
    rows = [{"prompt": prompt, "choices": choices, "expected": one} for one in (best, [worst, best], worst)]
    found = answered(tmp_path, model, *rows)
    assert [one.answer for one in found.answers] == [best] * 3
    assert [one.correct for one in found.answers] == [True, True, False]


def test_the_end_of_an_answer_does_not_count_in_a_choice(tmp_path: Path):
    model, tokenizer = tiny_model(vocab_size=257), byte_tokenizer()
    (red,), (blue,) = tokenizer("r").input_ids, tokenizer("b").input_ids

    def forward(module: Any, args: Any, given: dict[str, Any], output: Any) -> Any:
        output.logits.zero_()
        output.logits[..., red] = 1
        output.logits[..., 0] = torch.where(given["input_ids"] == blue, 30.0, 0.0)  # "b" is certainly the end
        return output

    model.register_forward_hook(forward, with_kwargs=True)
    found = answered(tmp_path, model, {"prompt": "x", "choices": ["b", "r"], "expected": "r"})
    assert found.correct == 1


def test_an_answer_ends_with_its_turn(tmp_path: Path):
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    tokenizer.chat_template = TEMPLATE.replace("<|endoftext|>", "<turn>")
    model = says(tiny_model(vocab_size=258), "4<turn>x", tokenizer)
    questions = read_questions(written(tmp_path, {"messages": TALK, "expected": "4"}))
    assert answer_questions(model, tokenizer, questions, 5).answers[0].answer == "4"


def test_tools_of_a_question_are_shown_or_refused(tmp_path: Path):
    rows = [{"messages": [ASK], "tools": [LIGHT], "expected": "4"}, {"messages": [ASK], "expected": "4"}]
    questions = read_questions(written(tmp_path, *rows))
    shown: list[str] = []
    model, tokenizer = tiny_model(vocab_size=261, n_positions=1024), tokenizer_of(TOOLS)

    def note(_module: Any, _args: Any, given: dict[str, Any], _output: Any) -> None:
        shown.extend(map(tokenizer.decode, given["input_ids"]))

    model.register_forward_hook(note, with_kwargs=True)
    answer_questions(model, tokenizer, questions, 1)
    assert {"light" in text for text in shown} == {True, False}
    assert '"light"' in questions[0].answered("4").tools  # with which a choice is scored
    with refused("q.jsonl:1 has tools"):
        answered(tmp_path, model, *rows)
    with refused("q.jsonl:1 has tools"):
        read_questions(written(tmp_path, {"prompt": "a", "tools": [LIGHT], "expected": "4"}))


def test_a_training_record_with_tools_is_a_question_with_them_and_one_that_ends_with_a_call_is_none():
    answer = {"role": "assistant", "content": "b"}
    talk, call = (read_row({"messages": turns, "tools": [WEATHER]}, "row") for turns in ([ASK, answer], CALLED))
    assert talk.tools
    assert question_of(talk) == Question("row", talk.messages[:1], "exact", ("b",), tools=talk.tools)
    assert question_of(call) is None


def test_a_model_that_cannot_read_a_question_is_an_error_that_names_it(tmp_path: Path):
    model = tiny_model(vocab_size=257)
    questions = read_questions(written(tmp_path, {"messages": TALK, "expected": "a"}))
    with refused("q.jsonl:1 is a conversation"):
        answer_questions(model, byte_tokenizer(), questions, 4)
    with refused("q.jsonl:2.* 64"):
        answered(tmp_path, model, {"prompt": "a", "expected": "a"}, {"prompt": "a" * 63, "expected": "a"})
    with refused("q.jsonl:1.* 64"):
        answered(tmp_path, model, {"prompt": "a", "expected": "a", "choices": ["a", "b" * 70]})


def test_a_regular_expression_that_takes_years(tmp_path: Path):
    rows = [{"prompt": "=", "expected": "a", "mode": "regex"}, {"prompt": "=", "expected": "(a|a)+b", "mode": "regex"}]
    with refused(r"q.jsonl:2.*\(a\|a\)\+b"):
        answered(tmp_path, says(tiny_model(vocab_size=257), "a" * 50), *rows, tokens=50)


def test_the_change_is_that_of_the_same_questions():
    def of(*correct: bool) -> Answers:
        answers = tuple({"source": str(i), "answer": "", "correct": one} for i, one in enumerate(correct))
        share = sum(correct) / len(correct)
        return Answers(questions=4, correct=sum(correct), share=share, share_interval=(0, 1), answers=answers)

    change, (low, high) = change_of_share(of(True, False, False, False), of(True, True, True, False))
    assert low < change == 0.5 < high
