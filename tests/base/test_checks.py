"""Folders that must not be read: foreign code, pickles, links, devices, and configs that do not fit the weights."""

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.errors import assert_refused
from tests.files import edit_json
from tests.tiny import logits, save_tiny, tiny_model
from tsugiki.base import code_digest, load_meta_model, load_model, load_tokenizer
from tsugiki.base.resolve import load_config


def change(folder: Path, file: str = "config.json", **fields: Any) -> str:
    path = folder / file
    edit_json(path, **fields)
    return str(folder)


CODE = """
import pathlib
pathlib.Path(__file__).parent.joinpath("ran").touch()
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
class Config(GPT2Config):
    model_type = "own"
class Model(GPT2LMHeadModel):
    config_class = Config
class Tokenizer(PreTrainedTokenizerFast): ...
"""
MODEL_CLASSES = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}


@pytest.mark.parametrize("kind", ["own", "gpt2"])
def test_a_model_or_tokenizer_that_brings_code_is_refused_before_anything_is_asked(
    kind: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (base / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 10))
    for classes in ({"AutoTokenizer": ["own.Tokenizer", None]}, ["own.Tokenizer", None]):
        change(base, "tokenizer_config.json", auto_map=classes)
        assert_refused(r"own.Tokenizer.*--trust-remote-code", load_tokenizer, str(base))
    change(base, model_type=kind, auto_map=MODEL_CLASSES)
    for load in (load_model, load_tokenizer, load_config, load_meta_model):
        assert_refused(r"code of its own \(own.Config\).*--trust-remote-code", load, str(base))
    assert not (tmp_path / "ran").exists()


def test_trusted_code_runs_and_its_digest_is_shown(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert code_digest(base) is None
    (base / "own.py").write_text(CODE)
    change(base, model_type="own", auto_map=MODEL_CLASSES)
    change(base, "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "own.Tokenizer"]})
    digest = code_digest(base)
    assert digest is not None
    with pytest.warns(UserWarning, match=digest):
        model = load_model(str(base), trust_remote_code=True)
    with pytest.warns(UserWarning, match=digest):
        tokenizer = load_tokenizer(str(base), trust_remote_code=True)
    assert type(model).__name__ == "Model"
    assert type(tokenizer).__name__ == "Tokenizer"
    assert torch.equal(logits(model), logits(tiny_model(vocab_size=257)))
    (base / "own.py").write_text(CODE + "\n")
    assert code_digest(base) != digest


@pytest.mark.parametrize("file", ["weights.bin", "../outside.safetensors", "/dev/zero", "a\0.safetensors"])
def test_an_index_names_safetensors_files_of_its_folder_only(file: str, base: Path, monkeypatch: pytest.MonkeyPatch):
    tensors = load_file(base / "model.safetensors")
    (base / "model.safetensors").rename(base.parent / "outside.safetensors")
    torch.save(tensors, base / "weights.bin")
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(tensors, file)}))
    monkeypatch.setattr(torch, "load", None)
    assert_refused(r"model.safetensors.index.json names .* not a safetensors file", load_model, str(base))


@pytest.mark.parametrize("file", ["tokenizer.json", "model.safetensors"])
def test_links_stay_in_the_folder(file: str, base: Path, tmp_path: Path):
    outside = (base / file).rename(tmp_path / f"outside-{file}")
    (base / file).symlink_to(outside)
    for load in (load_model, load_tokenizer):
        assert_refused(rf"{file} is a link out of its folder, to .*outside-{file}", load, str(base))
    (base / file).unlink()
    (base / file).symlink_to(outside.rename(base / f"inside-{file}").name)
    load_model(str(base))
    (tmp_path / "link").symlink_to(base, target_is_directory=True)
    load_model(str(tmp_path / "link"))


def test_what_is_not_a_regular_file_is_not_opened(base: Path):
    (base / "tokenizer.json").unlink()
    os.mkfifo(base / "tokenizer.json")
    for load in (load_model, load_tokenizer):
        assert_refused(r"tokenizer.json is not a regular file", load, str(base))
    (base / "tokenizer.json").unlink()
    (base / "tokenizer.json").symlink_to("nowhere")
    assert_refused(r"tokenizer.json is a link to nothing", load_tokenizer, str(base))


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("gpt2", {"n_layer": 1}, r"its files hold transformer.h.1.attn.c_attn.weight.* and 6 more"),
        ("gpt2", {"n_layer": 3}, r"missing|not in its files"),
        ("llama", {"num_hidden_layers": 10**6}, r"config.json: num_hidden_layers is 1000000"),
        ("llama", {"num_hidden_layers": 1_900}, r"more than 1,042 parameter tensors"),
        ("llama", {"vocab_size": 10**9}, r"lm_head.weight is \[257, 32\] in its files, and \[1000000000, 32\]"),
        ("qwen3", {"model_type": "llama"}, r"its files hold model.layers.0.self_attn.k_norm.weight"),
        ("gptj", {"n_positions": 10**9}, r"by config.json it has .* values that are not in its files"),
        ("gpt2", {"n_embd": "x"}, r"cannot be loaded"),
        ("gpt2", {"num_labels": 10**9}, r"num_labels is 1000000000"),
    ],
)
def test_configs_that_do_not_fit_the_weights(
    kind: str, fields: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    base = Path(save_tiny(tmp_path / "base", kind))
    change(base, **fields)
    if "10000000" in message:  # nothing is allocated
        monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", None)
    assert_refused(message, load_model, str(base))


def test_buffers_of_old_releases_and_heads_of_other_tasks_may_be_in_the_files(base: Path):
    expected = logits(load_model(str(base)))
    tensors = load_file(base / "model.safetensors")
    tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, 64, 64)
    tensors["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    tensors["score.weight"] = torch.ones(2, 32)
    tensors["v_head.summary.weight"] = torch.ones(1, 32)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(logits(load_model(str(base))), expected)


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        ("config.json", {"auto_map": {"AutoModelForCausalLM": "some/one--own.Model"}}, "some/one--own.Model"),
        ("config.json", {"attn_implementation": "some/kernel"}, "hub.*never"),
        ("config.json", {"transformers_weights": "../outside.safetensors"}, "transformers_weights"),
        ("adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "a/b"}, "adapter_config.json"),
    ],
)
def test_settings_that_are_refused_whoever_is_trusted(file: str, fields: dict[str, Any], message: str, base: Path):
    change(base, file, **fields)
    assert_refused(message, load_model, str(base), trust_remote_code=True)


def test_no_config_switches_gradient_checkpointing_on(base: Path):
    assert not load_model(change(base, gradient_checkpointing=True)).is_gradient_checkpointing


def test_a_panic_of_the_tokenizers_library_is_an_ordinary_error(base: Path, monkeypatch: pytest.MonkeyPatch):
    class PanicException(BaseException):
        """As pyo3 names its own."""

    def panic(*_: object, **__: object) -> None:
        raise PanicException("index out of bounds")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", panic)
    assert_refused("base cannot be loaded: index out of bounds", load_tokenizer, str(base))
