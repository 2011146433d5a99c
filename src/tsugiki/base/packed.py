"""Unpack the quantised weights of a checkpoint (`quantization_config` in config.json) one at a time.

    GPTQ    X.qweight int32 [in · bits / 32, out], the lowest bits first; X.scales [groups, out]; X.qzeros int32
            [groups, out · bits / 32], less 1 unless the format is gptq_v2; X.g_idx [in], the group of each input, which
            is not in order if desc_act was set     W[o, i] = scales[g, o] · (q[i, o] - zero[g, o]),  g = g_idx[i]
    AWQ     the same with q packed along the outputs, int32 [in, out / 8], in the order 0 2 4 6 1 3 5 7, zeros as they
            are, and groups in order
    FP8     X.weight float8_e4m3fn [out, in]; X.weight_scale_inv: the factor of each block of 128 x 128 (see `fp8`)
    MXFP4   X_blocks uint8 [experts, out, in / 32, 16], two numbers of E2M1 in a byte, the lower half first; X_scales
            uint8 [experts, out, in / 32], the exponent of two plus 127      the model's X is [experts, in, out]

The layer is then kept in the `base_dtype` of the run, like a layer of an unquantised checkpoint. These formats are only
read, not written.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tsugiki.base import fp8
from tsugiki.errors import TsugikiError
from tsugiki.io.shards import Shard, read_bytes
from tsugiki.language import _

_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""The position of the 4 bits of outputs 0 to 7 in a 32-bit word, counted from the lowest bits."""
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The values of the 4-bit codes without the sign, which is the highest bit."""
_DTYPES = {
    **{"I32": torch.int32, "I64": torch.int64, "U8": torch.uint8, "F8_E4M3": torch.float8_e4m3fn},
    **{"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8_E8M0": torch.float8_e8m0fnu},
}


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A quantised weight of a model, and the tensors of its files that hold it."""

    key: str
    """The key that the weight would have in an unquantised checkpoint."""
    parts: tuple[str, ...]
    """The keys of its tensors in the files."""
    shard_of: Mapping[str, Shard]
    """Key of a tensor -> its file."""
    unpack: Callable[..., Tensor]
    """Returns the weight for the tensors of `parts`."""

    def read(self, dtype: torch.dtype) -> Tensor:
        """Return the weight, [out, in] or as the model has it.

        Args:
            dtype: the dtype of a weight in MXFP4, which 16 bits hold exactly; other weights are float32.

        Raises:
            TsugikiError: a file is damaged, or the shapes do not fit each other.
        """
        try:
            weight = self.unpack(*(_read(self.shard_of[part], part) for part in self.parts))
        except (RuntimeError, ValueError, IndexError, KeyError) as error:
            raise TsugikiError(_("{key} is not stored as its format requires").format(key=self.key)) from error
        return weight.to(dtype) if weight.dtype != torch.float32 else weight


def packed_weights(config: Any, shard_of: Mapping[str, Shard]) -> list[PackedWeight]:
    """Return the weights that are stored in GPTQ, AWQ, FP8 or MXFP4; none for other checkpoints.

    Args:
        config: the model's config.
        shard_of: key of a tensor -> its file.

    Raises:
        TsugikiError: the weights are stored in a variant of these formats that cannot be read.
    """
    found = getattr(config, "quantization_config", None) or {}
    settings = found if isinstance(found, dict) else found.to_dict()
    method = str(settings.get("quant_method", "")).rpartition(".")[2].lower()
    reader = {"gptq": _gptq_weights, "awq": _awq_weights, "fp8": _fp8_weights, "mxfp4": _mxfp4_weights}.get(method)
    return [] if reader is None else reader(settings, shard_of)


def unpack_gptq(
    qweight: Tensor, qzeros: Tensor, scales: Tensor, g_idx: Tensor | None, bits: int, added_to_zeros: int
) -> Tensor:
    """Return the weight of a layer in GPTQ, float32 [out, in].

    Args:
        qweight: int32 [in · bits / 32, out].
        qzeros: int32 [groups, out · bits / 32].
        scales: of any float dtype, [groups, out].
        g_idx: the group of each input, [in]; None: groups of the same size, in order.
        bits: 2, 4 or 8.
        added_to_zeros: 1 if the zeros are stored less 1.
    """
    q = _fields(qweight.T, bits)
    zeros = (_fields(qzeros, bits) + added_to_zeros) & ((1 << bits) - 1)
    return _affine(q, zeros, scales, g_idx)


def unpack_awq(qweight: Tensor, qzeros: Tensor, scales: Tensor) -> Tensor:
    """Return the weight of a layer in AWQ's GEMM format with 4 bits, float32 [out, in].

    Args:
        qweight: int32 [in, out / 8].
        qzeros: int32 [groups, out / 8].
        scales: of any float dtype, [groups, out].
    """
    places = torch.tensor(_AWQ_PLACES)
    q, zeros = (_fields(t, 4).view(len(t), -1, 8)[..., places].flatten(1) for t in (qweight, qzeros))
    return _affine(q.T, zeros, scales, None)


