"""Convert the adapters of mlx-lm, and those of PEFT with names of a wrapped model, to folders that PEFT loads.

    program     file                  tensors of a layer    A        B         factor on B A
    mlx-lm      adapters.safetensors  lora_a, lora_b, m     [in, r]  [r, out]  scale

The factor is in adapter_config.json beside the tensors. Layers are found in the base by the ends of their names. The
files of torch (`.bin`, `.pt`) are pickles, which can run code, so they are not read.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tsugiki.adapters.files import (
    MLX_FILE,
    config_in,
    import_hint,
    map_tensors,
    not_finite,
    read_config_fields,
    write_adapter_files,
)
from tsugiki.adapters.lora_weights import LayerFactors, LoraWeights, lora_files
from tsugiki.adapters.metadata import BaseReference, Metadata, Provenance, Source
from tsugiki.adapters.verify import misfits
from tsugiki.base.gguf.file import is_gguf
from tsugiki.base.loading import load_meta_model
from tsugiki.errors import TsugikiError, error_text, summarise_list
from tsugiki.io.atomic import new_folder
from tsugiki.io.file_names import ADAPTER_CONFIG_FILE, ADAPTER_FILE
from tsugiki.io.json import read_json
from tsugiki.language import _
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.targets import shortest_target_modules
from tsugiki.methods.peft_keys import PREFIX, WRAPPERS, refuse_wrapped
from tsugiki.methods.table import format_of
from tsugiki.model.linear import is_conv1d
from tsugiki.model.ungrafted import base_modules
from tsugiki.model.weights import shared_parameters

_MLX_KEY = re.compile(r".+\.(lora_a|lora_b|m)")


def import_adapter(path: Path, model_name: str, out: Path) -> int:
    """Write the adapter in a file or folder of another program as a new folder in PEFT's format.

    The folder appears complete or not at all. An adapter of PEFT gets the settings that PEFT writes today. Of the base,
    only the config is read. The result is the number of tensors in the new file.
    """
    file = _weight_file(path)
    if is_gguf(file):
        raise TsugikiError(
            _("{file} is a GGUF file, which is only written; import the adapter that it was made from", file=file)
        )
    tensors, model = map_tensors(file), load_meta_model(model_name)
    if not tensors:
        raise TsugikiError(_("{file} holds no tensors", file=file))
    if all(_MLX_KEY.fullmatch(key) for key in tensors):
        tensors, fields = lora_files(_from_mlx(file.parent, tensors, model))
    else:
        tensors = {WRAPPERS.sub("", key): tensor for key, tensor in tensors.items()}
        has_settings = (file.parent / ADAPTER_CONFIG_FILE).is_file()
        fields = read_config_fields(file.parent) if has_settings else {}
        _refuse_unknown(file, tensors, fields)
        if not has_settings:
            message = _(
                "{folder} has no {file}, which holds the settings of an adapter of PEFT",
                folder=file.parent,
                file=ADAPTER_CONFIG_FILE,
            )
            raise TsugikiError(message)
    config = config_in(fields, file)
    adapter_format = format_of(config)
    misfit = _("{file} does not fit this base: {error}; was it trained on another base?")
    try:
        refuse_wrapped(model, tensors)
        adapter = adapter_format.build_for(model, config, tensors)
    except TsugikiError as error:
        raise TsugikiError(misfit.format(file=file, error=error)) from error
    problems = [*misfits(model, adapter_format.tensors(model, adapter), tensors), *not_finite(tensors)]
    if problems:
        raise TsugikiError(misfit.format(file=file, error=summarise_list(problems)))
    written = {"peft_type": adapter_format.peft_type, "task_type": fields.get("task_type")}
    metadata = Metadata(
        base=BaseReference(name=model_name),
        provenance=Provenance(operation="import", sources=(Source(name=file.name),)),
    )
    with new_folder(out) as temporary:
        write_adapter_files(temporary, tensors, written | adapter_format.to_json(model, adapter), metadata)
    return len(tensors)


def _weight_file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise TsugikiError(_("there is no file or folder at {path}", path=path))
    found = next((path / name for name in (MLX_FILE, ADAPTER_FILE) if (path / name).is_file()), None)
    if found is None:
        message = _(
            "no adapter in {folder}: it has neither {mlx} nor {peft}{hint}",
            folder=path,
            mlx=MLX_FILE,
            peft=ADAPTER_FILE,
            hint=import_hint(path),
        )
        raise TsugikiError(message)
    return found


def _refuse_unknown(file: Path, tensors: Iterable[str], fields: Mapping[str, Any]) -> None:
    """Raise a TsugikiError for tensors of a program that is not supported."""
    key = next((key for key in tensors if not key.startswith(PREFIX)), None)
    if key is None or (fields.get("peft_type") is not None and "lora" not in key):
        return
    message = _(
        "{file}: {key} is not a name that PEFT or mlx-lm gives to a tensor of an adapter; save the adapter in PEFT's "
        "format with the program that trained it",
        file=file,
        key=error_text(key, 100),
    )
    raise TsugikiError(message)


def _from_mlx(folder: Path, tensors: Mapping[str, Tensor], model: nn.Module) -> LoraWeights:
    """Return the tensors of mlx-lm as LoRA of layers, under their names in the base."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        layer, _dot, part = key.rpartition(".")
        found.setdefault(layer, {})[part] = tensor
    modules, scaling = dict(base_modules(model)), _scaling(folder)
    layers: dict[str, LayerFactors] = {}
    for layer, parts in found.items():
        for letter in "ab":
            if f"lora_{letter}" not in parts:
                raise TsugikiError(_("{name} has no lora_{letter}", name=layer, letter=letter))
        name = _name_in_base(layer, modules)
        layers[name] = _factors(name, parts, scaling, model, modules)
    plain = [name for name in layers if name in modules]
    return LoraWeights(
        LoraConfig(
            target_modules=shortest_target_modules(model, LoraConfig(), plain),
            fan_in_fan_out=any(is_conv1d(modules[name]) for name in plain),
        ),
        layers,
        {},
        BaseReference(),
        "CAUSAL_LM",
    )


