"""Merge an adapter into a GGUF file of its base, which llama.cpp and Ollama then load as one model.

    W' = W + s · B A      W: the file's tensor, dequantised; the rows of B in llama.cpp's order (`llama_cpp_layers`)

Everything else of the file is copied byte by byte: metadata, tokenizer and the tensors without an update. A merged
tensor is written in 8 bits (Q8_0) or in float16, never in fewer bits: a small update that is rounded back to a grid of
4 bits is lost. An output head that shares its weight with the token embedding gets a tensor of its own.

Tensors are computed some rows at a time, so the memory needed is that of one tensor of the new file.
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from tsugiki.adapters.algebra.combine import refuse_more_than_updates
from tsugiki.adapters.lora_weights import LoraWeights, read_lora_weights
from tsugiki.adapters.metadata import BaseReference
from tsugiki.adapters.saved_tokenizer import saved_chat_template
from tsugiki.annotations import PreTrainedModel
from tsugiki.base.gguf.conversion import not_a_whole_model
from tsugiki.base.gguf.conversion_cache import gguf_fingerprint
from tsugiki.base.gguf.file import MAGIC, GgufHeader, GgufTensor, read_header
from tsugiki.base.loading import load_meta_model
from tsugiki.dtypes import GgufDtype
from tsugiki.errors import TsugikiError, summarise_list
from tsugiki.export.llama_cpp_layers import (
    OUTPUT_HEAD,
    TOKEN_EMBEDDING,
    in_llama_cpp_order,
    layer_names,
    llama_cpp_architecture,
    unsupported_reason,
)
from tsugiki.export.ollama import modelfile, new_gguf_file
from tsugiki.io.cache import check_room
from tsugiki.language import _
from tsugiki.model.ungrafted import base_modules, output_head

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

_VERSION, _ALIGNMENT = 3, 32
_UINT32, _STRING = 4, 8  # types of values in the metadata
_FILE_TYPES: Mapping[GgufDtype, int] = {"f16": 1, "q8_0": 7}
"""The values of `general.file_type`."""
_ROWS = 1024
"""Rows of a tensor that are computed at once."""
_HEAD, _EMBEDDING = f"{OUTPUT_HEAD}.weight", f"{TOKEN_EMBEDDING}.weight"
_POSITIONS = "position_embd.weight"
"""llama.cpp reads it in float32 alone."""


@dataclass(frozen=True)
class MergedFile:
    """Facts about a GGUF file that was written."""

    merged: int
    """Tensors that have an update of the adapter."""
    tensors: int
    bytes: int


@dataclass(frozen=True, eq=False)
class _Planned:
    """A tensor of the new file."""

    name: str
    source: GgufTensor
    """The tensor of the base's file that it is copied or computed from."""
    type: "GGMLQuantizationType"
    update: tuple[Tensor, Tensor] | None = None
    """s · B [rows, r] and A [r, columns] in float32; None: the tensor is copied."""

    @property
    def bytes(self) -> int:
        from gguf import GGML_QUANT_SIZES

        block, size = GGML_QUANT_SIZES[self.type]
        return prod(self.source.shape) // block * size


