"""Each block of six guides runs as printed, in a folder with small files of the names that it uses.

A block that cannot run here is skipped, by its first words, with the reason. The Japanese pages have the same blocks
(`test_preference_pages.py`).
"""

import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

import tsugiki
from tests.base.gguf.files import tiny_base, write_gguf
from tests.cli.test_serve import served
from tests.data.read.aozora.samples import index_zip, row, work_zip
from tests.files import write_rows
from tests.serve.calling_model import save_calling_model
from tests.serve.conftest import Running, save_adapter_of, start
from tests.tiny import TEXT, ids, save_tiny
from tests.training.run.test_reward import RULE
from tsugiki import LoraConfig, graft, save_adapter
from tsugiki.base import load_model
from tsugiki.cli.main import main
from tsugiki.data import DEFAULT_TEMPLATE, INDEX
from tsugiki.preference import sampling
from tsugiki.preference.rule_programs import python_scores

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("adapters", "comparing", "data", "reward", "serving", "training")
NOT_RUN = {
    "from tsugiki import reference_model": "test_blocks.py makes the trainers of TRL",
    "┌ chat.jsonl:27": "a part of what the preview of a downloaded model prints",
    "$ python ~/tsugiki/examples/rewards/records.py": "a random model writes no JSON (test_rewards.py has these rules)",
    "ssh ": "it connects to another machine",
    "server {": "settings of nginx",
}
"""First words of a block -> why it does not run here."""
STAND_INS = {
    "embedded": "base.gguf",
    "smollm2.gguf": "base.gguf",
    "BASE.gguf": "base.gguf",
    "BASE": "base",
    "~/tsugiki/examples/rewards/polite.py": "rule.py",  # a random model writes no polite Japanese
    "tokens=40": "tokens=6,rounds=1,samples=6,forgetting=9",
    "TSUGIKI_API_KEY=…": "TSUGIKI_API_KEY=key",
}
"""A word of a command -> what stands in for it."""
ADDED = {
    "aozora --author": "--source mirror",
    "export flat": "--base-gguf base.gguf",
    "push": "--base them/base",
    "serve": "--port 0",
    "merge": "--allow-base-mismatch",
    "train --reward": "--max-steps 40 --learning-rate 0.03 --reward-settings tokens=6,rounds=1,samples=6,forgetting=9",
    "train --model base.gguf --data beginnings.jsonl": "--max-steps 40 --learning-rate 0.03",
    "train": "--max-steps 1",
}
"""The beginning of a command -> what is added to it here; the first one that fits."""
SLOW = ("comparing-1", "comparing-2", "reward-0", "reward-5")
"""Sweeps, and runs with a rule beside another one."""
PEOPLE = [
    {"role": "user", "content": "高橋さんは38歳で、京都に住んでいる。"},
    {"role": "assistant", "content": '{"name": "高橋", "age": 38, "city": "京都"}'},
]