def _factors(
    name: str, parts: Mapping[str, Tensor], scaling: float, model: nn.Module, modules: Mapping[str, nn.Module]
) -> LayerFactors:
    """Return the factors of the layer `name` of the base from the tensors that mlx-lm has for it."""
    A, B, magnitude = parts["lora_a"], parts["lora_b"], parts.get("m")
    if B.dim() == 3:
        message = _(
            "{layer} has factors for every expert, which are not converted; merge the adapter with mlx-lm", layer=name
        )
        raise TsugikiError(message)
    embedding = isinstance(modules.get(name), nn.Embedding)
    if embedding and (magnitude is not None or f"{name}.weight" in shared_parameters(model)):
        message = _(
            "{layer} is an embedding with DoRA, or shares its weight with the head, which mlx-lm adapts as one",
            layer=name,
        )
        raise TsugikiError(message)
    return LayerFactors(A.T, B.T, scaling, magnitude, embedding)


def _name_in_base(layer: str, modules: Mapping[str, nn.Module]) -> str:
    """Return the name in the base of mlx-lm's layer, which can have other modules around it there."""
    path = layer
    while True:
        found = [name for name in modules if name == path or name.endswith(f".{path}")]
        if path in found or len(found) == 1:
            return path if path in found else found[0]
        path = path.partition(".")[2]
        if not re.search(r"(^|\.)\d+\.", path):
            return layer


def _scaling(folder: Path) -> float:
    """Return mlx-lm's factor on B A."""
    path = folder / ADAPTER_CONFIG_FILE
    fields = read_json(path)
    settings = fields.get("lora_parameters")
    if fields.get("fine_tune_type") == "full" or not isinstance(settings, dict):
        raise TsugikiError(_("{path} has no lora_parameters, so this is no adapter of mlx-lm", path=path))
    scale, alpha = settings.get("scale"), settings.get("alpha")
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not scale > 0:
        message = _(
            "{path}: {name} is {value}, and must be a positive number",
            path=path,
            name="scale",
            value=error_text(repr(scale), 40),
        )
        raise TsugikiError(message)
    if alpha is not None and alpha != settings.get("rank"):
        message = _(
            "{path} has alpha {alpha}: old versions of mlx-lm compute scale · alpha / rank, and new ones ignore it; "
            "set scale to the factor that the adapter was trained with, and remove alpha",
            path=path,
            alpha=error_text(repr(alpha), 40),
        )
        raise TsugikiError(message)
    return float(scale)
