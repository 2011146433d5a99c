"""Load base models, their configs and their tokenizers by name (see `base.resolve`).

Weights are read from safetensors files only, so nothing is unpickled. Code in a model's folder is run only with
`trust_remote_code`.
"""

import copy
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from tsugiki.annotations import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from tsugiki.base.checks import DEQUANTIZED, check_all_used, check_weights, quantization_settings
from tsugiki.base.identity import file_states, remember_files
from tsugiki.base.resolve import (
    folder_entries,
    load_config,
    loading_errors,
    model_folder,
    read_config,
    settings_folder,
)
from tsugiki.dtypes import LoadDtype, preferred_compute_dtype, quantized_dtype, torch_dtype
from tsugiki.errors import TsugikiError
from tsugiki.io.file_names import GENERATION_CONFIG_FILE
from tsugiki.io.progress import hidden_progress_bars
from tsugiki.language import _
from tsugiki.model.meta import NoRandomValues, fill_with_zeros, meta_model, with_few_numbers
from tsugiki.model.ungrafted import find_stacks

if TYPE_CHECKING:
    import torch

_PROBE = "a 枝\n"


def load_model(name: str, dtype: LoadDtype = "fp32", *, trust_remote_code: bool = False) -> PreTrainedModel:
    """Load a causal language model, in evaluation mode.

    Args:
        name: `embedded`, a folder, a GGUF file or a hub id.
        dtype: the dtype of the weights in memory.
        trust_remote_code: run Python code that the model brings.

    Raises:
        TsugikiError: there is no such model, the folder or file does not hold a complete one, or the hub cannot be
            reached.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if dtype not in get_args(LoadDtype):
        raise TsugikiError(
            "dtype {dtype!r} does not exist; it must be one of {names}",
            dtype=dtype,
            names=", ".join(get_args(LoadDtype)),
        )
    folder = model_folder(name, trust_remote_code=trust_remote_code)
    states = file_states(name)
    with loading_errors(name):
        config = read_config(folder, trust_remote_code=trust_remote_code)
        if not trust_remote_code and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise TsugikiError(
                "{name} is a model of the type {kind}, which is no causal language model",
                name=name,
                kind=config.model_type,
            )
        stored = quantization_settings(config)
        if not trust_remote_code:
            check_weights(name, folder_entries(folder), config)
        model = None if trust_remote_code or stored else _load_quantized(folder, config, dtype)
        if model is None:
            if stored.get("quant_method") in DEQUANTIZED:
                config.quantization_config = {**stored, "dequantize": True}
            model = _load_by_transformers(name, folder, config, dtype, trust_remote_code)
    # transformers stores the resolved path here, but an adapter's files must name the model as the user did.
    model.name_or_path = model.config._name_or_path = name
    remember_files(model, name, states)
    return model


def _load_quantized(folder: Path, config: PretrainedConfig, dtype: LoadDtype) -> PreTrainedModel | None:
    """Load a model that is to be quantised, tensor by tensor; None if that is not possible."""
    base_dtype = quantized_dtype(dtype)
    if base_dtype is None:
        return None
    from transformers import GenerationConfig

    from tsugiki.base.streaming import load_quantized

    # A copy, because a model that is built from a config writes its dtype into it, in which the files would be loaded.
    model = load_quantized(folder, copy.deepcopy(config), torch_dtype(preferred_compute_dtype()), base_dtype)
    if model is not None and (folder / GENERATION_CONFIG_FILE).is_file():  # `from_pretrained` reads it by itself
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model


def _load_by_transformers(
    name: str, folder: Path, config: PretrainedConfig, dtype: LoadDtype, trust_remote_code: bool
) -> PreTrainedModel:
    """Load a model by `from_pretrained`, which dequantises its weights if necessary, and quantise it afterwards."""
    from transformers import AutoModelForCausalLM

    load = partial(
        AutoModelForCausalLM.from_pretrained,
        folder,
        config=config,
        dtype=torch_dtype(dtype) if dtype in ("bf16", "fp16", "fp32") else "auto",
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=trust_remote_code,
        output_loading_info=True,
        use_kernels=False,  # which are code of the hub
    )
    with NoRandomValues(), hidden_progress_bars():
        model, loading_info = with_few_numbers(load)
    missing = sorted(loading_info["missing_keys"])
    if missing:  # transformers fills missing weights with random values and only warns
        message = _("{name} is not a complete model: {path} is missing ({count} such weights)")
        others = {*(config.architectures or ())} - {type(model).__name__}
        if others:  # such as a classifier
            message = _("{name} is a model of the type {kind}, which is no causal language model")
        raise TsugikiError(message.format(name=name, path=missing[0], count=len(missing), kind=", ".join(others)))
    check_all_used(name, model, loading_info["unexpected_keys"])
    base_dtype = quantized_dtype(dtype)
    if base_dtype is not None:
        from tsugiki.lowbit.quantization import quantize

        quantize(model, torch_dtype(preferred_compute_dtype()), base_dtype)
    _copy_unstacked(model)
    model.eval()
    loaded: PreTrainedModel = model
    return loaded


def _copy_unstacked(model: PreTrainedModel) -> None:
    """Copy the weights of a mixture of experts that are mapped from its files, so that the files leave the memory.

    transformers stacks the experts, for which it reads all of the files, and the stacks are copies. Only the other
    weights are still mapped. A model in which these are half of all weights or more, as in one without experts, stays
    mapped: copies would take as much memory as the files.
    """
    stacks = {id(stack) for stack in find_stacks(dict(model.named_modules())).values()}
    mapped = [parameter for parameter in model.parameters() if id(parameter) not in stacks]
    if 2 * sum(parameter.numel() for parameter in mapped) >= model.num_parameters():
        return
    for parameter in mapped:
        parameter.data = parameter.data.clone()


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer; errors are those of `load_model`."""
    from transformers import AutoTokenizer
    from transformers.utils import is_protobuf_available, is_sentencepiece_available

    folder = settings_folder(name, trust_remote_code=trust_remote_code)
    reads_it = is_sentencepiece_available() and is_protobuf_available()
    if not (folder / "tokenizer.json").exists() and any(folder.glob("*.model")) and not reads_it:
        raise TsugikiError(
            "{name} has a tokenizer of SentencePiece; install what reads it: pip install 'tsugiki[sentencepiece]'",
            name=name,
        )
    with loading_errors(name):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
        tokenizer(_PROBE)  # some damaged tokenizers load, but fail for every text
        _mend_unigram(tokenizer)
        return tokenizer