def blocks(page: str) -> list[tuple[str, str]]:
    """The language and the text of each block of a guide."""
    return re.findall(r"(?ms)^```(\w*)\n(.*?)^```", (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8"))


def write_files(folder: Path) -> None:
    """Write what the guides call by name: bases, adapters, texts, tables, rules and a library of works."""
    write_gguf(folder / "base.gguf", tiny_base("gpt2", n_positions=512))
    for name in ("base", "another", "chat-model"):
        save_tiny(folder / name, template=DEFAULT_TEMPLATE if name == "chat-model" else None, n_positions=512)
    for name, base, rank in (
        *(("kyoka", "base.gguf", 2), ("akutagawa", "base.gguf", 2), ("flat", "base.gguf", 2)),
        *(("big", "base.gguf", 16), ("makino", "base", 2), ("of-base", "base", 2)),
    ):
        config = LoraConfig(r=rank, target_modules="all-linear")
        save_adapter_of(base, folder / "adapters" / name, len(name), config)
    for name in ("runs/haiku", "runs/kyoka", "runs/support", "runs/rule/rounds/5"):
        shutil.copytree(folder / "adapters/kyoka", folder / name)
    shutil.copytree(folder / "adapters/of-base", folder / "FOLDER")
    (folder / "runs/support/chat_template.jinja").write_text(DEFAULT_TEMPLATE, "utf-8")
    (folder / "letters").mkdir()
    numbers = " ".join(map(str, range(500)))
    for name, text in {"a": TEXT, "letters/b": TEXT[::-1], "letters/c": numbers, "novel": TEXT}.items():
        (folder / f"{name}.txt").write_text(text[:900], "utf-8")
    (folder / "names.txt").write_text("庭師\n", "utf-8")
    for name in ("ichiyo", "kyoka", "kyoka-held-out", "meiji", "meiji-new", "oda"):
        texts = [{"text": f"{name}{start}{TEXT[start : start + 120]}"} for start in range(0, 1200, 120)]
        write_rows(folder / f"{name}.jsonl", texts)
    for name, columns in (("questions", "question,answer"), ("tickets", "subject,reply")):
        rows = [f"Where is number {number}?,On shelf {number * 7}." for number in range(20)]
        (folder / f"{name}.csv").write_text("\n".join([columns, *rows]))
    turns = [
        f"01/{day:02}/24, 10:0{n} - {who}: day {day}" for day in range(1, 20) for n, who in ((1, "Ann"), (2, "Bob"))
    ]
    (folder / "chat.txt").write_text("\n".join(turns))
    write_rows(
        folder / "people.jsonl",
        [{"messages": [{**PEOPLE[0], "content": TEXT[n * 90 :][:80]}, PEOPLE[1]]} for n in range(12)],
    )
    for name in ("beginnings", "prompts"):
        write_rows(folder / f"{name}.jsonl", [{"prompt": f"{n} {TEXT[n * 9 :][:5]}"} for n in range(20)])
    (folder / "rule.py").write_text(RULE)
    _, questions = next(block for block in blocks("data") if block[0] == "json")
    (folder / "questions.jsonl").write_text(questions, "utf-8")
    for name in ("twin-methods", "twin-ranks"):
        recipe = (ROOT / f"examples/recipes/{name}.yaml").read_text("utf-8").replace("embedded", "base.gguf")
        (folder / "examples/recipes").mkdir(parents=True, exist_ok=True)
        smaller = re.sub(r"(max|eval)_steps: \d+", r"\1_steps: 1", recipe).replace(
            "block_size: 256", "block_size: 64\n  sample_tokens: 1"
        )
        (folder / f"examples/recipes/{name}.yaml").write_text(smaller, "utf-8")
    authors = {("夏目", "漱石"): "著者", ("森", "鴎外"): "翻訳者"}
    works = [row(str(n), f"題{n}", f"00000{n}", name, 役割フラグ=authors[name]) for n, name in enumerate(authors)]
    for path, content in {
        f"mirror/index_pages/{INDEX}.zip": index_zip(works),
        **{
            f"mirror/cards/00000{n}/files/{n}_ruby.zip": work_zip(f"題{n}", "".join(name))
            for n, name in enumerate(authors)
        },
        **{name: work_zip(name[:3], "夏目漱石") for name in ("424_ruby_19825.zip", "downloads/1_ruby.zip")},
    }.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guides")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_files(folder)
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of a tiny model that has learned what the guide asks; its adapters change nothing."""
    pytest.importorskip("llguidance")
    home = tmp_path_factory.mktemp("served")
    base = save_calling_model(home / "base", rows=[PEOPLE])
    model = graft(load_model(base), LoraConfig(r=2))
    for name in ("haiku", "kyoka", "people", "reviews"):
        save_adapter(model, home / "library" / name)
    with start(base, home / "library") as running:
        yield running


class Terminal(io.StringIO):
    """A terminal in which somebody types what it is given."""

    def isatty(self) -> bool:
        return True


def run(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command of `tsugiki` or a program of the examples as printed, but for what stands in."""
    name, *words = [STAND_INS.get(word, word) for word in shlex.split(command, comments=True)]
    if "=" in name:
        monkeypatch.setenv(*name.split("=", 1))
        name, *words = words
    if name == "python":
        subprocess.run([sys.executable, ROOT / "examples/rewards/polite.py"], check=True)
        for file in Path().glob("*.jsonl"):
            file.write_text("".join(file.read_text("utf-8").splitlines(keepends=True)[:20]), "utf-8")
    elif name == "tsugiki":
        added = next((more for start, more in ADDED.items() if " ".join(words).startswith(start)), "")
        monkeypatch.setattr(sys, "argv", ["tsugiki", *words, *added.split()])
        monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code, command


def run_program(code: str, served_at: Any) -> None:
    """Run a program of the guides with what its page has defined before."""
    if code.startswith("def reward"):  # two forms of a rule
        asked = [{"prompt": "", "answer": "Yes.", "fields": {}, "seed": 0}]
        for form in code.split("\n\n\n"):
            Path("form.py").write_text(form)
            assert python_scores("form.py", "reward", asked, 10) == [1.0]
        return
    names: dict[str, Any] = {
        "three_prompts": {"input_ids": ids(3)},
        "rows": [{"input_ids": row, "labels": row} for row in ids(rows=6)],
        **{name: getattr(tsugiki, name) for name in ("graft", "LoraConfig")},
    }
    if "client" in code:
        running = served_at("server")
        names["client"] = pytest.importorskip("openai").OpenAI(base_url=f"{running.url}/v1", api_key="none")
        code = code.replace("http://127.0.0.1:8000", running.url)
    exec(code.replace('"embedded"', '"base.gguf"').replace("rinna/japanese-gpt2-medium", "base"), names)


@pytest.mark.parametrize(
    ("language", "block"),
    [
        pytest.param(language, block, id=f"{page}-{number}", marks=[pytest.mark.slow] * (f"{page}-{number}" in SLOW))
        for page in PAGES
        for number, (language, block) in enumerate(blocks(page))
    ],
)
def test_a_block_runs_as_printed(
    language: str,
    block: str,
    files: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    for words, reason in NOT_RUN.items():
        if block.startswith(words):
            pytest.skip(reason)
    shutil.copytree(files, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("TSUGIKI_ADAPTERS", "adapters")
    monkeypatch.setattr(sampling, "_SENTENCES", re.compile(".*", re.DOTALL))  # a tiny model never ends a sentence
    if language == "python":
        run_program(block, request.getfixturevalue)
    elif block.startswith('{"model"'):
        running = request.getfixturevalue("server")
        asked = {**json.loads(block), "model": "base", "max_tokens": 4}
        assert httpx2.post(f"{running.url}/v1/completions", json=asked, timeout=60).json()["choices"][0]["text"]
    elif language == "json":
        run("tsugiki eval --questions questions.jsonl --model ./chat-model", monkeypatch)
        assert "of 4" in capsys.readouterr().out
    elif block.startswith("###"):
        turns = re.findall(r"### (user|assistant)\n(.+)\n?", block.replace("<end token>", ""))
        messages = [{"role": role, "content": content} for role, content in turns]
        tokenizer = tsugiki.base.load_tokenizer("chat-model")
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        assert (
            text.removeprefix(tokenizer.bos_token).replace(tokenizer.eos_token, "<end token>").strip() == block.strip()
        )
    else:
        if "push" in block:
            request.getfixturevalue("hub").add("them/base", {})
        for made in [*re.findall(r"--out (\S+)", block), *["adapters/kyoka"] * ("adapters add" in block)]:
            shutil.rmtree(made, ignore_errors=True)
        if "serve " in block:
            served(monkeypatch, lambda *_: None)
        shown = re.findall(r"(?m)^\$ (.+)", block)
        for command in shown or block.splitlines():
            run(command, monkeypatch)
