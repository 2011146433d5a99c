"""A chat base that learns conversations learns its own answers to general questions as well, and is asked others."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.data.chat_templates import SHAPES
from tests.files import rows_of, write_rows
from tests.runs import assert_resumes, run_config, short_texts
from tests.tiny import byte_tokenizer, save_tiny, tiny_model
from tsugiki.data import Completion
from tsugiki.data.store import read_index
from tsugiki.io import ProgressDisplay
from tsugiki.report.record_text import run_notes
from tsugiki.training import RunConfig, SweepConfig, preview, rows_of_data, sweep, train
from tsugiki.training.data.general import general_questions
from tsugiki.training.run import load
from tsugiki.training.score.questions import read_questions

TEMPLATE = SHAPES["chatml"].template
ROWS = 20


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """The general questions of each time that the base answers them; a tiny model would write no sentence."""
    calls: list[Sequence[str]] = []

    def answers(model: Any, tokenizer: Any, questions: Sequence[str]) -> dict[str, str]:
        calls.append(questions)
        return {question: f"Answer {number}." for number, question in enumerate(questions)}

    monkeypatch.setattr(load, "answers_of", answers)
    return calls


def questions_file(folder: Path, rows: Sequence[tuple[str, str]] = ()) -> str:
    given = rows or [(f"{number}?", f"{number}{number}") for number in range(ROWS)]
    return write_rows(folder / "questions.jsonl", [{"prompt": asked, "completion": answer} for asked, answer in given])


def chat_config(folder: Path, out: str = "run", template: str | None = TEMPLATE, **changes: Any) -> RunConfig:
    """The settings of a run on questions, of a base that has this chat template."""
    base = folder / "base"
    if not base.exists():
        save_tiny(base, template=template, n_positions=512)
    given = {"data": changes.pop("data", None) or questions_file(folder), "block_size": 512, "prompts": [], **changes}
    return run_config(folder, out, model=str(base), **given)


def test_the_answers_of_the_base_are_learned_beside_the_rows(tmp_path: Path, asked: list[Any]):
    mixed, alone = train(chat_config(tmp_path)), train(chat_config(tmp_path, "alone", mix="none"))
    rows = alone.data.train.documents
    assert (alone.data.mixed, alone.data.train.documents) == (None, ROWS - alone.data.held_out.documents)
    assert mixed.data.mixed.documents == 24 == mixed.data.train.documents - rows
    assert list(mixed.data.mixed.general_answers) == list(asked[0])
    assert mixed.data.mixed.share == pytest.approx(
        1 - alone.data.target_tokens_per_epoch / mixed.data.target_tokens_per_epoch
    )
    assert len(asked) == 1
    train(chat_config(tmp_path, "again", learning_rate=2e-2))
    assert len(asked) == 1, "the answers of the base are in the cache"


@pytest.mark.parametrize(
    ("template", "changes"),
    [(TEMPLATE, {"mix": "none"}), (TEMPLATE, {"data": "texts"}), (None, {"chat_template": "default"}), (None, {})],
)
def test_nothing_is_mixed_in(tmp_path: Path, asked: list[Any], template: str | None, changes: dict[str, Any]):
    given = {**changes, "data": short_texts(tmp_path)} if "data" in changes else changes
    record = train(chat_config(tmp_path, template=template, **given))
    assert (asked, record.data.mixed) == ([], None)


def test_a_text_of_the_user_is_mixed_in_instead(tmp_path: Path, asked: list[Any]):
    (tmp_path / "other.txt").write_text("another text, which is plain\n" * 20)
    record = train(chat_config(tmp_path, mix=f"{tmp_path}/other.txt:0.5"))
    assert (asked, record.data.mixed.general_answers) == ([], {})
    assert record.data.mixed.share == pytest.approx(0.5, abs=0.05)


def test_a_run_that_is_continued_has_the_answers_of_its_record(
    tmp_path: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch
):
    def kept_nowhere(*given: Any) -> Any:
        return given[-1]()

    monkeypatch.setattr(load, "kept_of_base", kept_nowhere)
    assert_resumes(train, chat_config(tmp_path), 3)
    assert len(asked) == 2, "the whole run and the one that was interrupted; not the one that continued"


def test_general_questions_with_known_answers_are_asked_before_and_after(tmp_path: Path, asked: list[Any]):
    record = train(chat_config(tmp_path, max_steps=1))
    before, after = record.general_answers
    assert (before.step, after.step, before.questions) == (0, record.kept_step, 20)
    assert [one.question for one in before.answers] == [one.question for one in after.answers]
    (line,) = (note.text for note in run_notes(record) if "general questions" in note.text)
    assert line == "Of 20 general questions, the base answers 0 as expected, the adapter 0."


def test_methods_are_compared_with_one_set_of_answers(tmp_path: Path, asked: list[Any]):
    shared = chat_config(tmp_path).model_dump(exclude_unset=True, exclude={"model", "data", "out"})
    config = {"data": questions_file(tmp_path), "model": str(tmp_path / "base"), "out": str(tmp_path / "both")}
    compared = SweepConfig.model_validate({**config, "settings": shared, "methods": {"lora": {}, "full": {}}})
    records = [point.record for point in sweep(compared)]
    assert {record.data.mixed.documents for record in records} == {24}


def test_a_preview_has_the_answers_and_a_plan_the_number_of_rows(
    tmp_path: Path, asked: list[Any], capsys: pytest.CaptureFixture[str]
):
    shown = preview(chat_config(tmp_path), 100)
    text = "".join(span.text for row in shown.rows for segment in row.segments for span in segment.spans)
    assert "Answer 0." in text
    assert any("general questions" in note for note in shown.notes)
    asked.clear()
    config = chat_config(tmp_path, block_size=256)
    planned = rows_of_data(config, ProgressDisplay())
    assert "general questions" in capsys.readouterr().err
    assert planned > rows_of_data(config.model_copy(update={"mix": "none"}), ProgressDisplay())
    assert asked == [], "a plan loads no weights"


def chosen(rows: Sequence[tuple[str, str]], **changes: Any) -> Any:
    tokenizer = byte_tokenizer(TEMPLATE)
    records = [Completion(prompt, answer, str(number)) for number, (prompt, answer) in enumerate(rows)]
    texts = [tokenizer(prompt + answer).input_ids for prompt, answer in rows]
    store: Any = type("Store", (), {})()
    store.index, store.ids = read_index(records), np.concatenate(texts)
    store.offsets = np.cumsum([0, *map(len, texts)])
    config = RunConfig(model="m", data=("d",), out="o", **changes)
    return general_questions(config, tokenizer, store, np.arange(len(rows)))


def test_the_language_is_that_of_the_rows():
    english, japanese = ("What is it?", "A lamp."), ("それは何ですか。", "ランプです。")
    assert chosen([english] * 9).language == "en"
    assert chosen([japanese] * 9).language == "ja"
    assert chosen([english] * 9 + [japanese] * 3).language == "en"
    assert all(re.search("[ぁ-ん]", question) for question in chosen([japanese] * 9).learned)


@pytest.mark.parametrize(("rows", "questions"), [(1, 24), (72, 24), (73, 25), (300, 100)])
def test_more_rows_take_more_questions(rows: int, questions: int):
    assert len(chosen([("What is it?", "A lamp.")] * rows).learned) == questions


def test_a_question_of_the_rows_is_not_asked():
    first = chosen([("What is it?", "A lamp.")] * 9).learned
    with_it = chosen([("What is it?", "A lamp.")] * 8 + [(first[0].upper(), "Mine.")]).learned
    assert len(with_it) == len(first)
    assert first[0] not in with_it


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("word " * 58 + "One. Two is", "word " * 58 + "One."),
        ("word " * 58 + "3.7 and", None),
        ("word " * 58 + "It is warm. 1. First\n2.", "word " * 58 + "It is warm. 1. First"),
        ("晴れ" * 30 + "です。明日は", "晴れ" * 30 + "です。"),
        (" no end", "no end"),
        ("", None),
    ],
)
def test_a_long_answer_ends_with_a_sentence(monkeypatch: pytest.MonkeyPatch, text: str, expected: str | None):
    def answered(*given: Any) -> Any:
        return SimpleNamespace(answers=[SimpleNamespace(answer=text)])

    monkeypatch.setattr(load, "answer_questions", answered)
    model: Any = None
    assert load.answers_of(model, byte_tokenizer(), ["q"]) == ({} if expected is None else {"q": expected})


def test_a_base_that_has_no_room_for_a_question_learns_no_answers():
    assert (
        load.answers_of(
            tiny_model(n_positions=16), byte_tokenizer(TEMPLATE), ["What is it that you would like to know?"]
        )
        == {}
    )


def files_of(language: str) -> Iterator[list[str]]:
    folder = Path(load.__file__).parents[2] / "assets" / "general"
    yield [row["prompt"] for row in rows_of(folder / f"{language}.jsonl")]
    yield [question.text for question in read_questions(folder / f"{language}-known.jsonl")]


@pytest.mark.parametrize("language", ["en", "ja"])
def test_no_question_is_both_learned_and_asked(language: str):
    learned, known = files_of(language)
    assert len({*learned, *known}) == len(learned) + len(known)
    assert len(known) == 20
    assert len(learned) > 100
