"""Chat templates are programs of strangers: what they may use of time, memory and files is limited."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data.chat_templates import SHAPES, Shape, tokenizer_of
from tsugiki import TsugikiError
from tsugiki.data import Conversation, Message, Rendering, chat_process, prompt_text, read_template, render

TURNS = [{"role": "user", "content": "a"}]
ANSWERED = Conversation((Message("user", "a"), Message("assistant", "b")), "talk.jsonl:1")

limited = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is limited on Linux only")


def prompt(template: str) -> str:
    return prompt_text(read_template(tokenizer_of(Shape(template, (), "", "")), ""), TURNS)


def answered(template: str) -> Rendering:
    return render(read_template(tokenizer_of(Shape(template, (), "", "")), ""), ANSWERED, "all")


ENDLESS = {
    "nested loops": "{% set r = range(99999) %}{% for i in r %}{% for j in r %}{% for k in r %}{% endfor %}{% endfor %}"
    "{% endfor %}",
    "a power": "{{ 10 ** (10 ** 9) }}",
}
LARGE = {
    "a product": "{{ 'a' * 10 ** 10 }}",
    "doubled text": "{% set n = namespace(t='abcdefgh') %}{% for i in range(40) %}{% set n.t = n.t ~ n.t %}"
    "{% endfor %}",
    "a format": "{{ '%9999999999d' % 1 }}",
}
LARGE_TOO = {
    "a product of lists": "{{ ([0] * 10 ** 10) | length }}",
    "a width": "{{ 'a' | center(10 ** 10) }}",
    "a method": "{{ 'a'.ljust(10 ** 10) }}",
    "a replacement": "{% set t = 'a' * 10 ** 5 %}{{ t.replace('a', t) }}",
    "the output": "{% for i in range(99999) %}{{ 'a' * 10 ** 5 }}{% endfor %}",
    "filler text": "{{ lipsum(n=10 ** 9) }}",
    "JSON of references": "{% set n = namespace(t=[]) %}{% for i in range(64) %}{% set n.t = [n.t, n.t] %}{% endfor %}"
    "{{ n.t | tojson }}",
}


@pytest.fixture
def one_second(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A limit of one second, and of three on systems that only have a limit of wall time."""
    chat_process._close()
    monkeypatch.setattr(chat_process, "_SECONDS", 1)
    if sys.platform == "win32":
        monkeypatch.setattr(chat_process, "_HANG", 3)
    yield
    chat_process._close()


@pytest.mark.usefixtures("one_second")
@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_without_end_is_ended(name: str):
    with pytest.raises(TsugikiError, match=r"^talk.jsonl:1: the chat template takes more than 1 s") as caught:
        answered(ENDLESS[name])
    assert "\n" not in str(caught.value)


@limited
@pytest.mark.parametrize("name", LARGE)
def test_a_template_that_makes_much_text_is_ended(name: str):
    check_limit(LARGE[name])


@limited
@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE_TOO)
def test_all_that_makes_much_text_is_ended(name: str):
    check_limit(LARGE_TOO[name])


def check_limit(template: str) -> None:
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    with pytest.raises(TsugikiError, match=r"^talk.jsonl:1: the chat template takes .* 500 MB") as caught:
        answered(template)
    assert "\n" not in str(caught.value)
    used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    assert used <= max(before * 1024, 800_000_000), "of the child that used most"
    assert prompt(SHAPES["chatml"].template).endswith("<|im_start|>assistant\n"), "the next one is rendered again"


@pytest.mark.parametrize(
    "template",
    [
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{{" + "(" * 5000 + ")" * 5000 + "}}",
        "{% if a %}" * 2000 + "{% endif %}" * 2000,
        "{{ raise_exception('a\n' * 9999) }}",
        "{{ 'a' * 10_000_001 }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% include '/etc/passwd' %}",
    ],
    ids=lambda template: template[:30],
)
def test_other_templates_that_fail_are_errors_of_one_line(template: str):
    with pytest.raises(TsugikiError, match=r"^a prompt: the chat template ") as caught:
        prompt(template)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_very_long_template_is_refused():
    with pytest.raises(TsugikiError, match="1,000,000 characters"):
        prompt("{# #}" * 200_001)


def test_the_process_that_is_killed_is_replaced():
    prompt("a")
    process = chat_process._processes[os.getpid()]
    process.kill()
    process.wait()
    assert prompt("a") == "a"
    assert chat_process._processes[os.getpid()].pid != process.pid


def test_an_interruption_leaves_no_answer_behind(monkeypatch: pytest.MonkeyPatch):
    def interrupted(process: subprocess.Popen[bytes], request: bytes) -> bytes:
        ask(process, request)
        raise KeyboardInterrupt

    ask = chat_process._ask
    monkeypatch.setattr(chat_process, "_ask", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prompt("a")
    monkeypatch.setattr(chat_process, "_ask", ask)
    assert prompt("b") == "b"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forked processes")
def test_a_forked_process_has_a_process_of_its_own():
    prompt("a")
    parent = chat_process._processes[os.getpid()].pid
    child = os.fork()
    if child == 0:
        own = prompt("b") == "b" and chat_process._processes[os.getpid()].pid != parent
        chat_process._close()
        os._exit(0 if own else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert prompt("c") == "c"
    assert chat_process._processes[os.getpid()].pid == parent


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="processes are looked up in /proc")
def test_the_process_ends_with_the_one_that_started_it(tmp_path: Path):
    code = (
        "import sys, time; from tsugiki.data import chat_process; chat_process._running();"
        "print(*[p.pid for p in chat_process._processes.values()], flush=True); time.sleep(60)"
    )
    (tmp_path / "json.py").write_text("raise SystemExit('json.py of the working directory')")
    with subprocess.Popen([sys.executable, "-P", "-c", code], stdout=subprocess.PIPE, cwd=tmp_path) as first:
        assert first.stdout
        pid = int(first.stdout.readline())
        first.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()


def test_what_is_sent_is_json():
    template = read_template(tokenizer_of(SHAPES["chatml"]), "")
    assert json.loads(json.dumps(template.variables)) == template.variables
