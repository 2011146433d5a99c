"""Export a model, with or without an adapter merged into it, as one GGUF file, which llama.cpp and Ollama load.

The files appear only after the GGUF file was read back and found to give the same tokens as the model's tokenizer.
Tensors are read, converted and written one at a time, so the memory needed is a few times that of the largest tensor.
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from tsugiki.adapters.pretrained import load_adapter
from tsugiki.adapters.saved_tokenizer import with_chat_template
from tsugiki.annotations import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from tsugiki.base.gguf.file import llama_cpp_names
from tsugiki.base.loading import load_model, load_tokenizer
from tsugiki.base.model_folder import LazyTensors, map_keys
from tsugiki.base.resolve import load_config, model_folder
from tsugiki.data.encoding import document_start
from tsugiki.dtypes import GgufDtype
from tsugiki.errors import TsugikiError, summarise_list
from tsugiki.export.gguf_architectures import GgufArchitecture, gguf_architecture_of
from tsugiki.export.gguf_tokenizer_check import TokenComparison, compare_tokens
from tsugiki.export.gguf_vocabulary import add_vocabulary, adds_start, read_vocabulary
from tsugiki.export.ollama import modelfile, new_gguf_file
from tsugiki.io.cache import check_room
from tsugiki.language import _
from tsugiki.lora.graft import ungraft
from tsugiki.lora.merge import merge
from tsugiki.model.meta import meta_model

_TYPES: Mapping[GgufDtype, tuple[GGMLQuantizationType, gguf.LlamaFileType]] = {
    "f32": (GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
"""The tensor type and the file type for each dtype."""
_GGUF_DTYPES: Mapping[torch.dtype, GgufDtype] = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
# Buffers that old versions of transformers saved with the weights.
_BUFFERS = re.compile(r"\.attn\.(masked_)?bias$|\.rotary_emb\.inv_freq$")


@dataclass(frozen=True, eq=False)
class ModelSource:
    """A transformers model to export."""

    name: str
    config: PretrainedConfig
    weights: Mapping[str, Tensor]
    """Key -> tensor: `LazyTensors` of a folder, or a `state_dict`."""
    dtype: GgufDtype
    """The dtype of the model's files, or of its base's files if an adapter was merged."""
    tokenizer: PreTrainedTokenizerBase
    ends: tuple[int, ...] = ()
    """Ids of tokens that end a text or a turn, in addition to the tokenizer's EOS token."""


@dataclass(frozen=True)
class WrittenModel:
    """Facts about a GGUF file that was written."""

    architecture: str
    tensors: int
    bytes: int
    dtype: GgufDtype


def stored_model(name: str) -> ModelSource:
    """Open a model for export; its tensors are read from its files when they are written."""
    folder = model_folder(name)
    config = load_config(name)
    gguf_architecture_of(config)  # raises an error for an unsupported model before its weights are opened
    weights = LazyTensors(folder)
    return ModelSource(name, config, weights, _matrix_dtype(weights, name), load_tokenizer(name), _end_tokens(folder))


def merged_model(name: str, adapter: Path, *, allow_base_mismatch: bool = False) -> ModelSource:
    """Load a model for export and merge the adapter in a folder into it, in memory and in float32."""
    source = stored_model(name)
    model = load_model(name)
    load_adapter(model, adapter, allow_base_mismatch=allow_base_mismatch)
    ungraft(merge(model))
    tokenizer = with_chat_template(source.tokenizer, adapter)
    return ModelSource(name, model.config, model.state_dict(), source.dtype, tokenizer, source.ends)


def export_model(
    source: ModelSource,
    out: Path,
    dtype: GgufDtype | None = None,
    *,
    original: Path | None = None,
    allow_tokenizer_mismatch: bool = False,
    advance: Callable[[int], None] = lambda done: None,
) -> tuple[WrittenModel, TokenComparison]:
    """Write a model as a GGUF file, compare the file's tokenizer with the model's, and write a Modelfile.

    The file's name must end in `.gguf`; neither it nor the Modelfile may exist. The other arguments are those of
    `write_model_gguf`. After an error, or if llama.cpp's tokens differ, there is no file.
    """
    text = modelfile(f"./{out.name}", stop=_stop_texts(source), context=source.config.max_position_embeddings)
    with new_gguf_file(out, text) as temporary:
        written = write_model_gguf(source, temporary, dtype, original=original, advance=advance)
        tokens = compare_tokens(source.tokenizer, temporary)
        if tokens.problems and not allow_tokenizer_mismatch:
            more = _(" (and {count} more)").format(count=len(tokens.problems) - 1) if len(tokens.problems) > 1 else ""
            message = _(
                "the GGUF file would not tokenise text as the model does: {problem}{more}; "
                "{flag:allow_tokenizer_mismatch} writes it anyway"
            )
            raise TsugikiError(message.format(problem=tokens.problems[0], more=more))
    return written, tokens


