"""`tsugiki new` and `tsugiki train --print-config`: settings as commented YAML files."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from tsugiki.base import recommended_bases
from tsugiki.cli import settings_text
from tsugiki.training import RunConfig, load_config, settings_of


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the user types, line by line, at a terminal."""
    typed: list[str] = []
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer._click.termui.visible_prompt_func", lambda _: typed.pop(0))
    return typed


def test_flags_answer_all_questions(base: str, run, tmp_path: Path):
    flags = ("--data", "text.txt", "--model", base, "--minutes", "0.5", "--out", "runs/a", "--no-preview")
    status, out, err = run("new", "a b.yaml", *flags)
    assert (status, err) == (0, "")
    assert shlex.split(out.splitlines()[-1]) == ["next:", "tsugiki", "train", "a b.yaml"]
    written = load_config(Path("a b.yaml"), {})
    assert (written.model, written.data, written.out, written.minutes) == (base, ("text.txt",), "runs/a", 0.5)
    status, _, err = run("new", "a b.yaml", *flags)
    assert (status, "exists already" in err) == (2, True)


def test_questions_have_defaults_and_are_asked_again_after_a_wrong_answer(run, answers: list[str], tmp_path: Path):
    (tmp_path / "kajii.txt").write_text("檸檬" * 500)
    answers += ["nowhere.txt", "", "./no-model", "", "soon", "-1", "", ""]
    status, out, _ = run("new", "--no-preview")
    assert (status, answers) == (0, [])
    assert "nowhere.txt" in out
    written = load_config(Path("kajii.yaml"), {})
    assert (written.model, written.data, written.out) == ("embedded", ("kajii.txt",), "runs/kajii")
    assert written.minutes is not None


def test_a_number_chooses_a_recommended_base(run, answers: list[str], tmp_path: Path):
    (tmp_path / "text.txt").write_text("檸檬" * 500)
    answers += ["2", "", ""]
    status, out, _ = run("new", "--data", "text.txt", "--no-preview")
    second = recommended_bases()[1].name
    assert (status, answers) == (0, [])
    assert re.search(rf"(?m)^  2  {second} ", out)
    assert load_config(Path("text.yaml"), {}).model == second


def test_the_preview_is_shown_and_a_text_that_cannot_be_read_leaves_nothing(base: str, run, tmp_path: Path):
    status, out, _ = run("new", "--data", "text.txt", "--model", base, "--minutes", "1")
    assert status == 0
    assert "tokens" in out.partition("settings:")[0]
    (tmp_path / "bad.txt").write_bytes(b"\x00\xff\x81")
    status, _, err = run("new", "--data", "bad.txt", "--model", base)
    assert (status, "bad.txt" in err, Path("bad.yaml").exists()) == (2, True, False)


def test_ctrl_d_at_a_question_is_one_line(run, answers: list[str], monkeypatch: pytest.MonkeyPatch):
    def end(_: str) -> str:
        raise EOFError

    monkeypatch.setattr("typer._click.termui.visible_prompt_func", end)
    status, _, err = run("new")
    assert (status, err.strip().count("\n"), list(Path().glob("*.yaml"))) == (130, 0, [])


def test_print_config_prints_what_is_given_and_needs_nothing(run, tmp_path: Path):
    (tmp_path / "a.yaml").write_text("model: embedded\nlora: {r: 4}\nmethod_config: {}\n")
    status, out, err = run("train", "a.yaml", "--data", "text.txt", "--epochs", "2", "--print-config")
    assert (status, err) == (0, "")
    given = {"model": "embedded", "data": ["text.txt"], "out": None, "lora": {"r": 4}}
    assert yaml.safe_load(out) == {**given, "epochs": 2}
    assert yaml.safe_load(run("train", "--print-config")[1]) == {"model": None, "data": None, "out": None, "lora": None}


def test_every_setting_is_listed_with_its_default():
    config = RunConfig
    text = settings_text(config, {})
    names = "|".join(setting.path[-1] for setting in settings_of(config))
    uncommented: dict[str, Any] = yaml.safe_load(re.sub(rf"(?m)^( *)# ((?:{names}):.*)$", r"\1\2", text))
    for setting in settings_of(config):
        values = uncommented[setting.path[0]] if len(setting.path) > 1 else uncommented
        value = values[setting.path[-1]]
        default = list(setting.default) if isinstance(setting.default, tuple) else setting.default
        assert value == default, setting.path
