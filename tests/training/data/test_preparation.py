"""From data to rows and windows: what is held out, what is refused, and that two runs prepare the same."""

from pathlib import Path
from typing import Any

import pytest

from tests.data.test_splits import sentence
from tests.errors import refused
from tests.files import write_rows
from tests.tiny import TEXT, byte_tokenizer, tiny_model
from tests.tiny_types import tiny_of
from tsugiki.data import Window
from tsugiki.io import ProgressDisplay
from tsugiki.training import DataSummary, Division, PackedDataset, RunConfig, pack_data, read_data


def works(count: int = 20) -> list[dict[str, Any]]:
    return [{"text": sentence(i, 200 + i), "author": "AB"[i % 2], "title": f"t{i}"} for i in range(count)]


def copy_of(work: dict[str, Any]) -> dict[str, Any]:
    """A near-duplicate of a work."""
    return {**work, "text": work["text"][:-3] + "変更済", "title": "copy"}


def talk(question: str, answer: str, *before: dict[str, str]) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": [*before, *turns]}


def split(data: str, template: str | None = None, **settings: Any) -> Division:
    tokenizer = byte_tokenizer(template)
    config = RunConfig.model_validate({"model": "m", "data": data, "out": "o", **settings})
    return read_data(config, tokenizer, ProgressDisplay())


def prepare(data: str, model: Any = None, block_size: int = 64, **settings: Any) -> PackedDataset:
    model = model or tiny_model(vocab_size=257)
    model.name_or_path = "m"
    return pack_data(split(data, block_size=block_size, **settings), model, byte_tokenizer(), block_size)


def sources(windows: list[Window]) -> set[str]:
    return {window.record.source for window in windows}


def learned_sources(prepared: PackedDataset) -> set[str]:
    blocks = prepared.blocks
    return {blocks.store.index.sources[part.record] for row in range(len(blocks)) for part in blocks.row(row)}


def line_of(source: str) -> int:
    return int(source.partition(":")[2].partition(" ")[0])


def test_a_share_is_held_out_and_everything_counted():
    prepared = prepare(write_rows("w.jsonl", works()), held_out=0.2)
    summary, measured, learned = prepared.summary, sources(prepared.windows), learned_sources(prepared)
    assert summary.train.documents + summary.held_out.documents == 20
    assert measured
    assert not measured & learned
    texts = [work["text"] for i, work in enumerate(works(), 1) if f"w.jsonl:{i}" in learned]
    assert summary.target_tokens_per_epoch == sum(len(text.encode()) + 1 for text in texts)
    assert summary.blocks * 64 == summary.tokens_per_epoch + summary.padding
    assert DataSummary.model_validate_json(summary.model_dump_json()) == summary


def test_near_duplicates_are_on_one_side_and_told():
    prepared = prepare(write_rows("w.jsonl", [*works(), *map(copy_of, works(5))]), held_out=0.3)
    learned = {line_of(source) for source in learned_sources(prepared)}
    assert all((number in learned) == (number + 20 in learned) for number in range(1, 6))
    assert prepared.summary.near_duplicates.groups == 5
    assert any("near-duplicates of each other: 10 records in 5 groups" in note for note in prepared.notes)


def test_special_tokens_that_are_written_in_documents_are_told():
    texts = [work["text"] + ("<|endoftext|>" if place < 3 else "") for place, work in enumerate(works())]
    data = write_rows("s.jsonl", [{"text": text} for text in texts])
    for _cached in range(2):
        assert [note for note in split(data).notes if "special" in note] == [
            "3 special tokens are written in the texts, such as the end token, and are learned as such"
        ]
    assert not any("special" in note for note in split(write_rows("n.jsonl", works())).notes)


def test_rows_with_different_answers_are_no_duplicates():
    places = ["Marrow Bay", "Birchford", "Ashwell", "Colne", "Dunmore"]
    rows = [
        {
            "question": f"What are the opening hours of the shop in {place}?",
            "answer": f"The shop in {place} is open from 11:{n}5 to 20:00.",
        }
        for n, place in enumerate(places)
    ]
    data = write_rows("q.jsonl", [*rows, rows[0]])
    plain, dropped = (split(data, held_out="none", drop_duplicates=drop) for drop in (False, True))
    assert any("nearly alike: 5 records in 1 group, kept together" in note for note in plain.notes)
    assert not any("drop" in note for note in plain.notes), "no advice that loses facts"
    assert (plain.summary.near_duplicates.records, plain.summary.near_duplicates.groups) == (2, 1)
    kept = [line_of(dropped.store.index.sources[number]) for number in dropped.train.tolist()]
    assert (len(plain.train), kept) == (6, [1, 2, 3, 4, 5])
    assert any("2 records in 1 group; only the longest one" in note for note in dropped.notes)


