"""A LoRA adapter as llama.cpp reads it (`--lora`), and back.

    general.type = "adapter", adapter.type = "lora", general.architecture = the base's
    adapter.lora.alpha       one for all layers: ΔW = alpha / r · B A
    NAME.weight.lora_a       A [r, in]; of the table of embeddings its transpose [entries, r]
    NAME.weight.lora_b       B [out, r], its rows in llama.cpp's order (see `layout`)

A layer whose scaling is not alpha / r (rsLoRA, patterns) has the rest in its B. llama.cpp reads no more than this; keys
that say which base it is for are for people, and for `read_gguf_adapter`.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from tsugiki.adapters.format import Base
from tsugiki.adapters.lora_weights import LayerFactors, LoraWeights
from tsugiki.base.gguf.file import GgufHeader, read_header
from tsugiki.errors import TsugikiError, error_text, summarise_list
from tsugiki.export.layout import TABLE, gguf_names, llama_cpp_architecture, row_order
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.frozen_layer import features, is_conv1d
from tsugiki.lora.targets import base_modules, shortest_target_modules

Stored: TypeAlias = Literal["f32", "f16"]
"""What numbers are kept in."""
T = TypeVar("T")

_FINGERPRINT = "tsugiki.base.fingerprint"
_BASE_NAME = "general.base_model.0.name"
_ALPHA = "adapter.lora.alpha"


def write_gguf_adapter(lora: LoraWeights, model: nn.Module, out: Path, stored: Stored = "f32") -> float:
    """Write an adapter for llama.cpp to the file `out` (`folders.new_file` lets it appear whole or not at all).

    Args:
        lora: an adapter that has no `loaders.llama_cpp_refusals`.
        model: its base; the shape alone, on the meta device, is enough.
        out: the file.
        stored: numbers of 32 bits, or of 16.

    Returns:
        The alpha of the file.

    Raises:
        TsugikiError: the adapter does not fit the base, or a number is too large for 16 bits.
    """
    import gguf

    names, layers = gguf_names(model), dict(base_modules(model))
    _refuse_misfits(lora.layers, names, layers)
    alpha = Counter(_alpha(layer) for layer in lora.layers.values()).most_common(1)[0][0]
    dtype = np.float32 if stored == "f32" else np.float16
    writer = gguf.GGUFWriter(out, llama_cpp_architecture(model))
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string("adapter.type", "lora")
    writer.add_float32(_ALPHA, alpha)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32 if stored == "f32" else gguf.LlamaFileType.MOSTLY_F16)
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
        A = A.T if names[path] == TABLE else A
        for letter, tensor in (("a", A), ("b", B)):
            writer.add_tensor(f"{names[path]}.weight.lora_{letter}", _numbers(tensor, dtype, path))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return alpha


def read_gguf_adapter(file: Path, model: Any) -> LoraWeights:
    """The LoRA adapter in a GGUF file, for `model`, its base; the shape alone, on the meta device, is enough.

    Raises:
        TsugikiError: no such file, a broken one, no LoRA adapter, or one that does not fit the model.
    """
    header = read_header(file)
    _refuse_another_kind(header, file, llama_cpp_architecture(model))
    layers = _layers(file, _non_defaults(header, _ALPHA, float, file) or 0.0, _read_tensors(file), model)
    modules = dict(base_modules(model))
    targets = {path: modules[path] for path in layers}
    config = LoraConfig(
        target_modules=shortest_target_modules(model, LoraConfig(), targets),
        fan_in_fan_out=any(is_conv1d(layer) for layer in targets.values()),
    )
    base = Base(_non_defaults(header, _BASE_NAME, str, file), _non_defaults(header, _FINGERPRINT, str, file))
    return LoraWeights(config, layers, {}, base, "CAUSAL_LM")


def _read_tensors(file: Path) -> dict[str, Tensor]:
    import gguf

    try:
        reader = gguf.GGUFReader(file)
        return {one.name: torch.tensor(gguf.dequantize(one.data, one.tensor_type)) for one in reader.tensors}
    except NotImplementedError as error:
        raise TsugikiError(f"{file} holds numbers of a kind that is not read here: {error}") from error
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError) as error:
        raise TsugikiError(f"{file} is broken: {error_text(error)}") from error


def _non_defaults(header: GgufHeader, key: str, kind: type[T], file: Path) -> T | None:
    """The value of a key; None where it is not there.

    Raises:
        TsugikiError: it is of another kind.
    """
    value = header.metadata.get(key)
    if not isinstance(value, kind | None):
        raise TsugikiError(f"{file} is broken: {key} is {value!r}")
    return value


def _refuse_another_kind(header: GgufHeader, file: Path, architecture: str) -> None:
    kind, method = _non_defaults(header, "general.type", str, file), _non_defaults(header, "adapter.type", str, file)
    if kind != "adapter":
        raise TsugikiError(f"{file} is no adapter: its general.type is {kind!r}")
    if method != "lora":
        raise TsugikiError(f"{file} is an adapter of type {method!r}; LoRA's alone are read")
    if "adapter.alora.invocation_tokens" in header.metadata:
        raise TsugikiError(f"{file} is an aLoRA, which works from certain tokens on; such adapters are not read")
    if (theirs := _non_defaults(header, "general.architecture", str, file)) != architecture:
        raise TsugikiError(f"{file} is for a base of architecture {theirs!r}, and this one is {architecture!r}")


def _layers(file: Path, alpha: float, found: Mapping[str, Tensor], model: Any) -> dict[str, LayerFactors]:
    """The update of each layer, from the tensors of a file."""
    layers, problems, rest = {}, [], dict(found)
    modules = dict(base_modules(model))
    for path, name in gguf_names(model).items():
        A, B = (rest.pop(f"{name}.weight.lora_{letter}", None) for letter in "ab")
        if A is None and B is None:
            continue
        if A is None or B is None:
            problems.append(f"{name} has no lora_{'b' if B is None else 'a'}")
            continue
        A = A.T.contiguous() if name == TABLE else A
        if wrong := _misfit(A, B, modules[path]):
            problems.append(f"{name} {wrong}")
            continue
        order = row_order(model, path, len(B))
        B = B if order is None else B[order.argsort()]
        layers[path] = LayerFactors(A, B, alpha / len(A) if alpha else 1.0, embedding=name == TABLE)
    problems += [f"{name} belongs nowhere" for name in rest]
    if not problems and not layers:
        problems.append("it holds no lora_a and lora_b")
    if problems:
        raise TsugikiError(f"{file} does not fit this model: {summarise_list(problems)}; was it made for another base?")
    return layers


def _refuse_misfits(
    layers: Mapping[str, LayerFactors], names: Mapping[str, str], modules: Mapping[str, nn.Module]
) -> None:
    problems = [f"{path} is no layer of it that llama.cpp adapts" for path in layers if path not in names]
    for path, layer in layers.items():
        wrong = _misfit(layer.A, layer.B, modules[path]) if path in names else ""
        problems += [f"{path} {wrong}"] if wrong else []
    if problems:
        raise TsugikiError(
            f"the adapter does not fit this base: {summarise_list(problems)}; was it trained on another?"
        )


def _misfit(A: Tensor, B: Tensor, layer: nn.Module) -> str:
    """What is wrong with the shapes of a pair for this layer; empty: nothing."""
    into, out = features(layer)
    if A.dim() == B.dim() == 2 and (A.shape[1], B.shape[0]) == (into, out) and A.shape[0] == B.shape[1]:
        return ""
    return f"has A {list(A.shape)} and B {list(B.shape)}, and the layer takes {into} and gives {out} features"


def _alpha(layer: LayerFactors) -> float:
    return layer.scaling * layer.r


def _numbers(tensor: Tensor, dtype: type[np.floating[Any]], path: str) -> Any:
    with np.errstate(over="ignore"):
        numbers = tensor.contiguous().numpy().astype(dtype)
    if not np.isfinite(numbers).all():
        raise TsugikiError(f"{path} holds a number that is too large for 16 bits; export it in f32")
    return numbers
