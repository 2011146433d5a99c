"""Load a GGUF file whose linear layers stay in their quantisation, tensor by tensor.

No converted weights are written: only config and tokenizer are converted (see `conversion_cache`). A tensor that is not
the weight of a linear layer, or whose type cannot be multiplied (see `layer.BLOCKS`), is unpacked by the gguf package
and cast to the dtype of the activations, one at a time.
"""

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tsugiki.annotations import PreTrainedModel
from tsugiki.base.gguf.conversion import VERIFIED, read_model_header, refuse_missing
from tsugiki.base.gguf.file import GgufTensor, llama_cpp_names
from tsugiki.base.gguf.layer import BLOCKS, GgufLinear
from tsugiki.errors import TsugikiError, warn_caller
from tsugiki.io.progress import ProgressDisplay
from tsugiki.language import _
from tsugiki.lowbit.quantization import count_parameters, is_quantizable, note_parameters
from tsugiki.model.meta import model_without_weights


def load_stored(path: Path, config: Any, dtype: torch.dtype) -> PreTrainedModel:
    """Load a model from a GGUF file, in evaluation mode.

    The activations, and everything that is unpacked, have the dtype `dtype`.
    """
    header = read_model_header(path)
    if header.architecture not in VERIFIED:
        message = _(
            "{path}: the quantisation of {architecture} cannot be kept; leave base_dtype out, and it is unpacked"
        )
        raise TsugikiError(message.format(path=path, architecture=header.architecture))
    model = model_without_weights(config)
    count = count_parameters(model)
    names = llama_cpp_names(header.architecture, header.setting("block_count"), model.state_dict())
    name_of = {theirs: name for name, theirs in names.items()}
    tied = getattr(model, "all_tied_weights_keys", {})
    unpacked = []
    with ProgressDisplay().stage(_("loading the model"), len(header.tensors)) as advance:
        for tensor in header.tensors:
            name = name_of.get(tensor.name, "")
            name = tied.get(name, name)
            owner, _dot, attribute = name.rpartition(".")
            if name:
                layer = model.get_submodule(owner)
                values = _read(path, tensor)
                rows = _process(header.architecture, config, tensor, np.arange(tensor.shape[0])[:, None]).ravel()
                is_matrix = attribute == "weight" and is_quantizable(layer)
                if is_matrix and tensor.type.name in BLOCKS:
                    blocks = torch.from_numpy(values.reshape(tensor.shape[0], -1)[rows])
                    kept = GgufLinear(blocks, tensor.type.name, layer.bias, dtype)
                    model.set_submodule(owner, kept)
                else:
                    unpacked += [tensor.type.name] if is_matrix else []
                    weight = _process(header.architecture, config, tensor, _floats(values, tensor))
                    layer._parameters[attribute] = _frozen(torch.from_numpy(np.ascontiguousarray(weight)).to(dtype))
            advance(1)
    model.tie_weights()
    refuse_missing(path, [name for name, parameter in model.named_parameters() if parameter.is_meta])
    others = sorted({kind for kind in unpacked if kind not in ("F32", "F16", "BF16")})
    if others:
        message = _("{path}: {count} layers of the types {types} are unpacked to {bits} bits")
        warn_caller(
            message.format(path=path.name, count=len(unpacked), types=", ".join(others), bits=8 * dtype.itemsize)
        )
    for module in model.modules():
        bias = getattr(module, "bias", None)
        if isinstance(module, GgufLinear) and isinstance(bias, nn.Parameter):
            module.bias = _frozen(bias.detach().to(dtype))
    model.requires_grad_(False)
    config.dtype = dtype
    note_parameters(model, count)
    return model.eval()


def _frozen(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)


def _read(path: Path, tensor: GgufTensor) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """Read the bytes of one tensor."""
    with path.open("rb") as file:
        file.seek(tensor.begin)
        values = np.fromfile(file, np.uint8, tensor.end - tensor.begin)
    if len(values) < tensor.end - tensor.begin:
        raise TsugikiError(_("{path} ends too early; it was changed while it was read").format(path=path))
    return values


def _floats(values: "np.ndarray[Any, Any]", tensor: GgufTensor) -> "np.ndarray[Any, Any]":
    """Return the dequantised values of a tensor, float32 in its shape."""
    from gguf import dequantize

    rows = values.reshape(prod(tensor.shape[:-1]), -1)
    return dequantize(rows, tensor.type).reshape(tensor.shape)


def _process(
    architecture: str, config: Any, tensor: GgufTensor, values: "np.ndarray[Any, Any]"
) -> "np.ndarray[Any, Any]":
    """Undo the changes that llama.cpp's converter made to a tensor, by transformers' rules.

    For a matrix these only permute its rows or transpose it, so they can be undone for an array of row numbers as well.
    """
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=config.to_dict())
    result: np.ndarray[Any, Any] = processor.process(
        weights=values, name=tensor.name, parsed_parameters={"tensors": {}}, tensor_key_mapping={}
    ).weights
    return result
