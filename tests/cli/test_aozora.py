"""`tsugiki aozora`: its output and its errors."""

from pathlib import Path

import pytest

from tests.cli.imports import output_without
from tests.data.read.aozora.samples import ROWS, index_csv, make_mirror
from tests.data.read.aozora.test_text import zipped
from tests.files import rows_of
from tsugiki.data import INDEX

OUT = ("--out", "works.jsonl")


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    return make_mirror(tmp_path / "mirror")


def rows() -> list[dict[str, str]]:
    return rows_of(Path("works.jsonl"))


def test_the_chosen_works_are_written_with_a_summary_and_what_exists_is_kept(mirror: Path, run):
    arguments = ("aozora", "--source", "mirror", "--kana", "old", *OUT)
    status, out, err = run(*arguments)
    assert (status, out, [row["title"] for row in rows()]) == (0, "", ["海の底"])
    summary, following = err.splitlines()
    assert summary.startswith("1 work, 8 characters, 0 without a code (〓), 0 skipped, 0 missing, ")
    assert "works/s" in summary
    assert following.startswith("next: tsugiki preview ")
    status, _, err = run("aozora", "--source", "http://127.0.0.1:9", *OUT)  # before anything else
    assert (status, "exists already" in err, len(rows())) == (2, True, 1)


def test_skipped_works_are_named(mirror: Path, run):
    (mirror / "cards/000001/files/1_ruby.zip").write_bytes(b"PK nonsense")
    status, _, err = run("aozora", "--source", "mirror", *OUT)
    warning, summary, *_ = err.splitlines()
    assert (status, summary[:8]) == (0, "2 works,")
    assert warning.startswith("skipped cards/000001/files/1_ruby.zip: a damaged zip")
    assert "1 without a code (〓), 1 skipped, 0 missing" in summary


def test_a_missing_file_is_one_line_with_status_2_and_no_output(mirror: Path, run):
    (mirror / f"{INDEX}.csv").write_bytes(index_csv(ROWS[:4]))
    (mirror / "cards/000002/files/3_ruby.zip").unlink()
    status, _, line = run("aozora", "--source", "mirror", *OUT)
    assert (status, line.count("\n"), f"{INDEX}.csv: line 4: " in line) == (2, 1, True)
    assert line.endswith("--skip-missing\n")
    assert list(Path().glob("works*")) == []
    status, _, err = run("aozora", "--source", "mirror", *OUT, "--skip-missing")
    missing, summary, *_ = err.splitlines()
    assert (status, summary[:8]) == (0, "2 works,")
    assert missing.startswith(f"missing mirror/{INDEX}.csv: line 4: ")
    assert "0 skipped, 1 missing" in summary


def test_aozora_does_not_import_torch(mirror: Path):
    output_without({"torch", "transformers", "httpx2"}, "aozora", "--source", "mirror", *OUT)
    assert rows()


def test_downloaded_files_and_editions_of_one_work(tmp_path: Path, run):
    body = "".join(f"{number}番目の石を、庭の隅に置いた。" for number in range(200))
    edition = f"石\n庭野枝\n\n{body}\n\n底本：「庭」枝書房\n青空文庫作成ファイル：\n"
    (tmp_path / "1.txt").write_bytes(edition.encode("cp932"))
    (tmp_path / "2.zip").write_bytes(zipped(edition.replace("隅", "角").encode("cp932")))
    status, _, err = run("aozora", str(tmp_path), *OUT)
    assert (status, "person_id" in rows()[0]) == (0, False)
    assert [(row["title"], row["author"], row["text"][:3]) for row in rows()] == [("石", "庭野枝", "0番目")] * 2
    summary, editions, *_ = err.splitlines()
    assert summary.startswith("2 works, ")
    assert "1.txt" in editions
    assert "--drop-duplicates" in editions
