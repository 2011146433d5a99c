"""A whole model as one GGUF file, which llama.cpp and Ollama load.

Tensors are read, changed and written one at a time: what is held at once is the largest of them, a few times over.
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from torch import Tensor

from tsugiki.base.gguf.names import llama_cpp_names
from tsugiki.base.loading import meta_model
from tsugiki.base.model_folder import map_keys
from tsugiki.data.encoding import document_start
from tsugiki.errors import TsugikiError, summarise_list
from tsugiki.export.architectures import Config, GgufArchitecture, gguf_architecture_of
from tsugiki.export.vocabulary import add_vocabulary, adds_start, read_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Stored: TypeAlias = Literal["f32", "f16", "bf16", "q8_0"]
"""What matrices are stored in. Vectors and positions are float32 always, as llama.cpp computes with them."""
STORED: tuple[Stored, ...] = get_args(Stored)

_KINDS: Mapping[str, Kind] = {"f32": Kind.F32, "f16": Kind.F16, "bf16": Kind.BF16, "q8_0": Kind.Q8_0}
_FILE_TYPES: Mapping[str, gguf.LlamaFileType] = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
_WRITTEN_HERE = ("general.architecture", "general.file_type", "general.quantization_version")
_BUFFERS = re.compile(r"\.attn\.(masked_)?bias$|\.rotary_emb\.inv_freq$")  # files of old versions hold them


@dataclass(frozen=True, eq=False)
class Source:
    """A model of Transformers, to be written."""

    name: str
    config: Config
    weights: Mapping[str, Tensor]
    """By their names in the model. A folder's, read when they are asked for; or a `state_dict`."""
    stored: Stored
    """What the model's files hold, or those of the base that it was made from."""
    tokenizer: "PreTrainedTokenizerBase"
    ends: tuple[int, ...] = ()
    """Tokens that end a text or a turn, besides the tokenizer's end token."""


@dataclass(frozen=True)
class Written:
    """What was written."""

    architecture: str
    tensors: int
    bytes: int
    stored: Stored


