"""Convert the adapters of other programs, and PEFT's pickles, to folders that Tsugiki and PEFT load.

    program     file                  tensors of a layer                        A        B         factor on B A
    mlx-lm      adapters.safetensors  lora_a, lora_b, m                         [in, r]  [r, out]  scale
    LitGPT      lit_model.pth.lora    lora_A, lora_B                            [r, in]  [out, r]  lora_alpha / lora_r
    torchtune   adapter_model.pt      lora_a.weight, lora_b.weight, magnitude   [r, in]  [out, r]  lora_alpha / r
    PEFT        adapter_model.bin     see `methods.peft_keys`

The factor is in a file beside the tensors: adapter_config.json, and hyperparameters.yaml for LitGPT. Layers are found
in the base by the ends of their names. Three things are stored in another way than in the layers of transformers:

* LitGPT has one layer for queries, keys and values. Its A has the rows of each of the three that is adapted, one after
  the other, and so has its B.
* torchtune has the rows of queries and keys in Meta's order, in which the two halves of a rotary pair are neighbours.
* mlx-lm has one pair of stacks, A [experts, r, in] and B [experts, out, r], for the layers of all experts.

Files of torch are pickles. They are read by torch's weights-only loader, which knows tensors and plain containers and
runs nothing else, and by this command alone: a folder that is loaded, listed, or served holds safetensors.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tsugiki.adapters.files import (
    FOREIGN_FILES,
    config_in,
    foreign_file,
    not_finite,
    read_config_fields,
    write_adapter_files,
)
from tsugiki.adapters.lora_weights import LayerFactors, LoraWeights, lora_files
from tsugiki.adapters.metadata import BaseReference, Metadata, Provenance, Source
from tsugiki.adapters.verify import misfits
from tsugiki.base.loading import load_meta_model
from tsugiki.errors import TsugikiError, error_text, summarise_list
from tsugiki.io.atomic import new_folder
from tsugiki.io.file_names import ADAPTER_CONFIG_FILE, ADAPTER_FILE
from tsugiki.io.json import read_json
from tsugiki.io.yaml import read_yaml
from tsugiki.language import _
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.targets import shortest_target_modules
from tsugiki.methods.old_names import with_current_names
from tsugiki.methods.peft_keys import PREFIX, WRAPPERS
from tsugiki.methods.table import format_of
from tsugiki.model.architectures import model_type
from tsugiki.model.linear import is_conv1d
from tsugiki.model.ungrafted import base_modules
from tsugiki.model.weights import shared_parameters

_HYPERPARAMETERS = "hyperparameters.yaml"
_META_ORDER = {"llama": True, "mistral": True, "gemma": True, "gemma2": True, "qwen2": False, "qwen3": False}
"""Model types of torchtune -> whether its layers have the rows of queries and keys in Meta's order."""
_OTHERS = {
    r"lora_(unet|te\d?)_.*|.*\.lora_(down|up)\.weight": "kohya",
    r"(unet|text_encoder|transformer|controlnet)\..*lora.*": "diffusers",
}
"""Names of tensors in adapters of image models -> the program."""


@dataclass(frozen=True)
class _Format:
    """What the tensors of a program are called, and what they mean."""

    program: str
    key: str
    """A regular expression for names of tensors, with the groups `layer` and `part`."""
    parts: Mapping[str, str]
    """Part -> A, B or magnitude."""
    transposed: bool
    """Whether A is [in, r] and B [r, out]."""
    layers: Mapping[str, tuple[str, ...]]
    """A regular expression for a layer -> how the name of the layer can end in the base. `*` stands for every expert;
    three names joined by `|` are the queries, keys and values of LitGPT's one layer."""
    scaling: Callable[[Path, int], float]
    """(folder, r) -> the factor on B A."""


