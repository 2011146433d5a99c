"""The LoRA factors in a GGUF file, under the names and in the order of transformers: the inverse of the export."""

from pathlib import Path
from typing import Any

import gguf
import torch
from torch import Tensor

from tsugiki.base import read_header
from tsugiki.export.llama_cpp_layers import gguf_names, in_llama_cpp_order


def read_factors(file: Path, model: Any) -> dict[str, tuple[Tensor, Tensor, float]]:
    """A, B and the factor on B A of each layer of `model`; every tensor of the file is used."""
    tensors = gguf.GGUFReader(file).tensors
    found = {one.name: torch.tensor(gguf.dequantize(one.data, one.tensor_type)) for one in tensors}
    alpha = read_header(file).metadata["adapter.lora.alpha"]
    factors = {}
    for path, name in gguf_names(model).items():
        if f"{name}.weight.lora_a" in found:
            A, B = (found.pop(f"{name}.weight.lora_{letter}") for letter in "ab")
            A = A.T if name == "token_embd" else A
            rows, columns = in_llama_cpp_order(model, path, torch.arange(len(B)), torch.arange(A.shape[1])[None])
            factors[path] = A[:, columns[0].argsort()], B[rows.argsort()], alpha / len(A)
    assert not found
    return factors
