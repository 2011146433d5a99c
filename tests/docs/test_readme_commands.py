"""The commands of README and of guides run as they stand, on a tiny model; the Japanese pages have the same ones."""

import io
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.base.gguf.files import write_gguf
from tests.data.read.aozora.samples import ROOT as AOZORA
from tests.data.read.aozora.samples import work_zip
from tests.tiny import TEXT, save_tiny
from tsugiki.base import load_model
from tsugiki.cli.main import main

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
GUIDES = ("tutorial-author", "tutorial-questions", "preference")
PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("commands", *GUIDES))]
HUB_MODEL = "Qwen/Qwen3-0.6B"
HUB_FILE = f"{HUB_MODEL}-GGUF/Qwen3-0.6B-Q8_0.gguf"
ELSEWHERE = ("quickstart", "sweep", "push", "new", "serve", "aozora --author", "train --reward", "pairs")
"""Commands that take minutes, need a network, a terminal or a model that knows answers, or run until a signal; they
have tests of their own."""


def commands(page: Path) -> list[str]:
    """The commands in the page's blocks, without comments at their ends."""
    blocks = re.findall(r"(?ms)^```\w*\n(.*?)^```", page.read_text("utf-8"))
    lines = re.findall(r"(?m)^(?:\$ )?tsugiki (.+?)(?:  .*| > .*)?$", "\n".join(blocks))
    return [line for line in lines if not line.startswith(ELSEWHERE)]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TSUGIKI_ADAPTERS", str(tmp_path / "library"))
    monkeypatch.delenv("TSUGIKI_VERBOSE")
    write_gguf(tmp_path / "base.gguf", load_model(save_tiny(tmp_path / "base", "gpt2", n_positions=512)))
    for number in range(6):
        work = work_zip(f"人生{number}", "夏目漱石", TEXT[number * 350 :][:500])
        file = tmp_path / f"mirror/cards/000148/files/{number}_ruby.zip"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(work)
    (tmp_path / "other.jsonl").write_text('{"text": "' + TEXT[::-1].replace("\n", "")[:400] + '"}\n', "utf-8")
    pairs = [f'{{"prompt": "{i}", "chosen": "yes{i}", "rejected": "{i}no"}}\n' for i in range(12)]
    (tmp_path / "pairs.jsonl").write_text("".join(pairs), "utf-8")
    kyoka = [json.dumps({"text": TEXT[start : start + 150]}) for start in range(0, 1350, 150)]
    (tmp_path / "kyoka.jsonl").write_text("\n".join(kyoka))
    (tmp_path / "run.yaml").write_text("model: base\ndata: soseki.jsonl\nout: runs/yaml\nmax_steps: 2\n", "utf-8")
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_the_page_run(page: Path, place: Path, monkeypatch: pytest.MonkeyPatch):
    lines = commands(page)
    for program in re.findall(r"python ~/tsugiki/(\S+)", page.read_text("utf-8")):
        subprocess.run([sys.executable, ROOT / program], check=True)
    assert len(lines) > (12 if page.stem == "commands" else 4)
    for line in lines:
        here = line.replace(HUB_FILE, "base.gguf").replace(HUB_MODEL, "base").replace(AOZORA, "mirror")
        if page.stem in GUIDES:
            here = re.sub("embedded|smollm2.gguf", "base", here) + " --max-steps 2 --overwrite" * here.startswith(
                "train"
            )
            here += " --base-gguf base.gguf" * here.startswith("export")
        here = here.replace("…", f"--model base --data soseki.jsonl --out runs/{len(here)} --max-steps 2")
        monkeypatch.setattr(sys, "argv", ["tsugiki", *shlex.split(here)])
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        with pytest.raises(SystemExit) as end:
            main()
        finished = "--resume" in line  # the run has finished, so there is nothing to resume
        assert end.value.code == (2 if finished else 0), line
    if page.stem not in GUIDES:
        assert (place / "runs/soseki/report.html").is_file()
        assert (place / "soseki-merged/model.safetensors").is_file() == (page.stem == "commands")
        assert (place / "soseki.gguf").is_file()
