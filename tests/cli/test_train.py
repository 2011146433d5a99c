"""`tsugiki train` with a YAML file, and what its terminal says."""

import re
from pathlib import Path

import pytest

from tests.runs import TRAIN

JARGON = "held.out|epoch|perplexity|nats|bits/char|評価データ|エポック|パープレキシティ|ビット/文字"


def test_a_yaml_file_and_resume(base: str, run, tmp_path: Path):
    (tmp_path / "c.yaml").write_text(f"model: {base}\ndata: text.txt\nout: run\nmax_steps: 2\nblock_size: 32\n")
    assert run("train", "c.yaml")[0] == 0
    status, _, err = run("train", "c.yaml")
    assert (status, "--resume" in err) == (2, True)
    status, _, err = run("train", "c.yaml", "--resume")
    assert (status, "finished" in err) == (2, True)


@pytest.mark.parametrize("language", ["en", "ja"])
def test_a_run_says_in_plain_words_what_it_does_and_in_jargon_only_with_verbose(
    language: str, base: str, run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("TSUGIKI_VERBOSE")
    monkeypatch.setenv("TSUGIKI_LANG", language)
    _status, out, err = run("train", "--model", base, *TRAIN)
    assert re.findall(JARGON, out + err) == []
    assert ("run/report.html" in out, "tsugiki chat run" in out) == (True, True)
    _status, out, err = run("train", "--model", base, *TRAIN, "--overwrite", "--verbose")
    monkeypatch.delenv("TSUGIKI_VERBOSE")
    assert len(re.findall(JARGON, out + err)) > 4
