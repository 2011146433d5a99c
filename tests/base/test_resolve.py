"""Names of models: where their files are, and what is downloaded from the hub."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.errors import assert_refused
from tests.files import contents
from tests.hub_server import HubServer
from tests.tiny import logits, save_tiny, tiny_model
from tsugiki.base import (
    folder_entries,
    load_meta_model,
    load_model,
    load_tokenizer,
    local_folder,
    placeholder_model,
    split_revision,
    weight_entries,
)
from tsugiki.base.resolve import model_folder, settings_folder


@pytest.fixture
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = "http://127.0.0.1:9"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", nowhere)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", nowhere + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "empty"),
        ("embeded", "did you mean 'embedded'"),
        ("rinna/japanese-gpt2-medium", "'rinna/japanese-gpt2-medium'.*hub"),
        ("a\0b", "no model called"),
        ("a" * 5_000, "File name too long"),
    ],
)
def test_names_of_no_model(name: str, message: str, no_hub: None):
    for load in (load_model, load_tokenizer, placeholder_model, model_folder):
        assert_refused(message, load, name)
    assert weight_entries("some/one") == (None, False)


def test_folders_that_hold_no_model(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    assert_refused("file", load_model, str(tmp_path / "file"))
    (tmp_path / "empty").mkdir()
    assert_refused("config.json", load_model, str(tmp_path / "empty"))
    (tmp_path / "empty" / "adapter_config.json").write_text("{}")
    assert_refused("--model", load_model, str(tmp_path / "empty"))


def test_the_files_of_a_model_are_downloaded_and_nothing_else(hub: HubServer, tmp_path: Path):
    there = contents(Path(save_tiny(tmp_path / "base")))
    others = ("pytorch_model.bin", "modeling.py", "consolidated.safetensors", "model.fp16.safetensors", "README.md")
    subfolder = {"onnx/config.json": b"{}", "original/tokenizer.model": b"", "additional_chat_templates/a.jinja": b"a"}
    hub.add("some/one", there | dict.fromkeys((*others, "LICENSE"), b"") | subfolder)
    tokenizer = load_tokenizer("some/one")
    assert tokenizer.eos_token_id == 0
    settings = set(there) - {"model.safetensors"} | {"LICENSE", "additional_chat_templates/a.jinja"}
    folder = settings_folder("some/one")
    assert set(contents(folder)) == settings
    model = load_model("some/one")
    assert set(contents(folder)) == {*settings, "model.safetensors"}
    assert torch.equal(logits(model), logits(tiny_model(vocab_size=257)))
    assert model.name_or_path == model.config._name_or_path == "some/one"
    assert local_folder("some/one") == model_folder("some/one") == folder


def test_an_interrupted_download_asks_for_no_further_file(hub: HubServer, monkeypatch: pytest.MonkeyPatch):
    hub.add("some/one", {"config.json": b"{}", "tokenizer.json": b"{}"})
    asked = []

    def interrupted(_repo_id: str, file: str, **_revision: object) -> None:
        asked.append(file)
        raise KeyboardInterrupt

    monkeypatch.setattr("huggingface_hub.hf_hub_download", interrupted)
    with pytest.raises(KeyboardInterrupt):
        settings_folder("some/one")
    assert len(asked) == 1


def test_a_sharded_model_is_downloaded_by_its_index(hub: HubServer, tmp_path: Path):
    save_tiny(tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").unlink()
    tiny_model(vocab_size=257).save_pretrained(tmp_path / "base", max_shard_size="20KB")
    there = contents(tmp_path / "base")
    hub.add("some/one", there | {"model-of-another.safetensors": b"x"})
    assert torch.equal(logits(load_model("some/one")), logits(tiny_model(vocab_size=257)))
    assert not (settings_folder("some/one") / "model-of-another.safetensors").exists()


def test_a_revision_is_a_part_of_the_name(hub: HubServer, tmp_path: Path):
    first, second = (contents(Path(save_tiny(tmp_path / str(seed), seed=seed))) for seed in (0, 1))
    hub.add("some/one", first).commit(second)
    assert torch.equal(logits(load_model("some/one")), logits(tiny_model(seed=1, vocab_size=257)))
    old = load_model("some/one@v1")
    assert torch.equal(logits(old), logits(tiny_model(seed=0, vocab_size=257)))
    assert old.name_or_path == "some/one@v1"
    assert local_folder("some/one@v1") != local_folder("some/one")
    assert_refused("some/one has no revision 'v7'", load_model, "some/one@v7")


@pytest.mark.parametrize("load", [load_model, load_tokenizer, settings_folder])
def test_repositories_that_hold_no_model(load: Callable[[str], object], hub: HubServer):
    hub.add("some/adapter", {"adapter_config.json": b"{}"})
    assert_refused("some/adapter.*config.json", load, "some/adapter")
    assert_refused("no model called 'some/thing'", load, "some/thing")
    hub.add("some/gated", {"config.json": b"{}"}, gated=True)
    assert_refused("some/gated", load, "some/gated")


def test_only_hub_ids_have_revisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("me@home").mkdir()
    assert split_revision("some/one@refs/pr/7") == ("some/one", "refs/pr/7")
    assert split_revision("gpt2@v1.0") == ("gpt2", "v1.0")
    for name in ("some/one", "some/one@", "/data/me@home/base", "./a@b", "me@home", "a/b/c@d", "embedded", ""):
        assert split_revision(name) == (name, None)


@pytest.mark.parametrize("shards", [False, True])
def test_the_headers_of_a_model_on_the_hub_are_read_and_nothing_else(shards: bool, hub: HubServer, tmp_path: Path):
    model = tiny_model("llama", vocab_size=20_000)
    model.save_pretrained(tmp_path / "model", max_shard_size="2MB" if shards else "1GB")
    files = contents(tmp_path / "model")
    weights = [name for name in files if name.endswith(".safetensors")]
    assert (len(weights) > 1) == shards
    hub.add("some/one", {**files, "tokenizer.json": b" " * 10_000_000})
    load_meta_model("some/one")
    found, is_here = weight_entries("some/one")
    assert not is_here
    assert found is not None
    ours, expected = (
        {key: (one.dtype, one.shape, one.end - one.begin) for key, one in entries.items()}
        for entries in (found, folder_entries(tmp_path / "model"))
    )
    assert ours == expected
    assert hub.sent < 110_000 * len(weights) < sum(map(len, files.values()))
    cached = {path.name for path in (tmp_path / "hub-cache").rglob("*") if path.is_symlink()}
    assert cached == {"config.json", *(["model.safetensors.index.json"] if shards else [])}


def test_a_model_in_the_hubs_cache_is_found_without_the_hub(tmp_path: Path, no_hub: None):
    repository = tmp_path / "hub" / "models--some--one"
    cached = repository / "snapshots" / "0123"
    save_tiny(cached)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    assert model_folder("some/one") == settings_folder("some/one") == model_folder(str(cached)) == cached
    assert weight_entries("some/one") == (folder_entries(cached), True)


def test_weights_that_cannot_be_read(hub: HubServer, tmp_path: Path):
    config = {"config.json": json.dumps({"model_type": "gpt2"}).encode()}
    hub.add("some/pickled", {**config, "pytorch_model.bin": b"x"})
    assert_refused("some/pickled has no safetensors", weight_entries, "some/pickled")
    for content in (b"", b"x" * 5000, (100).to_bytes(8, "little") + b"{" * 100, (2).to_bytes(8, "little") + b"[]"):
        hub.add("some/broken", {**config, "model.safetensors": content})
        assert_refused("some/broken cannot be read", weight_entries, "some/broken")
