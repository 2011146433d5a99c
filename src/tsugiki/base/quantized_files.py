"""Models whose files hold quantised weights: the formats that can be read, and bitsandbytes' 4 bits (NF4).

transformers undoes FP8 and MXFP4 while it loads a model. A linear layer that it has saved in NF4 keeps its codes:

    NAME.weight                                     the codes, two in a byte, uint8 [out · in / 2, 1]
    NAME.weight.absmax                              the largest absolute value of each block of 64, or its 8-bit code
    NAME.weight.quant_map                           the 16 numbers of NF4
    NAME.weight.nested_absmax, .nested_quant_map    with double quantisation: what the 8-bit codes stand for
    NAME.weight.quant_state.bitsandbytes__nf4       shape, sizes of blocks and the mean that was subtracted, as JSON
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tsugiki.errors import TsugikiError, error_text
from tsugiki.io.shards import Shard, read_bytes, read_tensor
from tsugiki.language import _
from tsugiki.lowbit.nf4 import BLOCK, NF4, Nf4Linear

DEQUANTIZED = ("fp8", "mxfp4")
"""Quantisations that transformers undoes while it loads a model, without another library."""
_STATE = ".quant_state.bitsandbytes__nf4"
_PARTS = (_STATE, ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")


@dataclass(frozen=True, eq=False)
class StoredNf4:
    """The tensors of one layer in the files."""

    key: str
    """The key of its weight."""
    shard_of: Mapping[str, Shard]

    def tensors(self) -> set[str]:
        """Return the keys of all its tensors."""
        return {key for key in (self.key, *(self.key + part for part in _PARTS)) if key in self.shard_of}

    def read(self, shape: tuple[int, ...], dtype: torch.dtype) -> Nf4Linear:
        """Return the layer with a weight [out, in] and no bias; `dtype` is that of the activations."""
        try:
            state = json.loads(self._bytes(_STATE).numpy().tobytes())
            fits = tuple(state["shape"]) == shape and state["blocksize"] == BLOCK and shape[1] % BLOCK == 0
            fits = fits and torch.allclose(self._floats(".quant_map"), torch.tensor(NF4), atol=1e-6)
            packed = self._bytes("").view(shape[0], shape[1] // 2) if fits else torch.empty(0)
            largest = self._largest(state).view(shape[0], shape[1] // BLOCK) if fits else torch.empty(0)
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise TsugikiError(_("{key} is not stored as bitsandbytes stores 4 bits").format(key=self.key)) from error
        if not fits:
            message = _(
                "{key} is stored by bitsandbytes in another way than as NF4 in blocks of {block} numbers of a row, "
                "which is not supported; load the unquantised model"
            )
            raise TsugikiError(message.format(key=self.key, block=BLOCK))
        return Nf4Linear.from_codes(packed, largest, dtype)

    def _largest(self, state: Mapping[str, Any]) -> Tensor:
        """Return the largest absolute values of all blocks, float32 [blocks]."""
        if "nested_offset" not in state:
            return self._floats(".absmax")
        codes, size = self._bytes(".absmax"), int(state["nested_blocksize"])
        scales = self._floats(".nested_absmax").repeat_interleave(size)[: len(codes)]
        return self._floats(".nested_quant_map")[codes.long()] * scales + float(state["nested_offset"])

    def _bytes(self, part: str) -> Tensor:
        return read_bytes(self.shard_of[self.key + part], self.key + part)

    def _floats(self, part: str) -> Tensor:
        return read_tensor(self.shard_of[self.key + part], self.key + part).float()


def stored_layers(shard_of: Mapping[str, Shard]) -> dict[str, StoredNf4]:
    """Return the layers in 4 bits, by the key of their weight, of the tensors with these keys."""
    weights = [key.removesuffix(_STATE) for key in shard_of if key.endswith(_STATE)]
    return {key: StoredNf4(key, shard_of) for key in weights if key in shard_of}


def is_stored_in_4_bits(config: object) -> bool:
    """Return whether a model's config says that its files hold layers in bitsandbytes' NF4."""
    settings = quantization_settings(config)
    return (
        settings.get("quant_method") == "bitsandbytes"
        and bool(settings.get("load_in_4bit"))
        and settings.get("bnb_4bit_quant_type") == "nf4"
    )


def quantization_settings(config: object) -> dict[str, Any]:
    """Return the settings by which the weights in a model's files are quantised; empty if they are not."""
    found = getattr(config, "quantization_config", None) or {}
    settings: dict[str, Any] = found if isinstance(found, dict) else found.to_dict()
    return settings


def check_format(name: str, config: object) -> None:
    """Check that the weights of a model are not quantised, or that their quantisation can be kept or undone."""
    method = error_text(quantization_settings(config).get("quant_method", ""), 40)
    if method and method not in DEQUANTIZED and not is_stored_in_4_bits(config):
        message = _(
            "{name} is quantised ({method}), and this format cannot be read; load the model that it was made from, "
            "in int8 or nf4 if memory is short"
        )
        raise TsugikiError(message.format(name=name, method=method))
