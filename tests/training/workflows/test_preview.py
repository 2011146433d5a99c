"""The preview shows the rows that training takes, as they are."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.runs import one_thread
from tests.tiny import TEXT, save_tiny
from tsugiki.data import StepBatches
from tsugiki.report import count_lines, to_html, to_terminal
from tsugiki.training import Preview, RunConfig, preview, train


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.chdir(tmp_path)
    rows: list[dict[str, Any]] = [{"text": f"{i} <b> " + TEXT[i * 50 : i * 50 + 30 + i * 17]} for i in range(12)]
    Path("d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RunConfig(
        model=save_tiny(tmp_path / "base"),
        data="d.jsonl",
        out="run",
        block_size=64,
        batch_size=2,
        epochs=1,
    )


def shown(config: RunConfig, rows: int = 3) -> Preview:
    return preview(config, rows)


def row_text(row: Any) -> str:
    return "".join(span.text for segment in row.segments for span in segment.spans)


def test_it_shows_the_rows_of_the_first_batches(config: RunConfig, monkeypatch: pytest.MonkeyPatch):
    rows = shown(config, 4).rows
    taken: list[Any] = []

    batch = StepBatches.batch

    def watched(batches: StepBatches, rows: list[int]) -> Any:
        found = batch(batches, rows)
        taken.extend(found["input_ids"].tolist())
        return found

    monkeypatch.setattr(StepBatches, "batch", watched)
    with one_thread():
        train(config)
    from tests.tiny import byte_tokenizer

    texts = [byte_tokenizer().decode(ids[: 64 - row.padding]) for row, ids in zip(rows, taken, strict=False)]
    incomplete = "\N{REPLACEMENT CHARACTER}"  # a character of which a part is in another row is not shown
    assert any(incomplete in text for text in texts)
    assert [row_text(row) for row in rows] == [text.replace(incomplete, "") for text in texts]
    assert len(rows) == 4


def test_its_counts_are_those_of_the_run(config: RunConfig):
    counts = shown(config).counts
    record = train(config)
    assert counts.steps == record.training.steps
    assert counts.target_tokens_per_epoch == record.training.tokens
    assert counts.blocks_fingerprint == record.data.blocks_fingerprint
    assert counts.seconds > 0


def test_the_longest_record_is_one_that_is_trained_on(config: RunConfig):
    lines = Path("d.jsonl").read_text()
    Path("d.jsonl").write_text(lines + json.dumps({"text": TEXT[:900], "part": "test"}) + "\n")
    counts = shown(config.model_copy(update={"held_out": "part=test"})).counts
    assert counts.longest_record != "d.jsonl:13"
    assert counts.longest_tokens < 900


def test_targets_context_special_tokens_and_cuts_are_distinguished(config: RunConfig):
    Path("t.jsonl").write_text(
        "".join(json.dumps({"prompt": f"問{i}", "completion": "答え" * (1 if i else 20)}) + "\n" for i in range(9))
    )
    config = config.model_copy(update={"data": "t.jsonl", "block_size": 48})
    segments = [segment for row in shown(config, 20).rows for segment in row.segments]
    whole = next(segment for segment in segments if segment.last)
    assert [span.kind for span in whole.spans] == ["context special", "context", "target", "target special"]
    assert whole.spans[2].text == "答え"
    cut = [segment for segment in segments if not segment.last]
    assert all(not segment.continues and segment.spans[-1].kind == "target" for segment in cut)


def test_both_displays_hold_text_counts_and_cuts(config: RunConfig):
    from rich.console import Console

    found = shown(config, 50)
    page = to_html(found)
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(to_terminal(found, colours=False))
    text = console.export_text()
    for label, value in count_lines(found):
        assert label.strip() in text
        assert value in page or "<" in value
    assert "&lt;b&gt;" in page
    assert "<b>" not in page, "text is text, not markup"
    assert "http" not in page, "nothing is fetched"
    assert "✂" in page
    assert "⟦" in text
    assert "<|endoftext|>" in text
