"""Names of models: where their files are, and what is downloaded from the hub."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.hub_server import HubServer
from tests.tiny import logits, save_tiny, tiny_model
from tsugiki import TsugikiError
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
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "empty"),
        ("./nowhere", "'./nowhere'.*folder"),
        ("embeded", "did you mean 'embedded'"),
        ("rinna/japanese-gpt2-medium", "'rinna/japanese-gpt2-medium'.*hub"),
        ("rinna/japanese-gpt2-medium@main", "'rinna/japanese-gpt2-medium@main'.*hub"),
        ("not a name/at all", "'not a name/at all'.*hub"),
        ("a/b/c", "'a/b/c'.*hub"),
        ("a\0b", "no model called"),
        ("a" * 5_000, "File name too long"),
    ],
)
def test_names_of_no_model(name: str, message: str, no_hub: None):
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


def test_a_model_in_the_hubs_cache_is_found_without_the_hub(tmp_path: Path, no_hub: None):
    cached = tmp_path / "hub" / "models--some--one" / "snapshots" / "0123"
    save_tiny(cached)
    (tmp_path / "hub" / "models--some--one" / "refs").mkdir()
    (tmp_path / "hub" / "models--some--one" / "refs" / "main").write_text("0123")
    assert model_folder("some/one") == settings_folder("some/one") == cached
    assert model_folder(str(cached)) == cached


def test_the_files_of_a_model_are_downloaded_and_nothing_else(hub: HubServer, tmp_path: Path):
    there = {path.name: path.read_bytes() for path in Path(save_tiny(tmp_path / "base")).iterdir()}
    others = ("pytorch_model.bin", "modeling.py", "consolidated.safetensors", "model.fp16.safetensors", "README.md")
    subfolder = {"onnx/config.json": b"{}", "original/tokenizer.model": b"", "additional_chat_templates/a.jinja": b"a"}
    hub.add("some/one", there | dict.fromkeys((*others, "LICENSE"), b"") | subfolder)
    tokenizer = load_tokenizer("some/one")
    assert tokenizer.eos_token_id == 0
    settings = set(there) - {"model.safetensors"} | {"LICENSE", "additional_chat_templates/a.jinja"}
    folder = settings_folder("some/one")
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == settings
    model = load_model("some/one")
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        *settings,
        "model.safetensors",
    }
    assert torch.equal(logits(model), logits(tiny_model(vocab_size=257)))
    assert model.name_or_path == model.config._name_or_path == "some/one"
    assert local_folder("some/one") == model_folder("some/one") == folder


def test_an_interrupted_download_asks_for_no_further_file(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    hub.add("some/one", {path.name: path.read_bytes() for path in Path(save_tiny(tmp_path / "base")).iterdir()})
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
    there = {path.name: path.read_bytes() for path in (tmp_path / "base").iterdir()}
    hub.add("some/one", there | {"model-of-another.safetensors": b"x"})
    assert torch.equal(logits(load_model("some/one")), logits(tiny_model(vocab_size=257)))
    assert not (settings_folder("some/one") / "model-of-another.safetensors").exists()


def test_a_revision_is_a_part_of_the_name(hub: HubServer, tmp_path: Path):
    first, second = (
        {path.name: path.read_bytes() for path in Path(save_tiny(tmp_path / str(seed), seed=seed)).iterdir()}
        for seed in (0, 1)
    )
    hub.add("some/one", first).commit(second)
    assert torch.equal(logits(load_model("some/one")), logits(tiny_model(seed=1, vocab_size=257)))
    old = load_model("some/one@v1")
    assert torch.equal(logits(old), logits(tiny_model(seed=0, vocab_size=257)))
    assert old.name_or_path == "some/one@v1"
    assert local_folder("some/one@v1") != local_folder("some/one")
    with pytest.raises(TsugikiError, match="some/one has no revision 'v7'"):
        load_model("some/one@v7")


@pytest.mark.parametrize("load", [load_model, load_tokenizer, settings_folder])
def test_repositories_that_hold_no_model(load: Callable[[str], object], hub: HubServer):
    hub.add("some/adapter", {"adapter_config.json": b"{}"})
    with pytest.raises(TsugikiError, match="some/adapter.*config.json"):
        load("some/adapter")
    with pytest.raises(TsugikiError, match="no model called 'some/thing'"):
        load("some/thing")
    hub.add("some/gated", {"config.json": b"{}"}, gated=True)
    with pytest.raises(TsugikiError, match="some/gated"):
        load("some/gated")


def test_only_hub_ids_have_revisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("me@home").mkdir()
    assert split_revision("some/one@refs/pr/7") == ("some/one", "refs/pr/7")
    assert split_revision("gpt2@v1.0") == ("gpt2", "v1.0")
    for name in ("some/one", "some/one@", "/data/me@home/base", "./a@b", "me@home", "a/b/c@d", "embedded", ""):
        assert split_revision(name) == (name, None)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("shards", [False, True])
def test_the_headers_of_a_model_on_the_hub_are_read_and_nothing_else(shards: bool, hub: HubServer, tmp_path: Path):
    model = tiny_model("llama", vocab_size=20_000)
    model.save_pretrained(tmp_path / "model", max_shard_size="2MB" if shards else "1GB")
    files = files_of(tmp_path / "model")
    weights = [name for name in files if name.endswith(".safetensors")]
    assert (len(weights) > 1) == shards
    hub.add("some/one", {**files, "tokenizer.json": b" " * 10_000_000})
    load_meta_model("some/one")
    found, is_here = weight_entries("some/one")
    assert not is_here
    assert found is not None
    expected = folder_entries(tmp_path / "model")
    assert {key: (one.dtype, one.shape, one.end - one.begin) for key, one in found.items()} == {
        key: (one.dtype, one.shape, one.end - one.begin) for key, one in expected.items()
    }
    assert hub.sent < 110_000 * len(weights) < sum(map(len, files.values()))
    cached = {path.name for path in (tmp_path / "hub-cache").rglob("*") if path.is_symlink()}
    assert cached == {"config.json", *(["model.safetensors.index.json"] if shards else [])}


def test_a_downloaded_model_is_read_from_the_cache(hub: HubServer, tmp_path: Path):
    folder = Path(save_tiny(tmp_path / "base", "gpt2"))
    snapshot = tmp_path / "hub-cache" / "models--some--one" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (tmp_path / "hub-cache" / "models--some--one" / "refs").mkdir()
    (tmp_path / "hub-cache" / "models--some--one" / "refs" / "main").write_text("0123")
    for name, content in files_of(folder).items():
        (snapshot / name).write_bytes(content)
    assert weight_entries("some/one") == (folder_entries(folder), True)
    assert not hub.requests


def test_weights_that_cannot_be_read(hub: HubServer, tmp_path: Path):
    config = {"config.json": json.dumps({"model_type": "gpt2"}).encode()}
    hub.add("some/pickled", {**config, "pytorch_model.bin": b"x"})
    with pytest.raises(TsugikiError, match="some/pickled has no safetensors"):
        weight_entries("some/pickled")
    for content in (b"", b"x" * 5000, (100).to_bytes(8, "little") + b"{" * 100, (2).to_bytes(8, "little") + b"[]"):
        hub.add("some/broken", {**config, "model.safetensors": content})
        with pytest.raises(TsugikiError, match="some/broken cannot be read"):
            weight_entries("some/broken")


def test_without_a_network_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    nowhere = "http://127.0.0.1:9"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", nowhere)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", nowhere + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert weight_entries("some/one") == (None, False)
