"""Every YAML file in examples runs one step through the real command line, on a tiny model and a tiny text."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.runs import compare_in_this_process
from tests.tiny import TEXT, save_tiny
from tsugiki import graft
from tsugiki.base.loading import load_model
from tsugiki.cli.main import main
from tsugiki.methods.table import METHODS
from tsugiki.train.workflows.compare_config import load_comparison

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RECIPES = sorted(EXAMPLES.rglob("*.yaml"))
SMALL = {"block_size": 32, "batch_size": 2, "sample_tokens": 2, "held_out": 0.3}
GPT2 = {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 64}


def command_of(recipe: dict[str, Any]) -> str:
    for key, command in (("methods", "compare"), ("grid", "sweep"), ("tokenizer", "pretrain")):
        if key in recipe:
            return command
    return "train"


def shrunk(recipe: dict[str, Any], base: str) -> dict[str, Any]:
    """Return the recipe with a tiny model, a tiny text and one step; its other settings do not change."""
    small = {**recipe, "data": "d.jsonl", "out": "out"}
    target = small.setdefault("settings", {}) if "settings" in recipe else small
    target.pop("epochs", None)
    target |= SMALL | {"max_steps": 1} | ({"retention_data": "retention.txt"} if "retention_data" in target else {})
    if command_of(recipe) == "pretrain":
        small["model"] = {**recipe["model"], **GPT2}
        small["tokenizer"] = {**recipe["tokenizer"], "vocab_size": 800, "common_characters": 20, "data": "d.jsonl"}
    else:
        small["model"] = base
    if command_of(recipe) == "compare":
        small["methods"] = dict(list(recipe["methods"].items())[:2])
    if command_of(recipe) == "sweep":
        small["grid"] = {axis: values[:1] for axis, values in recipe["grid"].items()}
    return small


def test_there_are_recipes():
    assert len(RECIPES) >= 5
    assert {command_of(yaml.safe_load(path.read_text())) for path in RECIPES} == {
        "train",
        "pretrain",
        "compare",
        "sweep",
    }


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_method_of_the_families_has_a_row_that_fits_the_embedded_base():
    path = EXAMPLES / "recipes" / "families.yaml"
    runs = load_comparison(path, {}).runs()
    assert {run.method for run in runs.values()} == set(METHODS)
    for run in runs.values():
        if run.method != "full":
            graft(load_model(run.model), run.adapter_config)
    assert Path(EXAMPLES.parent / runs["full"].data).is_dir()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_a_recipe_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    texts = [{"text": f"{i} " + TEXT[i * 100 : i * 100 + 190 + i]} for i in range(12)]
    Path("d.jsonl").write_text("".join(json.dumps(text, ensure_ascii=False) + "\n" for text in texts))
    Path("retention.txt").write_text(TEXT[500:700])
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    Path("recipe.yaml").write_text(
        yaml.safe_dump(shrunk(recipe, save_tiny(tmp_path / "base", n_positions=128)), allow_unicode=True)
    )
    compare_in_this_process(monkeypatch)
    monkeypatch.setattr(sys, "argv", ["tsugiki", command_of(recipe), "recipe.yaml"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    assert list(Path("out").rglob("*.safetensors"))