def write_model_gguf(
    source: ModelSource,
    path: Path,
    dtype: GgufDtype | None = None,
    *,
    original: Path | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> WrittenModel:
    """Write a model to a GGUF file. Use `export_model` to also verify the file and write it atomically.

    If this function fails, an incomplete file may remain. Without `dtype`, the matrices have that of the source;
    vectors and position embeddings are float32, which llama.cpp requires. The metadata of `original`, the GGUF file
    that the source's base was converted from, are copied, tokenizer included. `advance` is called after each tensor
    with its number of elements.
    """
    dtype = dtype or source.dtype
    tensor_type, file_type = _TYPES[dtype]
    architecture = gguf_architecture_of(source.config)
    plan = _plan(source, architecture, tensor_type)
    check_room(path.parent, sum(tensor.bytes for tensor in plan))
    writer = gguf.GGUFWriter(path, architecture.name)
    try:
        if original is None:
            _add_metadata(writer, source, architecture)
        else:
            _copy_metadata(writer, original, source, architecture)
        writer.add_file_type(file_type)
        if dtype == "q8_0":
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        for tensor in plan:
            writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.bytes, tensor.type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in plan:
            writer.write_tensor_data(tensor.read())
            advance(prod(tensor.shape))
    finally:
        writer.close()
    return WrittenModel(architecture.name, len(plan), path.stat().st_size, dtype)


@dataclass(frozen=True)
class _PlannedTensor:
    """A tensor to be written."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    load: Callable[[], Tensor]
    """Returns the values in llama.cpp's order, before they are cast to `type`."""

    @property
    def bytes(self) -> int:
        block, size = gguf.GGML_QUANT_SIZES[self.type]
        return prod(self.shape) // block * size

    def read(self) -> "np.ndarray[Any, Any]":
        """Load the tensor and cast or quantise it to its type."""
        tensor = self.load().float().contiguous()
        low, high = torch.aminmax(tensor)
        if not torch.isfinite(high - low):
            raise TsugikiError(_("{name} is not finite; nothing was written").format(name=self.name))
        if self.type == GGMLQuantizationType.F16 and max(-low, high) > torch.finfo(torch.float16).max:
            raise TsugikiError(_("{name} is too large for f16; use bf16 or f32").format(name=self.name))
        values: np.ndarray[Any, Any] = gguf.quants.quantize(tensor.numpy(), self.type)
        return values


def _plan(
    source: ModelSource, architecture: GgufArchitecture, matrix_type: GGMLQuantizationType
) -> list[_PlannedTensor]:
    """Describe every tensor of the file, in the order of the model's parameters, without reading any."""
    config = source.config
    model = meta_model(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters(remove_duplicate=False)}
    if config.tie_word_embeddings:
        shapes.pop("lm_head.weight", None)
    names = llama_cpp_names(architecture.name, config.num_hidden_layers, shapes)
    key_of = _map_all_keys(source.weights, model)
    problems = [_("{name} is missing").format(name=name) for name in shapes if name not in key_of]
    plan = []
    for name, shape in shapes.items():
        gguf_name = names.get(name)
        if gguf_name is None:
            message = _("llama.cpp's {architecture} has no tensor for {name}")
            raise TsugikiError(message.format(architecture=architecture.name, name=name))
        if name not in key_of:
            continue
        tensor = source.weights[key_of[name]]
        if tuple(tensor.shape) != shape:
            message = _("{name} is {shape}, and the config says {expected}")
            problems.append(message.format(name=name, shape=list(tensor.shape), expected=list(shape)))
        elif not tensor.is_floating_point() or tensor.element_size() < 2:
            message = _("{name} is of {dtype}, and only tensors of 16 bits or more can be exported")
            problems.append(message.format(name=name, dtype=tensor.dtype))
        else:
            converted = tuple(architecture.convert(gguf_name, torch.empty(shape, device="meta"), config).shape)
            load = partial(_converted, source, architecture, key_of[name], gguf_name)
            plan.append(_PlannedTensor(gguf_name, converted, _tensor_type(gguf_name, converted, matrix_type), load))
    if problems:
        message = _("{name} is not a complete model: {problems}")
        raise TsugikiError(message.format(name=source.name, problems=summarise_list(problems)))
    for name, computed in architecture.computed(config).items():
        plan.append(
            _PlannedTensor(name, tuple(computed.shape), GGMLQuantizationType.F32, partial(Tensor.detach, computed))
        )
    return plan


def _converted(source: ModelSource, architecture: GgufArchitecture, key: str, gguf_name: str) -> Tensor:
    return architecture.convert(gguf_name, source.weights[key].detach(), source.config)


def _tensor_type(name: str, shape: tuple[int, ...], matrix_type: GGMLQuantizationType) -> GGMLQuantizationType:
    if len(shape) == 1 or name == "position_embd.weight":
        return GGMLQuantizationType.F32
    if shape[-1] % gguf.GGML_QUANT_SIZES[matrix_type][0]:  # the rows cannot be split into blocks
        return GGMLQuantizationType.F16
    return matrix_type


def _map_all_keys(weights: Mapping[str, Tensor], model: PreTrainedModel) -> Mapping[str, str]:
    """Map the names of the model's parameters to the keys of the source."""
    key_of = map_keys(model, weights.keys()).key_of
    used = set(key_of.values())
    surplus = [key for key in weights if key not in used and not _BUFFERS.search(key)]
    if surplus:
        message = _("the model has no parameter for {surplus}; is its architecture another one?")
        raise TsugikiError(message.format(surplus=summarise_list(surplus)))
    return key_of


def _add_metadata(writer: gguf.GGUFWriter, source: ModelSource, architecture: GgufArchitecture) -> None:
    writer.add_name(Path(source.name).name)
    for key, value in architecture.hyperparameters(source.config).items():
        _add_value(writer, f"{architecture.name}.{key}", value)
    add_vocabulary(writer, read_vocabulary(source.tokenizer, source.config.vocab_size, source.ends))


def _copy_metadata(
    writer: gguf.GGUFWriter, original: Path, source: ModelSource, architecture: GgufArchitecture
) -> None:
    """Copy the metadata of the GGUF file that the model's base was converted from."""
    fields = gguf.GGUFReader(original).fields
    original_architecture = fields["general.architecture"].contents()
    tokens = len(fields["tokenizer.ggml.tokens"].data)
    if original_architecture != architecture.name or tokens != source.config.vocab_size:
        raise TsugikiError(
            _(
                "{name} was not converted from {original}: that is a {first} of {tokens:,} tokens, and this is a "
                "{second} of {size:,}"
            ).format(
                name=source.name,
                original=original,
                first=original_architecture,
                tokens=tokens,
                second=architecture.name,
                size=source.config.vocab_size,
            )
        )
    replaced = {"general.architecture", "general.file_type", "general.quantization_version"}
    if source.tokenizer.chat_template is None:  # plain text must begin as in training, which few files describe
        replaced |= {"tokenizer.ggml.bos_token_id", "tokenizer.ggml.add_bos_token"}
        writer.add_bos_token_id(document_start(source.tokenizer))
        writer.add_add_bos_token(adds_start(source.tokenizer))
    template = source.tokenizer.chat_template
    own = fields.get("tokenizer.chat_template")
    if isinstance(template, str) and (own is None or own.contents() != template):  # the template of an adapter
        replaced.add("tokenizer.chat_template")
        writer.add_chat_template(template)
    for key, field in fields.items():
        if key not in replaced and not key.startswith("GGUF."):  # the reader adds fields of this name
            value_type = field.types[0]
            element_type = field.types[-1] if value_type == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), value_type, element_type)


