"""The preview shows the rows that training takes, as they are, and notes on base, tokenizer and targets."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from rich.console import Console

from tests.files import jsonl, write_rows
from tests.runs import one_thread, run_config
from tests.tiny import TEXT, byte_tokenizer, save_tiny
from tsugiki.data import StepBatches
from tsugiki.report import count_lines, to_terminal
from tsugiki.report.preview import to_html
from tsugiki.training import RunConfig, preview, train

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.chdir(tmp_path)
    rows: list[dict[str, Any]] = [{"text": f"{i} <b> " + TEXT[i * 50 : i * 50 + 30 + i * 17]} for i in range(12)]
    write_rows("d.jsonl", rows)
    return RunConfig(model=save_tiny("base"), data="d.jsonl", out="run", block_size=64, batch_size=2, epochs=1)


def row_text(row: Any) -> str:
    return "".join(span.text for segment in row.segments for span in segment.spans)


def in_terminal(found: Any, **options: Any) -> str:
    """What a terminal of 100 columns shows of a preview."""
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(to_terminal(found, colours=False, **options))
    return console.export_text()


def test_it_shows_the_rows_and_the_counts_of_the_run(config: RunConfig):
    shown, taken = preview(config, 4), []
    batch = StepBatches.batch

    def watched(batches: StepBatches, rows: list[int]) -> Any:
        found = batch(batches, rows)
        taken.extend(found["input_ids"].tolist())
        return found

    with mock.patch.object(StepBatches, "batch", watched), one_thread():
        record = train(config)
    texts = [byte_tokenizer().decode(ids[: 64 - row.padding]) for row, ids in zip(shown.rows, taken, strict=False)]
    incomplete = "\N{REPLACEMENT CHARACTER}"  # a character of which a part is in another row is not shown
    assert any(incomplete in text for text in texts)
    assert [row_text(row) for row in shown.rows] == [text.replace(incomplete, "") for text in texts]
    assert len(texts) == 4
    counts = shown.counts
    assert counts.steps == record.training.steps
    assert counts.target_tokens_per_epoch == record.training.tokens
    assert counts.blocks_fingerprint == record.data.blocks_fingerprint
    assert counts.seconds > 0


def test_the_longest_record_is_one_that_is_trained_on(config: RunConfig):
    lines = Path("d.jsonl").read_text()
    Path("d.jsonl").write_text(lines + jsonl([{"text": TEXT[:900], "part": "test"}]))
    counts = preview(config.model_copy(update={"held_out": "part=test"}), 3).counts
    assert counts.longest_record != "d.jsonl:13"
    assert counts.longest_tokens < 900


def test_targets_context_special_tokens_and_cuts_are_distinguished(config: RunConfig):
    write_rows("t.jsonl", [{"prompt": f"問{i}", "completion": "答え" * (1 if i else 20)} for i in range(9)])
    config = config.model_copy(update={"data": "t.jsonl", "block_size": 48, "chat_template": "none"})
    segments = [segment for row in preview(config, 20).rows for segment in row.segments]
    whole = next(segment for segment in segments if segment.last)
    assert [span.kind for span in whole.spans] == ["context special", "context", "target", "target special"]
    assert whole.spans[2].text == "答え"
    cut = [segment for segment in segments if not segment.last]
    assert all(not segment.continues and segment.spans[-1].kind == "target" for segment in cut)


def test_both_displays_hold_text_counts_and_cuts(config: RunConfig):
    found = preview(config, 50)
    page, text = to_html(found), in_terminal(found)
    for label, value in count_lines(found):
        assert label.strip() in text
        assert value in page or "<" in value
    assert "&lt;b&gt;" in page
    assert "<b>" not in page, "text is text, not markup"
    assert "http" not in page, "nothing is fetched"
    assert "✂" in page
    assert "⟦" in text
    assert "<|endoftext|>" in text


def test_it_fits_a_screen_and_says_how_much_is_left_out(config: RunConfig):
    found = preview(config, 1)
    names = [[f"texts/{group}.txt:{number}" for number in range(12)] for group in range(9)]
    groups = found.counts.near_duplicates.model_copy(update={"first": names})
    long = [replace(row, segments=row.segments * 30) for row in found.rows]
    found = replace(found, rows=tuple(long), counts=found.counts.model_copy(update={"near_duplicates": groups}))
    found = replace(found, notes=("確率がほぼ 0 です。" * 20,))
    text = in_terminal(found, verbose=False)
    assert len(text.splitlines()) <= 40
    assert "more lines of this row" in text
    assert "0.txt:0 · 0.txt:1 · 0.txt:2 · 0.txt:3 · 0.txt:4 · … and 7 more" in " ".join(text.replace("│", "").split())
    assert text.index("training time") < text.index("note: ")
    note = text[text.index("note: ") :].splitlines()[0]
    assert len(note) > 50, "a Japanese line is filled, although it has few spaces"
    whole = in_terminal(found)
    assert len(whole.splitlines()) > len(text.splitlines()) + 5
    assert "… and" not in whole


TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


def notes(folder: Path, data: str | None = None, template: str | None = None, **settings: Any) -> str:
    base = save_tiny(folder / "model", template=template)
    if data is not None:
        path = folder / ("data.jsonl" if data.startswith("{") else "data.txt")
        path.write_text(data)
        settings["data"] = str(path)
    return " ".join(preview(run_config(folder, model=base, block_size=64, **settings), 1).notes)


def test_a_chat_model_on_other_data_is_reported(tmp_path: Path):
    words = ["scion", "stock", "graft", "orchard", "knife", "bark", "root", "spring", "bud", "leaf"]
    pairs = [(f"{word}?", f"{i * 7919} {word}") for i, word in enumerate(words)]
    completions = jsonl({"prompt": p, "completion": c} for p, c in pairs)
    turns = [[{"role": "user", "content": p}, {"role": "assistant", "content": c}] for p, c in pairs]
    chat = jsonl({"messages": messages} for messages in turns)
    assert "plain text" in notes(tmp_path / "a", "A plain text.\n" * 90, TEMPLATE)
    assert "--chat-template none" in notes(tmp_path / "b", completions, TEMPLATE)
    assert "chat template" not in notes(tmp_path / "c", chat, TEMPLATE)
    assert "chat template" not in notes(tmp_path / "d", "A plain text.\n" * 90)


def test_characters_in_pieces_and_targets_that_leave_out_most_of_the_model_are_reported(tmp_path: Path):
    japanese = notes(tmp_path / "a", lora={"target_modules": ["c_attn"]})
    english = notes(tmp_path / "b", "A plain text.\n" * 90, lora={"target_modules": "all-linear"})
    for said in ("parts of characters", "of the weights between"):
        assert (said in japanese, said in english) == (True, False)
    assert ("single letters" in japanese, "single letters" in english) == (False, True)
