"""Rows of answers become records, tokens and packed rows; what cannot be learned is named with its line."""

import csv
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.test_encoding import merging_tokenizer
from tests.tiny import byte_tokenizer, tiny_model
from tsugiki import TsugikiError, use_fast_paths
from tsugiki.data import (
    DEFAULT_TEMPLATE,
    Collator,
    Reading,
    StepBatches,
    content_key,
    document_end,
    encode,
    open_store,
    read_answers,
    read_records,
    split_records,
)
from tsugiki.fast import (
    AnswerTokens,
    answer_log_probabilities,
    detect_document_masking,
    shares_prompts,
)
from tsugiki.model import IGNORE_INDEX
from tsugiki.preference import Preferences, open_preferences, pack_preferences

USER, GOOD, BAD = (
    {"role": role, "content": text} for role, text in (("user", "Tea?"), ("assistant", "Yes."), ("assistant", "No!"))
)
ROW = {"prompt": "Tea? ", "chosen": "Yes.", "rejected": "No!"}


def file_of(folder: Path, *rows: Any) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


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
PLAIN = [("Tea? ", f"Yes.{END}"), ("Tea? ", f"No!{END}")]
CHAT = [("### user\nTea?\n\n### assistant\n", f"Yes.{END}"), ("### user\nTea?\n\n### assistant\n", f"No!{END}")]


