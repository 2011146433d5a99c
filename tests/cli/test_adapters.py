"""`tsugiki adapters`: a person's day with a library, and one line for what cannot be."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.adapters.folders import write
from tests.adapters.test_library import contents
from tests.report.pages import record
from tests.tiny import TEXT, save_tiny


@pytest.fixture(autouse=True)
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TSUGIKI_ADAPTERS", str(tmp_path / "library"))
    return tmp_path / "library"


@pytest.fixture
def two(library: Path) -> Path:
    record().write(write(library / "soseki", 1))
    write(library / "akutagawa", 2)
    return library


def test_a_day(run, tmp_path: Path, library: Path):
    write(tmp_path / "run", 1)
    assert "no adapters in" in run("adapters", "list")[1]
    assert run("adapters", "add", "run", "--name", "soseki")[:2] == (0, f"{library / 'soseki'}\n")
    assert run("adapters", "add", "run")[0] == 0
    assert run("adapters", "rename", "run", "copy")[0] == 0
    status, out, _ = run("adapters", "list")
    assert (status, out.count("c_attn"), "copy" in out, "soseki" in out) == (0, 2, True, True)
    status, out, _ = run("adapters", "diff", "soseki", "copy")
    assert (status, "bit-identical, and the settings are the same" in out) == (0, True)
    assert run("adapters", "verify")[:2] == (0, "copy: nothing is wrong\nsoseki: nothing is wrong\n")
    assert run("adapters", "remove", "copy", "--yes")[:2] == (0, f"removed {library / 'copy'}\n")
    assert [path.name for path in library.iterdir()] == ["soseki"]


def test_list(run, two: Path):
    (two / "empty").mkdir()
    (two / "a\x1b[2J\nb").mkdir()
    (two / os.fsdecode(b"\xff")).mkdir()
    status, out, _ = run("adapters", "list")
    assert status == 0
    assert "270.4 → 134.3" in out
    assert "empty is broken: no adapter: it has no adapter_config.json" in out
    assert "\x1b" not in out
    assert "a\\x1b[2J\\nb is broken" in out
    lines = [json.loads(line) for line in run("adapters", "list", "--json")[1].splitlines()]
    assert [(line["name"], bool(line["broken"])) for line in lines] == [
        ("a\x1b[2J\nb", True),
        ("akutagawa", False),
        ("empty", True),
        ("soseki", False),
        (os.fsdecode(b"\xff"), True),
    ]
    assert lines[1]["held_out"] is None
    assert lines[3]["held_out"]["after"]["loss"] == 4.9
    assert (lines[3]["ranks"], lines[3]["targets"], lines[3]["parameters"]) == ([4], ["c_attn"], 1024)


def test_list_answers_without_transformers(two: Path):
    code = (
        "import sys; sys.argv = ['tsugiki', 'adapters', 'list']\n"
        "from tsugiki.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'transformers', 'datasets', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "soseki" in done.stdout


def test_show(run, two: Path, tmp_path: Path):
    status, out, _ = run("adapters", "show", "soseki", "--html", "page.html")
    assert status == 0
    for said in ("lora, r 4", "bits per character", "step 40, the end: 庭の梅は40輪咲いた。⏎", "h.1.attn.c_attn"):
        assert said in out, said
    assert (tmp_path / "page.html").is_file()
    assert run("adapters", "show", str(two / "akutagawa"))[0] == 0


def test_diff(run, two: Path):
    write(two / "wide", 3, r=8)
    status, out, _ = run("adapters", "diff", "soseki", "wide")
    assert status == 0
    assert re.search(r"rank +│ 4 +│ 8", out)
    assert re.search(r"overall +│ [\d.]+ │ [\d.]+ │ [+-]0\.\d{4} │ [\d.]+", out)


def test_verify_says_everything_and_then_fails(run, two: Path):
    weights = two / "soseki" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    (two / "akutagawa" / "adapter_config.json").write_text("{}")
    write(two / "whole")
    status, out, err = run("adapters", "verify")
    assert status == 2
    assert [line.partition(": ")[0] for line in out.splitlines()] == ["akutagawa", "soseki", "whole"]
    assert err == "tsugiki: something is wrong with 2 of 3 adapters\n"
    assert run("adapters", "verify", "whole")[0] == 0


def test_remove_asks(run, two: Path, monkeypatch: pytest.MonkeyPatch):
    before = contents(two)
    status, _, err = run("adapters", "remove", "soseki")
    assert (status, "say --yes" in err) == (2, True)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("typer.confirm", lambda question: "soseki" not in question)
    assert run("adapters", "remove", "soseki")[0] == 1
    assert contents(two) == before
    assert run("adapters", "remove", "akutagawa")[0] == 0
    assert [path.name for path in two.iterdir()] == ["soseki"]


def test_an_adapter_by_its_name(run, base: str, library: Path):
    train = ("--data", "text.txt", "--out", "run", "--max-steps", "1", "--block-size", "32")
    assert run("train", "--model", base, *train)[0] == 0
    assert run("adapters", "add", "run", "--name", "mine")[0] == 0
    status, out, _ = run("eval", "--adapter", "mine", "--data", "text.txt", "--json")
    assert (status, json.loads(out)["adapter"]) == (0, "mine")
    there = run("generate", "--model", base, "--adapter", "mine", "--prompt", "枝", "--max-new-tokens", "3")
    assert (
        there[:2] == run("generate", "--model", base, "--adapter", "run", "--prompt", "枝", "--max-new-tokens", "3")[:2]
    )
    assert run("adapters", "verify", "mine", "--model", base)[0] == 0
    assert "perplexity" in run("adapters", "show", "mine")[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("show", "nowhere"), "no adapter 'nowhere': there is no such folder"),
        (("show", "x" * 300), "no adapter 'xxx"),
        (("show", "~nobody/x"), "no adapter '~nobody/x'"),
        (("show", ""), "no adapter ''"),
        (("show", ".."), "no adapter in ..: it has no adapter_config.json"),
        (("show", "sosek"), "did you mean 'soseki'?"),
        (("show", "soseki", "--html", "no/where.html"), "cannot write no/where.html"),
        (("add", "nowhere"), "it is no folder"),
        (("add", "mine.gguf"), "`tsugiki adapters import` reads a GGUF file"),
        (("add", "library"), "it has no adapter_config.json"),
        (("add", "library/soseki"), "'soseki' is in"),
        (("add", "library/soseki", "--name", "../x"), "an adapter cannot be called '../x'"),
        (("add", "library/soseki", "--name", ""), "an adapter cannot be called ''"),
        (("rename", "soseki", "akutagawa"), "'akutagawa' is in"),
        (("rename", "soseki", "a/b"), "'/' cannot stand in a name"),
        (("rename", "soseki", ".."), "begins with no dot"),
        (("rename", "../library/soseki", "x"), "no adapter '../library/soseki' in"),
        (("rename", "soseki", "a\tb"), "cannot stand in a name"),
        (("rename", "soseki", "x" * 200), "longer than 100 characters"),
        (("remove", "--yes", "soseki", "nowhere"), "no adapter 'nowhere' in"),
        (("remove", "--yes", ".."), "no adapter '..' in"),
        (("remove", "--yes", "../library"), "no adapter '../library' in"),
        (("verify", "nowhere"), "no adapter 'nowhere'"),
        (("verify", "--for", "tgi"), "'tgi' is not one of"),
        (("verify", "--model", "./nowhere"), "there is no such folder"),
        (("diff", "soseki"), "Missing argument 'second'"),
        (("list", "--library", "text"), "the library text cannot be read: Not a directory"),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(arguments: tuple[str, ...], said: str, run, two: Path):
    Path("text").write_text("")
    before = contents(two.parent)
    status, _, err = run("adapters", *arguments)
    assert (status, err.count("\n")) == (2, 1)
    assert said in err
    assert contents(two.parent) == before


def test_what_another_program_refuses_is_said_before_training_and_after(run, tmp_path: Path, library: Path):
    base = save_tiny(tmp_path / "base", "llama")
    (tmp_path / "text.txt").write_text(TEXT)
    settings = f"model: {base}\ndata: text.txt\nout: run\nmax_steps: 1\nblock_size: 32\n"
    (tmp_path / "plain.yaml").write_text(settings)
    (tmp_path / "dora.yaml").write_text(settings + "method: dora\n")
    before = ("adapters", "verify", "plain.yaml", "--for")
    assert run(*before, "llama.cpp")[:2] == run(*before, "vllm")[:2] == (0, "plain.yaml: nothing is wrong\n")
    status, out, err = run("adapters", "verify", "dora.yaml", "--for", "llama.cpp")
    assert (status, err) == (2, "tsugiki: something is wrong with 1 of 1 adapters\n")
    assert "DoRA" in out
    assert "--for says which loader" in run("adapters", "verify", "dora.yaml")[2]
    assert run("train", "dora.yaml")[0] == 0
    for loader, said in (("llama.cpp", "magnitudes of DoRA"), ("vllm", "it is DoRA"), ("ollama", "no adapters")):
        assert said in run("adapters", "verify", "./run", "--for", loader)[1]
    assert run("adapters", "verify", "./run", "--for", "peft")[:2] == (0, "./run: nothing is wrong\n")
