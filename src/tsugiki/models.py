"""Base models by name: the embedded one, a folder, or a Hugging Face hub id."""

import logging
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from tsugiki.errors import TsugikiError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED = "embedded"
"""The name of the small Japanese GPT-2 that comes with the package."""


def load_model(name: str) -> "PreTrainedModel":
    """The causal language model called `name`, in float32, in evaluation mode.

    Weights are read from safetensors alone (nothing is unpickled), and no code of the model's is run.

    Raises:
        TsugikiError: no such model, a folder that holds none, or the hub cannot be reached.
    """
    import torch
    from transformers import AutoModelForCausalLM

    where = _where(name)
    try:
        model = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32, use_safetensors=True)
    except (OSError, ValueError, KeyError) as error:
        raise _not_loaded(name, error) from error
    model.eval()
    if name == EMBEDDED:
        # The path of an installed package is of no use to anyone who reads an adapter's files.
        model.name_or_path = model.config._name_or_path = EMBEDDED
    return model


def load_tokenizer(name: str) -> "PreTrainedTokenizerBase":
    """The tokenizer that belongs to the model called `name`.

    Raises:
        TsugikiError: as for `load_model`.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(_where(name))
    except (OSError, ValueError, KeyError) as error:
        raise _not_loaded(name, error) from error


def local_folder(name: str) -> Path | None:
    """The folder on this machine that holds the model's files, or None where there is none (yet)."""
    from huggingface_hub import try_to_load_from_cache

    if name == EMBEDDED:
        return _embedded_folder()
    if Path(name).is_dir():
        return Path(name)
    try:
        cached = try_to_load_from_cache(name, "config.json")
    except ValueError:  # not a hub id at all
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def _embedded_folder() -> Path:
    return Path(str(files("tsugiki") / "assets" / "base"))


def _where(name: str) -> str:
    """What `from_pretrained` is to be given; folders are checked here, since its own message is long."""
    if name == EMBEDDED:
        return str(_embedded_folder())
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            hint = "it is an adapter: name its base as --model and this as --adapter"
            is_adapter = (folder / "adapter_config.json").is_file()
            raise TsugikiError(f"{name} is no model folder: {hint if is_adapter else 'it has no config.json'}")
        return str(folder)
    if folder.exists():
        raise TsugikiError(f"{name} is a file; a model is a folder with config.json, or a hub id")
    if name.startswith(("/", ".", "~")) or name.count("/") > 1 or not name.strip():
        raise TsugikiError(f"no model at {name!r}: there is no such folder")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # one line of ours instead of its retries
    return name


def _not_loaded(name: str, error: Exception) -> TsugikiError:
    """One sentence for what transformers and huggingface_hub say in many."""
    text = str(error)
    if "trust_remote_code" in text:
        return TsugikiError(f"{name} brings code of its own, which Tsugiki does not run; use a model that needs none")
    if "safetensors" in text and "does not appear" in text:
        return TsugikiError(f"{name} has no safetensors weights; convert it, since pickled weights are not loaded")
    if any(word in text for word in ("couldn't connect", "resolve", "offline", "cached files", "Connection")):
        return TsugikiError(
            f"cannot reach the hub for {name!r}, and it is not cached here; give a folder, or check name and network"
        )
    if "not a local folder and is not a valid model identifier" in text or "404" in text:
        return TsugikiError(f"no model called {name!r}: neither a folder here nor on the hub")
    return TsugikiError(f"{name} cannot be loaded: {' '.join(text.split())[:300]}")