@pytest.mark.parametrize("copies", [1, 10])
def test_held_out_questions_of_other_kinds_than_the_trained_ones_are_told(copies: int):
    texts = [work["text"] for work in works()]
    texts += [text + "変更済" for text in texts[:copies]]
    rows = [{"question": text, "answer": "はい", "part": "ab"[10 <= i < 20]} for i, text in enumerate(texts)]
    notes = split(write_rows("q.jsonl", rows), held_out="part=a").notes
    assert any("no question like" in note for note in notes) == (copies == 10)


def test_some_short_documents_choose_the_step():
    prepared = prepare(write_rows("w.jsonl", works(60)))
    learned, held_out = learned_sources(prepared), sources(prepared.windows)
    validation = sources(prepared.validation_windows)
    assert len(learned) + len(held_out) + len(validation) == len(learned | held_out | validation) == 60
    counts = prepared.summary.validation
    assert not counts.from_held_out
    assert 5 <= counts.documents == len(validation) <= 8
    without = prepare(write_rows("w.jsonl", works(60)), validation="none")
    assert learned_sources(without) == learned | validation
    assert sources(without.windows) == held_out


def test_of_few_documents_every_second_held_out_window_chooses_the_step():
    data = write_rows("w.jsonl", works(10))
    prepared, without = prepare(data, held_out=0.4), prepare(data, held_out=0.4, validation="none")
    assert learned_sources(prepared) == learned_sources(without)
    assert prepared.validation_windows == without.windows[::2]
    assert prepared.windows == without.windows[1::2]
    assert prepared.summary.validation.from_held_out
    assert any("little text is kept aside" in note for note in prepared.notes)
    measured = prepared.summary.held_out.measured_characters
    assert measured == sum(len(window.record.text) for window in prepared.windows)


def test_near_duplicates_of_validation_documents_are_not_learned():
    prepared = prepare(write_rows("w.jsonl", [*works(60), *map(copy_of, works(60))]), validation=0.3)
    chosen = {line_of(source) for source in sources(prepared.validation_windows)}
    assert chosen == {(number + 59) % 120 + 1 for number in chosen}  # both of each pair
    assert len(chosen) > 10


def test_a_validation_file_and_a_condition():
    train = write_rows("w.jsonl", works(30))
    prepared = prepare(train, validation=write_rows("v.jsonl", [{"text": sentence(99, 200)}]))
    assert sources(prepared.validation_windows) == {"v.jsonl:1"}
    assert learned_sources(prepared) == learned_sources(prepare(train, validation="none"))
    prepared = prepare(train, validation="author=B")
    for found, rest in ((sources(prepared.validation_windows), 0), (learned_sources(prepared), 1)):
        assert {line_of(source) % 2 for source in found} == {rest}


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("validation", "w.jsonl", "no record is left for training: all of them repeat held-out or validation text"),
        ("validation", 1.5, "validation is 1.5; a share"),
        ("validation", "kind=B", "no record has a field kind"),
        ("mix", "w.jsonl", "mix is .* write PATH:SHARE"),
        ("mix", "w.jsonl:0", "mix is .* write PATH:SHARE"),
        ("mix", ":0.1", "mix is .* write PATH:SHARE"),
    ],
)
def test_texts_that_cannot_be(setting: str, value: Any, said: str):
    with refused(said):
        prepare(write_rows("w.jsonl", works(30)), **{setting: value})


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_other_text_is_mixed_in(share: float):
    other = write_rows("other.jsonl", [{"text": sentence(200 + i, 300)} for i in range(40)])
    prepared = prepare(write_rows("w.jsonl", works(30)), mix=f"{other}:{share}")
    without = prepare("w.jsonl")
    counts = prepared.summary.mixed
    assert counts.share == pytest.approx(share, abs=2e-3)
    added = learned_sources(prepared) - learned_sources(without)
    assert learned_sources(prepared) - added == learned_sources(without)
    assert {source.partition(":")[0] for source in added} == {"other.jsonl"}
    assert (prepared.windows, prepared.validation_windows) == (without.windows, without.validation_windows)
    assert prepared.summary.target_tokens_per_epoch - without.summary.target_tokens_per_epoch == counts.tokens
    assert prepare("w.jsonl", mix=f"{other}:{share}", seed=7).summary.mixed != counts


