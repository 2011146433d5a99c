"""Names of the tensors in PEFT's adapter files.

base_model.model.<layer>.lora_A.weight, .lora_B.weight              LoRA factors
base_model.model.<embedding>.lora_embedding_A, .lora_embedding_B    LoRA factors of an embedding
base_model.model.<layer>.lora_magnitude_vector                      DoRA's magnitude
base_model.model.<layer>.base_layer.bias                            a trained bias of a layer with LoRA
base_model.model.<parameter>                                        any other parameter of the base
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from torch import Tensor, nn

from tsugiki.errors import TsugikiError, error_text
from tsugiki.model.ungrafted import base_modules

T = TypeVar("T")

PREFIX = "base_model.model."
"""In the names of a PEFT file, every module path of the base follows this prefix."""

_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module)\.|(?<=lora_[AB])\.default(?=\.)")
"""Parts of names in a state dict that was saved without PEFT's `save_pretrained`."""
_BASE_LAYER = ".base_layer."
_NOT_COMPUTED = ".lora_velora_embed"
"""The end of the names of tensors that PEFT uses in the backward pass alone."""
_FACTOR = re.compile(
    rf"{re.escape(PREFIX)}(?P<layer>.+)\.(lora_(?P<linear>[AB])\.weight|lora_embedding_(?P<embedding>[AB])|"
    r"lora_magnitude_vector(\.weight)?)"
)


@dataclass(frozen=True)
class FactorKey:
    """The parsed name of one tensor of a layer's LoRA update."""

    layer: str
    """The layer's name in the base."""
    part: Literal["A", "B", "magnitude"]
    is_embedding: bool


def factor_keys(layer: str, is_embedding: bool) -> tuple[str, str]:
    """Return the names of A and B of a layer."""
    if is_embedding:
        return f"{PREFIX}{layer}.lora_embedding_A", f"{PREFIX}{layer}.lora_embedding_B"
    return f"{PREFIX}{layer}.lora_A.weight", f"{PREFIX}{layer}.lora_B.weight"


def bias_key(layer: str) -> str:
    """Return the name of the trained bias of the low-rank branch (`lora_bias`)."""
    return f"{PREFIX}{layer}.lora_B.bias"


def magnitude_key(layer: str) -> str:
    """Return the name of the magnitude of a layer with DoRA."""
    return f"{PREFIX}{layer}.lora_magnitude_vector"


def parameter_keys(name: str) -> tuple[str, str]:
    """Return the two possible names of a base parameter in the file: if its layer has no LoRA, and if it has."""
    layer, _dot, attribute = name.rpartition(".")
    return f"{PREFIX}{name}", f"{PREFIX}{layer}{_BASE_LAYER}{attribute}"


def token_key(layer: str) -> str:
    """Return the name of the trained vectors of single tokens of a layer."""
    return f"{PREFIX}{layer}.token_adapter.trainable_tokens_delta"


def parse_factor_key(key: str) -> FactorKey | None:
    """Parse the name of a LoRA tensor; None if the key is not such a name."""
    match = _FACTOR.fullmatch(key)
    if match is None:
        return None
    part = match["linear"] or match["embedding"] or "magnitude"
    return FactorKey(match["layer"], part, match["embedding"] is not None)  # type: ignore[arg-type]


def without_duplicates(tensors: Mapping[str, T]) -> dict[str, T]:
    """Return the tensors without the duplicates that PEFT stores of a module that trains as a whole.

    PEFT adds them if it stores embeddings or all biases: the trained values under a second name, which it does not
    read, and the base's values, which the trained ones replace. A base weight under trained vectors of single tokens
    gets its name in the base.
    """
    named = {key.replace(".token_adapter.base_layer.", "."): tensor for key, tensor in tensors.items()}
    return {
        key: tensor
        for key, tensor in named.items()
        if named.keys().isdisjoint(_plain_names(key)) and not key.endswith(_NOT_COMPUTED)
    }


def _plain_names(key: str) -> list[str]:
    """Return the names that a tensor of PEFT's wrapper around a whole module has in an ordinary file."""
    for part in (".modules_to_save.", ".original_module."):
        before, found, after = key.partition(part)
        if found:
            return [f"{before}.{after}", f"{before}.{after.partition('.')[2]}"]  # it may begin with the adapter's name
    return []


def refuse_wrapped(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Raise a TsugikiError if a tensor has a name that a wrapper around the model has given, and not PEFT's."""
    wrapped = [key for key in tensors if _WRAPPERS.search(key)]
    modules = dict(base_modules(model)) if wrapped else {}
    key = next(
        (key for key in wrapped if _layer_of(key) not in modules or ".default." in key.rpartition(".lora_")[2]), None
    )
    if key is not None:
        raise TsugikiError(
            "{key} is not PEFT's name but that of a tensor in a wrapped model (torch.compile, DDP, FSDP); save the "
            "adapter without the wrapper",
            key=error_text(key, 100),
        )


def _layer_of(key: str) -> str:
    """Return the layer of a tensor: `h.0.attn` of `h.0.attn.lora_A.weight` and of `h.0.attn.base_layer.weight`."""
    layer, *rest = re.split(r"\.lora_|\.token_adapter\.", base_name(key), maxsplit=1)
    return layer if rest else layer.rpartition(".")[0]


def base_name(key: str) -> str:
    """Return the name that a parameter has in the base, from its name in the file."""
    return key.removeprefix(PREFIX).replace(_BASE_LAYER, ".")


def is_base_layer_key(key: str) -> bool:
    """Return whether a tensor is a parameter of the base layer under a layer with LoRA."""
    return _BASE_LAYER in key
