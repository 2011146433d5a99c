"""Fixtures that several test modules share."""

import gc
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.devices import pretend
from tests.hub_server import WRITER, HubServer

os.environ["TSUGIKI_LANG"] = "en"  # whatever the locale of the machine
os.environ["TSUGIKI_VERBOSE"] = "1"  # the tests read details

# The models of the tests are tiny: several threads would wait for each other longer than they compute.
torch.set_num_threads(1)
pretend.register()
gc.disable()  # until the tests are collected: seventeen times, it would look through all that is there


def pytest_collection_finish() -> None:
    """Let no garbage collection of a test look through the modules and the collected tests: a million objects."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Path]:
    """The cache folder of one test, not yet created; `monkeypatch.undo()` in the test does not restore it."""
    folder = tmp_path_factory.getbasetemp() / "caches" / hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:16]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder / "tsugiki"


@pytest.fixture(scope="session", autouse=True)
def _small_products() -> Iterator[None]:
    """Choose between integers and floats by small products: by those of real models it takes 2 s for each dtype."""
    from tsugiki.lowbit import quantized_layer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantized_layer, "_WIDTH", 512)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Leave it to the system when files reach the disk: one short run waits for it 75 times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def aozora_mirror() -> Path:
    """A folder in Aozora Bunko's own layout; tests that need it skip where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "aozora"
    if not (folder / "cards").is_dir():
        pytest.skip("no Aozora Bunko mirror beside the checkout")
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A local hub server with a user logged in; also patches a huggingface_hub that is already imported."""
    from huggingface_hub import constants, hf_api

    with HubServer() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(hf_api.api, "endpoint", server.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", WRITER)
        yield server


@pytest.fixture
def integers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiply integers, also where floats are faster, or where the processor's integer product is not exact."""
    from tsugiki.io import measurements
    from tsugiki.lowbit import exact_integers, integer_products, key_of

    if not exact_integers():
        monkeypatch.setattr(torch, "_int_mm", lambda q, w: (q.double() @ w.double()).to(torch.int32))
        monkeypatch.setattr(integer_products, "exact_integers", lambda: True)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        monkeypatch.setitem(measurements._decided, key_of(dtype), True)