def test_the_share_of_a_mix_is_one_of_the_loss_and_its_characters_are_those_that_are_learned():
    pairs = [{"prompt": sentence(i, 12), "completion": sentence(100 + i, 2)} for i in range(40)]
    novel = sentence(500, 9000)
    Path("novel.txt").write_text(novel)
    prepared = prepare(write_rows("p.jsonl", pairs), mix="novel.txt:0.25", validation="none")
    blocks = prepared.blocks
    in_loss = sum(int((blocks[row]["labels"] != -100).sum()) for row in range(len(blocks)))
    answers = prepared.summary.train.documents - 1
    of_answers = answers * (2 * 3 + 1)  # three bytes for each character, and the token that ends the answer
    assert in_loss == prepared.summary.target_tokens_per_epoch
    assert (in_loss - of_answers) / in_loss == pytest.approx(0.25, abs=0.5 / in_loss)
    mixed = prepared.summary.mixed
    assert mixed.characters == pytest.approx(mixed.tokens / 3, abs=1)
    assert prepared.summary.train.characters == answers * 14 + mixed.characters


def test_held_out_text_is_not_mixed_in():
    records = works(30)
    data = write_rows("w.jsonl", records)
    near = [copy_of(records[line_of(source) - 1]) for source in sources(prepare(data).windows)]
    fresh = {"text": sentence(300, 300)}
    prepared = prepare(data, mix=f"{write_rows('o.jsonl', [*near, fresh])}:0.9")
    assert {source for source in learned_sources(prepared) if source.startswith("o.")} == {f"o.jsonl:{len(near) + 1}"}
    with refused("all records of o.jsonl are held-out text"):
        prepare(data, mix=f"{write_rows('o.jsonl', near)}:0.1")


def test_two_preparations_are_the_same_and_other_data_is_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    data = write_rows("w.jsonl", works())
    one = prepare(data).summary
    assert prepare(data).summary == one
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another cache"))
    assert prepare(data).summary == one, "with or without a cache"
    write_rows("w.jsonl", works(21))
    assert prepare(data).summary.blocks_fingerprint != one.blocks_fingerprint


def test_a_model_that_cannot_isolate_documents_says_so_and_one_that_attends_to_later_tokens_is_an_error():
    data, bert = write_rows("w.jsonl", works()), tiny_of("bert", vocab_size=257, is_decoder=False)
    with refused(r"BertLMHeadModel attends to later tokens.*is_decoder"):
        prepare(data, bert)
    prepared = prepare(data, tiny_model("bloom", vocab_size=257))
    assert prepared.document_masking == "separate_rows"
    assert any("m cannot mask documents" in note for note in prepared.notes)
    assert all(len(prepared.blocks.row(i)) == 1 for i in range(len(prepared.blocks)))


CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_conversations_are_cut_counted_and_refused_by_line():
    data = write_rows("t.jsonl", [talk("問", sentence(i, 1 + i)) for i in range(12)])
    whole = prepare(data, template=CHATML, held_out=0.3)
    assert whole.summary.cut_records == 0
    assert not sources(whole.windows) & learned_sources(whole)
    cut = prepare(data, template=CHATML, held_out=0.3, block_size=56)
    assert cut.summary.cut_records > 0
    assert any("longer than a row of 56 tokens" in note for note in cut.notes)
    with refused(r"t.jsonl:\d+.* 20 tokens"):
        prepare(data, template=CHATML, block_size=20)
    with refused("t.jsonl:1 .*--chat-template default"):
        prepare(data)


def test_a_single_document_gives_its_end():
    Path("novel.txt").write_text(TEXT)
    prepared = prepare("novel.txt")
    assert any("its last 10% is held out" in note for note in prepared.notes)
    held_out = "".join(window.record.text for window in prepared.windows)
    assert TEXT.endswith(held_out)
    assert prepared.summary.target_tokens_per_epoch == len(TEXT[: -len(held_out)].encode()) + 1