def _mlx_scaling(folder: Path, r: int) -> float:
    path = folder / ADAPTER_CONFIG_FILE
    fields = read_json(path)
    settings = fields.get("lora_parameters")
    if fields.get("fine_tune_type") == "full" or not isinstance(settings, dict):
        raise TsugikiError(_("{path} has no lora_parameters, so this is no adapter of mlx-lm").format(path=path))
    scale, alpha, rank = _number(settings, "scale", path), settings.get("alpha"), settings.get("rank", r)
    if alpha is not None and alpha != rank:
        message = _(
            "{path} has alpha {alpha}: old versions of mlx-lm compute scale · alpha / rank, and new ones ignore it; "
            "set scale to the factor that the adapter was trained with, and remove alpha"
        )
        raise TsugikiError(message.format(path=path, alpha=error_text(repr(alpha), 40)))
    return scale


def _alpha_by_rank(folder: Path, r: int) -> float:
    yaml = folder / _HYPERPARAMETERS
    path = yaml if yaml.is_file() else folder / ADAPTER_CONFIG_FILE
    if not path.is_file():
        message = _(
            "{folder} has neither {first} nor {second}, which give lora_alpha; the factor on the update is unknown"
        )
        raise TsugikiError(message.format(folder=folder, first=_HYPERPARAMETERS, second=ADAPTER_CONFIG_FILE))
    return _number(read_yaml(path) if path == yaml else read_json(path), "lora_alpha", path) / r


_LITGPT_LAYER, _TORCHTUNE_LAYER = r"transformer\.h\.(\d+)\.", r"layers\.(\d+)\."
_FORMATS = (
    _Format(
        "mlx-lm",
        r"(?P<layer>.+)\.(?P<part>lora_a|lora_b|m)",
        {"lora_a": "A", "lora_b": "B", "m": "magnitude"},
        True,
        {
            r"(.+)\.block_sparse_moe\.switch_mlp\.gate_proj": (r"\1.mlp.experts.*.w1",),
            r"(.+)\.block_sparse_moe\.switch_mlp\.up_proj": (r"\1.mlp.experts.*.w3",),
            r"(.+)\.block_sparse_moe\.switch_mlp\.down_proj": (r"\1.mlp.experts.*.w2",),
            r"(.+)\.block_sparse_moe\.gate": (r"\1.mlp.gate",),
            r"(.+)\.switch_mlp\.(\w+)": (r"\1.experts.*.\2",),
            r"(.+)": (r"\1",),
        },
        _mlx_scaling,
    ),
    _Format(
        "LitGPT",
        r"(?P<layer>.+)\.(?P<part>lora_A|lora_B)",
        {"lora_A": "A", "lora_B": "B"},
        False,
        {
            rf"{_LITGPT_LAYER}attn\.(?:qkv|attn)": (r"\1.self_attn.q_proj|\1.self_attn.k_proj|\1.self_attn.v_proj",),
            rf"{_LITGPT_LAYER}attn\.proj": (r"\1.self_attn.o_proj", r"\1.self_attn.dense", r"\1.attention.dense"),
            rf"{_LITGPT_LAYER}mlp\.fc_1": (r"\1.mlp.gate_proj",),
            rf"{_LITGPT_LAYER}mlp\.fc_2": (r"\1.mlp.up_proj",),
            rf"{_LITGPT_LAYER}mlp\.fc": (r"\1.mlp.fc1", r"\1.mlp.dense_h_to_4h"),
            rf"{_LITGPT_LAYER}mlp\.proj": (r"\1.mlp.down_proj", r"\1.mlp.fc2", r"\1.mlp.dense_4h_to_h"),
            rf"{_LITGPT_LAYER}mlp\.gate": (r"\1.mlp.gate",),
            rf"{_LITGPT_LAYER}mlp\.experts\.(\d+)\.fc_1": (r"\1.mlp.experts.\2.w1",),
            rf"{_LITGPT_LAYER}mlp\.experts\.(\d+)\.fc_2": (r"\1.mlp.experts.\2.w3",),
            rf"{_LITGPT_LAYER}mlp\.experts\.(\d+)\.proj": (r"\1.mlp.experts.\2.w2",),
            r"lm_head": ("lm_head", "embed_out"),
        },
        _alpha_by_rank,
    ),
    _Format(
        "torchtune",
        r"(?P<layer>.+)\.(?P<part>lora_a\.weight|lora_b\.weight|magnitude)",
        {"lora_a.weight": "A", "lora_b.weight": "B", "magnitude": "magnitude"},
        False,
        {
            rf"{_TORCHTUNE_LAYER}attn\.(q_proj|k_proj|v_proj)": (r"\1.self_attn.\2",),
            rf"{_TORCHTUNE_LAYER}attn\.output_proj": (r"\1.self_attn.o_proj",),
            rf"{_TORCHTUNE_LAYER}mlp\.w1": (r"\1.mlp.gate_proj",),
            rf"{_TORCHTUNE_LAYER}mlp\.w2": (r"\1.mlp.down_proj",),
            rf"{_TORCHTUNE_LAYER}mlp\.w3": (r"\1.mlp.up_proj",),
            r"output": ("lm_head",),
        },
        _alpha_by_rank,
    ),
)


