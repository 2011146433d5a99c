"""`tsugiki chat`: turns, texts, comparing, and wrong input, from standard input and at a terminal."""

import io
import os
import pty
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.files import write_rows
from tests.runs import TRAIN
from tests.tiny import save_tiny
from tsugiki.generation import generate as sample_module
from tsugiki.generation import prompt_tokens

TOKENS = ("--max-new-tokens", "6")


@pytest.fixture
def type_(monkeypatch: pytest.MonkeyPatch):
    """Set what the standard input holds."""
    return lambda *lines: monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The prompts that the model is given."""
    seen: list[Any] = []

    def noted(model: object, tokenizer: object, prompt: object, *rest: object) -> object:
        seen.append(prompt if isinstance(prompt, str) else [(turn.role, turn.content) for turn in prompt])
        return prompt_tokens(model, tokenizer, prompt, *rest)

    monkeypatch.setattr(sample_module, "prompt_tokens", noted)
    return seen


def test_a_text_is_continued_and_compared_at_once(trained: str, run, type_, prompts: list[Any]):
    prompts.clear()
    type_("枝を", "", "/base", "/adapter", "/again", "/quit")
    status, out, err = run("chat", "run", *TOKENS)
    assert (status, err) == (0, "next: tsugiki adapters add run\n")
    lines = out.split("\n")
    assert lines[0].startswith(f"{trained} + run")
    assert all(number in lines[0] for number in ("0.7", "0.9", " 1;"))  # temperature, top-p, repetition penalty
    assert out.count(f"[{trained}]") == 1
    assert out.count(f"[{trained} + run]") == 2
    written = lines[1].removeprefix("枝を")
    assert prompts == ["枝を", f"枝を{written}", "枝を", "枝を", "枝を"]
    assert run("generate", "--adapter", "run", "--prompt", "枝を", *TOKENS)[1] == f"枝を{written}\n"


def test_a_conversation_has_turns_and_a_system_message(run, type_, prompts: list[Any], tmp_path: Path):
    base = save_tiny(tmp_path / "base", vocab_size=257, n_positions=512)
    rows = [[{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}{n}"}] for n in range(6)]
    write_rows(tmp_path / "chat.jsonl", [{"messages": row} for row in rows])
    flags = (*TRAIN[2:], "--data", "chat.jsonl", "--chat-template", "default", "--block-size", "128")
    assert run("train", "--model", base, *flags)[0] == 0
    prompts.clear()
    type_("1?", "2?", "/base", "/new", "3?")
    assert run("chat", "run", "--system", "short", *TOKENS, "--temperature", "0")[0] == 0
    system = ("system", "short")
    first, turns, again, after = prompts
    assert first == [system, ("user", "1?")]
    assert again == turns == [*first, ("assistant", turns[2][1]), ("user", "2?")]
    assert after == [system, ("user", "3?")]
    prompts.clear()
    type_("1?")
    assert run("chat", "run", "--raw", *TOKENS)[0] == 0
    assert run("generate", "--adapter", "run", "--prompt", "1?", *TOKENS)[0] == 0
    assert run("generate", "--adapter", "run", "--prompt", "1?", "--raw", *TOKENS)[0] == 0
    assert prompts == ["1?", [("user", "1?")], "1?"]


def test_what_cannot_be_done_is_a_line_and_the_chat_goes_on(base: str, run, type_, tmp_path: Path):
    type_("/nosuch", "/adapter", "/adapter nowhere", "雨" * 40, "/help", "a")
    status, out, err = run("chat", "--model", base, *TOKENS)
    assert status == 0
    assert len(err.splitlines()) == 4 + 1  # the last line is the next command
    assert all(said in err for said in ("/nosuch", "/adapter NAME", "'nowhere'", "64"))
    assert "/base" in out


def test_ctrl_c_stops_an_answer_only(base: str, run, type_, monkeypatch: pytest.MonkeyPatch):
    def interrupted(_model: Any, _tokenizer: Any, _prompt: Any, _tokens: int, _sampling: Any, emit: Any) -> None:
        emit("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(sample_module, "generate_text", interrupted)
    type_("a", "b")
    status, out, err = run("chat", "--model", base)
    assert (status, err, out.count("half")) == (0, f"next: tsugiki serve --model {base}\n", 2)


@pytest.mark.slow
def test_a_terminal_edits_a_line_of_japanese(base: str):
    """Backspace removes a whole character, and the arrow key brings the line back."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-m", "tsugiki", "chat", "--model", base, "--max-new-tokens", "1"])
    printed = ""
    for waited, typed in (("> ", "枝雨\x7fを\n"), ("枝を", "\x1b[A\n"), ("枝を", "/quit\n")):
        start = len(printed)
        while waited not in printed[start:]:
            printed += os.read(terminal, 4096).decode(errors="replace")
        os.write(terminal, typed.encode())
    with suppress(OSError):  # of Linux, at the end of the other side
        while piece := os.read(terminal, 4096):
            printed += piece.decode(errors="replace")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert "雨を" not in printed
    assert printed.count("枝を") >= 3
