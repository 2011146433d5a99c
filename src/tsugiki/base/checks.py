"""Check a model's folder before transformers reads it, so that no foreign code runs and no file outside is read.

Without these checks, transformers would ask on standard input whether code in the folder may run; it would load pickled
files if an index names them, and follow links out of the folder. Before it reads the weights, it would also allocate a
model of the size that the config gives, however large.
"""

import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsugiki.annotations import PretrainedConfig, PreTrainedModel
from tsugiki.base.model_folder import map_keys, model_files
from tsugiki.errors import TsugikiError, error_text, summarise_list, warn_caller
from tsugiki.io.digests import combined_digest, file_sha256
from tsugiki.io.file_names import (
    ADAPTER_CONFIG_FILE,
    MODEL_CONFIG_FILE,
    OTHER_MODEL_FILES,
    TOKENIZER_CONFIG_FILE,
)
from tsugiki.io.json import flat, read_json
from tsugiki.io.shards import Entry
from tsugiki.language import _
from tsugiki.model.meta import meta_model

if TYPE_CHECKING:
    import torch

_WEIGHTS = "*.safetensors"
_SPARE_TENSORS = 1_000
"""A model may have so many parameter tensors more than twice the number of tensors in its files."""
_SPARE_ELEMENTS = 1 << 26
"""The model may have so many elements more than its files, such as computed tables: 256 MiB in float32."""
_MOST_LAYERS = 2_000
DEQUANTIZED = ("fp8", "mxfp4")
"""Quantisations that transformers undoes while it loads a model, without another library."""
_COUNT = re.compile(r"(^|_)(n|num)_\w*layers?$|(^|_)n_?layers?$|^num_labels$")
"""Settings for which transformers allocates a list of this length before it reads the weights."""
OLD_BUFFERS = re.compile(r"\.(attn|attention|self_attn)\.(bias|masked_bias|causal_mask|embed_positions)$|inv_freq$")
"""Names of tensors that old releases of transformers stored, although the model computes them."""


def check_folder(name: str, folder: Path, *, trust_remote_code: bool = False) -> None:
    """Check a model's folder before its files are read; code of its own is accepted with `trust_remote_code`."""
    _check_files(folder)
    if (folder / ADAPTER_CONFIG_FILE).exists():
        raise TsugikiError(
            "{name} holds a model and an adapter ({file}); move the adapter's files to another folder",
            name=name,
            file=ADAPTER_CONFIG_FILE,
        )
    config = read_json(
        folder / MODEL_CONFIG_FILE,
        missing=_("{name} is not a model: it has no {file}", name=name, file=MODEL_CONFIG_FILE),
    )
    if config.get("transformers_weights") is not None:
        raise TsugikiError(
            "{name} names its own file of weights (transformers_weights in {file}), which is not supported; "
            "rename the file to model.safetensors and remove the setting",
            name=name,
            file=MODEL_CONFIG_FILE,
        )
    if "/" in str(config.get("attn_implementation") or config.get("_attn_implementation") or ""):
        raise TsugikiError(
            "{name} asks for attention code from the hub, which Tsugiki never runs; use another model", name=name
        )
    for key, value in flat(config).items():
        is_count = _COUNT.search(key.rpartition(".")[2]) and isinstance(value, int | float)
        if is_count and not 0 <= value <= _MOST_LAYERS:  # lists of this length would fill the memory
            message = _("{path}: {key} is {value}; it must be from 0 to {most:,}")
            shown = {"key": error_text(key), "value": error_text(value, 50), "most": _MOST_LAYERS}
            raise TsugikiError(message.format(path=folder / MODEL_CONFIG_FILE, **shown))
    classes = _own_classes(folder)
    if classes and not trust_remote_code:
        raise TsugikiError(
            "{name} brings Python code of its own ({code}), which is not run; if you trust its authors, "
            "tsugiki train, eval and generate run it with {flag:trust_remote_code}",
            name=name,
            code=error_text(classes[0], 100),
        )
    elsewhere = [name_of_class for name_of_class in classes if "--" in name_of_class]
    if elsewhere:
        raise TsugikiError(
            "{name} names code of another repository ({code}), which Tsugiki never runs",
            name=name,
            code=error_text(elsewhere[0], 100),
        )
    if classes:
        warn_caller(_("the code that {name} brings is run: {digest}", name=name, digest=code_digest(folder)))


def check_tokenizer_files(folder: Path) -> None:
    """Check a folder in which a tokenizer was saved without a model, before it is read."""
    _check_files(folder)
    if read_json(folder / TOKENIZER_CONFIG_FILE).get("auto_map"):
        raise TsugikiError("the tokenizer in {folder} brings Python code of its own, which is not run", folder=folder)


def code_digest(folder: Path) -> str | None:
    """Return a digest over the paths and contents of a model's Python files; None if the model brings no code."""
    if not _own_classes(folder):
        return None
    return combined_digest({path.relative_to(folder).as_posix(): file_sha256(path) for path in folder.rglob("*.py")})