def import_adapter(path: Path, model_name: str, out: Path) -> int:
    """Write the adapter in a file or folder of another program as a new folder in PEFT's format.

    The folder appears complete or not at all. An adapter of PEFT gets the names and settings that PEFT writes today. Of
    the base, only the config is read. The result is the number of tensors in the new file.
    """
    file = _weight_file(path)
    tensors, model = read_tensors(file), load_meta_model(model_name)
    if not tensors:
        raise TsugikiError(_("{file} holds no tensors").format(file=file))
    program = next((one for one in _FORMATS if all(re.fullmatch(one.key, key) for key in tensors)), None)
    if program is not None:
        tensors, fields = lora_files(_convert(program, file.parent, tensors, model))
    else:
        tensors = {WRAPPERS.sub("", key): tensor for key, tensor in tensors.items()}
        has_settings = (file.parent / ADAPTER_CONFIG_FILE).is_file()
        fields = read_config_fields(file.parent) if has_settings else {}
        _refuse_unknown(file, tensors, fields)
        if not has_settings:
            message = _("{folder} has no {file}, which holds the settings of an adapter of PEFT")
            raise TsugikiError(message.format(folder=file.parent, file=ADAPTER_CONFIG_FILE))
    config = config_in(fields, file)
    adapter_format = format_of(config)
    misfit = _("{file} does not fit this base: {error}; was it trained on another base?")
    try:
        config, current = with_current_names(model, config, tensors)
        adapter = adapter_format.build_for(model, config, current)
    except TsugikiError as error:
        raise TsugikiError(misfit.format(file=file, error=error)) from error
    problems = [*misfits(model, adapter_format.tensors(model, adapter), current), *not_finite(current)]
    if problems:
        raise TsugikiError(misfit.format(file=file, error=summarise_list(problems)))
    written = {"peft_type": adapter_format.peft_type, "task_type": fields.get("task_type")}
    metadata = Metadata(
        base=BaseReference(name=model_name),
        provenance=Provenance(operation="import", sources=(Source(name=file.name),)),
    )
    with new_folder(out) as temporary:
        write_adapter_files(temporary, current, written | adapter_format.to_json(model, adapter), metadata)
    return len(current)


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read a file of tensors by name: safetensors, or a pickle of torch that holds tensors and nothing else.

    Anything that torch's weights-only loader does not know is an error. No code of the file is run.
    """
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError) as error:
        raise TsugikiError(_("{path} is broken: {reason}").format(path=file, reason=error_text(error))) from error
    except UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        message = _("{file} holds {what}, and not tensors alone; such a pickle can run any code, so it is not loaded")
        what = named[1] if named else _("other objects")
        raise TsugikiError(message.format(file=file, what=what)) from error
    except Exception as error:  # torch raises errors of many kinds for what is no pickle
        message = _("{file} is not a file of tensors: {what}")
        raise TsugikiError(message.format(file=file, what=error_text(error, 80))) from error
    inner = found.get("model", found) if isinstance(found, dict) else found
    if not isinstance(inner, dict) or not all(isinstance(tensor, Tensor) for tensor in inner.values()):
        message = _("{file} does not hold tensors by name, so it is no file of an adapter")
        raise TsugikiError(message.format(file=file))
    unusual = next((name for name, tensor in inner.items() if not _has_numbers(tensor)), None)
    if unusual is not None:
        message = _("{file}: {name} is sparse, quantised, nested or without values, and not an ordinary tensor")
        raise TsugikiError(message.format(file=file, name=error_text(str(unusual), 100)))
    return {str(name): tensor for name, tensor in inner.items()}


def _has_numbers(tensor: Tensor) -> bool:
    """Return whether a tensor has all of its numbers in memory, as they are."""
    is_stored = tensor.layout == torch.strided and not tensor.is_meta
    return is_stored and not tensor.is_quantized and not tensor.is_nested


def _weight_file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise TsugikiError(_("there is no file or folder at {path}").format(path=path))
    found = foreign_file(path)
    if found is None and not (path / ADAPTER_FILE).is_file():
        message = _("no adapter in {folder}: it has none of {names}")
        raise TsugikiError(message.format(folder=path, names=", ".join((*FOREIGN_FILES, ADAPTER_FILE))))
    return found or path / ADAPTER_FILE


def _refuse_unknown(file: Path, tensors: Iterable[str], fields: Mapping[str, Any]) -> None:
    """Raise a TsugikiError for tensors of a program that is not supported."""
    key = next((key for key in tensors if not key.startswith(PREFIX)), None)
    if key is None or (fields.get("peft_type") is not None and "lora" not in key):
        return
    program = next((name for pattern, name in _OTHERS.items() if re.fullmatch(pattern, key)), None)
    if program is not None:
        message = _("{file} is an adapter of {program}, for an image model; Tsugiki reads adapters of language models")
        raise TsugikiError(message.format(file=file, program=program))
    message = _("{file}: {key} is not a name that PEFT, {programs} give to a tensor of an adapter")
    programs = ", ".join(one.program for one in _FORMATS)
    raise TsugikiError(message.format(file=file, key=error_text(key, 100), programs=programs))


def _convert(program: _Format, folder: Path, tensors: Mapping[str, Tensor], model: nn.Module) -> LoraWeights:
    """Return the tensors of another program as LoRA of layers, under the names of the base or of older releases."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = re.fullmatch(program.key, key)
        assert match is not None
        found.setdefault(match["layer"], {})[program.parts[match["part"]]] = tensor
    modules = dict(base_modules(model))
    layers: dict[str, LayerFactors] = {}
    scaling = cache(partial(program.scaling, folder))  # reads the file of settings once for each rank
    for layer, parts in found.items():
        if not parts.keys() >= {"A", "B"}:
            message = _("{name} has no lora_{letter}")
            raise TsugikiError(message.format(name=layer, letter="a" if "B" in parts else "b"))
        for name, factors in _factors(program, scaling, folder, layer, parts, model, modules):
            layers[name] = factors
    plain = [name for name in layers if name in modules]
    others = sorted({name.rpartition(".")[2] for name in layers if name not in modules})
    return LoraWeights(
        LoraConfig(
            target_modules=[*shortest_target_modules(model, LoraConfig(), plain), *others],
            fan_in_fan_out=any(is_conv1d(modules[name]) for name in plain),
        ),
        layers,
        {},
        BaseReference(),
        "CAUSAL_LM",
    )


