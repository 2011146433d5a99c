"""Text that repeats held-out or validation text is not trained on, and what is left out is counted and named."""

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from tests.data.test_splits import sentence
from tests.errors import refused
from tests.files import write_rows
from tests.tiny import byte_tokenizer
from tests.training.data import test_preparation as preparation
from tests.training.data.test_preparation import CHATML, line_of, sources, talk
from tsugiki.training import Division

SEQUENCE = 12


split = partial(preparation.split, template=CHATML)


def learned_sources(prepared: Division) -> set[str]:
    return {prepared.store.index.sources[record] for record in prepared.train.tolist()}


def prose(seed: int, length: int = 1500) -> str:
    """Words in random order, all of which are in every text, with punctuation and lines."""
    words = [sentence(1000 + number, 2 + number % 3) for number in range(300)]
    chosen = random.Random(seed).choices([*words, *["、", "。\n　"] * 6], k=length)
    return "".join(chosen)[:length]


def replaced(text: str, share: float) -> str:
    random_numbers = random.Random(7)
    return "".join(random_numbers.choice("山川草木") if random_numbers.random() < share else c for c in text)


# What is planted in the training text, and the largest share of the held-out text that may then be trained on.
PLANTED: dict[str, tuple[Callable[[str], str], float]] = {
    "exact copy": (lambda text: text, 0.0),
    "other white space": (lambda text: "\n\n".join(text.replace("　", " ").split("\n")), 0.0),
    "10 % replaced": (lambda text: replaced(text, 0.1), 0.0),
    "20 % replaced": (lambda text: replaced(text, 0.2), 0.1),
    "first half": (lambda text: text[:750], 0.0),
    "in a text twice as long": (lambda text: prose(101, 750) + text + prose(102, 750), 0.0),
    "in a text 10 times as long": (lambda text: prose(105, 6000) + text + prose(106, 7500), 0.0),
    "in such a text, 2 % replaced": (lambda text: prose(107) + replaced(text, 0.02) + prose(108), 0.0),
    "a fifth of it, alone": (lambda text: text[300:600], 0.0),
    "a fifth of it, as a quotation": (lambda text: prose(109, 600) + text[300:600] + prose(110, 600), 0.2),
}


def shares_learned(texts: list[str], prepared: Division) -> list[float]:
    """Return for each text the share of its sequences of 12 characters that are in the training records."""
    learned: set[str] = set()
    for record in prepared.train.tolist():
        start, end = prepared.store.offsets[record] + 1, prepared.store.offsets[record + 1] - 1
        text = byte_tokenizer().decode(prepared.store.ids[start:end].tolist())
        learned |= {text[place : place + SEQUENCE] for place in range(len(text))}
    sequences = [[text[place : place + SEQUENCE] for place in range(len(text) - SEQUENCE)] for text in texts]
    return [sum(sequence in learned for sequence in one) / len(one) for one in sequences]


@pytest.mark.parametrize(
    ("held_out", "validation"), [("part=test", "none"), ("h.jsonl", "none"), ("o.jsonl", "h.jsonl")]
)
def test_planted_copies_of_held_out_text(held_out: str, validation: str):
    held = [prose(number) for number in range(len(PLANTED))]
    train = [prose(number) for number in range(200, 230)]
    planted = [plant(text) for (plant, _), text in zip(PLANTED.values(), held, strict=True)]
    scored = [{"text": text, "part": "test"} for text in held]
    rows = [{"text": text, "part": "train"} for text in [*train, *planted]]
    data = write_rows("w.jsonl", [*rows, *(scored if held_out == "part=test" else [])])
    write_rows("h.jsonl", scored)
    write_rows("o.jsonl", [{"text": prose(300)}])
    changes = {"held_out": held_out, "validation": validation}
    prepared = split(data, **changes)
    shares = dict(zip(PLANTED, shares_learned(held, prepared), strict=True))
    for name, (_, most) in PLANTED.items():
        assert shares[name] <= most + 0.02, (name, shares[name])
    assert {f"w.jsonl:{number}" for number in range(1, 31)} <= learned_sources(prepared)
    left_out = prepared.summary.left_out
    assert left_out.documents == (3 if held_out == "part=test" else 8), "near-duplicates are held out by a condition"
    kind = "held out" if validation == "none" else "validation"
    assert any("left out of training" in note and f" ({kind}: " in note for note in prepared.notes)
    kept = split(data, allow_overlap=True, **changes)
    assert shares_learned([held[6]], kept)[0] > 0.95
    assert kept.summary.left_out.documents == 0
    assert any("trained on, although" in note for note in kept.notes)