def unpack_fp8(weight: Tensor, scale: Tensor, block: fp8.Block | None) -> Tensor:
    """Return a weight of 8-bit floats, float32 [out, in].

    Args:
        weight: float8_e4m3fn [out, in].
        scale: the scale of each block, or one scale.
        block: rows and columns of a block; None: the whole weight has one scale.

    Raises:
        ValueError: the scales do not fit the blocks.
    """
    if block is None or scale.numel() == 1:
        return weight.float() * scale.float().reshape(())
    if scale.shape != tuple(-(-size // step) for size, step in zip(weight.shape, block, strict=True)):
        raise ValueError(_("the scales do not fit the blocks"))
    return fp8.decode(weight, scale, block)


def unpack_mxfp4(blocks: Tensor, scales: Tensor) -> Tensor:
    """Return MXFP4 weights of experts as bfloat16 [experts, in, out]. The conversion is exact.

    Args:
        blocks: uint8 [experts, out, groups, 16].
        scales: uint8 [experts, out, groups].
    """
    values = torch.tensor([*_E2M1, *(-value for value in _E2M1)], dtype=torch.bfloat16)
    pairs = torch.stack([values.repeat(16), values.repeat_interleave(16)], 1)  # of each byte: lower half, upper half
    experts, out, groups, size = blocks.shape
    result = torch.empty(experts, groups * size * 2, out, dtype=torch.bfloat16)
    for weight, codes, exponents in zip(result, blocks, scales, strict=True):
        factors = torch.exp2(exponents.float() - 127).to(torch.bfloat16)
        numbers = pairs.index_select(0, codes.reshape(-1).int()).view(out, groups, -1) * factors[..., None]
        weight.copy_(numbers.view(out, -1).T)
    return result


def _fields(words: Tensor, bits: int) -> Tensor:
    """Split words [rows, n] into groups of `bits` bits, the lowest first: int32 [rows, n · 32 / bits]."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    return ((words[..., None] >> shifts) & ((1 << bits) - 1)).flatten(1)


def _affine(q: Tensor, zeros: Tensor, scales: Tensor, g_idx: Tensor | None) -> Tensor:
    """Return scales · (q - zeros), float32 [out, in], for q [out, in], and zeros and scales [groups, out]."""
    groups, width = len(scales), q.shape[1]
    if scales.shape != zeros.shape or len(q) != scales.shape[1] or (g_idx is None and width % groups):
        raise ValueError(_("the scales do not fit the codes"))
    of_input = torch.arange(width) // (width // groups) if g_idx is None else g_idx.long() % groups
    if len(of_input) != width:
        raise ValueError(_("g_idx does not fit the codes"))
    factors = scales.float().T
    weight = q.float()
    weight.sub_(zeros.float().T[:, of_input])
    return weight.mul_(factors[:, of_input])


def _gptq_weights(settings: Mapping[str, Any], shard_of: Mapping[str, Shard]) -> list[PackedWeight]:
    bits = settings.get("bits")
    named = settings.get("checkpoint_format") or settings.get("format") or "gptq"
    if bits not in (2, 4, 8) or named not in ("gptq", "gptq_v2"):
        raise _refused("GPTQ", _("{bits} bits, format {named}").format(bits=bits, named=named))
    added = int(named == "gptq")

    def unpack(qweight: Tensor, qzeros: Tensor, scales: Tensor, g_idx: Tensor | None = None) -> Tensor:
        return unpack_gptq(qweight, qzeros, scales, g_idx, bits, added)

    return _layers(shard_of, ("qweight", "qzeros", "scales", "g_idx"), unpack)


def _awq_weights(settings: Mapping[str, Any], shard_of: Mapping[str, Shard]) -> list[PackedWeight]:
    bits, named = settings.get("bits"), str(settings.get("version") or settings.get("format") or "gemm").lower()
    named = named.rpartition(".")[2]
    if bits != 4 or named != "gemm" or settings.get("zero_point") is False:
        raise _refused("AWQ", _("{bits} bits, format {named}").format(bits=bits, named=named))
    return _layers(shard_of, ("qweight", "qzeros", "scales"), unpack_awq)


def _fp8_weights(settings: Mapping[str, Any], shard_of: Mapping[str, Shard]) -> list[PackedWeight]:
    size = settings.get("weight_block_size")
    block = None if size is None else (int(size[0]), int(size[1]))
    suffix = ".weight_scale_inv"
    layers = [key.removesuffix(suffix) for key in shard_of if key.endswith(suffix)]
    return [
        PackedWeight(
            f"{layer}.weight", (f"{layer}.weight", layer + suffix), shard_of, lambda w, s: unpack_fp8(w, s, block)
        )
        for layer in layers
        if f"{layer}.weight" in shard_of
    ]


def _mxfp4_weights(settings: Mapping[str, Any], shard_of: Mapping[str, Shard]) -> list[PackedWeight]:
    names = [key.removesuffix("_blocks") for key in shard_of if key.endswith("_blocks")]
    return [
        PackedWeight(name, (f"{name}_blocks", f"{name}_scales"), shard_of, unpack_mxfp4)
        for name in names
        if f"{name}_scales" in shard_of
    ]


def _layers(
    shard_of: Mapping[str, Shard], suffixes: Sequence[str], unpack: Callable[..., Tensor]
) -> list[PackedWeight]:
    layers = [key.removesuffix(suffixes[0]) for key in shard_of if key.endswith(f".{suffixes[0]}")]
    return [
        PackedWeight(
            f"{layer}weight",
            tuple(layer + suffix for suffix in suffixes if layer + suffix in shard_of),
            shard_of,
            unpack,
        )
        for layer in layers
    ]


def _refused(method: str, variant: str) -> TsugikiError:
    return TsugikiError(
        _(
            "its weights are stored by {method} in a way that cannot be read ({variant}); load the unquantised model"
        ).format(method=method, variant=variant)
    )


def _read(shard: Shard, key: str) -> Tensor:
    entry = shard.entries[key]
    return read_bytes(shard, key).view(_DTYPES[entry.dtype]).view(entry.shape)
