"""Base models by name: the embedded one, a folder, a GGUF file, or a Hugging Face hub id."""

import sys
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from tsugiki.base.gguf.conversion_cache import converted_folder
from tsugiki.base.gguf.file import is_gguf
from tsugiki.dtypes import LoadDtype, preferred_compute_dtype, torch_dtype
from tsugiki.errors import TsugikiError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED = "embedded"
"""The name of the small Japanese GPT-2 that comes with the package."""


BESIDE_WEIGHTS = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "LICEN[CS]E*", "NOTICE*", "USE_POLICY*")
"""What belongs to a model besides its weights, by name: settings, tokenizer, templates, licence; no pickle, no code."""


def load_model(name: str, dtype: LoadDtype = "fp32") -> "PreTrainedModel":
    """The causal language model called `name`, its weights in `dtype`, in evaluation mode.

    Weights are read from safetensors alone (nothing is unpickled), and no code of the model's is run.

    Raises:
        TsugikiError: no such model, a folder or a file that holds none, or the hub cannot be reached.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    where, local_only = _where(name)
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            where,
            dtype=torch_dtype(dtype) if dtype in ("bf16", "fp32") else "auto",  # auto maps the file into memory
            use_safetensors=True,
            local_files_only=local_only,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise _not_loaded(name, error) from error
    missing = sorted(found["missing_keys"])
    if missing:  # transformers fills these with random numbers and goes on
        raise TsugikiError(f"{name} is not a whole model: {missing[0]} is missing ({len(missing)} such weights)")
    if dtype == "int8":
        from tsugiki.base.quantization import quantise

        quantise(model, torch_dtype(preferred_compute_dtype()))
    model.eval()
    # The path of an installed package, say, is of no use to anyone who reads an adapter's files.
    model.name_or_path = model.config._name_or_path = name
    return model


def meta_model(name: str) -> "PreTrainedModel":
    """The shape of the model called `name`, on torch's meta device: no weights are read, and it computes nothing.

    Raises:
        TsugikiError: as for `load_model`.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    where, local_only = _where(name)
    try:
        config = AutoConfig.from_pretrained(where, local_files_only=local_only)
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, KeyError) as error:
        raise _not_loaded(name, error) from error
    return model.eval()


def placeholder_model(name: str) -> "PreTrainedModel":
    """The shape of the model called `name`, its weights zeros that take no memory: to read an adapter onto.

    Raises:
        TsugikiError: as for `load_model`.
    """
    import torch

    model = meta_model(name)
    zeros: dict[torch.Tensor, torch.Tensor] = {}  # what was one tensor stays one
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for key, tensor in tensors.items():
                if tensor is None:
                    continue
                if tensor not in zeros:
                    hollow = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
                    is_parameter = isinstance(tensor, torch.nn.Parameter)
                    zeros[tensor] = torch.nn.Parameter(hollow, requires_grad=False) if is_parameter else hollow
                tensors[key] = zeros[tensor]
    model.name_or_path = name
    return model


def load_tokenizer(name: str) -> "PreTrainedTokenizerBase":
    """The tokenizer that belongs to the model called `name`.

    Raises:
        TsugikiError: as for `load_model`.
    """
    from transformers import AutoTokenizer

    where, local_only = _where(name)
    try:
        return AutoTokenizer.from_pretrained(where, local_files_only=local_only)
    except (OSError, ValueError, KeyError) as error:
        raise _not_loaded(name, error) from error


def default_device() -> "torch.device":
    """The accelerator of this machine, or its processor."""
    import torch

    return (torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None) or torch.device(
        "cpu"
    )


def gguf_path(name: str) -> Path | None:
    """The file, where the model called `name` is a GGUF file: it is called so, or begins as one does."""
    path = Path(name).expanduser()
    return path if path.is_file() and (path.suffix.lower() == ".gguf" or is_gguf(path)) else None


def local_folder(name: str) -> Path | None:
    """The folder on this machine that holds the model's files, or None where there is none (yet).

    Raises:
        TsugikiError: a GGUF file that cannot be unpacked.
    """
    from huggingface_hub import try_to_load_from_cache

    if name == EMBEDDED:
        return _embedded_folder()
    packed = gguf_path(name)
    if packed is not None:
        return converted_folder(packed)
    if Path(name).is_dir():
        return Path(name)
    try:
        cached = try_to_load_from_cache(name, "config.json")
    except ValueError:  # not a hub id at all
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def model_folder(name: str) -> Path:
    """The folder on this machine with all files of the model called `name`, fetched from the hub where it is there.

    Raises:
        TsugikiError: as for `load_model`.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    where, local_only = _where(name)
    if Path(where).is_dir():
        return Path(where)
    try:
        return Path(
            snapshot_download(
                where, allow_patterns=["model*.safetensors", *BESIDE_WEIGHTS], local_files_only=local_only
            )
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise _not_loaded(name, error) from error


def _embedded_folder() -> Path:
    return Path(str(files("tsugiki") / "assets" / "base"))


def _where(name: str) -> tuple[str, bool]:
    """What `from_pretrained` is to be given, and whether it is to keep off the network."""
    if name == EMBEDDED:
        return str(_embedded_folder()), True
    if not name.strip():
        raise TsugikiError(f"the model's name is empty; give {EMBEDDED!r}, a folder, a GGUF file or a hub id")
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            hint = "it is an adapter: name its base as --model and this as --adapter"
            is_adapter = (folder / "adapter_config.json").is_file()
            raise TsugikiError(f"{name} is no model folder: {hint if is_adapter else 'it has no config.json'}")
        return str(folder), True
    packed = gguf_path(name)
    if packed is not None:
        return str(converted_folder(packed)), True
    if folder.exists():
        raise TsugikiError(f"{name} is a file; a model is a folder with config.json, a GGUF file, or a hub id")
    if folder.suffix.lower() == ".gguf":
        raise TsugikiError(f"no model at {name!r}: there is no such file")
    if name.startswith(("/", ".", "~")):
        raise TsugikiError(f"no model at {name!r}: there is no such folder")
    return name, not _hub_has(name)


def _hub_has(name: str) -> bool:
    """Ask the hub once, so that nobody waits through every retry of every file; False: use what is cached.

    Raises:
        TsugikiError: the hub has no such model, or it cannot be reached and nothing is cached.
    """
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        HfApi().model_info(name, timeout=10)
    except GatedRepoError as error:
        raise TsugikiError(
            f"{name} asks for consent: accept its terms on the hub and log in (hf auth login)"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise TsugikiError(
            f"no model called {name!r}: neither {EMBEDDED!r}, nor a folder or GGUF file here, nor on the hub"
        ) from error
    except (httpx2.HTTPError, OSError) as error:
        if local_folder(name):
            return False
        raise TsugikiError(
            f"no folder {name!r} here, the hub cannot be reached and nothing is cached; check the name and the network"
        ) from error
    return True


def _not_loaded(name: str, error: Exception) -> TsugikiError:
    """One sentence for what transformers and huggingface_hub say in many."""
    text = str(error)
    if "trust_remote_code" in text:
        return TsugikiError(f"{name} brings code of its own, which Tsugiki does not run; use a model that needs none")
    if "safetensors" in text and "does not appear" in text:
        return TsugikiError(f"{name} has no safetensors weights; convert it, since pickled weights are not loaded")
    return TsugikiError(f"{name} cannot be loaded: {' '.join(text.split())[:300]}")