def merge_into_gguf(
    adapter: Path,
    base: Path,
    out: Path,
    dtype: GgufDtype = "q8_0",
    *,
    model_name: str | None = None,
    allow_base_mismatch: bool = False,
    advance: Callable[[int], None] = lambda done: None,
) -> MergedFile:
    """Write the GGUF file `out`, which is the file `base` with an adapter merged into it, and a Modelfile beside it.

    Both appear complete or not at all. A chat template that was saved with the adapter replaces the base's.

    Args:
        adapter: the adapter's folder.
        base: a GGUF file of the model that the adapter was trained on, in any quantisation.
        dtype: the type of merged tensors. Rows that are no multiple of 32 are in float16.
        model_name: the transformers model that tells the layers' names; by default the one that the adapter names.
        allow_base_mismatch: merge although the adapter was trained on another GGUF file.
        advance: called with the number of bytes after each tensor.

    Raises:
        TsugikiError: the adapter has more than updates of layers, or does not fit the file.
    """
    lora = read_lora_weights(adapter)
    refuse_more_than_updates(lora, adapter.name)
    header = read_header(base)
    if reason := not_a_whole_model(header):
        raise TsugikiError("{path} cannot be read as a base model: {reason}", path=base, reason=reason)
    if not allow_base_mismatch and _is_another_file(lora.base, base):
        raise TsugikiError(
            "{adapter} was trained on another GGUF file than {base}: their tensors differ; {flag:allow_base_mismatch} "
            "merges it anyway",
            adapter=adapter,
            base=base,
        )
    model = load_meta_model(model_name or lora.base.name or str(base))
    planned = _plan(lora, model, base, header, dtype)
    metadata = _changed_metadata(header, dtype, saved_chat_template(adapter))
    check_room(out.absolute().parent, sum(tensor.bytes for tensor in planned))
    with new_gguf_file(out, _modelfile_text(out, header, metadata)) as temporary, temporary.open("wb") as file:
        _write_header(file, base, header, planned, metadata)
        for tensor in planned:
            for part in _parts(base, tensor):
                file.write(part)
            file.write(bytes(-file.tell() % _ALIGNMENT))
            advance(tensor.bytes)
    merged = sum(tensor.update is not None for tensor in planned)
    return MergedFile(merged, len(planned), out.stat().st_size)


def _is_another_file(trained_on: BaseReference, base: Path) -> bool:
    """Return whether an adapter was trained on a GGUF file that has other tensors than this one.

    Those of a model in another format cannot be compared with those of a GGUF file, which may be quantised.
    """
    fingerprint = trained_on.fingerprint if (trained_on.name or "").endswith(".gguf") else None
    return fingerprint is not None and fingerprint != gguf_fingerprint(base)


def _plan(
    lora: LoraWeights, model: PreTrainedModel, base: Path, header: GgufHeader, dtype: GgufDtype
) -> list[_Planned]:
    """Describe every tensor of the new file, in the order of the base's file; check that the adapter fits."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    architecture = llama_cpp_architecture(model)
    if architecture != header.architecture:
        raise TsugikiError(
            "{base} is a {found}, and the adapter's base is a {expected}; give a GGUF file of that base",
            base=base,
            found=header.architecture,
            expected=architecture,
        )
    tensors = {tensor.name: tensor for tensor in header.tensors}
    updates = _updates(lora, model)
    problems = []
    for name, (B, A) in updates.items():
        source = tensors.get(name) or (tensors.get(_EMBEDDING) if name == _HEAD else None)
        shape = None if source is None else list(source.shape)
        if shape != [len(B), A.shape[1]]:
            message = _(
                "{name} is {shape}, and the adapter's update {expected}",
                name=name,
                shape=shape or _("missing"),
                expected=[len(B), A.shape[1]],
            )
            problems.append(message)
    if problems:
        raise TsugikiError(
            "the adapter does not fit {base}: {problems}; was it trained on another base?",
            base=base,
            problems=summarise_list(problems),
        )
    kinds = {"q8_0": GGMLQuantizationType.Q8_0, "f16": GGMLQuantizationType.F16}

    def planned(name: str, source: GgufTensor) -> _Planned:
        if name not in updates:
            return _Planned(name, source, source.type)
        kind = kinds[dtype]
        if name == _POSITIONS:
            kind = GGMLQuantizationType.F32
        elif source.shape[-1] % GGML_QUANT_SIZES[kind][0]:  # the rows cannot be split into blocks
            kind = GGMLQuantizationType.F16
        return _Planned(name, source, kind, updates[name])

    found = [planned(tensor.name, tensor) for tensor in header.tensors]
    if _HEAD in updates and _HEAD not in tensors:
        found.append(planned(_HEAD, tensors[_EMBEDDING]))
    return found


def _updates(lora: LoraWeights, model: PreTrainedModel) -> dict[str, tuple[Tensor, Tensor]]:
    """Return s · B and A of each tensor that changes, in the orientation and the row order of llama.cpp."""
    names, head = layer_names(model), output_head(model)
    tied_head = next((path for path, module in base_modules(model) if module is head and path not in names), None)
    found: dict[str, tuple[Tensor, Tensor]] = {}
    unnamed: dict[str, list[str]] = {}
    for path, layer in lora.layers.items():
        name = names.get(path) or (OUTPUT_HEAD if path == tied_head and not layer.embedding else "")
        if not name or layer.A.dim() != 2:
            unnamed.setdefault(unsupported_reason(model, path), []).append(path)
            continue
        A, B = layer.A.float(), layer.B.float() * layer.scaling
        if layer.embedding:
            A, B = B.T, A.T
        B, A = in_llama_cpp_order(model, path, B, A)
        found[f"{name}.weight"] = B.contiguous(), A.contiguous()
    if unnamed:
        problems = [f"{summarise_list(paths)}, {reason}" for reason, paths in unnamed.items()]
        raise TsugikiError(
            "the adapter cannot be merged into a GGUF file, because it adapts {problems}; `tsugiki merge` writes a "
            "model that llama.cpp's convert_hf_to_gguf.py converts",
            problems=summarise_list(problems),
        )
    return found


def _changed_metadata(header: GgufHeader, dtype: GgufDtype, template: str | None) -> dict[str, int | str]:
    """Return the values that are not copied from the base's file."""
    changed: dict[str, int | str] = {"general.file_type": _FILE_TYPES[dtype], "general.quantization_version": 2}
    if template is not None:
        changed["tokenizer.chat_template"] = template
    return changed