def _mend_unigram(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a tokenizer of SentencePiece's unigram model its own unknown token, and the lower case that it asks for.

    transformers 5 loads rinna's Japanese GPT-2 models with the class of T5. It writes characters that are not in the
    vocabulary as the token with T5's number, which is the end of the text here, and ignores `do_lower_case`.
    """
    from tokenizers import normalizers
    from tokenizers.models import Unigram

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not isinstance(backend.model, Unigram):
        return
    state, unknown = json.loads(backend.model.__getstate__()), tokenizer.unk_token_id
    if unknown is not None and unknown < len(state["vocab"]) and state["unk_id"] not in (None, unknown):
        backend.model = Unigram([(piece, score) for piece, score in state["vocab"]], unknown, state["byte_fallback"])
    if tokenizer.init_kwargs.get("do_lower_case"):
        before = [backend.normalizer] if backend.normalizer else []
        backend.normalizer = normalizers.Sequence([*before, normalizers.Lowercase()])


def load_meta_model(name: str) -> PreTrainedModel:
    """Build a model on torch's meta device from its config; its weights are not read."""
    config = load_config(name)
    with loading_errors(name):
        return meta_model(config)


def placeholder_model(name: str) -> PreTrainedModel:
    """Build a model whose weights are zeros that take no memory, so that an adapter can be loaded into it.

    Every weight is one zero, expanded to the weight's shape. Weights that are tied in the model are tied here as well.
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
