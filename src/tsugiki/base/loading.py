"""Load base models, their configs and their tokenizers by name (see `base.resolve`).

Weights are read from safetensors files only, so nothing is unpickled. Code in a model's folder is run only if the
caller asks for it with `trust_remote_code`.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tsugiki.base.checks import check_all_used, check_weights
from tsugiki.base.meta import fill_with_zeros, meta_model
from tsugiki.base.progress_bars import hidden_progress_bars
from tsugiki.base.resolve import model_folder, settings_folder
from tsugiki.dtypes import LoadDtype, preferred_compute_dtype, torch_dtype
from tsugiki.errors import TsugikiError, error_text, is_ordinary

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_PROBE = "a 枝\n"


def load_model(name: str, dtype: LoadDtype = "fp32", *, trust_remote_code: bool = False) -> "PreTrainedModel":
    """Load a causal language model, in evaluation mode.

    Args:
        name: `embedded`, a folder, a GGUF file or a hub id.
        dtype: the dtype of the weights in memory.
        trust_remote_code: run the Python code that the model brings, if it does.

    Raises:
        TsugikiError: there is no such model, the folder or file does not hold a complete one, or the hub cannot be
            reached.
    """
    from transformers import AutoModelForCausalLM

    folder = model_folder(name, trust_remote_code=trust_remote_code)
    with _loading_errors(name):
        config = _read_config(folder, trust_remote_code)
        if not trust_remote_code:
            check_weights(name, folder, config)
        with hidden_progress_bars(not sys.stderr.isatty()):
            model, loading_info = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=torch_dtype(dtype) if dtype in ("bf16", "fp32") else "auto",
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
            )
    missing = sorted(loading_info["missing_keys"])
    if missing:  # transformers fills missing weights with random values and only warns
        raise TsugikiError(f"{name} is not a complete model: {missing[0]} is missing ({len(missing)} such weights)")
    check_all_used(name, model, loading_info["unexpected_keys"])
    if dtype == "int8":
        from tsugiki.base.quantization import quantize

        quantize(model, torch_dtype(preferred_compute_dtype()))
    model.eval()
    # transformers stores the resolved path here, but an adapter's files must name the model as the user did.
    model.name_or_path = model.config._name_or_path = name
    return model


def load_config(name: str) -> "PretrainedConfig":
    """Load a model's config; errors are those of `load_model`."""
    folder = settings_folder(name)
    with _loading_errors(name):
        return _read_config(folder, trust_remote_code=False)


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> "PreTrainedTokenizerBase":
    """Load a model's tokenizer; errors are those of `load_model`."""
    from transformers import AutoTokenizer

    folder = settings_folder(name, trust_remote_code=trust_remote_code)
    with _loading_errors(name):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
        tokenizer(_PROBE)  # some damaged tokenizers load, and fail at every text
        return tokenizer


def load_meta_model(name: str) -> "PreTrainedModel":
    """Build a model on torch's meta device from its config; its weights are not read.

    Raises:
        TsugikiError: as for `load_model`.
    """
    config = load_config(name)
    with _loading_errors(name):
        return meta_model(config)


def placeholder_model(name: str) -> "PreTrainedModel":
    """Build a model whose weights are zeros that take no memory, so that an adapter can be loaded into it.

    Every weight is one zero, expanded to the weight's shape. Weights that are tied in the model are tied here as well.

    Raises:
        TsugikiError: as for `load_model`.
    """
    model = load_meta_model(name)
    fill_with_zeros(model)
    model.name_or_path = name
    return model


def default_device() -> "torch.device":
    """Return this machine's accelerator, or its processor if it has none."""
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def _read_config(folder: "Path", trust_remote_code: bool) -> "PretrainedConfig":
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    if config.model_type == "rwkv":
        # In evaluation mode, RWKV would halve the weights of its later layers, and not those of an adapter in them. The
        # rescaling only prevents overflow in float16.
        config.rescale_every = 0
    for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        # Old configs can switch gradient checkpointing on. It costs time, and only the user can say that it is wanted.
        if part is not None:
            vars(part).pop("gradient_checkpointing", None)
    return config


@contextmanager
def _loading_errors(name: str) -> Iterator[None]:
    """Turn what other libraries raise for a damaged file into a `TsugikiError` of one line.

    They raise exceptions of any class.
    """
    try:
        yield
    except TsugikiError:
        raise
    except BaseException as error:
        if not is_ordinary(error):
            raise
        raise TsugikiError(f"{name} cannot be loaded: {error_text(error) or type(error).__name__}") from error