def test_a_file_of_which_all_is_trained_on_is_refused():
    data = write_rows("w.jsonl", [{"text": prose(number)} for number in range(20)])
    with refused(r"no record is left for training.* w.jsonl:1 \(held out: w.jsonl:1\)"):
        split(data, held_out=data)


def test_short_held_out_lines_and_common_phrases_leave_the_corpus_in_place():
    phrase, licence = prose(1, 20), prose(2, 400)
    rows = [{"text": prose(10 + number, 600) + phrase + licence + prose(50 + number, 600)} for number in range(30)]
    scored = [{"text": phrase}, {"text": licence + prose(90, 100)}]
    prepared = split(write_rows("w.jsonl", rows), held_out=write_rows("h.jsonl", scored), validation="none")
    assert len(learned_sources(prepared)) == 30
    assert prepared.summary.left_out.documents == 0


def test_validation_text_that_repeats_held_out_text_is_left_out():
    held = [{"text": prose(number)} for number in range(3)]
    data, file = (
        write_rows("w.jsonl", [{"text": prose(10 + number)} for number in range(25)]),
        write_rows("h.jsonl", held),
    )
    near, longer = {"text": prose(0)[:-3] + "変更済"}, {"text": prose(60) + prose(1) + prose(61)}
    fresh = {"text": prose(70)}
    prepared = split(data, held_out=file, validation=write_rows("v.jsonl", [near, longer, fresh]))
    assert sources(prepared.validation_windows) == {"v.jsonl:3"}
    assert prepared.summary.validation.documents == 1
    assert any("left out of the validation text" in note and "2 records: v.jsonl:1" in note for note in prepared.notes)
    data = write_rows(
        "x.jsonl", [{"text": prose(10 + n), "part": "train"} for n in range(25)] + [longer | {"part": "v"}]
    )
    with refused("no record is left for validation"):
        split(data, held_out=file, validation="part=v")


def test_if_all_validation_pairs_repeat_held_out_ones_these_choose_the_step():
    data = answered_rows("dpo", 1)
    answers = split(data, preference="dpo", held_out=data, allow_overlap=True).answers
    assert len({*answers["held_out"][1], *answers["validation"][1]}) == 100


def test_a_note_says_that_the_retention_text_is_trained_on():
    data, other = (
        write_rows("w.jsonl", [{"text": prose(n)} for n in range(10)]),
        write_rows("o.jsonl", [{"text": prose(80)}]),
    )
    apart = {"validation": "none", "held_out": write_rows("h.jsonl", [{"text": prose(90)}])}

    def notes(**settings: Any) -> str:
        return " ".join(note for note in split(data, **settings, **apart).notes if "retention" in note)

    assert "10 records that are trained on repeat" in notes(retention_data=data)
    assert not notes(retention_data=other)
    assert "1 record that" in notes(retention_data=other, mix=f"{other}:0.1")


@pytest.mark.parametrize("kind", ["completion", "conversation"])
def test_a_pair_that_asks_a_held_out_question_is_left_out(kind: str):
    def pair(question: str, answer: str) -> dict[str, Any]:
        if kind == "completion":
            return {"prompt": question, "completion": answer}
        return talk(question, answer, {"role": "system", "content": "短く答えてください。"})

    pairs = [pair(sentence(number, 12), sentence(100 + number, 8)) for number in range(30)]
    held = [pair(sentence(number, 12), sentence(200 + number, 8)) for number in (3, 4)]
    data, file = write_rows("w.jsonl", pairs), write_rows("h.jsonl", held)
    prepared = split(data, held_out=file, validation="none")
    assert learned_sources(prepared) == {f"w.jsonl:{n}" for n in range(1, 31)} - {"w.jsonl:4", "w.jsonl:5"}
    # An instruction that most pairs share is no question.
    pairs = [pair("続きを書いてください。", sentence(100 + number, 8)) for number in range(30)]
    file = write_rows("h.jsonl", [pair("続きを書いてください。", sentence(300, 8))])
    prepared = split(write_rows("w.jsonl", pairs), held_out=file, validation="none")
    assert len(learned_sources(prepared)) == 30


