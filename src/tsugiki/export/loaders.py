"""What another program will refuse, or load and compute something else with: said before training, and after.

`llama.cpp` and `ollama` get the file that `tsugiki export --gguf` writes, `peft` and `vllm` the folder itself. Each
sentence about llama.cpp and PEFT is held to the program by a test; those about Ollama are from its source. vLLM's
`lora/peft_helper.py` refuses DoRA, modules_to_save, biases and a rank above --max-lora-rank, and scales by the config's
alpha and rank alone; its list of supported models (docs.vllm.ai) has no LoRA for GPT-2.
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from torch import nn

from tsugiki.adapters.format import read_base, read_peft_config
from tsugiki.adapters.lora_weights import LoraWeights, read_lora_weights
from tsugiki.base.fingerprint import named_fingerprint
from tsugiki.base.loading import load_meta_model
from tsugiki.errors import TsugikiError, summarise_list
from tsugiki.export.layout import gguf_names, llama_cpp_architecture, unsupported_reason
from tsugiki.lora.adapter import trained_biases
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.targets import find_modules_to_save, find_targets
from tsugiki.methods.method import PREFIX, AdapterFormat
from tsugiki.methods.table import METHODS, format_of

Loader: TypeAlias = Literal["llama.cpp", "ollama", "peft", "vllm"]

_RANKS_OF_VLLM = (8, 16, 32, 64, 128, 256, 320, 512)  # that --max-lora-rank takes
_DEFAULT_RANK_OF_VLLM = 16
_EMBEDDING_AND_HEAD_NAMES = frozenset(
    {"lm_head", "embed_out", "wte", "wpe", "embed_tokens", "embed_in"}
)  # tables and heads, by their names
_MERGE = "export it merged, as a whole model, instead"
# "LoRA adapters are no longer supported": github.com/ollama/ollama/pull/14969, server/create.go
_OLLAMA = f"Ollama takes no adapters since version 0.34.1; for that or a newer one, {_MERGE}"


def refusals(loader: str, folder: Path, model: str | None = None) -> list[str]:
    """Why `loader` will not do with an adapter what Tsugiki does, one sentence each; none: it will.

    Args:
        loader: llama.cpp, ollama, peft or vllm.
        folder: the adapter.
        model: its base; unsaid, the one that it names.

    Raises:
        TsugikiError: no such loader, no adapter, or a broken one.
    """
    _check(loader)
    config = read_peft_config(folder)
    base = read_base(folder)
    problems = []
    if model is not None and is_another_base(base.fingerprint, model):
        problems.append(f"it was trained on another base than {model}, which {loader} does not look at")
    if loader in _OF_SETTINGS:
        return problems + _OF_SETTINGS[loader](config)
    if not isinstance(config, LoraConfig):
        return problems + _llama_cpp_method(config) + _ollama(loader)
    try:
        shape = load_meta_model(model or base.name or "")
    except TsugikiError as error:
        return [*problems, f"its base decides whether llama.cpp takes it: {error}", *_ollama(loader)]
    return problems + llama_cpp_refusals(read_lora_weights(folder), shape) + _ollama(loader)


def refusals_before_training(loader: str, config: Any, model: nn.Module) -> list[str]:
    """The same, of an adapter that is not there yet.

    Args:
        loader: llama.cpp, ollama, peft or vllm.
        config: the adapter's settings, of any method.
        model: the base; its shape alone (`models.load_meta_model`) is enough.

    Raises:
        TsugikiError: no such loader, or settings that do not fit the model.
    """
    _check(loader)
    if loader in _OF_SETTINGS:
        return _OF_SETTINGS[loader](config)
    if not isinstance(config, LoraConfig):
        return _llama_cpp_method(config) + _ollama(loader)
    targets = find_targets(model, config)
    whole = [*find_modules_to_save(model, config), *trained_biases(model, config, targets)]
    return _llama_cpp(model, targets, whole, config.use_dora) + _ollama(loader)


def llama_cpp_refusals(lora: LoraWeights, model: nn.Module) -> list[str]:
    """Why llama.cpp will not compute this adapter of `model`, whose shape alone is enough; none: it will."""
    whole = [key.removeprefix(PREFIX) for key in lora.others if not _is_frozen_copy(key, lora)]
    dora = any(layer.magnitude is not None for layer in lora.layers.values())
    return _llama_cpp(model, lora.layers, whole, dora)


def peft_reads(form: AdapterFormat[Any, Any]) -> bool:
    """Whether PEFT loads adapters of this form."""
    return any(method.readable_by_peft for method in METHODS.values() if method.config is form.config)


def can_merge(form: AdapterFormat[Any, Any]) -> bool:
    """Whether adapters of this form can be folded into the base, which is then a model for every program."""
    return any(method.mergeable for method in METHODS.values() if method.config is form.config)


def is_plain_lora(config: Any) -> bool:
    """Whether an adapter is pairs of matrices inside the blocks and nothing else, which llama.cpp takes of any base.

    Pairs of tables and heads it takes of some bases alone: `refusals` knows.
    """
    if not isinstance(config, LoraConfig) or config.use_dora or config.modules_to_save or config.bias != "none":
        return False
    targets = [config.target_modules] if isinstance(config.target_modules, str) else config.target_modules or ()
    return not any(target.rpartition(".")[2] in _EMBEDDING_AND_HEAD_NAMES for target in targets)


def refused_by_vllm(config: Any) -> list[str]:
    """Why vLLM does not serve an adapter, or would serve it wrongly, as ends of a sentence that begins with "it"."""
    if not isinstance(config, LoraConfig):
        return ["is no LoRA"]
    reasons = {
        "is for GPT-2's kind of layer (Conv1D), and vLLM has no LoRA for GPT-2": config.fan_in_fan_out,
        "is DoRA": config.use_dora,
        "has whole modules in it (modules_to_save)": bool(config.modules_to_save),
        "trains biases": config.bias != "none",
        "has layers of other ranks or alphas, which vLLM scales all alike": bool(
            config.rank_pattern or config.alpha_pattern
        ),
        f"is of a rank above {_RANKS_OF_VLLM[-1]}": config.r > _RANKS_OF_VLLM[-1],
    }
    return [reason for reason, holds in reasons.items() if holds]


def rank_for_vllm(config: LoraConfig) -> int | None:
    """The --max-lora-rank that vLLM must be told; None where its default is enough, or no rank that it takes is."""
    if config.r <= _DEFAULT_RANK_OF_VLLM:
        return None
    return next((rank for rank in _RANKS_OF_VLLM if rank >= config.r), None)


def is_another_base(fingerprint: str | None, model: str) -> bool:
    """Whether the base called `model` is known not to be the one with this fingerprint."""
    here = named_fingerprint(model) if fingerprint else None  # it takes reading all of its weights
    return here is not None and here != fingerprint


def _check(loader: str) -> None:
    if loader not in get_args(Loader):
        raise TsugikiError(f"no loader {loader!r} is known here; there are {', '.join(get_args(Loader))}")


def _peft(config: Any) -> list[str]:
    form = format_of(config)
    return [] if peft_reads(form) else [f"PEFT has no such method ({form.peft_type})"]


def _vllm(config: Any) -> list[str]:
    return [f"it {reason}" for reason in refused_by_vllm(config)]


_OF_SETTINGS: Mapping[str, Callable[[Any], list[str]]] = {"peft": _peft, "vllm": _vllm}  # the rest depends on the base


def _llama_cpp_method(config: Any) -> list[str]:
    form = format_of(config)
    otherwise = f"; {_MERGE}" if can_merge(form) else ""
    return [f"llama.cpp computes LoRA alone, and this is {form.peft_type}{otherwise}"]


def _ollama(loader: str) -> list[str]:
    return [_OLLAMA] if loader == "ollama" else []


def _llama_cpp(model: nn.Module, layers: Collection[str], whole: Collection[str], dora: bool) -> list[str]:
    try:
        llama_cpp_architecture(model)
    except TsugikiError as error:
        return [str(error)]
    names = gguf_names(model)
    passed_by: dict[str, list[str]] = {}
    for path in layers:
        if path not in names:
            passed_by.setdefault(unsupported_reason(model, path), []).append(path)
    problems = [f"it adapts {summarise_list(paths)}, {why}" for why, paths in passed_by.items()]
    if whole:
        problems.append(
            f"it trains whole what llama.cpp takes pairs of alone ({summarise_list(list(whole))}); {_MERGE}"
        )
    if dora:
        problems.append(f"llama.cpp has no place for the magnitudes of DoRA; {_MERGE}")
    return problems


def _is_frozen_copy(key: str, lora: LoraWeights) -> bool:
    """Whether this is the frozen weight that PEFT stores beside the pair of an embedding."""
    path = key.removeprefix(PREFIX)
    return path.endswith(".base_layer.weight") and path.removesuffix(".base_layer.weight") in lora.layers
