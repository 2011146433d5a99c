"""Export a LoRA adapter for llama.cpp (`--lora`) and Ollama as a GGUF file with a Modelfile, and import such a file.

    general.type = "adapter", adapter.type = "lora", general.architecture = the base's
    adapter.lora.alpha       one value for all layers: ΔW = alpha / r · B A
    NAME.weight.lora_a       A [r, in]; for the token embedding its transpose [entries, r]
    NAME.weight.lora_b       B [out, r], with its rows in llama.cpp's order (see `llama_cpp_layers`)

The format has one alpha, so for a layer whose scaling is not alpha / r (rsLoRA, rank and alpha patterns) the remaining
factor is multiplied into B. llama.cpp reads only these keys. The keys that name the base are for users and for
`read_gguf_adapter`.
"""

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from tsugiki.adapters.lora_weights import LayerFactors, LoraWeights, read_lora_weights, write_lora_weights
from tsugiki.adapters.metadata import BaseReference, Provenance, Source
from tsugiki.annotations import PreTrainedModel
from tsugiki.base.gguf.file import GgufHeader, read_header
from tsugiki.base.identity import named_identity, why_different
from tsugiki.base.loading import load_meta_model
from tsugiki.dtypes import GgufAdapterDtype
from tsugiki.errors import TsugikiError, error_text, summarise_list
from tsugiki.export.llama_cpp_layers import OUTPUT_HEAD, TOKEN_EMBEDDING, gguf_names, llama_cpp_architecture, row_order
from tsugiki.export.loaders import llama_cpp_incompatibilities
from tsugiki.export.ollama import modelfile, new_gguf_file
from tsugiki.language import _, sentences
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.targets import shortest_target_modules
from tsugiki.model.linear import features, is_conv1d
from tsugiki.model.ungrafted import base_modules

T = TypeVar("T")

_FINGERPRINT = "tsugiki.base.fingerprint"
_BASE_NAME = "general.base_model.0.name"
_ALPHA = "adapter.lora.alpha"


class MergedOnlyError(TsugikiError):
    """llama.cpp would not compute an adapter as Tsugiki does; it can load base and adapter merged into one model."""


@dataclass(frozen=True)
class AdapterExport:
    """The result of an export."""

    layers: int
    ranks: str
    """`8`, or `4 to 16`."""
    alpha: float
    bytes: int
    modelfile: Path


def export_gguf_adapter(
    folder: Path,
    out: Path,
    model_name: str | None = None,
    base: Path | None = None,
    dtype: GgufAdapterDtype = "f32",
    *,
    allow_base_mismatch: bool = False,
) -> AdapterExport:
    """Write a LoRA adapter as a GGUF file, and a Modelfile for Ollama in the same folder. Both appear, or neither.

    The adapter's base, of which only the config is read, is by default the one that the adapter names. `base` is the
    base as a GGUF file, with which the adapter is compared, and which the Modelfile names.

    Raises:
        MergedOnlyError: llama.cpp would reject the adapter, or give another result with it.
    """
    lora = read_lora_weights(folder)
    name = model_name or lora.base.name
    if name is None:
        message = _("{folder} does not name the base that it was trained on; pass it as --model")
        raise TsugikiError(message.format(folder=folder))
    why = "" if allow_base_mismatch else why_different(lora.base, named_identity(name))
    if why:
        message = _(
            "{folder} was trained on another base ({trained}) than {given}: {why}; --allow-base-mismatch "
            "exports it anyway"
        )
        raise TsugikiError(message.format(folder=folder, trained=lora.base.name, given=name, why=why))
    model = load_meta_model(name)
    llama_cpp_architecture(model)  # raises an error for a base that cannot be exported in any way
    problems = llama_cpp_incompatibilities(lora, model)
    if problems:
        message = _(
            "pass --merged, which exports base and adapter as one model; llama.cpp would not compute {folder} alone "
            "as Tsugiki does: {problems}"
        )
        raise MergedOnlyError(message.format(folder=folder, problems=sentences(problems)))
    if base is not None:
        check_gguf_base(base, model, lora.layers)
    base_path = str(base.absolute()) if base else None
    context = getattr(model.config, "max_position_embeddings", None)
    with new_gguf_file(out, modelfile(base_path, f"./{out.name}", context=context)) as temporary:
        alpha = write_gguf_adapter(lora, model, temporary, dtype)
    ranks = sorted({layer.r for layer in lora.layers.values()})
    ranks_text = (
        str(ranks[0]) if len(ranks) == 1 else _("{lowest} to {highest}").format(lowest=ranks[0], highest=ranks[-1])
    )
    return AdapterExport(len(lora.layers), ranks_text, alpha, out.stat().st_size, out.with_suffix(".Modelfile"))