def answered_rows(kind: str, answers: int, questions: list[str] | None = None) -> str:
    """A hundred different answers, so many to each question."""
    rows: list[dict[str, Any]] = []
    for number in range(100):
        question = questions[number] if questions else sentence(500 + number // answers, 20)
        answer, other = sentence(1000 + number, 40), sentence(2000 + number, 40)
        shapes: dict[str, dict[str, Any]] = {
            "questions": {"prompt": question, "completion": answer},
            "conversations": talk(question, answer),
            "dpo": {"prompt": question, "chosen": answer, "rejected": other},
            "kto": {"prompt": question, "completion": answer, "label": number % 2 == 0},
        }
        rows.append(shapes[kind])
    return write_rows(f"{kind}-{answers}.jsonl", rows)


def divided(kind: str, answers: int, questions: list[str] | None = None, validation: Any = 0.1) -> Division:
    """The division of such rows, of which a fifth is held out."""
    preference = kind if kind in ("dpo", "kto") else None
    data = answered_rows(kind, answers, questions)
    return split(data, held_out=0.2, validation=validation, preference=preference)


def parts_of(prepared: Division, answers: int) -> dict[str, set[int]]:
    """The questions of the training, held-out and validation records."""
    numbers = {"training": learned(prepared), **{kind: part.kept for kind, part in prepared.parts.items()}}
    source = prepared.parts["held-out"].corpus.index.sources
    return {name: {(line_of(source[one]) - 1) // answers for one in some.tolist()} for name, some in numbers.items()}


def learned(prepared: Division) -> Any:
    """The numbers of the rows that are trained on."""
    return prepared.answers["training"][1] if prepared.answers else prepared.train


@pytest.mark.parametrize(
    ("kind", "answers"), [("questions", 5), ("conversations", 2), ("dpo", 5), ("kto", 2), ("dpo", 1)]
)
def test_answers_to_one_question_are_on_one_side_and_none_is_left_out(kind: str, answers: int):
    prepared = divided(kind, answers)
    parts = parts_of(prepared, answers).values()
    assert sum(map(len, parts)) == len(set().union(*parts))
    assert prepared.summary.left_out.documents == 0
    assert len(learned(prepared)) >= 70, "with five answers, 15 of 100 rows were trained on"
    assert not any("one by one" in note for note in prepared.notes)


FROZEN = {
    "questions": "c5b7 6c4d f7d6",
    "conversations": "ea4e b58e d6af",
    "dpo": "c5b7 6c4d f7d6",
    "kto": "76a8 cf7d 8bd3",
}
"""The ends of the fingerprints of the training, held-out and validation rows."""


@pytest.mark.parametrize("kind", FROZEN)
def test_one_seed_divides_as_ever(kind: str):
    counted = divided(kind, 2).summary
    parts = counted.train, counted.held_out, counted.validation
    assert " ".join(part.fingerprint[-4:] for part in parts) == FROZEN[kind]


@pytest.mark.parametrize(("kind", "greetings"), [("questions", 13), ("dpo", 40), ("questions", 100)])
def test_answers_to_a_greeting_are_split_one_by_one_with_a_note(kind: str, greetings: int):
    questions = [sentence(500 + number, 20) if number >= greetings else "こんにちは" for number in range(100)]
    prepared = divided(kind, 1, questions)
    assert prepared.summary.left_out.documents == 0
    counts = {name: sum(row < greetings for row in rows) for name, rows in parts_of(prepared, 1).items()}
    assert sum(counts.values()) == greetings
    assert min(counts["training"], counts["held-out"]) > 0
    (note,) = (note for note in prepared.notes if "one by one" in note)
    assert note.startswith(f"{greetings} records ask")


def test_nothing_is_said_of_held_out_answers_where_there_are_none():
    rows = [{"prompt": "こんにちは", "completion": sentence(number, 20)} for number in range(20)]
    notes = split(write_rows("w.jsonl", rows), held_out="none", validation="none").notes
    assert not any("one by one" in note for note in notes)


def test_a_condition_holds_out_no_others_that_ask_the_same():
    asked = [*(number // 2 for number in range(60)), *range(90, 99)]
    pairs = [{"prompt": sentence(one, 20), "completion": sentence(n, 40)} for n, one in enumerate(asked, 100)]
    rows = [pair | {"by": "AB"[number % 2]} if number < 60 else pair for number, pair in enumerate(pairs)]
    prepared = split(write_rows("w.jsonl", rows), held_out="by=A", validation="none")
    assert prepared.summary.held_out.documents == 30
    assert (prepared.summary.left_out.documents, len(prepared.train)) == (30, 9)


def test_answers_to_one_question_count_as_one_in_the_intervals():
    prepared = divided("questions", 5, validation="none")
    assert {window.group for window in prepared.windows} == set(range(0, 20, 5))
