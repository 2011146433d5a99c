"""The headers of weights on the hub, by range requests to a local server."""

import json
from pathlib import Path

import pytest

from tests.hub_server import HubServer
from tests.tiny import save_tiny, tiny_model
from tsugiki import TsugikiError
from tsugiki.base import folder_entries, load_meta_model, weight_entries


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