def import_gguf_adapter(file: Path, model_name: str, out: Path, *, allow_base_mismatch: bool = False) -> LoraWeights:
    """Write the LoRA adapter in a GGUF file as a new folder in PEFT's format. Only the config of its base is read."""
    lora = read_gguf_adapter(file, load_meta_model(model_name))
    why = "" if allow_base_mismatch else why_different(lora.base, named_identity(model_name))
    if why:
        message = _(
            "{file} was made for another base ({base}) than {given}: {why}; --allow-base-mismatch imports it anyway"
        )
        raise TsugikiError(message.format(file=file, base=lora.base.name, given=model_name, why=why))
    lora = dataclasses.replace(lora, base=BaseReference(name=model_name, fingerprint=lora.base.fingerprint))
    write_lora_weights(lora, out, Provenance(operation="import", sources=(Source(name=file.name),)))
    return lora


def write_gguf_adapter(lora: LoraWeights, model: PreTrainedModel, out: Path, dtype: GgufAdapterDtype = "f32") -> float:
    """Write a LoRA adapter for which `llama_cpp_incompatibilities` returns nothing to a GGUF file; return its alpha.

    The base may be on the meta device. The file is written in place; `new_file` makes it appear complete or not at all.
    """
    import gguf

    names, modules = gguf_names(model), dict(base_modules(model))
    _check_fit(lora.layers, names, modules)
    alpha = Counter(_alpha(layer) for layer in lora.layers.values()).most_common(1)[0][0]
    writer = gguf.GGUFWriter(out, llama_cpp_architecture(model))
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string("adapter.type", "lora")
    writer.add_float32(_ALPHA, alpha)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32 if dtype == "f32" else gguf.LlamaFileType.MOSTLY_F16)
    if lora.base.name:
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, lora.base.name)
    if lora.base.fingerprint:
        writer.add_string(_FINGERPRINT, lora.base.fingerprint)
    for path, layer in lora.layers.items():
        A, B = layer.A.float(), layer.B.float()
        if _alpha(layer) != alpha:
            B = B * (_alpha(layer) / alpha)
        order = row_order(model, path, len(B))
        B = B if order is None else B[order]
        A = A.T if names[path] == TOKEN_EMBEDDING else A
        for letter, tensor in (("a", A), ("b", B)):
            writer.add_tensor(f"{names[path]}.weight.lora_{letter}", _to_numpy(tensor, dtype, path))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return alpha


def read_gguf_adapter(file: Path, model: PreTrainedModel) -> LoraWeights:
    """Read a LoRA adapter from a GGUF file. `model` is the adapter's base; a model on the meta device is enough."""
    header = read_header(file)
    _check_type(header, file, llama_cpp_architecture(model))
    alpha = _metadata_value(header, _ALPHA, float, file) or 0.0
    layers = _read_layers(file, alpha, model)
    modules = dict(base_modules(model))
    targets = {path: modules[path] for path in layers}
    config = LoraConfig(
        target_modules=shortest_target_modules(model, LoraConfig(), targets),
        fan_in_fan_out=any(is_conv1d(layer) for layer in targets.values()),
    )
    base = BaseReference(
        name=_metadata_value(header, _BASE_NAME, str, file),
        fingerprint=_metadata_value(header, _FINGERPRINT, str, file),
    )
    return LoraWeights(config, layers, {}, base, "CAUSAL_LM")


def check_gguf_base(file: Path, model: PreTrainedModel, layers: Collection[str]) -> None:
    """Check that an adapter fits the base in a GGUF file.

    `model` is the base that the adapter was trained on; a model on the meta device is enough. `layers` names the layers
    in it that the adapter changes.
    """
    header = read_header(file)
    if header.metadata.get("general.type") == "adapter":
        raise TsugikiError(_("{file} is an adapter; pass the adapter's base as --base").format(file=file))
    expected = llama_cpp_architecture(model)
    if header.architecture != expected:
        message = _("{file} has the architecture {architecture!r}, and the adapter's base has {expected!r}")
        raise TsugikiError(message.format(file=file, architecture=header.architecture, expected=expected))
    shapes = {tensor.name: tensor.shape for tensor in header.tensors}
    names, modules = gguf_names(model), dict(base_modules(model))
    problems = []
    for path in layers:
        tensor = f"{names[path]}.weight"
        inputs, outputs = features(modules[path])
        shape = (inputs, outputs) if names[path] == TOKEN_EMBEDDING else (outputs, inputs)
        if tensor not in shapes:
            problems.append(_("it has no {tensor}").format(tensor=tensor))
        elif shapes[tensor] != shape:
            message = _("its {tensor} is {found}, and the adapter is for {shape}")
            problems.append(message.format(tensor=tensor, found=list(shapes[tensor]), shape=list(shape)))
    if TOKEN_EMBEDDING in (names[path] for path in layers) and f"{OUTPUT_HEAD}.weight" not in shapes:
        message = _("its output head is tied to {embedding}, which llama.cpp then cannot adapt")
        problems.append(message.format(embedding=TOKEN_EMBEDDING))
    if problems:
        raise TsugikiError(_("{file} is another base: {problems}").format(file=file, problems=summarise_list(problems)))


