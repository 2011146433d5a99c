"""`tsugiki eval`."""

import json
from pathlib import Path

from tests.runs import TRAIN
from tests.tiny import TEXT, save_tiny


def test_eval_puts_models_and_adapters_in_one_table(base: str, run, tmp_path: Path):
    other = save_tiny(tmp_path / "other", seed=1)
    assert run("train", "--model", base, *TRAIN)[0] == 0
    for i in range(3):
        Path(f"t{i}.txt").write_text(TEXT[i * 100 : i * 100 + 90])
    Path("texts").mkdir()
    for i in range(3):
        Path(f"t{i}.txt").rename(f"texts/t{i}.txt")
    status, out, _ = run("eval", "--data", "texts", "--model", base, "--model", other, "--adapter", "run", "--json")
    assert status == 0
    rows = [json.loads(line) for line in out.splitlines()]
    assert [(row["model"], row["adapter"]) for row in rows] == [(base, None), (other, None), (base, "run")]
    assert rows[2]["loss"] < rows[0]["loss"]
    assert len(rows[0]["documents"]) == 3
    assert rows[0]["bits_per_char_interval"][0] < rows[0]["bits_per_char"] < rows[0]["bits_per_char_interval"][1]

    status, out, _ = run("eval", "--data", "texts", "--adapter", "run")
    assert status == 0, "an adapter names its base"
    status, out, _ = run("eval", "--data", "texts", "--model", base, "--adapter", "run")
    assert out.count("[") >= 5, "intervals stand beside the figures"
    status, out, err = run("eval", "--data", "texts")
    assert (status, out) == (2, "")
    assert "nothing to evaluate" in err
    status, out, err = run("eval", "--data", "texts", "--model", other, "--adapter", "run")
    assert (status, out) == (2, "")
    assert "--allow-base-mismatch" in err


def test_eval_of_fewer_characters(base: str, run):
    Path("long.txt").write_text(TEXT * 5)
    status, out, _ = run("eval", "--data", "long.txt", "--model", base, "--characters", "1000", "--json")
    assert status == 0
    assert 512 <= json.loads(out.splitlines()[-1])["characters"] <= 1500
