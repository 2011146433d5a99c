"""What a command refuses: one line that names it, with status 2, and no file is written or changed."""

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.adapters.folders import write
from tests.files import contents
from tests.tiny import TEXT, save_grafted, save_tiny
from tsugiki import LoraConfig
from tsugiki.base import load_model
from tsugiki.io import ADAPTER_FILE
from tsugiki.methods import PromptTuningConfig

TRAIN = "train --model base --data text.txt --out out --max-steps 2 --block-size 32"
SELECT = f"{TRAIN} --method select"
PAIRS = "train --model base --out out --max-steps 2 --block-size 64 --r 2 --preference dpo --data pairs.jsonl"
MERGE = "merge --model base --out merged --adapter"
LONG = "雨" * 40  # 120 tokens, where the context has 64


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with bases, adapters, a library and texts, some of them damaged."""
    folder = tmp_path_factory.mktemp("refusals")
    base = save_tiny(folder / "base")
    save_tiny(folder / "other", seed=4)
    save_tiny(folder / "wide", n_embd=64)
    configs = {"one": LoraConfig(r=2), "dora": LoraConfig(r=2, use_dora=True), "prompt": PromptTuningConfig()}
    for name, config in configs.items():
        save_grafted(folder / name, load_model(base), config)
    for name, like in (("cut", "base"), ("bare", "base"), ("short", "one")):
        shutil.copytree(folder / like, folder / name)
    (folder / "bare" / "tokenizer.json").unlink()
    for weights in (folder / "cut" / "model.safetensors", folder / "short" / ADAPTER_FILE):
        weights.write_bytes(weights.read_bytes()[:-7])
    for seed, name in enumerate(("soseki", "akutagawa")):
        write(folder / "library" / name, seed)
    files = {
        "text.txt": TEXT,
        "texts.jsonl": '{"text": "a"}\n',
        "roles.jsonl": json.dumps({"messages": [{"role": "wizard", "content": "x"}]}),
        "questions.jsonl": '{"prompt": "a"}\n',
        "pairs.jsonl": '{"prompt": "a", "chosen": "bcd", "rejected": "efg"}',
        "equal.jsonl": '{"prompt": "a", "chosen": "bcd", "rejected": "bcd"}',
        "single.jsonl": '{"prompt": "a", "completion": "bcd", "label": true}',
        **dict.fromkeys(("there.gguf", "half.Modelfile"), "mine"),
    }
    for name, content in files.items():
        (folder / name).write_text(content)
    (folder / "binary.txt").write_bytes(b"\x00\xff\x81")
    return folder


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("nosuch", "nosuch"),
        ("trian", "'train' … (tsugiki --help"),
        ("adapters lst", "'list' … (tsugiki adapters --help"),
        ("merge --out x --model m", "--adapter … (tsugiki merge --help"),
        ("adapters combine --wieghts 1", "mean --weights? (tsugiki adapters combine --help"),
        ("new", "--data"),
        ("train --lr 1e-3", "mean --learning-rate? (tsugiki train --help"),
        ("train --lora-rank 8", "mean --r?"),
        ("train --steps 3", "mean --max-steps"),
        ("train --lora_alfa 3", "mean --lora-alpha"),
        ("train --patiense 3", "--patience … tsugiki train --help-all"),
        ("train missing.yaml", "missing.yaml"),
        ("train --resume", "--resume runs/text"),
        ("train --resume base", "base holds no run"),
        ("train base", "--resume base"),
        (f"{TRAIN} --r 0", "lora.r"),
        (f"{TRAIN} --target-modules q_proj,v_proj", "c_attn"),
        (f"{TRAIN} --data binary.txt", "binary.txt"),
        (f"{TRAIN} --data nowhere", "nowhere"),
        (f"{TRAIN} --held-out text.txt", "text.txt (held out: text.txt)"),
        (f"{TRAIN} --model ./nowhere", "./nowhere"),
        (f"{TRAIN} --prompts {LONG}", "64"),
        (f"{TRAIN} --out text.txt", "text.txt"),
        (f"{TRAIN} --block-size 1000", "64"),
        (f"{TRAIN} texts.jsonl", "--data 'texts/*.txt'"),  # a pattern that the shell replaced
        (f"{TRAIN} texts.jsonl roles.jsonl", "--data 'texts/*.txt'"),
        (f"{TRAIN} --method full --r 4", "lora: "),
        (SELECT, "target_parameters"),
        (f"{SELECT} --set target_parameters=[h.9.bias]", "target_parameters="),
        (f"{SELECT} --set target_parameters=.*", "method full"),
        (f"{PAIRS} --preference dppo", "dppo"),
        (f"{PAIRS} --preference-settings betta=1", "betta"),
        (f"{PAIRS} --preference-settings beta=much", "beta"),
        (f"{PAIRS} --preference-settings beta", "beta"),
        (f"{PAIRS} --held-out text.txt", "text.txt"),
        (PAIRS, "pairs.jsonl"),  # one pair alone
        (PAIRS.replace("pairs", "equal"), "equal.jsonl:1"),
        (f"{TRAIN} --preference-settings beta=1", "preference"),
        ("preview --model base", "--data missing"),
        ("preview --model base --data text.txt --html no/p.html", "no/p.html"),
        ("preview --model base --data text.txt --assistant-turns some", "'all' or 'last'"),
        ("preview --model base --data text.txt --rows 0", "--rows"),
        ("preview --model base --data roles.jsonl", "roles.jsonl:1"),
        ("plan", "model"),
        ("plan --model no/such", "no/such"),
        ("plan --model base --device cuda", "cuda"),
        ("plan --model base --block-size 1000000", "context"),
        ("plan --model base --block-size 32 --memory plenty", "plenty"),
        ("eval --data text.txt", "nothing to evaluate"),
        ("eval --model base", "--data"),
        ("eval --model base --questions questions.jsonl", "questions.jsonl:1 has no expected"),
        ("eval --model base --questions questions.jsonl --data text.txt", "--data"),
        ("eval --model base --pairs single.jsonl", "--pairs"),
        ("eval --model base --pairs pairs.jsonl --data text.txt", "--pairs"),
        ("generate --model embedded --prompt a --max-new-tokens 0", "1"),
        ("generate --prompt a", "--model"),
        ("generate --model base", "--prompts"),
        (f"generate --model base --prompt {LONG}", "64"),
        ("generate --model base --prompts texts.jsonl", "texts.jsonl:1"),
        ("generate --model base --prompts nowhere.txt", "nowhere.txt"),
        ("generate --model base --prompt a --compare", "--adapter"),
        ("generate --adapter ./nowhere --prompt a", "nowhere"),
        ("generate --model other --adapter one --prompt a", "--allow-base-mismatch"),
        ("generate --model wide --adapter one --prompt a --allow-base-mismatch", "[2, 64]"),
        ("chat", "--model"),
        ("methods nroms", "norms?"),
        ("methods --model ./nowhere", "./nowhere"),
        (f"{MERGE} one --weights x", "--weights is 'x'"),
        (f"{MERGE} prompt", "soft prompt"),
        (f"{MERGE} one --out one", "exists"),
        (f"{MERGE} one --out text.txt/x", "text.txt/x"),
        (f"{MERGE} one --model other", "--allow-base-mismatch"),
        (f"{MERGE} one --model cut", "model.safetensors"),
        ("export dora --gguf x.gguf", "DoRA"),
        ("export one --gguf x.bin", ".gguf"),
        ("export one --gguf no/x.gguf", "no"),
        ("export one --gguf there.gguf", "there.gguf"),
        ("export one --gguf x.gguf --model other", "--allow-base-mismatch"),
        ("export one --gguf x.gguf --model wide --allow-base-mismatch", "c_attn"),
        ("export one --merged --gguf x.gguf", "--base-gguf"),
        ("export one --merged --base-gguf there.gguf --gguf x.gguf", "there.gguf is not a GGUF file"),
        ("push nowhere me/it", "nowhere"),
        ("push one it", "'it'"),
        ("push one me/it --message ' '", "--message"),
        ("pull it", "'it'"),
        ("adapters show nowhere", "'nowhere'"),
        ("adapters show sosek", "'soseki'"),
        ("adapters add nowhere", "nowhere"),
        ("adapters add there.gguf", "it is not a folder"),
        ("adapters add library/soseki", "'soseki'"),
        ("adapters rename soseki akutagawa", "'akutagawa'"),
        ("adapters rename soseki", "new"),
        ("adapters remove --yes soseki nowhere", "'nowhere'"),
        ("adapters list --library text.txt", "Not a directory"),
        ("adapters combine soseki akutagawa --out x --weights 1,two", "--weights is '1,two'"),
        ("adapters combine soseki akutagawa --out soseki", "exists"),
        ("adapters combine one short --out x", ADAPTER_FILE),
        ("adapters truncate soseki --out x", "--rank or --energy"),
        ("adapters truncate soseki --rank 2 --energy 0.9 --out x", "--rank or --energy"),
        ("adapters truncate soseki --rank two --out x", "--rank"),
    ],
)
def test_what_cannot_be_is_one_line_and_changes_nothing(
    command: str, said: str, made: Path, run, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(made)
    monkeypatch.setenv("TSUGIKI_ADAPTERS", "library")
    before = contents(made)
    status, out, err = run(*shlex.split(command))
    *notes, line = err.splitlines()
    assert (status, out, line[:9]) == (2, "", "tsugiki: ")
    assert all(part in line for part in said.split(" … ")), line
    assert not [note for note in notes if note.startswith(("tsugiki: ", "Traceback"))]
    assert not (made / "out" / ADAPTER_FILE).exists()
    shutil.rmtree(made / "out", ignore_errors=True)  # the record of a run that began
    assert contents(made) == before


GUIDE = Path(__file__).parents[2] / "CHANGELOG.md"


@pytest.mark.parametrize(
    ("words", "typed"),
    [
        (["－－model", "embedded"], "－－model has .* type --model$"),
        (["ーーmodel", "embedded"], "ーーmodel has .* type --model$"),
        (["--max-steps", "１０"], "１０ has .* type 10$"),
        (["--dtype", "fp32"], r"--dtype; did you mean --base-dtype\? "),
        (["--model", "embedded", "--data", str(GUIDE), "--out", "o\udcff"], r"out: input should be a text in UTF-8"),
        (["--model", "embedded", "--data", "「文ー１.txt」", "--out", "o"], "type 文ー１.txt$"),
        (["--model", "embedded", "--data", "“a.txt”", "--out", "o"], "type a.txt$"),
        (["--model", "embedded", "--data", "none.txt", "--out", "o", "--prompts", "「春は」"], r"owner/name\)$"),
        (["--model", "embedded", "--data", r"C:\me\a.txt", "--out", "o"], r"no file or folder C:\\me\\a.txt$"),
    ],
)
def test_what_somebody_types_is_answered_with_what_to_type(run: Any, words: list[str], typed: str):
    status, _out, said = run("train", *words)
    assert status == 2
    assert re.search(typed, said.strip()), said
