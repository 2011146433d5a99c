"""Load base models by name: the embedded model, a folder, a GGUF file, or a model on the Hugging Face hub.

Every function here takes such a name. A GGUF file is first converted to a folder in the cache (see `base.gguf`).
Weights are read from safetensors files only, so nothing is unpickled, and code in a model's folder is never run.
"""

import sys
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from tsugiki.base.gguf.conversion_cache import converted_folder
from tsugiki.base.gguf.file import is_gguf
from tsugiki.base.progress_bars import hidden_progress_bars
from tsugiki.dtypes import LoadDtype, preferred_compute_dtype, torch_dtype
from tsugiki.errors import TsugikiError, error_text
from tsugiki.io.file_names import ADAPTER_CONFIG_FILE, MODEL_CONFIG_FILE, MODEL_FILES

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED = "embedded"
"""The name of the small Japanese GPT-2 that is part of the package."""

OTHER_MODEL_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "LICEN[CS]E*", "NOTICE*", "USE_POLICY*")
"""Patterns of a model's files other than its weights: config, tokenizer, chat templates, licence. Pickled files and
code do not match."""


def load_model(name: str, dtype: LoadDtype = "fp32") -> "PreTrainedModel":
    """Load a causal language model, in evaluation mode.

    Args:
        name: `embedded`, a folder, a GGUF file or a hub id.
        dtype: the dtype of the weights in memory.

    Raises:
        TsugikiError: there is no such model, the folder or file does not hold a complete one, or the hub cannot be
            reached.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    source, local_only = _source(name)
    try:
        with hidden_progress_bars(not sys.stderr.isatty()):
            model, loading_info = AutoModelForCausalLM.from_pretrained(
                source,
                dtype=torch_dtype(dtype) if dtype in ("bf16", "fp32") else "auto",
                use_safetensors=True,
                local_files_only=local_only,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise _loading_error(name, error) from error
    missing = sorted(loading_info["missing_keys"])
    if missing:  # transformers fills missing weights with random values and only warns
        raise TsugikiError(f"{name} is not a complete model: {missing[0]} is missing ({len(missing)} such weights)")
    if dtype == "int8":
        from tsugiki.base.quantization import quantize

        quantize(model, torch_dtype(preferred_compute_dtype()))
    model.eval()
    # transformers stores the resolved path here, but an adapter's files must name the model as the user did.
    model.name_or_path = model.config._name_or_path = name
    return model


def load_config(name: str) -> "PretrainedConfig":
    """Load a model's config; errors are those of `load_model`."""
    from transformers import AutoConfig

    source, local_only = _source(name)
    try:
        return AutoConfig.from_pretrained(source, local_files_only=local_only)
    except (OSError, ValueError, KeyError) as error:
        raise _loading_error(name, error) from error


def load_tokenizer(name: str) -> "PreTrainedTokenizerBase":
    """Load a model's tokenizer; errors are those of `load_model`."""
    from transformers import AutoTokenizer

    source, local_only = _source(name)
    try:
        return AutoTokenizer.from_pretrained(source, local_files_only=local_only)
    except (OSError, ValueError, KeyError) as error:
        raise _loading_error(name, error) from error


def meta_model(config: "PretrainedConfig", attn_implementation: str | None = None) -> "PreTrainedModel":
    """Build the model that a config describes on torch's meta device: it has shapes and no values.

    Args:
        config: of a causal language model.
        attn_implementation: transformers' name of an attention function; its own choice if None.
    """
    import torch
    from transformers import AutoModelForCausalLM

    options = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, **options)
    return model.eval()


def load_meta_model(name: str) -> "PreTrainedModel":
    """Build a model on torch's meta device from its config; its weights are not read.

    Raises:
        TsugikiError: as for `load_model`.
    """
    config = load_config(name)
    try:
        return meta_model(config)
    except (OSError, ValueError, KeyError) as error:
        raise _loading_error(name, error) from error


