"""What a user sees first: the tour, versions, help with examples, completion, and suggestions for what is mistyped."""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from tests.cli.imports import output_without
from tests.docs.test_architecture import flags, problem_of
from tsugiki.base import RECOMMENDED
from tsugiki.cli import root_command
from tsugiki.io.file_names import DATA_SUFFIXES
from tsugiki.language import VARIABLE
from tsugiki.training import RunConfig, settings_of


def examples(name: str) -> list[str]:
    """The examples of a command, such as `train` or `adapters list`."""
    command: Any = root_command()
    for word in name.split():
        command = command.commands[word]
    return list(command.examples)


def test_the_command_alone_prints_a_tour_of_existing_commands(run):
    status, out, err = run()
    assert (status, err) == (0, "")
    lines = [shlex.split(match[1]) for match in re.finditer(r"(?m)^  \S.*   tsugiki (.+)$", out)]
    assert len(lines) >= 6
    assert [problem for words in lines if (problem := problem_of(words))] == []
    assert out == output_without({"torch", "transformers", "numpy"})


@pytest.mark.parametrize("language", ["en", "ja"])
def test_the_tour_names_bases_of_the_readers_language_and_kinds_of_files_in_one_screen(
    language: str, run, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(VARIABLE, language)
    _, out, _ = run()
    assert out.count("\n") <= 24
    assert set(re.findall(r"(?<![\w/])\.[a-z]+", out)) == set(DATA_SUFFIXES)
    for base in RECOMMENDED:
        line = next((line for line in out.splitlines() if line.split()[:1] == [base.name]), "")
        assert bool(line) == (base.language == language)
        assert not line or {f"{base.parameters}M", f"{base.download:,}", f"{base.minutes}"} <= set(line.split())


def test_versions_are_shown_without_importing_torch():
    out = output_without({"torch", "transformers", "numpy"}, "--version")
    assert re.fullmatch(r"tsugiki \S+ \(torch \S+, transformers \S+, Python \S+; .+ C functions\)\n", out)


def test_every_command_has_examples_of_existing_commands_and_flags():
    for name in ("adapters", *flags()):
        assert examples(name), name
        for line in examples(name):
            words = shlex.split(line)
            assert words[:1] == ["tsugiki"]
            assert words[1:][: len(name.split())] == name.split()
            assert problem_of(words[1:]) is None


@pytest.mark.parametrize("columns", [70, 120])
def test_no_flag_is_cut_off_in_a_narrow_or_a_wide_terminal(columns: int, run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    for name in ("train", "generate", "adapters combine"):
        status, out, _ = run(*name.split(), "--help-all" if name == "train" else "--help")
        assert status == 0
        assert [flag for flag in flags()[name] if flag not in out] == []
        assert examples(name)[0] in out


def test_completion_knows_the_flags_that_help_leaves_out():
    command = root_command().commands["train"]
    assert "--patience" not in command.get_help(typer.Context(command))
    completed = root_command().commands["train"].shell_complete(typer.Context(command), "--pat")
    assert [item.value for item in completed] == ["--patience"]


def test_every_setting_of_a_run_is_in_a_group():
    assert [setting.path for setting in settings_of(RunConfig) if not setting.group] == []


def test_bash_completes_commands():
    asked = {"COMP_WORDS": "tsugiki prev", "COMP_CWORD": "1", "_TSUGIKI_COMPLETE": "complete_bash"}
    out = subprocess.check_output([sys.executable, "-m", "tsugiki"], env={**os.environ, **asked}, text=True)
    assert out.split() == ["preview"]


def test_ctrl_c_that_a_library_turns_into_an_error_is_one_line(run, monkeypatch: pytest.MonkeyPatch):
    def interrupted_import(*_: object, **__: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt as error:
            raise ModuleNotFoundError("Could not import module 'TrainingArguments'") from error

    monkeypatch.setattr("tsugiki.cli.main._run", interrupted_import)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        status, _, err = run("methods")
    finally:
        signal.signal(signal.SIGINT, before)
    assert (status, err.count("\n")) == (130, 1)
    assert not re.search("report|kept", err), "this command keeps nothing"


def test_ctrl_c_at_a_question_is_one_line(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def ctrl_c(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "library" / "kajii").mkdir(parents=True)
    monkeypatch.setattr("typer._click.termui.visible_prompt_func", ctrl_c)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    status, _, err = run("adapters", "remove", "kajii", "--library", str(tmp_path / "library"))
    assert (status, err.strip().count("\n")) == (130, 0)
    assert "nothing was changed" in err
    assert (tmp_path / "library" / "kajii").exists()


def test_every_command_is_in_the_help(run):
    shown = run("--help")[1]
    assert [name for name in flags() if name.split()[0] not in shown] == []