def write_model_gguf(
    source: Source,
    path: Path,
    stored: Stored | None = None,
    *,
    original: Path | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> Written:
    """Write a model as a GGUF file, and nothing but that: `model.export_model` does all of it, safely.

    Args:
        source: the model.
        path: the file. When this fails, a part of it may be there.
        stored: what its matrices are stored in; as the source where nothing is said.
        original: the GGUF file that the source's base came from. Its metadata are kept, the tokenizer with them.
        advance: called with how many numbers each tensor has, once it is written.

    Raises:
        TsugikiError: an architecture, a setting or a tokenizer that GGUF has no place for, tensors that are missing or
            not finite, or no room for the file.
        OSError: the file cannot be written.
    """
    stored = stored or source.stored
    row = gguf_architecture_of(source.config)
    plan = _plan(source, row, _KINDS[stored])
    needed, free = sum(entry.bytes for entry in plan), shutil.disk_usage(path.parent).free
    if free < needed:
        raise TsugikiError(f"{path.parent} has {free / 1e6:,.0f} MB left, and the model needs {needed / 1e6:,.0f} MB")
    writer = gguf.GGUFWriter(path, row.name)
    try:
        if original is None:
            _add_metadata(writer, source, row)
        else:
            _keep_metadata(writer, original, source, row)
        writer.add_file_type(_FILE_TYPES[stored])
        if stored == "q8_0":
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        for entry in plan:
            writer.add_tensor_info(entry.name, entry.shape, np.dtype(np.float32), entry.bytes, entry.kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for entry in plan:
            writer.write_tensor_data(entry.read())
            advance(prod(entry.shape))
    finally:
        writer.close()
    return Written(row.name, len(plan), path.stat().st_size, stored)


@dataclass(frozen=True)
class _Entry:
    """A tensor of the file."""

    name: str
    shape: tuple[int, ...]
    kind: Kind
    tensor: Callable[[], Tensor]

    @property
    def bytes(self) -> int:
        block, size = gguf.GGML_QUANT_SIZES[self.kind]
        return prod(self.shape) // block * size

    def read(self) -> "np.ndarray[Any, Any]":
        """Its values as they are stored.

        Raises:
            TsugikiError: one is not finite, or not so any more when it is stored.
        """
        tensor = self.tensor().float().contiguous()
        low, high = torch.aminmax(tensor)
        if not torch.isfinite(high - low):
            raise TsugikiError(f"{self.name} is not finite; nothing was written")
        if self.kind == Kind.F16 and max(-low, high) > torch.finfo(torch.float16).max:
            raise TsugikiError(f"{self.name} is too large for f16; use bf16 or f32")
        values: np.ndarray[Any, Any] = gguf.quants.quantize(tensor.numpy(), self.kind)
        return values


def _plan(source: Source, row: GgufArchitecture, kind: Kind) -> list[_Entry]:
    """Every tensor of the file in the model's own order, none of it read yet."""
    model = meta_model(source.config)
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters(remove_duplicate=False)}
    if source.config.tie_word_embeddings:
        expected.pop("lm_head.weight", None)
    names = llama_cpp_names(row.name, source.config.num_hidden_layers, expected)
    present = _by_model_name(source.weights, model)
    problems = [f"{name} is missing" for name in expected if name not in present]
    entries = []
    for name, shape in expected.items():
        new = names.get(name)
        if new is None:
            raise TsugikiError(f"llama.cpp's {row.name} has no tensor for {name}")
        if name not in present:
            continue
        tensor = source.weights[present[name]]
        if tuple(tensor.shape) != shape:
            problems.append(f"{name} is {list(tensor.shape)}, and the config says {list(shape)}")
        elif not tensor.is_floating_point() or tensor.element_size() < 2:
            problems.append(f"{name} is of {tensor.dtype}, no floating-point numbers that can be exported")
        else:
            changed = tuple(row.change(new, torch.empty(shape, device="meta"), source.config).shape)
            read = _reader(source, row, present[name], new)
            entries.append(_Entry(new, changed, _kind_of(new, changed, kind), read))
    if problems:
        raise TsugikiError(f"{source.name} is not a whole model: {summarise_list(problems)}")
    more = row.more(source.config)
    return entries + [_Entry(name, tuple(t.shape), Kind.F32, lambda t=t: t) for name, t in more.items()]  # type: ignore[misc]


def _reader(source: Source, row: GgufArchitecture, stored_name: str, name: str) -> Callable[[], Tensor]:
    return lambda: row.change(name, source.weights[stored_name].detach(), source.config)


def _kind_of(name: str, shape: tuple[int, ...], kind: Kind) -> Kind:
    if len(shape) == 1 or name == "position_embd.weight":
        return Kind.F32
    if shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
        return Kind.F16  # rows that are no whole number of blocks
    return kind


def _by_model_name(weights: Mapping[str, Tensor], model: "PreTrainedModel") -> Mapping[str, str]:
    """Name in the model -> name in the source.

    Raises:
        TsugikiError: a tensor that the model has no place for.
    """
    found = map_keys(model, weights.keys()).key_of
    taken = set(found.values())
    surplus = [key for key in weights if key not in taken and not _BUFFERS.search(key)]
    if surplus:
        raise TsugikiError(f"the model has no place for {summarise_list(surplus)}; is it of another architecture?")
    return found


def _add_metadata(writer: gguf.GGUFWriter, source: Source, row: GgufArchitecture) -> None:
    writer.add_name(Path(source.name).name)
    for key, value in row.settings(source.config).items():
        _add(writer, f"{row.name}.{key}", value)
    add_vocabulary(writer, read_vocabulary(source.tokenizer, source.config.vocab_size, source.ends))


def _keep_metadata(writer: gguf.GGUFWriter, original: Path, source: Source, row: GgufArchitecture) -> None:
    fields = gguf.GGUFReader(original).fields
    architecture = fields["general.architecture"].contents()
    tokens = len(fields["tokenizer.ggml.tokens"].data)
    if architecture != row.name or tokens != source.config.vocab_size:
        raise TsugikiError(
            f"{original} is not what {source.name} came from: a {architecture} of {tokens:,} tokens, and this is a "
            f"{row.name} of {source.config.vocab_size:,}"
        )
    own = set(_WRITTEN_HERE)
    if source.tokenizer.chat_template is None:  # a text then begins as it does here, which few files say
        own |= {"tokenizer.ggml.bos_token_id", "tokenizer.ggml.add_bos_token"}
        writer.add_bos_token_id(document_start(source.tokenizer))
        writer.add_add_bos_token(adds_start(source.tokenizer))
    for key, field in fields.items():
        if key not in own and not key.startswith("GGUF."):  # the reader's own fields
            kind = field.types[0]
            inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), kind, inner)


def _add(writer: gguf.GGUFWriter, key: str, value: bool | int | float | str) -> None:
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[
        type(value)
    ]
    add(key, value)  # type: ignore[operator]