def placeholder_model(name: str) -> "PreTrainedModel":
    """Build a model whose weights are zeros that take no memory, so that an adapter can be loaded into it.

    Every weight is one zero, expanded to the weight's shape. Weights that are tied in the model are tied here as well.

    Raises:
        TsugikiError: as for `load_model`.
    """
    import torch

    model = load_meta_model(name)
    placeholders: dict[torch.Tensor, torch.Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for key, tensor in tensors.items():
                if tensor is None:
                    continue
                if tensor not in placeholders:
                    zeros = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
                    is_parameter = isinstance(tensor, torch.nn.Parameter)
                    placeholders[tensor] = torch.nn.Parameter(zeros, requires_grad=False) if is_parameter else zeros
                tensors[key] = placeholders[tensor]
    model.name_or_path = name
    return model


def default_device() -> "torch.device":
    """Return this machine's accelerator, or its processor if it has none."""
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def gguf_path(name: str) -> Path | None:
    """Return the path of the GGUF file with this name, or None if there is no such file.

    A file counts as GGUF if its name ends in `.gguf` or its content begins as GGUF does.
    """
    path = Path(name).expanduser()
    return path if path.is_file() and (path.suffix.lower() == ".gguf" or is_gguf(path)) else None


def local_folder(name: str) -> Path | None:
    """Return the folder on this machine that holds a model's files, or None if there is none. Nothing is downloaded.

    Raises:
        TsugikiError: a GGUF file that cannot be converted.
    """
    from huggingface_hub import try_to_load_from_cache

    if name == EMBEDDED:
        return _embedded_folder()
    gguf = gguf_path(name)
    if gguf is not None:
        return converted_folder(gguf)
    if Path(name).is_dir():
        return Path(name)
    try:
        cached = try_to_load_from_cache(name, MODEL_CONFIG_FILE)
    except ValueError:  # the name is not a valid hub id
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def model_folder(name: str) -> Path:
    """Return a folder on this machine with all files of a model, which are downloaded if they are on the hub.

    Raises:
        TsugikiError: as for `load_model`.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    source, local_only = _source(name)
    if Path(source).is_dir():
        return Path(source)
    patterns = [MODEL_FILES, *OTHER_MODEL_FILES]
    try:
        return Path(snapshot_download(source, allow_patterns=patterns, local_files_only=local_only))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise _loading_error(name, error) from error


def _embedded_folder() -> Path:
    return Path(str(files("tsugiki") / "assets" / "base"))


def _source(name: str) -> tuple[str, bool]:
    """Resolve a name to the folder or hub id for `from_pretrained`, and whether to use local files only."""
    if name == EMBEDDED:
        return str(_embedded_folder()), True
    if not name.strip():
        raise TsugikiError(f"the model's name is empty; give {EMBEDDED!r}, a folder, a GGUF file or a hub id")
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / MODEL_CONFIG_FILE).is_file():
            is_adapter = (path / ADAPTER_CONFIG_FILE).is_file()
            hint = "it is an adapter; pass its base as --model and this folder as --adapter"
            raise TsugikiError(f"{name} is not a model: {hint if is_adapter else f'it has no {MODEL_CONFIG_FILE}'}")
        return str(path), True
    gguf = gguf_path(name)
    if gguf is not None:
        return str(converted_folder(gguf)), True
    if path.exists():
        raise TsugikiError(f"{name} is a file; a model is a folder with {MODEL_CONFIG_FILE}, a GGUF file, or a hub id")
    if path.suffix.lower() == ".gguf":
        raise TsugikiError(f"no model at {name!r}: there is no such file")
    if name.startswith(("/", ".", "~")):
        raise TsugikiError(f"no model at {name!r}: there is no such folder")
    return name, not _hub_has(name)


def _hub_has(name: str) -> bool:
    """Return True if the hub has this model, and False if the hub cannot be reached but the model is cached.

    One request decides, so that the user need not wait for every retry of every file.

    Raises:
        TsugikiError: the hub has no such model, or it cannot be reached and the model is not cached.
    """
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        HfApi().model_info(name, timeout=10)
    except GatedRepoError as error:
        raise TsugikiError(
            f"{name} requires consent: accept its terms on the hub and log in (hf auth login)"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise TsugikiError(
            f"no model called {name!r}: it is not {EMBEDDED!r}, not a folder or a GGUF file, and not on the hub"
        ) from error
    except (httpx2.HTTPError, OSError) as error:
        if local_folder(name):
            return False
        raise TsugikiError(
            f"there is no folder {name!r}, the hub cannot be reached and nothing is cached; check the name and the "
            "network"
        ) from error
    return True


def _loading_error(name: str, error: Exception) -> TsugikiError:
    """Turn an error of transformers or huggingface_hub, which may have many lines, into one line."""
    text = str(error)
    if "trust_remote_code" in text:
        return TsugikiError(f"{name} needs code from its own folder, which Tsugiki never runs; use another model")
    if "safetensors" in text and "does not appear" in text:
        return TsugikiError(f"{name} has no safetensors weights; convert it, since pickled weights are not loaded")
    return TsugikiError(f"{name} cannot be loaded: {error_text(error)}")