def _modelfile_text(out: Path, header: GgufHeader, metadata: Mapping[str, int | str]) -> str:
    """Return the Modelfile: of a model with a chat template, the tokens that end a turn end an answer."""
    values, tokens = {**header.metadata, **metadata}, header.metadata["tokenizer.ggml.tokens"]
    ends = [values.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")]
    stop = dict.fromkeys(tokens[end] for end in ends if end is not None)
    has_template = "tokenizer.chat_template" in values
    return modelfile(f"./{out.name}", stop=list(stop) if has_template else [], context=header.setting("context_length"))


def _write_header(
    file: BinaryIO, base: Path, header: GgufHeader, planned: list[_Planned], metadata: Mapping[str, int | str]
) -> None:
    """Write everything before the first tensor; values that do not change are copied byte by byte."""
    kept = {key: span for key, span in header.spans.items() if key not in {*metadata, "general.alignment"}}
    file.write(MAGIC + struct.pack("<IQQ", _VERSION, len(planned), len(kept) + len(metadata)))
    with base.open("rb") as original:
        for begin, end in kept.values():
            original.seek(begin)
            file.write(original.read(end - begin))
    for key, value in metadata.items():
        is_text = isinstance(value, str)
        file.write(_text(key) + struct.pack("<I", _STRING if is_text else _UINT32))
        file.write(_text(value) if isinstance(value, str) else struct.pack("<I", value))
    offset = 0
    for tensor in planned:
        shape = tensor.source.shape
        file.write(
            _text(tensor.name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], tensor.type, offset)
        )
        offset += tensor.bytes + -tensor.bytes % _ALIGNMENT
    file.write(bytes(-file.tell() % _ALIGNMENT))


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _parts(base: Path, tensor: _Planned) -> Iterator[bytes]:
    """Yield the bytes of a tensor of the new file, some rows at a time."""
    from gguf import dequantize, quantize

    source = tensor.source
    if tensor.update is None:
        yield np.memmap(base, np.uint8, "r", source.begin, (source.end - source.begin,)).tobytes()
        return
    rows = source.shape[0]
    stored = np.memmap(base, np.uint8, "r", source.begin, (rows, (source.end - source.begin) // rows))
    B, A = tensor.update
    for start in range(0, rows, _ROWS):
        weight = torch.from_numpy(np.array(dequantize(stored[start : start + _ROWS], source.type)))
        merged: np.ndarray[Any, Any] = torch.addmm(weight, B[start : start + _ROWS], A).numpy()
        written = quantize(merged, tensor.type)
        if not np.isfinite(merged).all() or (tensor.type.name == "F16" and not np.isfinite(written).all()):
            raise TsugikiError("{name} is not finite after merging; nothing was written", name=tensor.name)
        yield written.tobytes()
