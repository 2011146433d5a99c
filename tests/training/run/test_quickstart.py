"""The quickstart as a user runs it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tsugiki.training import PROMPTS, read_record


@pytest.mark.slow
def test_quickstart_moves_the_style(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "tsugiki", "quickstart"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    record = read_record(tmp_path / "tsugiki-quickstart")
    assert record.evaluations[-1].perplexity < 0.6 * record.evaluations[0].perplexity
    assert [(s.prompt, s.step) for s in record.samples] == [
        (prompt, step) for step in sorted({s.step for s in record.samples}) for prompt in PROMPTS
    ]
    before, after = ("".join(s.text for s in record.samples if s.step == step) for step in (0, record.training.steps))
    assert share_of_katakana(before) < 0.4
    assert share_of_katakana(after) > 0.9


def share_of_katakana(text: str) -> float:
    hiragana, katakana = (len(re.findall(kana, text)) for kana in ("[ぁ-ゖ]", "[ァ-ヶ]"))
    return katakana / (hiragana + katakana)
