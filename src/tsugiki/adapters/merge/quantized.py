"""Quantised weights in a model's files: read and write those in a supported format, and the error for all others."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tsugiki.base.fp8 import Block, decode, encode
from tsugiki.errors import TsugikiError
from tsugiki.io.shards import Shard, is_float, read_tensor
from tsugiki.language import _

_SCALE_SUFFIX = "_scale_inv"  # the key of a weight's scales is the weight's key with this suffix


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A weight in 8-bit floating point, and its scales, which may be in another file."""

    key: str
    shard: Shard
    scale_shard: Shard
    block: Block

    @property
    def scale_key(self) -> str:
        """The key of the scales."""
        return self.key + _SCALE_SUFFIX

    def read(self) -> Tensor:
        """Read and dequantise the weight: float32 [out, in]."""
        return decode(read_tensor(self.shard, self.key), self._read_scale(), self.block)

    def encode(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Quantise another weight of this shape; returns quantised values and scales in the dtypes of the files."""
        return encode(weight, self.block, self._read_scale().dtype)

    def decode(self, qweight: Tensor, scale: Tensor) -> Tensor:
        """Dequantise what `encode` returned."""
        return decode(qweight, scale, self.block)

    def _read_scale(self) -> Tensor:
        return read_tensor(self.scale_shard, self.scale_key)


def quantized_weight(key: str, shard_of: Mapping[str, Shard], config: Any) -> QuantizedWeight:
    """Return the weight with this key, whose dtype must not be a floating-point type of 16 bits or more.

    Args:
        key: the weight's key in the files.
        shard_of: key of a tensor -> its file.
        config: the model's config.

    Raises:
        TsugikiError: its format is not supported.
    """
    settings = _quantization_config(config)
    block, scale = settings.get("weight_block_size"), shard_of.get(key + _SCALE_SUFFIX)
    if (
        settings.get("quant_method") == "fp8"
        and shard_of[key].entries[key].dtype == "F8_E4M3"
        and isinstance(block, list | tuple)
        and len(block) == 2
        and scale is not None
        and is_float(scale.entries[key + _SCALE_SUFFIX])
    ):
        return QuantizedWeight(key, shard_of[key], scale, (int(block[0]), int(block[1])))
    raise unsupported_format(key, config)


def unsupported_format(name: str, config: Any) -> TsugikiError:
    """Return the error for merging into a weight whose quantisation format is not supported.

    Args:
        name: the weight's name.
        config: the model's config.
    """
    method = _quantization_config(config).get("quant_method", "integers")
    return TsugikiError(
        _(
            "{name} is quantised ({method}), and merging into this format is not supported; merge into the "
            "unquantised model, or load the adapter without merging it"
        ).format(name=name, method=method)
    )


def _quantization_config(config: Any) -> dict[str, Any]:
    found = getattr(config, "quantization_config", None) or {}
    return found if isinstance(found, dict) else found.to_dict()
