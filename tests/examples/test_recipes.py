"""Every YAML file in examples runs one step through the real command line, on a tiny model and a tiny text."""

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.files import write_rows
from tests.tiny import TEXT, byte_tokenizer, save_tiny
from tests.tiny_types import tiny_of
from tsugiki import graft
from tsugiki.base import load_model
from tsugiki.cli.main import main
from tsugiki.methods import METHODS
from tsugiki.training import SweepConfig, load_settings

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RECIPES = sorted(path for path in EXAMPLES.rglob("*.yaml") if path.parent.name != "embedded_base")
SMALL = {"block_size": 32, "batch_size": 2, "sample_tokens": 2, "held_out": 0.3}
MODEL_TYPES = {
    "qwen3.5": "qwen3_5_text",
    "gemma-3": "gemma3_text",
    "gemma-4": "gemma4_text",
    "lfm2.5-jp": "lfm2",
    "llama-3.2": "llama",
    "sarashina2.2": "llama",
    "llm-jp-3.1": "llama",
    "tinyswallow": "qwen2",
    "granite-4-h": "granitemoehybrid",
    "falcon-h1": "falcon_h1",
    "gpt-oss": "gpt_oss",
    "phi-4-mini": "phi3",
    "olmo-3": "olmo3",
    "ministral-3": "ministral3",
    "qwen3": "qwen3",
    "smollm3": "smollm3",
}
"""Recipe for a model -> the type of that model, or of its language model."""
IN_DEFAULT_TESTS = {"qwen3.5", "granite-4-h", "gpt-oss"}
"""Of the recipes for models; the others are slow tests."""
CHAT = "{% for m in messages %}<{{ m.role }}> {{ m.content }}{{ eos_token }}{% endfor %}"


def command_of(recipe: dict[str, Any]) -> str:
    return "sweep" if {"methods", "grid"} & recipe.keys() else "train"


def shrunk(recipe: dict[str, Any], base: str) -> dict[str, Any]:
    """Return the recipe with a tiny model, a tiny text and one step; its other settings do not change."""
    small = {**recipe, "data": "d.jsonl", "out": "out"}
    target = small.setdefault("settings", {}) if "settings" in recipe else small
    target.pop("epochs", None)
    target |= SMALL | {"max_steps": 1} | ({"retention_data": "retention.txt"} if "retention_data" in target else {})
    small["model"] = base
    if "methods" in recipe:
        small["methods"] = dict(list(recipe["methods"].items())[:2])
    if "grid" in recipe:
        small["grid"] = {axis: values[:1] for axis, values in recipe["grid"].items()}
    return small


def tiny_base_of(path: Path, folder: Path) -> str:
    """A tiny model of the type that a recipe is for, with a tokenizer that has a chat template."""
    if path.parent.name != "models":
        return save_tiny(folder, n_positions=128)
    per_layer = {"vocab_size_per_layer_input": 257} if path.stem == "gemma-4" else {}
    tiny_of(MODEL_TYPES[path.stem], vocab_size=257, **per_layer).save_pretrained(folder)
    byte_tokenizer(CHAT).save_pretrained(folder)
    return str(folder)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_method_of_the_families_has_a_row_that_fits_the_embedded_base():
    path = EXAMPLES / "recipes" / "families.yaml"
    runs = {name: config for name, (_, config) in load_settings(SweepConfig, path, {}).runs().items()}
    assert {run.method for run in runs.values()} == set(METHODS)
    model = load_model("embedded")
    for run in runs.values():
        assert run.model == "embedded"
        if run.method != "full":
            graft(copy.deepcopy(model), run.adapter_config)
    assert Path(EXAMPLES.parent / runs["full"].data[0]).is_dir()


def _param(path: Path) -> Any:
    slow = path.parent.name == "models" and path.stem not in IN_DEFAULT_TESTS
    return pytest.param(path, id=str(path.relative_to(EXAMPLES)), marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize("path", [_param(path) for path in RECIPES])
def test_a_recipe_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    texts = [f"{i} " + TEXT[i * 100 : i * 100 + 190 + i] for i in range(12)]
    records: list[Any] = [{"text": text} for text in texts]
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    if "preference" in recipe:
        records = [{"prompt": f"{i}", "chosen": f"yes{i}", "rejected": f"{i}no"} for i in range(12)]
    if recipe.get("data") == "chat.jsonl":
        asked = {"role": "user", "content": "?"}
        records = [{"messages": [asked, {"role": "assistant", "content": text[:15]}]} for text in texts]
    write_rows("d.jsonl", records)
    Path("retention.txt").write_text(TEXT[500:700])
    small = shrunk(recipe, tiny_base_of(path, tmp_path / "base"))
    Path("recipe.yaml").write_text(yaml.safe_dump(small, allow_unicode=True))
    monkeypatch.setattr(sys, "argv", ["tsugiki", command_of(recipe), "recipe.yaml"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    assert list(Path("out").rglob("*.safetensors"))
