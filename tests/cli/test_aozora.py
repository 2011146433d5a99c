"""`tsugiki aozora`: its output and its errors."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tests.cli.imports import output_without
from tests.data.read.aozora.samples import ROWS, index_csv, make_mirror
from tests.data.read.aozora.test_text import zipped
from tsugiki.cli import aozora_command, as_command
from tsugiki.data import INDEX
from tsugiki.errors import TsugikiError

app = typer.Typer()
app.command()(as_command(aozora_command))


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    return make_mirror(tmp_path / "mirror")


def run(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_writes_the_chosen_works_and_one_summary_line(mirror, tmp_path):
    out = tmp_path / "works.jsonl"
    result = run("--source", mirror, "--kana", "old", "--out", out)
    assert result.exit_code == 0, result.output
    (line,) = out.read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["title"] == "海の底"
    assert result.stdout == ""
    summary, following = result.stderr.splitlines()
    assert summary.startswith("1 work, 8 characters, 0 without a code (〓), 0 skipped, 0 missing, ")
    assert "works/s" in summary
    assert following.startswith("next: tsugiki preview ")


def test_skipped_works_are_named(mirror, tmp_path):
    (mirror / "cards/000001/files/1_ruby.zip").write_bytes(b"PK nonsense")
    result = run("--source", mirror, "--out", tmp_path / "works.jsonl")
    assert result.exit_code == 0
    warning, summary, *_ = result.stderr.splitlines()
    assert warning.startswith("skipped cards/000001/files/1_ruby.zip: a damaged zip")
    assert "2 works" in summary
    assert "1 without a code (〓), 1 skipped, 0 missing" in summary


def test_a_missing_file_is_one_line_with_status_2_and_no_output(mirror, tmp_path):
    index = mirror / f"{INDEX}.csv"
    index.write_bytes(index_csv(ROWS[:4]))
    (mirror / "cards/000002/files/3_ruby.zip").unlink()
    out = tmp_path / "works.jsonl"
    command = [sys.executable, "-c", "from tsugiki.cli.main import main; main()", "aozora"]
    result = subprocess.run(
        [*command, "--source", mirror, "--out", out], capture_output=True, encoding="utf-8", check=False
    )
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert f"{index}: line 4: " in line
    assert line.endswith("--skip-missing")
    assert list(tmp_path.glob("works*")) == []
    counted = run("--source", mirror, "--out", out, "--skip-missing")
    assert counted.exit_code == 0
    missing, summary, *_ = counted.stderr.splitlines()
    assert missing.startswith(f"missing {index}: line 4: ")
    assert "2 works" in summary
    assert "0 skipped, 1 missing" in summary


def test_refuses_an_existing_target_before_anything_else(tmp_path):
    out = tmp_path / "works.jsonl"
    out.write_text("mine")
    result = run("--source", "http://127.0.0.1:9", "--out", out)
    assert isinstance(result.exception, TsugikiError)
    assert "exists already" in str(result.exception)
    assert out.read_text() == "mine"


def test_aozora_does_not_import_torch(mirror: Path, tmp_path: Path):
    output_without(
        {"torch", "transformers", "httpx2"}, "aozora", "--source", str(mirror), "--out", f"{tmp_path}/w.jsonl"
    )
    assert (tmp_path / "w.jsonl").is_file()


def test_downloaded_files_and_editions_of_one_work(tmp_path: Path):
    body = "".join(f"{number}番目の石を、庭の隅に置いた。" for number in range(200))
    edition = f"石\n庭野枝\n\n{body}\n\n底本：「庭」枝書房\n青空文庫作成ファイル：\n"
    (tmp_path / "1.txt").write_bytes(edition.encode("cp932"))
    (tmp_path / "2.zip").write_bytes(zipped(edition.replace("隅", "角").encode("cp932")))
    out = tmp_path / "works.jsonl"
    result = run(tmp_path, "--out", out)
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [(row["title"], row["author"], row["text"][:3]) for row in rows] == [("石", "庭野枝", "0番目")] * 2
    assert "person_id" not in rows[0]
    summary, editions, *_ = result.stderr.splitlines()
    assert summary.startswith("2 works, ")
    assert "1.txt" in editions
    assert "--drop-duplicates" in editions
