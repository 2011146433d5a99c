"""Rows of answers become records, tokens and packed rows; what cannot be learned is named with its line."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.test_encoding import merging_tokenizer
from tests.errors import refused
from tests.files import write_rows
from tests.tiny import byte_tokenizer
from tsugiki.data import (
    DEFAULT_TEMPLATE,
    Reading,
    document_end,
    encode,
    read_answers,
)
from tsugiki.fast import (
    AnswerTokens,
)
from tsugiki.model import IGNORE_INDEX
from tsugiki.preference import TOO_LONG, Preferences, open_preferences, pack_preferences

USER, GOOD, BAD = (
    {"role": role, "content": text} for role, text in (("user", "Tea?"), ("assistant", "Yes."), ("assistant", "No!"))
)
ROW = {"prompt": "Tea? ", "chosen": "Yes.", "rejected": "No!"}


def file_of(folder: Path, *rows: Any) -> Path:
    return Path(write_rows(folder / "pairs.jsonl", rows))


def texts_of(path: Path, **options: Any) -> list[str]:
    return [record.text for record in read_answers(str(path), **options)]


def opened(folder: Path, *rows: Any, tokenizer: Any = None) -> Preferences:
    return open_preferences(str(file_of(folder, *rows)), tokenizer or byte_tokenizer(), folder / "cache")


def answers_of(preferences: Preferences, tokenizer: Any) -> list[tuple[str, str]]:
    """The prompt and the answer of every record, decoded."""
    store, found = preferences.store, []
    for first, end in zip(store.offsets[:-1], store.offsets[1:], strict=True):
        mask = store.loss_mask[first:end]
        begin = first + mask.argmax()
        stop = begin + mask.sum()
        assert mask[begin - first : stop - first].all(), "the template may write more after the answer"
        found.append((tokenizer.decode(store.ids[first:begin]), tokenizer.decode(store.ids[begin:stop])))
    return found


END = "<|endoftext|>"
TURNS = f"### user\nTea?\n\n### assistant\nNo!{END}\n\n"
PLAIN = [("Tea? ", f"Yes.{END}"), ("Tea? ", f"No!{END}")]
CHAT = [("### user\nTea?\n\n### assistant\n", f"Yes.{END}"), ("### user\nTea?\n\n### assistant\n", f"No!{END}")]


@pytest.mark.parametrize(
    ("row", "template", "before"),
    [
        (ROW, None, ""),
        ({"chosen": "Tea? Yes.", "rejected": "Tea? No!"}, None, ""),
        ({"question": "Tea?", "chosen": "Yes.", "rejected": "No!"}, DEFAULT_TEMPLATE, ""),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, DEFAULT_TEMPLATE, ""),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, DEFAULT_TEMPLATE, ""),
        ({"prompt": "Tea?", "chosen": [GOOD], "rejected": [BAD]}, DEFAULT_TEMPLATE, ""),
        ({"messages": [USER, GOOD], "chosen": [USER, GOOD], "rejected": [USER, BAD]}, DEFAULT_TEMPLATE, ""),
        ({"system": "be kind", **ROW, "prompt": "Tea?"}, DEFAULT_TEMPLATE, "### system\nbe kind\n\n"),
        ({"chosen": [USER, BAD, USER, GOOD], "rejected": [USER, BAD, USER, BAD]}, DEFAULT_TEMPLATE, TURNS),
    ],
)
def test_pairs_of_every_shape(row: dict[str, Any], template: str | None, before: str, tmp_path: Path):
    tokenizer = byte_tokenizer(template)
    preferences, expected = opened(tmp_path, row, tokenizer=tokenizer), CHAT if template else PLAIN
    assert answers_of(preferences, tokenizer) == [(END + before + prompt, answer) for prompt, answer in expected]
    assert (preferences.size, preferences.good.tolist(), preferences.usable.tolist()) == (2, [True, False], [0])


@pytest.mark.parametrize("label", [(True, False), (1, 0), ("True", "false")])
def test_single_answers_with_a_label(label: Any, tmp_path: Path):
    tokenizer = byte_tokenizer()
    rows = [
        {"prompt": "Tea? ", "completion": text, "label": one} for text, one in zip(("Yes.", "No!"), label, strict=True)
    ]
    preferences = opened(tmp_path, *rows, tokenizer=tokenizer)
    assert answers_of(preferences, tokenizer) == [(END + prompt, answer) for prompt, answer in PLAIN]
    assert (preferences.size, preferences.good.tolist(), preferences.usable.tolist()) == (1, [True, False], [0, 1])


def test_tables_give_the_same_texts(tmp_path: Path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected\nTea? ,Yes.,No!\n冷たい? ,Yes.,No!\n")
    parquet.write_table(arrow.Table.from_pylist([ROW, {**ROW, "prompt": "冷たい? "}]), tmp_path / "a.parquet")
    turns = [{"chosen": [USER, GOOD], "rejected": [USER, BAD]}]
    parquet.write_table(arrow.Table.from_pylist(turns), tmp_path / "turns.parquet")
    for name in ("a.csv", "a.parquet"):
        assert texts_of(tmp_path / name) == ["Tea? Yes.", "Tea? No!", "冷たい? Yes.", "冷たい? No!"], name
    assert texts_of(tmp_path / "turns.parquet") == ["Tea?\nYes.", "Tea?\nNo!"]


def test_columns_of_other_names(tmp_path: Path):
    path = file_of(tmp_path, {"ask": "Tea? ", "better": "Yes.", "worse": "No!", "id": "x"})
    columns, reading = {"prompt": "ask", "chosen": "better", "rejected": "worse"}, Reading()
    assert texts_of(path, columns=columns, reading=reading) == ["Tea? Yes.", "Tea? No!"]
    assert reading.unused == ["id"]
    with refused("pairs.jsonl:1 .*chosen and rejected.*--columns"):
        texts_of(path)


@pytest.mark.parametrize(
    ("prompt", "noted"),
    [("Tea?", False), ("User: Tea ?\nAssistant:", False), (None, False), ("Coffee?", True), ([USER], False)],
)
def test_a_prompt_beside_conversations_is_learned_once(prompt: Any, noted: bool, tmp_path: Path):
    """And another prompt is noted."""
    path, reading = file_of(tmp_path, {"prompt": prompt, "chosen": [USER, GOOD], "rejected": [USER, BAD]}), Reading()
    assert texts_of(path, reading=reading) == ["Tea?\nYes.", "Tea?\nNo!"]
    assert reading.other_prompts == [f"{path}:1"] * noted
    assert len(reading.notes()) == noted


def test_the_prompt_has_the_tokens_of_generation_in_both_answers(tmp_path: Path):
    tokenizer = merging_tokenizer()
    row = {"prompt": "Tea:", "chosen": "\nTea", "rejected": "x"}
    store = opened(tmp_path, row, tokenizer=tokenizer).store
    asked = [document_end(tokenizer), *encode(tokenizer, ["Tea:"])[0]]
    for first, end in zip(store.offsets[:-1], store.offsets[1:], strict=True):
        assert store.ids[first : first + len(asked)].tolist() == asked
        assert store.loss_mask[first:end].argmax() == len(asked)


def test_two_texts_part_between_tokens(tmp_path: Path):
    tokenizer = merging_tokenizer()
    rows = [{"chosen": "x: Tea", "rejected": "x: T"}, {"chosen": "a b", "rejected": "aT"}]
    preferences = opened(tmp_path, *rows, tokenizer=tokenizer)
    expected = [("x: T", "ea"), ("x: T", ""), ("a", " b"), ("a", "T")]
    assert answers_of(preferences, tokenizer) == [(END + prompt, answer + END) for prompt, answer in expected]
    assert preferences.usable.tolist() == [1], "the first rejected answer is empty"


def test_what_cannot_be_learned_is_left_out_and_named(tmp_path: Path):
    tokenizer = byte_tokenizer(
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[short]' if messages[-1]['content'] | length < 3 }}"
        "{{ m['content'] }}:{% else %}{% generation %}{{ m['content'].split('</think>')[-1] | trim }}<|endoftext|>"
        "{% endgeneration %}{% endif %}{% endfor %}"
    )

    answers = [("Yes.", "No, no."), ("Yes.", "Yes. "), ("Yes.", "hm</think> "), ("Yes.", "No"), (" ", "No, no.")]
    rows = [{"prompt": "Tea?", "chosen": chosen, "rejected": rejected} for chosen, rejected in answers]
    preferences = opened(tmp_path, *rows, tokenizer=tokenizer)
    assert preferences.usable.tolist() == [0]
    for line, fact in (("2", "same tokens"), ("3", "no tokens"), ("4", "same prompt"), ("5 (chosen)", "empty")):
        assert any(f"pairs.jsonl:{line}" in note and fact in note for note in preferences.notes()), preferences.notes()
    with refused("pairs.jsonl:1"):
        opened(tmp_path, rows[1], tokenizer=tokenizer)


def test_pairs_that_contradict_each_other_are_named(tmp_path: Path):
    rows = [{"prompt": "Tea?", "chosen": chosen, "rejected": rejected} for chosen, rejected in ("ab", "ac", "ba", "cb")]
    (note,) = opened(tmp_path, *rows).notes()
    assert note.startswith("2 examples contradict each other")
    assert note.endswith("pairs.jsonl:1, " + str(tmp_path / "pairs.jsonl:3"))


@pytest.mark.parametrize(
    ("row", "fact"),
    [
        ({"prompt": "x", "chosen": "y"}, "pairs.jsonl:2 has chosen but no rejected"),
        ({**ROW, "chosen": {"content": ""}}, r"pairs.jsonl:2 \(chosen\) has an object"),
        ({**ROW, "chosen": [GOOD]}, "pairs.jsonl:2.*list of messages"),
        ({"prompt": [USER], "chosen": "a", "rejected": "b"}, r"pairs.jsonl:2 \(chosen\).*is a text"),
        ({"chosen": [GOOD], "rejected": [BAD]}, r"pairs.jsonl:2 \(chosen\) begins with .*assistant"),
        ({"chosen": [USER, {"role": "bot", "content": "x"}], "rejected": [USER, BAD]}, "pairs.jsonl:2.*'bot'"),
        ({**ROW, "tools": [{"type": "function"}]}, "pairs.jsonl:2.*tools"),
        (
            {"prompt": "x", "completion": "y", "label": True},
            "pairs.jsonl:2 has prompt, completion and label, but line 1",
        ),
        ({"prompt": "x", "completion": "y"}, "pairs.jsonl:2 has prompt but no label"),
        ({"text": "x"}, "pairs.jsonl:2"),
    ],
)
def test_odd_rows_are_errors_that_name_the_line(row: dict[str, Any], fact: str, tmp_path: Path):
    with refused(fact):
        opened(tmp_path, ROW, row)


def test_a_label_is_true_or_false_and_a_text_is_no_answer(tmp_path: Path):
    with refused("pairs.jsonl:1 has 'maybe' as label"):
        opened(tmp_path, {"prompt": "x", "completion": "y", "label": "maybe"})
    single = file_of(tmp_path, {"prompt": "x", "completion": "y", "label": 1}).rename(tmp_path / "single.jsonl")
    paired = file_of(tmp_path, ROW)
    with refused(r"pairs.jsonl:1 \(chosen\).*single.jsonl:1 \(good\)"):
        open_preferences([str(single), str(paired)], byte_tokenizer(), tmp_path / "cache")
    (tmp_path / "story.txt").write_text("Tea.", encoding="utf-8")
    with refused("story.txt is a text"):
        texts_of(tmp_path / "story.txt")


STORIES = [
    f"第{i}の庭師が{'春夏秋冬'[i % 4]}に{i * 37 % 101}本の枝を{'切り' if i % 3 else '接ぎ'}、{i * i}日待った。"
    for i in range(12)
]


def pairs(count: int = 12) -> list[dict[str, str]]:
    return [{"prompt": STORIES[i], "chosen": f"実は{i}つ。", "rejected": f"{'ない' * (i + 1)}"} for i in range(count)]


def test_a_pair_is_one_row_and_near_duplicates_of_either_answer_are_a_group(tmp_path: Path):
    preferences = opened(tmp_path, *pairs(), {**pairs()[0], "chosen": "実は零個。"})
    assert preferences.groups() == [[0, 12]]


@pytest.mark.parametrize("shared", [False, True], ids=["two prompts", "one prompt"])
def test_a_row_holds_both_answers_of_its_pairs(shared: bool, tmp_path: Path):
    preferences = opened(tmp_path, *pairs())
    sizes = np.diff(preferences.store.offsets)[::2] + np.diff(preferences.store.offsets)[1::2]
    if shared:
        sizes -= [len(f"{one['prompt']}".encode()) + 1 for one in pairs()]  # and the token of the start
    limit = int(np.sort(sizes)[-2])
    blocks, too_long = pack_preferences(preferences, preferences.usable, limit, 0, share_prompts=shared)
    assert blocks.tokens == sizes.sum() - sizes.max()
    assert too_long.tolist() == [int(sizes.argmax())]
    assert f"pairs.jsonl:{int(sizes.argmax()) + 1}" in preferences.note(TOO_LONG, too_long.tolist(), limit)
    for number in range(len(blocks)):
        records = [segment.record for segment in blocks.row(number)]
        assert [record + 1 for record in records[::2]] == records[1::2]
        assert preferences.good[records].tolist() == [True, False] * (len(records) // 2)
        row = blocks[number]
        answers = AnswerTokens.find(row["labels"][None], row["position_ids"][None])
        store = preferences.store
        learned = [store.loss_mask[store.offsets[one] : store.offsets[one + 1]].sum() for one in records]
        assert answers.lengths == learned
        assert torch.equal(row["labels"][row["labels"] != IGNORE_INDEX], answers.targets)
        assert answers.share_prompts == shared
    assert blocks.target_tokens == sum(blocks.row_target_tokens(number) for number in range(len(blocks)))
    with refused("10 tokens"):
        pack_preferences(preferences, preferences.usable, 10, 0, share_prompts=shared)