def _metadata_value(header: GgufHeader, key: str, expected: type[T], file: Path) -> T | None:
    """Return the value of a metadata key, or None if the file does not have the key."""
    value = header.metadata.get(key)
    if not isinstance(value, expected | None):
        raise TsugikiError(_("{file} is broken: {key} is {value!r}").format(file=file, key=key, value=value))
    return value


def _check_type(header: GgufHeader, file: Path, architecture: str) -> None:
    file_type = _metadata_value(header, "general.type", str, file)
    if file_type != "adapter":
        message = _("{file} is not an adapter: its general.type is {kind!r}")
        raise TsugikiError(message.format(file=file, kind=file_type))
    adapter_type = _metadata_value(header, "adapter.type", str, file)
    if adapter_type != "lora":
        message = _("{file} is an adapter of type {kind!r}; only LoRA adapters can be read")
        raise TsugikiError(message.format(file=file, kind=adapter_type))
    if "adapter.alora.invocation_tokens" in header.metadata:
        raise TsugikiError(
            _("{file} is an aLoRA adapter (active only after certain tokens), which is not supported").format(file=file)
        )
    found = _metadata_value(header, "general.architecture", str, file)
    if found != architecture:
        message = _("{file} is for a base of architecture {found!r}, and this base is {architecture!r}")
        raise TsugikiError(message.format(file=file, found=found, architecture=architecture))


def _read_tensors(file: Path) -> dict[str, Tensor]:
    import gguf

    try:
        tensors = gguf.GGUFReader(file).tensors
        return {tensor.name: torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type)) for tensor in tensors}
    except NotImplementedError as error:
        message = _("{file} has tensors of a type that the gguf package cannot dequantise: {error}")
        raise TsugikiError(message.format(file=file, error=error)) from error
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError) as error:
        raise TsugikiError(_("{file} is broken: {error}").format(file=file, error=error_text(error))) from error


def _read_layers(file: Path, alpha: float, model: PreTrainedModel) -> dict[str, LayerFactors]:
    """Read the factors of each layer, with their rows in transformers' order."""
    layers, problems, remaining = {}, [], _read_tensors(file)
    modules = dict(base_modules(model))
    for path, name in gguf_names(model).items():
        A, B = (remaining.pop(f"{name}.weight.lora_{letter}", None) for letter in "ab")
        if A is None and B is None:
            continue
        if A is None or B is None:
            problems.append(_("{name} has no lora_{letter}").format(name=name, letter="b" if B is None else "a"))
            continue
        A = A.T.contiguous() if name == TOKEN_EMBEDDING else A
        if problem := _shape_problem(A, B, modules[path]):
            problems.append(f"{name} {problem}")
            continue
        order = row_order(model, path, len(B))
        B = B if order is None else B[order.argsort()]
        scaling = alpha / len(A) if alpha else 1.0  # without alpha llama.cpp uses 1 as well
        layers[path] = LayerFactors(A, B, scaling, embedding=name == TOKEN_EMBEDDING)
    problems += [_("{name} has no layer").format(name=name) for name in remaining]
    if not problems and not layers:
        problems.append(_("it holds no lora_a and lora_b"))
    if problems:
        message = _("{file} does not fit this model: {problems}; was it made for another base?")
        raise TsugikiError(message.format(file=file, problems=summarise_list(problems)))
    return layers


def _check_fit(layers: Mapping[str, LayerFactors], names: Mapping[str, str], modules: Mapping[str, nn.Module]) -> None:
    """Check that llama.cpp can adapt each of these layers, and that the factors have the layer's shapes."""
    problems = [_("llama.cpp cannot adapt {path}").format(path=path) for path in layers if path not in names]
    for path, layer in layers.items():
        problem = _shape_problem(layer.A, layer.B, modules[path]) if path in names else ""
        problems += [f"{path} {problem}"] if problem else []
    if problems:
        message = _("the adapter does not fit this base: {problems}; was it trained on another base?")
        raise TsugikiError(message.format(problems=summarise_list(problems)))


def _shape_problem(A: Tensor, B: Tensor, layer: nn.Module) -> str:
    """Return the problem with the shapes of a layer's factors, as a predicate for a message; empty if there is none."""
    in_features, out_features = features(layer)
    if A.dim() == B.dim() == 2 and (A.shape[1], B.shape[0]) == (in_features, out_features) and len(A) == B.shape[1]:
        return ""
    return _("has A {first} and B {second}, but the layer has {inputs} inputs, {outputs} outputs").format(
        first=list(A.shape), second=list(B.shape), inputs=in_features, outputs=out_features
    )


def _alpha(layer: LayerFactors) -> float:
    return layer.scaling * layer.r


def _to_numpy(tensor: Tensor, dtype: GgufAdapterDtype, path: str) -> "np.ndarray[Any, Any]":
    with np.errstate(over="ignore"):
        values = tensor.contiguous().numpy().astype(np.float32 if dtype == "f32" else np.float16)
    if not np.isfinite(values).all():
        message = _("{path} has a value that is too large for 16 bits; export the adapter in f32")
        raise TsugikiError(message.format(path=path))
    return values
