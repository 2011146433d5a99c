"""Weights that a model's files hold in few bits: those that can be written again, and what is said of the others."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tsugiki.base.fp8 import Block, decode, encode
from tsugiki.errors import TsugikiError
from tsugiki.io.shards import Shard, is_float, read_tensor

_SCALE = "_scale_inv"  # after the key of a weight


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A weight in 8 bits, and its scales, which may lie in another file."""

    key: str
    shard: Shard
    scale_shard: Shard
    block: Block

    @property
    def scale_key(self) -> str:
        """Of the scales."""
        return self.key + _SCALE

    def read(self) -> Tensor:
        """The weight in float32."""
        return decode(read_tensor(self.shard, self.key), self._scale(), self.block)

    def encode(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and scales of another weight, in the types of the files."""
        return encode(weight, self.block, self._scale().dtype)

    def decode(self, codes: Tensor, scale: Tensor) -> Tensor:
        """The weight that these mean."""
        return decode(codes, scale, self.block)

    def _scale(self) -> Tensor:
        return read_tensor(self.scale_shard, self.scale_key)


def quantized_weight(key: str, home: Mapping[str, Shard], config: Any) -> QuantizedWeight:
    """The weight `key`, which is not held in floating point of 16 bits or more.

    Args:
        key: in the files.
        home: key -> its file.
        config: the model's.

    Raises:
        TsugikiError: it is in a format that is not known here.
    """
    said = _quantisation(config)
    block, scale = said.get("weight_block_size"), home.get(key + _SCALE)
    if (
        said.get("quant_method") == "fp8"
        and home[key].entries[key].dtype == "F8_E4M3"
        and isinstance(block, list | tuple)
        and len(block) == 2
        and scale is not None
        and is_float(scale.entries[key + _SCALE])
    ):
        return QuantizedWeight(key, home[key], scale, (int(block[0]), int(block[1])))
    raise cannot_be_merged_into(key, config)


def cannot_be_merged_into(what: str, config: Any) -> TsugikiError:
    """Of a weight in a format that is not known here."""
    form = _quantisation(config).get("quant_method", "integers")
    return TsugikiError(
        f"{what} is held in few bits ({form}), which cannot be merged into here; merge into the model that it was made "
        "from, or keep the adapter beside this one"
    )


def _quantisation(config: Any) -> dict[str, Any]:
    said = getattr(config, "quantization_config", None) or {}
    return said if isinstance(said, dict) else said.to_dict()
