"""What another program will refuse, or load and compute something else with: said before training, and after.

`llama.cpp` and `ollama` get the file that `tsugiki export --gguf` writes, `peft` the folder itself. Each sentence about
llama.cpp and PEFT is held to the program by a test; those about Ollama are from its source.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from torch import nn

from tsugiki.adapters.files import read_base, read_peft_config
from tsugiki.adapters.fingerprint import folder_fingerprint
from tsugiki.adapters.gguf_layout import architecture_of, gguf_names, why_not_adapted
from tsugiki.adapters.stored import StoredLora, read_lora
from tsugiki.errors import TsugikiError, listed
from tsugiki.lora.adapter import trained_biases
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.targets import find_modules_to_save, find_targets
from tsugiki.methods.method import PREFIX
from tsugiki.methods.table import METHODS, form_of
from tsugiki.models import empty_model, local_folder

Loader: TypeAlias = Literal["llama.cpp", "ollama", "peft"]

_MERGE = "merge it and export the model instead"
# "LoRA adapters are no longer supported": github.com/ollama/ollama/pull/14969, server/create.go
_OLLAMA = f"Ollama takes no adapters since version 0.34.1; for that or a newer one, {_MERGE}"


def refusals(loader: str, folder: Path, model: str | None = None) -> list[str]:
    """Why `loader` will not do with an adapter what Tsugiki does, one sentence each; none: it will.

    Args:
        loader: llama.cpp, ollama or peft.
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
    if loader == "peft":
        return problems + _peft(config)
    if not isinstance(config, LoraConfig):
        return problems + _llama_cpp_method(config) + _ollama(loader)
    try:
        shape = empty_model(model or base.name or "")
    except TsugikiError as error:
        return [*problems, f"its base decides whether llama.cpp takes it: {error}", *_ollama(loader)]
    return problems + llama_cpp_refusals(read_lora(folder), shape) + _ollama(loader)


def refusals_before_training(loader: str, config: Any, model: nn.Module) -> list[str]:
    """The same, of an adapter that is not there yet.

    Args:
        loader: llama.cpp, ollama or peft.
        config: the adapter's settings, of any method.
        model: the base; its shape alone (`models.empty_model`) is enough.

    Raises:
        TsugikiError: no such loader, or settings that do not fit the model.
    """
    _check(loader)
    if loader == "peft":
        return _peft(config)
    if not isinstance(config, LoraConfig):
        return _llama_cpp_method(config) + _ollama(loader)
    targets = find_targets(model, config)
    whole = [*find_modules_to_save(model, config), *trained_biases(model, config, targets)]
    return _llama_cpp(model, targets, whole, config.use_dora) + _ollama(loader)


def llama_cpp_refusals(lora: StoredLora, model: nn.Module) -> list[str]:
    """Why llama.cpp will not compute this adapter of `model`, whose shape alone is enough; none: it will."""
    whole = [key.removeprefix(PREFIX) for key in lora.others if not _is_frozen_copy(key, lora)]
    dora = any(layer.magnitude is not None for layer in lora.layers.values())
    return _llama_cpp(model, lora.layers, whole, dora)


def is_another_base(fingerprint: str | None, model: str) -> bool:
    """Whether the base called `model` is known not to be the one with this fingerprint."""
    folder = local_folder(model) if fingerprint else None  # it takes reading all of its weights
    here = folder_fingerprint(folder) if folder is not None else None
    return here is not None and here != fingerprint


def _check(loader: str) -> None:
    if loader not in get_args(Loader):
        raise TsugikiError(f"no loader {loader!r} is known here; there are {', '.join(get_args(Loader))}")


def _peft(config: Any) -> list[str]:
    kind = form_of(config).peft_type
    return [f"PEFT has no such method ({kind})"] if kind.startswith("TSUGIKI_") else []


def _llama_cpp_method(config: Any) -> list[str]:
    form = form_of(config)
    merges = any(method.merges for method in METHODS.values() if method.form is form)
    return [f"llama.cpp computes LoRA alone, and this is {form.peft_type}{f'; {_MERGE}' if merges else ''}"]


def _ollama(loader: str) -> list[str]:
    return [_OLLAMA] if loader == "ollama" else []


def _llama_cpp(model: nn.Module, layers: Collection[str], whole: Collection[str], dora: bool) -> list[str]:
    try:
        architecture_of(model)
    except TsugikiError as error:
        return [str(error)]
    names = gguf_names(model)
    passed_by: dict[str, list[str]] = {}
    for path in layers:
        if path not in names:
            passed_by.setdefault(why_not_adapted(model, path), []).append(path)
    problems = [f"it adapts {listed(paths)}, {why}" for why, paths in passed_by.items()]
    if whole:
        problems.append(f"it trains whole what llama.cpp takes pairs of alone ({listed(list(whole))}); {_MERGE}")
    if dora:
        problems.append(f"llama.cpp has no place for the magnitudes of DoRA; {_MERGE}")
    return problems


def _is_frozen_copy(key: str, lora: StoredLora) -> bool:
    """Whether this is the frozen weight that PEFT stores beside the pair of an embedding."""
    path = key.removeprefix(PREFIX)
    return path.endswith(".base_layer.weight") and path.removesuffix(".base_layer.weight") in lora.layers