def _factors(
    program: _Format,
    scaling_of: Callable[[int], float],
    folder: Path,
    layer: str,
    parts: Mapping[str, Tensor],
    model: nn.Module,
    modules: Mapping[str, nn.Module],
) -> Iterable[tuple[str, LayerFactors]]:
    """Yield the names and factors of the layers of the base that a layer of another program stands for."""
    A, B, magnitude = parts["A"], parts["B"], parts.get("magnitude")
    name = _name_in_base(program, layer, modules)
    if "*" in name:  # mlx-lm, in old versions with the ranks of all experts in one axis of A
        A = A.reshape(len(B), -1, A.shape[-1])
        scaling = scaling_of(A.shape[1])
        for expert in range(len(B)):
            yield name.replace("*", str(expert)), LayerFactors(A[expert], B[expert], scaling)
        return
    if program.transposed:
        A, B = A.T, B.T
    scaling = scaling_of(B.shape[-1])
    if "|" in name:
        for part, A_part, B_part in _split(folder, layer, name.split("|"), A, B, modules):
            yield part, LayerFactors(A_part, B_part, scaling)
        return
    if program.program == "torchtune" and name.endswith((".q_proj", ".k_proj")):
        B, magnitude = _in_halves(model, name, B), None if magnitude is None else _in_halves(model, name, magnitude)
    embedding = isinstance(modules.get(name), nn.Embedding)
    if embedding and (magnitude is not None or f"{name}.weight" in shared_parameters(model)):
        message = _(
            "{layer} is an embedding with DoRA, or shares its weight with the head, which {program} adapts as one"
        )
        raise TsugikiError(message.format(layer=layer, program=program.program))
    yield name, LayerFactors(A, B, scaling, magnitude, embedding)


