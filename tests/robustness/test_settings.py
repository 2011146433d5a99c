"""Mutated YAML files of settings are read, or refused in one line."""

import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.robustness.mutations import VALUES, json_bytes, mutate_bytes, mutate_value
from tsugiki.cli import yaml_value
from tsugiki.training import load_comparison, load_config, load_pretrain_config, load_sweep

pytest.importorskip("resource", reason="the harness needs a Unix system")
harness = pytest.importorskip("tests.robustness.harness")

COMMON: dict[str, Any] = {"data": "text.txt", "out": "out"}
TRAIN: dict[str, Any] = {
    **COMMON,
    **{"model": "embedded", "epochs": 2, "learning_rate": 1e-3, "lr_scheduler_type": "warmup_stable_decay"},
    **{"decay_ratio": 0.1, "warmup_ratio": 0.3, "held_out": "author=A", "prompts": ["a", "b"], "base_dtype": "fp32"},
    "lora": {"r": 8, "lora_alpha": 16, "target_modules": ["c_attn"], "rank_pattern": {"h.0": 2}, "use_dora": True},
}
METHOD: dict[str, Any] = {
    **COMMON,
    **{"model": "embedded", "method": "prompt-tuning", "method_config": {"num_virtual_tokens": 4}},
}
PRETRAIN: dict[str, Any] = {
    **COMMON,
    **{"model": {"model_type": "gpt2", "n_layer": 2, "n_embd": 64}, "tokenizer": {"vocab_size": 300, "alphabet": "ab"}},
    **{"max_steps": 2, "compute_dtype": "fp32"},
}
COMPARISON: dict[str, Any] = {
    **COMMON,
    **{"model": "base", "settings": {"max_steps": 2, "held_out": 0.2}},
    "methods": {"lora": {"lora": {"r": 2}}, "full": {"method": "full", "learning_rate": 1e-4}},
}
SWEEP: dict[str, Any] = {
    **COMMON,
    **{"model": "base", "settings": {"max_steps": 2, "lora": {"lora_alpha": 4}}},
    "grid": {"r": [1, 2], "learning_rate": [0.1, 0.2], "target_modules": [["c_attn"], "all-linear"]},
}
PIECES = [
    *(b"&a ", b"*a", b"<<: ", b"!!int ", b"!!bool ", b"!!timestamp ", b"!!python/name:os.system ", b"? ", b"| ", b"> "),
    *(
        b"- ",
        b"[",
        b"{",
        b"\n",
        b"\n ",
        b": ",
        b"---\n",
        b"...\n",
        b"%YAML 1.1\n",
        b"#",
        b"'",
        b'"',
        b"\\U0011FFFF",
        b"\t",
    ),
    *(b"2020-13-45", b"1e999", b".inf", b"1:2:3", b"0x", b"0b_", b"=", b"~", b"*" * 50, b"\xff", b"9" * 5000),
    b"\\U0011FFFF",
]
FLAGS = {
    **{"r": "8", "lora_alpha": "16", "target_modules": "[c_attn, c_proj]", "rank_pattern": "{h.0: 2}"},
    **{"num_virtual_tokens": "4", "epochs": "0.5"},
}


def mutated_file(rng: random.Random, folder: Path, settings: dict[str, Any]) -> Path:
    """Write settings of which values or bytes are changed."""
    path = folder / "settings.yaml"
    if rng.random() < 0.6:
        changed = mutate_value(rng, settings)
        data = json_bytes(changed) if rng.random() < 0.5 else yaml.safe_dump(changed, allow_unicode=True).encode()
    else:
        data = mutate_bytes(rng, yaml.safe_dump(settings, sort_keys=False).encode(), PIECES)
    path.write_bytes(data)
    return path


def read_train(rng: random.Random, folder: Path) -> None:
    load_config(mutated_file(rng, folder, rng.choice((TRAIN, METHOD))), {}).to_record()


def read_pretrain(rng: random.Random, folder: Path) -> None:
    load_pretrain_config(mutated_file(rng, folder, PRETRAIN), {})


def read_comparison(rng: random.Random, folder: Path) -> None:
    load_comparison(mutated_file(rng, folder, COMPARISON), {}).runs()


def read_sweep(rng: random.Random, folder: Path) -> None:
    load_sweep(mutated_file(rng, folder, SWEEP), {}).runs()


def read_flags(rng: random.Random, folder: Path) -> None:
    name = rng.choice(list(FLAGS))
    text = str(rng.choice(VALUES))[:1000] if rng.random() < 0.3 else FLAGS[name]
    text = mutate_bytes(rng, text.encode("utf-8", "replace"), PIECES).decode("utf-8", "replace")
    value = yaml_value("--set", text if rng.random() < 0.9 else FLAGS[name])
    settings = {**COMMON, "model": "m", **({"method": "prompt-tuning"} if name == "num_virtual_tokens" else {})}
    if name == "epochs":
        load_config(None, {**settings, name: value})
    else:
        load_config(None, settings, {name: value})


READERS = {
    "settings of train": read_train,
    "settings of pretrain": read_pretrain,
    "settings of compare": read_comparison,
    "settings of sweep": read_sweep,
    "values of flags": read_flags,
}


@pytest.mark.parametrize("name", READERS)
def test_some_mutations(name: str, tmp_path: Path):
    harness.check(name, READERS[name], harness.QUICK, tmp_path / "case")


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_many_mutations(name: str, tmp_path: Path):
    harness.check(name, READERS[name], harness.LONG, tmp_path / "case")
