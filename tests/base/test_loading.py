"""Loading of base models by name, and the errors for names and folders that hold none."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import CONFIGS, logits, save_tiny, tiny_model
from tsugiki import TsugikiError
from tsugiki.base.loading import load_model, load_tokenizer, local_folder, model_folder, placeholder_model


@pytest.fixture(autouse=True)
def _no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def test_a_folder_loads_in_float32_and_keeps_its_name(tmp_path: Path):
    folder = save_tiny(tmp_path / "base")
    tiny_model(vocab_size=257).half().save_pretrained(folder)
    model = load_model(folder)
    assert model.dtype == torch.float32
    assert not model.training
    assert model.name_or_path == folder
    assert logits(model).isfinite().all()
    assert load_tokenizer(folder).eos_token_id == 0
    assert local_folder(folder) == Path(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "empty"),
        ("./nowhere", "'./nowhere'.*folder"),
        ("rinna/japanese-gpt2-medium", "'rinna/japanese-gpt2-medium'.*hub"),
        ("not a name/at all", "'not a name/at all'.*hub"),
        ("a/b/c", "'a/b/c'.*hub"),
    ],
)
def test_names_of_no_model(name: str, message: str):
    for load in (load_model, load_tokenizer, placeholder_model, model_folder):
        with pytest.raises(TsugikiError, match=message):
            load(name)


def test_folders_that_hold_no_model(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(TsugikiError, match="file"):
        load_model(str(tmp_path / "file"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(TsugikiError, match="config.json"):
        load_model(str(tmp_path / "empty"))
    (tmp_path / "empty" / "adapter_config.json").write_text("{}")
    with pytest.raises(TsugikiError, match="--model"):
        load_model(str(tmp_path / "empty"))


def test_broken_models_give_one_sentence(tmp_path: Path):
    folder = Path(save_tiny(tmp_path / "base"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "model.safetensors").rename(folder / "kept")
    with pytest.raises(TsugikiError, match="no safetensors|cannot be loaded"):
        load_model(str(folder))
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(TsugikiError, match="no safetensors|cannot be loaded"):
        load_model(str(folder))
    (folder / "model.safetensors").write_bytes(b"\x01")
    with pytest.raises(TsugikiError, match="cannot be loaded"):
        load_model(str(folder))
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "of the future"}))
    with pytest.raises(TsugikiError, match="cannot be loaded"):
        load_model(str(folder))


def test_code_in_a_model_folder_is_not_run(tmp_path: Path):
    folder = Path(save_tiny(tmp_path / "base"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(TsugikiError, match="code"):
        load_model(str(folder))
    assert not (tmp_path / "ran").exists()


def test_a_model_with_a_missing_weight_is_rejected(tmp_path: Path):
    from safetensors.torch import load_file, save_file

    folder = Path(save_tiny(tmp_path / "base"))
    tensors = load_file(folder / "model.safetensors")
    del tensors["transformer.h.1.mlp.c_fc.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TsugikiError, match=r"h.1.mlp.c_fc.weight .*\(1 "):
        load_model(str(folder))


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_architecture_loads_with_the_logits_of_the_saved_model(kind: str, tmp_path: Path):
    loaded = load_model(save_tiny(tmp_path / kind, kind))
    assert torch.equal(logits(loaded), logits(tiny_model(kind, vocab_size=257)))


def test_the_embedded_base_is_complete_and_its_tokenizer_is_lossless():
    model, tokenizer = load_model("embedded"), load_tokenizer("embedded")
    assert model.name_or_path == "embedded"
    assert local_folder("embedded") is not None
    assert sum(file.stat().st_size for file in local_folder("embedded").iterdir()) <= 16_000_000
    for text in ("\u3000舊い國の\n\n 書物、emoji 🐈 と\t<0x41> & café", "  ", "𠮷野家", "ﾊﾝｶｸ\r\n"):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
        assert max(ids) < model.config.vocab_size


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_a_placeholder_model_has_the_shapes_and_takes_no_memory(kind: str, tmp_path: Path):
    folder = save_tiny(tmp_path / "base", kind)
    model, placeholder = load_model(folder), placeholder_model(folder)
    assert placeholder.name_or_path == folder
    tensors = {name: (t.shape, t.dtype) for name, t in model.state_dict().items()}
    assert {name: (t.shape, t.dtype) for name, t in placeholder.state_dict().items()} == tensors
    assert {t.untyped_storage().nbytes() for t in placeholder.state_dict().values()} <= {4, 8}

    def shared(of: Any) -> set[frozenset[str]]:
        named = list(of.named_parameters(remove_duplicate=False))
        return {frozenset(name for name, p in named if p is one) for _, one in named}

    assert shared(placeholder) == shared(model)


def test_a_model_in_the_hubs_cache_is_found_without_the_hub(tmp_path: Path):
    cached = tmp_path / "hub" / "models--some--one" / "snapshots" / "0123"
    save_tiny(cached)
    (tmp_path / "hub" / "models--some--one" / "refs").mkdir()
    (tmp_path / "hub" / "models--some--one" / "refs" / "main").write_text("0123")
    assert model_folder("some/one") == cached
    assert model_folder(str(cached)) == cached


def test_neither_pickled_files_nor_code_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub.utils import filter_repo_objects

    seen: dict[str, Any] = {}
    monkeypatch.setattr("tsugiki.base.loading._hub_has", lambda name: True)
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, **given: seen.update(given, name=name) or str(tmp_path)
    )
    assert model_folder("some/one") == tmp_path
    there = ["model.safetensors", "model-1.safetensors", "tokenizer.json", "LICENSE", "spiece.model"]
    there += ["pytorch_model.bin", "modeling.py", "consolidated.safetensors", "tf_model.h5", "README.md"]
    assert list(filter_repo_objects(there, allow_patterns=seen["allow_patterns"])) == there[:5]
    assert (seen["name"], seen["local_files_only"]) == ("some/one", False)