def _name_in_base(program: _Format, layer: str, modules: Mapping[str, nn.Module]) -> str:
    """Return the name in the base, or in an older release of transformers, for a layer of another program."""
    for pattern, endings in program.layers.items():
        match = re.fullmatch(pattern, layer)
        if match is None:
            continue
        for ending in endings:
            first, *rest = match.expand(ending).split("|")
            found = _find_ending(first, modules, program.program == "mlx-lm")
            if found is not None:
                prefix = found.removesuffix(first)
                return "|".join([found, *(f"{prefix}{other}" for other in rest)])
        break
    message = _("{layer} of {program} has no counterpart in this base")
    raise TsugikiError(message.format(layer=layer, program=program.program))


def _find_ending(ending: str, modules: Mapping[str, nn.Module], shorten: bool) -> str | None:
    """Return the name of the module that ends so; that of an expert's layer if the base has the module of experts."""
    match = re.fullmatch(r"(.+\.experts)(\.(?:\*|\d+)\..+)", ending)
    path, rest = (match[1], match[2]) if match else (ending, "")
    while True:
        if path in modules:
            return path + rest
        found = [name for name in modules if name.endswith(f".{path}")]
        if len(found) == 1:
            return found[0] + rest
        shorter = path.partition(".")[2]
        if not shorten or not re.search(r"(^|\.)\d+\.", shorter):
            return ending if shorten else None  # the rules for old names may know it
        path = shorter


def _split(
    folder: Path, layer: str, names: Sequence[str], A: Tensor, B: Tensor, modules: Mapping[str, nn.Module]
) -> Iterable[tuple[str, Tensor, Tensor]]:
    """Yield the names and factors of the queries, keys and values that LitGPT has adapted."""
    path = folder / _HYPERPARAMETERS
    settings = read_yaml(path) if path.is_file() else {}
    defaults = {"lora_query": True, "lora_key": False, "lora_value": True}
    adapted = [name for name, (key, default) in zip(names, defaults.items(), strict=True) if settings.get(key, default)]
    heights = [len(modules[name].weight) if name in modules else 0 for name in adapted]  # type: ignore[arg-type]
    if len(A) != len(adapted) * B.shape[1] or len(B) != sum(heights):
        message = _(
            "{layer} has A {first} and B {second}, which are not the queries, keys and values that {path} names"
        )
        raise TsugikiError(message.format(layer=layer, first=list(A.shape), second=list(B.shape), path=path))
    if layer.endswith(".attn") and len(adapted) == len(names):
        message = _("{layer}: in this old version of LitGPT, queries, keys and values are mixed; merge it with LitGPT")
        raise TsugikiError(message.format(layer=layer))
    yield from zip(adapted, A.chunk(len(adapted)), torch.split(B, heights), strict=True)


def _in_halves(model: Any, name: str, rows: Tensor) -> Tensor:
    """Return the rows of queries or keys in the order of transformers, from that of torchtune."""
    kind = model_type(model)
    if kind not in _META_ORDER:
        message = _("{name}: torchtune has no model of the type {kind}, so the order of its rows is unknown")
        raise TsugikiError(message.format(name=name, kind=kind))
    if not _META_ORDER[kind]:
        return rows
    config = model.config
    heads = config.num_attention_heads if name.endswith("q_proj") else config.num_key_value_heads
    return rows.view(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).flatten(0, 2)


def _number(fields: Any, name: str, path: Path) -> float:
    value = fields.get(name) if isinstance(fields, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        message = _("{path}: {name} is {value}, and must be a positive number")
        raise TsugikiError(message.format(path=path, name=name, value=error_text(repr(value), 40)))
    return float(value)
