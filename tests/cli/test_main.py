"""The command line: what works, and one line with status 2 for what does not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.tiny import TEXT, logits, save_tiny
from tsugiki import load_adapter

TRAIN = ("--data", "text.txt", "--out", "run", "--max-steps", "2", "--block-size", "32", "--learning-rate", "0.01")


def test_the_whole_way(base: str, run, tmp_path: Path):
    status, out, err = run("train", "--model", base, *TRAIN, "--r", "4", "--prompts", "枝を")
    assert status == 0
    assert "perplexity" in out
    assert "adapter: run" in out
    assert "枝を" in err
    assert "one document: its last 10% is held out" in err

    figures = {}
    for adapter in ([], ["--adapter", "run"]):
        status, out, _ = run("eval", "--model", base, *adapter, "--data", "text.txt", "--json")
        assert status == 0
        figures[bool(adapter)] = json.loads(out.splitlines()[-1])
    assert {"loss", "perplexity", "bits_per_char", "tokens", "characters"} <= set(figures[True])
    assert figures[True]["loss"] < figures[False]["loss"]
    assert figures[True]["tokens"] == figures[False]["tokens"] == len(TEXT.encode())
    assert "bits/char" in run("eval", "--model", base, "--data", "text.txt")[1]

    status, first, _ = run("generate", "--model", base, "--adapter", "run", "--prompt", "枝", "--max-new-tokens", "9")
    assert status == 0
    assert first.startswith("枝")

    status, out, _ = run("merge", "--model", base, "--adapter", "run", "--out", "merged")
    assert status == 0
    assert "changes the logits by up to" in out
    merged, adapted = AutoModelForCausalLM.from_pretrained("merged"), AutoModelForCausalLM.from_pretrained(base)
    load_adapter(adapted, "run")
    assert float((logits(merged) - logits(adapted)).abs().max()) < 1e-4
    assert run("eval", "--model", "merged", "--data", "text.txt")[0] == 0

    status, _, err = run("merge", "--model", base, "--adapter", "run", "--out", "merged")
    assert (status, err.count("\n")) == (2, 1)
    assert "exists already" in err


def test_a_yaml_file_and_resume(base: str, run, tmp_path: Path):
    (tmp_path / "c.yaml").write_text(f"model: {base}\ndata: text.txt\nout: run\nmax_steps: 2\nblock_size: 32\n")
    assert run("train", "c.yaml")[0] == 0
    status, _, err = run("train", "c.yaml")
    assert (status, "already holds a run" in err) == (2, True)
    status, _, err = run("train", "c.yaml", "--resume")
    assert (status, "is finished" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--r", "0"), "r is 0"),
        (("--lora-alpha", "nan"), "lora_alpha is nan"),
        (("--lora-dropout", "1"), "lora_dropout is 1.0"),
        (("--learning-rate", "-1"), "learning_rate: input should be greater than 0"),
        (("--learning-rate", "inf"), "learning_rate: input should be a finite number"),
        (("--target-modules", "q_proj,v_proj"), "matches no layer; these can be grafted: c_attn"),
        (("--data", "empty.txt"), "is empty"),
        (("--data", "binary.txt"), "is not text"),
        (("--data", "nowhere"), "no data at nowhere"),
        (("--held-out", "2"), "held_out is 2.0"),
        (("--held-out", "text.txt"), "are in the held-out file as well: text.txt (held out: text.txt)"),
        (("--model", "./nowhere"), "there is no such folder"),
        (("--model", "text.txt"), "is a file"),
        (("--prompts", "雨" * 40), "leaves no room"),
        (("--method", "lola"), "method: no such method; did you mean lora?"),
        (("--out", "text.txt"), "is a file"),
        (("--block-size", "1000"), "context is 64"),
        (("missing.yaml",), "cannot read missing.yaml"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    arguments: tuple[str, ...], said: str, base: str, run, tmp_path: Path
):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary.txt").write_bytes(b"\x00\xff\x81")
    status, out, err = run("train", "--model", base, *TRAIN, *arguments)
    errors = [line for line in err.splitlines() if line.startswith("tsugiki: ")]
    assert status == 2
    assert out == ""
    assert len(errors) == 1
    assert said in errors[0]
    assert "Traceback" not in err
    assert not (tmp_path / "run" / "adapter_model.safetensors").exists()


def test_adapters_that_do_not_fit(base: str, run, tmp_path: Path):
    assert run("train", "--model", base, *TRAIN)[0] == 0
    other, wide = save_tiny(tmp_path / "other", seed=1), save_tiny(tmp_path / "wide", n_embd=64)
    prompt = ("--adapter", "run", "--prompt", "a", "--max-new-tokens", "1")
    for model, said in ((other, "another base"), (wide, "another base")):
        status, out, err = run("generate", "--model", model, *prompt)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert said in err
    status, _, err = run("generate", "--model", wide, *prompt, "--allow-base-mismatch")
    assert status == 2
    assert "does not fit this model" in err
    assert run("generate", "--model", other, *prompt, "--allow-base-mismatch")[0] == 0
    status, _, err = run("generate", "--model", base, "--adapter", "nowhere", "--prompt", "a")
    assert (status, "no adapter 'nowhere'" in err) == (2, True)
    status, _, err = run("generate", "--model", base, "--prompt", "雨" * 40)
    assert (status, "leaves no room" in err) == (2, True)


def test_a_rank_above_the_matrix_is_a_note(base: str, run):
    status, _, err = run("train", "--model", base, *TRAIN, "--r", "40")
    assert status == 0
    assert "note: rank 40 is above" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nosuch",), "No such command 'nosuch'"),
        (("train", "--ranc", "8"), "No such option: --ranc"),
        (("train", "--r", "many"), "Invalid value for '--r'"),
        (("merge", "--out", "x"), "Missing option '--model'"),
        (("generate", "--model", "embedded", "--prompt", "a", "--max-new-tokens", "0"), "greater than or equal to 1"),
    ],
)
def test_wrong_usage_is_one_line(arguments: tuple[str, ...], said: str, run):
    status, out, err = run(*arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert said in err


def test_an_interrupted_run_says_how_to_go_on(base: str, run, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tsugiki.train.run.train", interrupt)
    status, _, err = run("train", "--model", base, *TRAIN)
    assert status == 130
    assert "--resume" in err


def test_debug_shows_the_traceback(run):
    assert "Traceback" not in run("eval", "--model", "./nowhere", "--data", "x")[2]
    assert "Traceback" in run("eval", "--model", "./nowhere", "--data", "x", "--debug")[2]


def test_help_answers_without_torch():
    code = (
        "import sys; sys.argv = ['tsugiki', '--help']\n"
        "from tsugiki.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'httpx2'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("quickstart", "aozora", "preview", "train", "methods", "eval", "generate", "merge"):
        assert command in done.stdout
