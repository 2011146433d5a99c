"""`tsugiki pretrain` and `tsugiki train --method full` from the command line."""

import json
from pathlib import Path

import pytest
import yaml

from tests.tiny import TEXT, save_tiny

RECIPE = Path(__file__).resolve().parents[2] / "examples" / "embedded_base" / "pretrain.yaml"


@pytest.fixture(autouse=True)
def _text(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)


def test_the_recipe_of_the_embedded_base_runs(run):
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    recipe["model"] |= {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 32}
    recipe["tokenizer"] = {**recipe["tokenizer"], "vocab_size": 760, "data": "text.txt"}
    recipe |= {"block_size": 32, "batch_size": 2, "sample_tokens": 4}
    Path("small.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
    arguments = (
        "pretrain",
        "small.yaml",
        "--data",
        "text.txt",
        "--held-out",
        "0.1",
        "--out",
        "run",
        "--max-steps",
        "2",
    )
    status, out, err = run(*arguments)
    assert status == 0, err
    assert "model: run (" in out
    assert "bits per character" in out
    assert "training a tokenizer of 760 tokens" in err
    assert json.loads(Path("run/run.json").read_text())["training"]["steps"] == 2
    assert run("generate", "--model", "run", "--prompt", "枝", "--max-new-tokens", "4")[1].startswith("枝")
    assert run("eval", "--model", "run", "--data", "text.txt")[0] == 0

    status, _, err = run(*arguments)
    assert (status, err.count("\n")) == (2, 1)
    assert "--resume" in err


def test_full_training_and_a_model_to_go_on_with(run, tmp_path: Path):
    base = save_tiny(tmp_path / "base")
    small = ("--data", "text.txt", "--max-steps", "2", "--block-size", "32", "--learning-rate", "0.001")
    status, out, err = run("train", "--model", base, *small, "--method", "full", "--out", "full")
    assert status == 0, err
    assert "model: full (" in out
    assert "(100.00%)" in err
    assert run("generate", "--model", "full", "--prompt", "枝", "--max-new-tokens", "4")[0] == 0
    assert run("train", "--model", "full", *small, "--r", "2", "--out", "adapter")[0] == 0
    status, _, err = run("train", "--model", base, *small, "--method", "full", "--r", "4", "--out", "x")
    assert (status, err.count("\n")) == (2, 1)
    assert "lora: " in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere.yaml",), "nowhere.yaml"),
        (("recipe.yaml", "--learning-rate", "-1"), "learning_rate"),
        (("recipe.yaml", "--data", "nowhere.txt"), "nowhere.txt"),
        (("recipe.yaml", "--out", "text.txt/run"), "text.txt"),
        (("recipe.yaml", "--resume"), "run "),
        (("recipe.yaml",), "9,000"),
    ],
)
def test_bad_input_is_one_line(arguments: tuple[str, ...], said: str, run):
    Path("recipe.yaml").write_text(
        "data: text.txt\nout: run\nmodel: {model_type: gpt2, n_layer: 1, n_embd: 8, n_head: 1}\n"
        "tokenizer: {vocab_size: 9000}\n"
    )
    status, _, err = run("pretrain", *arguments)
    lines = [line for line in err.splitlines() if line.startswith("tsugiki: ")]
    assert (status, len(lines)) == (2, 1)
    assert said in lines[0]
    assert not Path("run").exists()