def _add_value(writer: gguf.GGUFWriter, key: str, value: bool | int | float | str) -> None:
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[
        type(value)
    ]
    add(key, value)  # type: ignore[operator]


def _stop_texts(source: ModelSource) -> list[str]:
    """Return the texts that end an answer; none for a model without a chat template."""
    if source.tokenizer.chat_template is None:
        return []
    ends = dict.fromkeys([source.tokenizer.eos_token_id, *source.ends])
    return [source.tokenizer.decode([token]) for token in ends]


def _matrix_dtype(weights: Mapping[str, Tensor], name: str) -> GgufDtype:
    """Return the dtype of the first matrix."""
    first = next((tensor for tensor in weights.values() if tensor.dim() > 1), None)
    if first is None:
        raise TsugikiError(_("{name} has no matrix and cannot be exported").format(name=name))
    if first.dtype not in _GGUF_DTYPES:
        message = _("{name} has weights of {dtype}; only float32, float16 and bfloat16 can be exported")
        raise TsugikiError(message.format(name=name, dtype=first.dtype))
    return _GGUF_DTYPES[first.dtype]


def _end_tokens(folder: Path) -> tuple[int, ...]:
    """Return the ids of the EOS tokens in a model's generation config; there may be several."""
    from transformers import GenerationConfig

    try:
        ends = GenerationConfig.from_pretrained(folder, local_files_only=True).eos_token_id
    except (OSError, ValueError):
        return ()
    return tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,)
