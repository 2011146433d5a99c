"""`tsugiki eval`."""

import json
from pathlib import Path

from tests.files import rows_of, write_rows
from tests.tiny import TEXT, save_tiny


def test_eval_puts_models_and_adapters_in_one_table(trained: str, run, tmp_path: Path):
    other = save_tiny(tmp_path / "other", seed=1)
    Path("texts").mkdir()
    for i in range(3):
        Path(f"texts/t{i}.txt").write_text(TEXT[i * 100 : i * 100 + 90])
    status, out, _ = run("eval", "--data", "texts", "--model", trained, "--model", other, "--adapter", "run", "--json")
    assert status == 0
    rows = rows_of(out)
    assert [(row["model"], row["adapter"]) for row in rows] == [(trained, None), (other, None), (trained, "run")]
    assert rows[2]["loss"] < rows[0]["loss"]
    assert len(rows[0]["documents"]) == 3
    assert rows[0]["bits_per_char_interval"][0] < rows[0]["bits_per_char"] < rows[0]["bits_per_char_interval"][1]

    out = run("eval", "--data", "texts", "--adapter", "run", "--json")[1]  # an adapter names its base
    assert rows_of(out) == [rows[0], rows[2]], "which is measured beside it"
    out = run("eval", "--data", "texts", "--model", trained, "--adapter", "run")[1]
    assert out.count("[") >= 5, "intervals stand beside the figures"


def test_eval_of_fewer_characters(base: str, run):
    Path("long.txt").write_text(TEXT * 5)
    out = run("eval", "--data", "long.txt", "--model", base, "--characters", "1000", "--json")[1]
    assert 512 <= json.loads(out.splitlines()[-1])["characters"] <= 1500
    out = run("eval", "--data", "long.txt", "--model", base, "--characters", "600")[1]
    assert "--characters 600 was rounded up to 1,024" in out


def test_eval_of_questions(trained: str, run):
    rows = [{"prompt": "a", "expected": "x"}, {"prompt": "枝", "choices": ["を", "が"], "expected": ["を", "が"]}]
    write_rows("q.jsonl", rows)
    flags = ("--questions", "q.jsonl", "--model", trained, "--adapter", "run", "--max-new-tokens", "3")
    out = run("eval", *flags, "--json")[1]
    found = rows_of(out)
    assert [(row["model"], row["adapter"]) for row in found] == [(trained, None), (trained, "run")]
    for row in found:
        assert (row["questions"], row["correct"], row["share"]) == (2, 1, 0.5)
        assert row["share_interval"][0] < 0.5 < row["share_interval"][1]
        assert [answer["correct"] for answer in row["answers"]] == [False, True]
    out = run("eval", *flags)[1]
    assert out.count("1 of 2") == 2
    assert "+0.0 [" in out