def check_weights(name: str, entries: Mapping[str, Entry], config: PretrainedConfig) -> None:
    """Compare the entries of a model's weights with what its config describes, before memory is allocated for them.

    Of quantised models only the format is checked, since the tensors in their files differ from the model's.
    """
    if quantised := quantization_settings(config):
        if (method := error_text(quantised.get("quant_method", ""), 40)) and method not in DEQUANTIZED:
            raise TsugikiError(
                "{name} is quantised ({method}), and this format cannot be read; load the model that it was made from, "
                "in int8 or nf4 if memory is short",
                name=name,
                method=method,
            )
        return
    try:
        model = meta_model(config, most_tensors=2 * len(entries) + _SPARE_TENSORS)
    except TsugikiError as error:
        raise TsugikiError("{name} cannot be loaded: {error}", name=name, error=error) from error
    expected = dict(model.state_dict())
    mapping = map_keys(model, entries)
    for tensor, key in mapping.key_of.items():
        if tuple(expected[tensor].shape) != entries[key].shape:
            raise TsugikiError(
                "{name} cannot be loaded: {key} is {shape} in its files, and {expected} by {file}",
                name=name,
                key=error_text(key),
                shape=error_text(list(entries[key].shape)),
                expected=list(expected[tensor].shape),
                file=MODEL_CONFIG_FILE,
            )
    stored = sum(math.prod(entry.shape) for entry in entries.values())
    other = sum(tensor.numel() for tensor in _tensors_without_key(model, mapping.key_of))
    if other > stored + _SPARE_ELEMENTS:
        raise TsugikiError(
            "{name} is not a complete model: by {file} it has {count:,} values that are not in its files",
            name=name,
            file=MODEL_CONFIG_FILE,
            count=other,
        )


def quantization_settings(config: object) -> dict[str, Any]:
    """Return the settings by which the weights in a model's files are quantised; empty if they are not."""
    found = getattr(config, "quantization_config", None) or {}
    settings: dict[str, Any] = found if isinstance(found, dict) else found.to_dict()
    return settings


def check_all_used(name: str, model: PreTrainedModel, unused: Collection[str]) -> None:
    """Check that transformers ignored no tensor that belongs to a module of the model, or to an additional layer of it.

    Other tensors may be ignored, such as a vision tower or a head for another task.
    """
    paths = {path for path, _ in model.named_modules() if path}
    surplus = [key for key in sorted(unused) if _is_of_a_layer(key, paths) and not OLD_BUFFERS.search(key)]
    if surplus:
        raise TsugikiError(
            "{name} cannot be loaded: its files hold {surplus}, which the model does not have by its {file}; "
            "does the config belong to another model?",
            name=name,
            surplus=summarise_list(surplus),
            file=MODEL_CONFIG_FILE,
        )


def _own_classes(folder: Path) -> list[str]:
    """Return the model's own Python classes, as strings: those that `auto_map` of config or tokenizer names."""
    found = []
    for path in (folder / MODEL_CONFIG_FILE, folder / TOKENIZER_CONFIG_FILE):
        named = read_json(path).get("auto_map") if path.is_file() else None
        found += [str(value) for value in (named.values() if isinstance(named, dict) else [named]) if value]
    return found


def _check_files(folder: Path) -> None:
    for path in model_files(folder, (_WEIGHTS, *OTHER_MODEL_FILES)):
        _check_file(path, folder)


def _check_file(path: Path, folder: Path) -> None:
    """Raise a TsugikiError if a path is neither a regular file nor a folder, or leads out of the model's folder."""
    root = folder.resolve()
    # In the cache of huggingface_hub, files are links to snapshots/../../blobs.
    inside = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise TsugikiError("{path} is a link to nothing", path=path) from error
    if not any(target.is_relative_to(allowed) for allowed in inside):
        raise TsugikiError(
            "{path} is a link out of its folder, to {target}; copy the file, or pass that folder",
            path=path,
            target=target,
        )
    if not target.is_file() and not target.is_dir():
        raise TsugikiError("{path} is not a regular file", path=path)


def _tensors_without_key(model: PreTrainedModel, key_of: Mapping[str, str]) -> list["torch.Tensor"]:
    """Return the tensors of a model that are neither in its files nor tied to one that is."""
    named = dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)])
    read = {id(named[name]) for name in key_of if name in named}
    return list({id(tensor): tensor for tensor in named.values() if id(tensor) not in read}.values())


def _is_of_a_layer(key: str, modules: Collection[str]) -> bool:
    """Return whether a tensor belongs to a module of the model, or to one more layer in a list of layers."""
    parts = key.split(".")
    parents = [".".join(parts[:length]) for length in range(1, len(parts))]
    return parents[-1:] != [] and (
        parents[-1] in modules
        or any(part.isdigit() and f"{parent}.0" in modules for parent, part in zip(parents, parts[1:], strict=True))
    )