@pytest.mark.parametrize(
    ("row", "template", "found"),
    [
        (ROW, None, PLAIN),
        ({"chosen": "Tea? Yes.", "rejected": "Tea? No!"}, None, PLAIN),
        ({**ROW, "prompt": "Tea?"}, DEFAULT_TEMPLATE, CHAT),
        ({"question": "Tea?", "chosen": "Yes.", "rejected": "No!"}, DEFAULT_TEMPLATE, CHAT),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, DEFAULT_TEMPLATE, CHAT),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, DEFAULT_TEMPLATE, CHAT),
        ({"prompt": "Tea?", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, DEFAULT_TEMPLATE, CHAT),
        ({"prompt": "Tea?", "chosen": [GOOD], "rejected": [BAD]}, DEFAULT_TEMPLATE, CHAT),
        ({"messages": [USER, GOOD], "chosen": [USER, GOOD], "rejected": [USER, BAD]}, DEFAULT_TEMPLATE, CHAT),
        (
            {"system": "be kind", **ROW, "prompt": "Tea?"},
            DEFAULT_TEMPLATE,
            [("### system\nbe kind\n\n" + prompt, answer) for prompt, answer in CHAT],
        ),
        (
            {"chosen": [USER, BAD, USER, GOOD], "rejected": [USER, BAD, USER, BAD]},
            DEFAULT_TEMPLATE,
            [(f"### user\nTea?\n\n### assistant\nNo!{END}\n\n" + prompt, answer) for prompt, answer in CHAT],
        ),
    ],
)
def test_pairs_of_every_shape(row: dict[str, Any], template: str | None, found: Any, tmp_path: Path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    preferences = opened(tmp_path, row, tokenizer=tokenizer)
    assert answers_of(preferences, tokenizer) == [(END + prompt, answer) for prompt, answer in found]
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


def test_every_file_format_gives_the_same_tokens(tmp_path: Path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [ROW, {**ROW, "prompt": "冷たい? "}]
    lines = file_of(tmp_path, *rows)
    (tmp_path / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        with (tmp_path / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [*ROW], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    turns = [{"chosen": [USER, GOOD], "rejected": [USER, BAD]}]
    parquet.write_table(arrow.Table.from_pylist(turns), tmp_path / "turns.parquet")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(lines, "pairs.jsonl")
    wanted = [record.text for record in read_answers(str(lines))]
    assert wanted == ["Tea? Yes.", "Tea? No!", "冷たい? Yes.", "冷たい? No!"]
    for name in ("a.json", "a.csv", "a.tsv", "a.parquet", "a.zip"):
        assert [record.text for record in read_answers(str(tmp_path / name))] == wanted, name
    assert [record.text for record in read_answers(str(tmp_path / "turns.parquet"))] == ["Tea?\nYes.", "Tea?\nNo!"]


def test_columns_of_other_names(tmp_path: Path):
    path = file_of(tmp_path, {"ask": "Tea? ", "better": "Yes.", "worse": "No!", "id": "x"})
    columns, reading = {"prompt": "ask", "chosen": "better", "rejected": "worse"}, Reading()
    assert [record.text for record in read_answers(str(path), columns, reading)] == ["Tea? Yes.", "Tea? No!"]
    assert reading.unused == ["id"]
    with pytest.raises(TsugikiError, match="pairs.jsonl:1 .*chosen and rejected.*--columns"):
        list(read_answers(str(path)))


@pytest.mark.parametrize(
    ("prompt", "noted"),
    [("Tea?", False), ("User: Tea ?\nAssistant:", False), (None, False), ("Coffee?", True), ([USER], False)],
)
def test_a_prompt_beside_conversations_is_not_learned_twice_and_another_one_is_noted(
    prompt: Any, noted: bool, tmp_path: Path
):
    path, reading = file_of(tmp_path, {"prompt": prompt, "chosen": [USER, GOOD], "rejected": [USER, BAD]}), Reading()
    assert [record.text for record in read_answers(str(path), reading=reading)] == ["Tea?\nYes.", "Tea?\nNo!"]
    assert reading.other_prompts == [f"{path}:1"] * noted
    assert len(reading.notes()) == noted


def test_the_prompt_has_the_tokens_of_generation_in_both_answers(tmp_path: Path):
    tokenizer = merging_tokenizer()
    rows = [
        {"prompt": "花", "chosen": "梅 T", "rejected": "Tea"},
        {"prompt": "Tea:", "chosen": "\nTea", "rejected": "x"},
    ]
    preferences = opened(tmp_path, *rows, tokenizer=tokenizer)
    store = preferences.store
    for record, prompt in enumerate(["花", "花", "Tea:", "Tea:"]):
        asked = [document_end(tokenizer), *encode(tokenizer, [prompt])[0]]
        first = store.offsets[record]
        assert store.ids[first : first + len(asked)].tolist() == asked
        assert store.loss_mask[first : store.offsets[record + 1]].argmax() == len(asked)
    assert len(preferences.usable) == 2


def test_two_texts_part_between_tokens(tmp_path: Path):
    tokenizer = merging_tokenizer()
    preferences = opened(
        tmp_path, {"chosen": "x: Tea", "rejected": "x: T"}, {"chosen": "a b", "rejected": "aT"}, tokenizer=tokenizer
    )
    assert answers_of(preferences, tokenizer) == [
        (f"{END}x: T", f"ea{END}"),
        (f"{END}x: T", END),
        (f"{END}a", f" b{END}"),
        (f"{END}a", f"T{END}"),
    ]
    assert preferences.usable.tolist() == [2], "the first rejected answer is empty"


def test_what_cannot_be_learned_is_left_out_and_named(tmp_path: Path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[short]' if messages[-1]['content'] | length < 3 }}"
        "{{ m['content'] }}:{% else %}{% generation %}{{ m['content'].split('</think>')[-1] | trim }}<|endoftext|>"
        "{% endgeneration %}{% endif %}{% endfor %}"
    )

    def row(chosen: str, rejected: str) -> dict[str, str]:
        return {"prompt": "Tea?", "chosen": chosen, "rejected": rejected}

    rows = [
        row("Yes.", "No, no."),
        row("Yes.", "Yes. "),
        row("Yes.", "hm</think> "),
        row("Yes.", "No"),
        row(" ", "No, no."),
    ]
    preferences = opened(tmp_path, *rows, tokenizer=tokenizer)
    assert preferences.usable.tolist() == [0]
    notes = "\n".join(preferences.notes)
    for line, fact in ((2, "same tokens"), (3, "no tokens"), (4, "same prompt")):
        assert any(f"pairs.jsonl:{line}" in note and fact in note for note in preferences.notes), notes
    assert any("pairs.jsonl:5 (chosen)" in note and "empty" in note for note in preferences.notes), notes
    with pytest.raises(TsugikiError, match="pairs.jsonl:1"):
        opened(tmp_path, rows[1], tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("row", "fact"),
    [
        ({"prompt": "x", "chosen": "y"}, "pairs.jsonl:2 has chosen but no rejected"),
        ({**ROW, "chosen": 5}, r"pairs.jsonl:2 \(chosen\) has a number"),
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
    with pytest.raises(TsugikiError, match=fact):
        opened(tmp_path, ROW, row)


def test_a_label_is_true_or_false(tmp_path: Path):
    with pytest.raises(TsugikiError, match="pairs.jsonl:1 has 'maybe' as label"):
        opened(tmp_path, {"prompt": "x", "completion": "y", "label": "maybe"})
    single = file_of(tmp_path, {"prompt": "x", "completion": "y", "label": 1}).rename(tmp_path / "single.jsonl")
    paired = file_of(tmp_path, ROW)
    with pytest.raises(TsugikiError, match=r"pairs.jsonl:1 \(chosen\).*single.jsonl:1 \(good\)"):
        open_preferences([str(single), str(paired)], byte_tokenizer(), tmp_path / "cache")


def test_a_text_is_no_answer(tmp_path: Path):
    file_of(tmp_path, ROW)
    (tmp_path / "story.txt").write_text("Tea.", encoding="utf-8")
    with pytest.raises(TsugikiError, match="story.txt is a text"):
        list(read_answers(str(tmp_path)))


def test_training_on_texts_reads_the_same_file_as_before(tmp_path: Path):
    row = {"prompt": "Tea? ", "completion": "Yes.", "label": False}
    path, tokenizer = file_of(tmp_path, row), byte_tokenizer()
    preferences = open_preferences(str(path), tokenizer, tmp_path / "cache")
    texts = open_store(read_records(str(path)), content_key(str(path)), tokenizer, "all", tmp_path / "cache")
    assert (preferences.store.index.fields[0], texts.index.fields[0]) == ({"answer": "bad"}, {})


STORIES = [
    f"第{i}の庭師が{'春夏秋冬'[i % 4]}に{i * 37 % 101}本の枝を{'切り' if i % 3 else '接ぎ'}、{i * i}日待った。"
    for i in range(12)
]


def pairs(count: int = 12) -> list[dict[str, str]]:
    return [{"prompt": STORIES[i], "chosen": f"実は{i}つ。", "rejected": f"{'ない' * (i + 1)}"} for i in range(count)]


def test_pairs_and_their_near_duplicates_stay_on_one_side(tmp_path: Path):
    rows = [*pairs(), {**pairs()[0], "chosen": "実は零個。"}]
    preferences = opened(tmp_path, *rows)
    groups = preferences.groups()
    assert {len(group) for group in groups} == {2, 4}
    assert [0, 1, 24, 25] in groups
    sides = {0: set[bool](), 1: set[bool]()}
    for seed in range(16):
        held_out = set(split_records(preferences.store.index, 0.4, seed, groups).tolist())
        assert held_out
        assert all({2 * i, 2 * i + 1} <= held_out or not {2 * i, 2 * i + 1} & held_out for i in range(13))
        for record, seen in sides.items():
            seen.add(record in held_out)
            assert (record in held_out) == (24 in held_out)
    assert sides[0] == {True, False}


@pytest.mark.parametrize("shared", [False, True], ids=["two prompts", "one prompt"])
def test_a_row_holds_both_answers_of_its_pairs(shared: bool, tmp_path: Path):
    preferences = opened(tmp_path, *pairs())
    sizes = np.diff(preferences.store.offsets)[::2] + np.diff(preferences.store.offsets)[1::2]
    if shared:
        sizes -= [len(f"{one['prompt']}".encode()) + 1 for one in pairs()]  # and the token of the start
    limit = int(np.sort(sizes)[-2])
    blocks, too_long, notes = pack_preferences(preferences, preferences.usable, limit, 0, share_prompts=shared)
    assert blocks.tokens == sizes.sum() - sizes.max()
    assert too_long.tolist() == [2 * int(sizes.argmax())]
    assert f"pairs.jsonl:{int(sizes.argmax()) + 1}" in notes[0]
    seen = []
    for number in range(len(blocks)):
        records = [segment.record for segment in blocks.row(number)]
        assert [record + 1 for record in records[::2]] == records[1::2]
        assert not preferences.good[records[1::2]].any()
        assert preferences.good[records[::2]].all()
        row = blocks[number]
        answers = AnswerTokens.find(row["labels"][None], row["position_ids"][None])
        learned = [
            preferences.store.loss_mask[preferences.store.offsets[r] : preferences.store.offsets[r + 1]].sum()
            for r in records
        ]
        assert answers.lengths == learned
        assert torch.equal(row["labels"][row["labels"] != IGNORE_INDEX], answers.targets)
        assert answers.share_prompts == shared
        seen += records
    assert sorted(seen) == sorted({*range(24)} - {too_long[0], too_long[0] + 1})
    assert blocks.target_tokens == sum(blocks.row_target_tokens(number) for number in range(len(blocks)))
    with pytest.raises(TsugikiError, match="10 tokens"):
        pack_preferences(preferences, preferences.usable, 10, 0, share_prompts=shared)


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "opt"])
def test_one_copy_of_the_prompt_gives_the_same_log_probabilities(kind: str, tmp_path: Path):
    rows = [*pairs(3), {"chosen": "Tea? Yes.", "rejected": "Tea? No!"}]
    preferences = opened(tmp_path, *[{**row, "prompt": row["prompt"][:4]} if "prompt" in row else row for row in rows])
    model = tiny_model(kind, vocab_size=257, max_position_embeddings=128)
    masking = detect_document_masking(model)
    use_fast_paths(model)
    assert shares_prompts(model, masking)
    found = []
    for shared in (False, True):
        blocks, *_ = pack_preferences(preferences, preferences.usable, 128, 0, share_prompts=shared)
        batches, of_record = StepBatches(blocks, Collator(masking), 2, 0), {}
        assert len(blocks) > 1
        for step in range(batches.steps_per_epoch):
            batch = batches.batch(batches.rows(step))
            answers = AnswerTokens.find(batch.pop("labels"), batch["position_ids"])
            records = [segment.record for row in batches.rows(step) for segment in blocks.row(row)]
            values = answer_log_probabilities(model, answers, **batch).tolist()
            of_record |= dict(zip(records, values, strict=True))
        found.append([of_record[record] for record in sorted(of_record)])
        assert len(found[-1]) == 8
    np.testing.assert_allclose(*found, rtol=1e-4)
    assert len({round(value, 3) for value in found[0]}) == 8
