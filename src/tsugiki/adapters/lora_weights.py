"""A LoRA adapter as its folder holds it, without any model: what is done to adapters alone is done to this.

    lora = read_lora_weights(folder)
    lora.layers["transformer.h.0.attn.c_attn"].A        # [r, in], float32
    write_lora_weights(lora, out, {"truncated": "to rank 4"})   # a new PEFT folder

An adapter that PiSSA started is here the LoRA of twice the rank that its file is for PEFT.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tsugiki.adapters.format import (
    Base,
    not_finite,
    read_base,
    read_config_fields,
    read_peft_config,
    read_weights,
    share_weights,
)
from tsugiki.errors import TsugikiError, summarise_list
from tsugiki.io.atomic import new_folder
from tsugiki.io.digests import file_sha256
from tsugiki.io.file_names import ADAPTER_CONFIG_FILE, ADAPTER_FILE, METADATA_FILE
from tsugiki.io.json import write_json
from tsugiki.lora.config import LoraConfig
from tsugiki.methods.method import PREFIX

_PART = re.compile(
    rf"{re.escape(PREFIX)}(?P<path>.+)\.(lora_(?P<letter>[AB])\.weight|lora_embedding_(?P<table>[AB])|"
    r"(?P<magnitude>lora_magnitude_vector)(\.weight)?)"
)


@dataclass(frozen=True, eq=False)
class LayerFactors:
    """The update of one layer, ΔW = scaling · B A."""

    A: Tensor
    """[r, in]; of an embedding [r, entries], of a convolution [r, in, height, width]."""
    B: Tensor
    """[out, r]; of an embedding [width, r], of a convolution [out, r / groups, 1, 1]."""
    scaling: float
    magnitude: Tensor | None = None
    """DoRA's, [out]; of a convolution [1, out, 1, 1]."""
    embedding: bool = False

    @property
    def r(self) -> int:
        """The rank."""
        return len(self.A)


@dataclass(frozen=True, eq=False)
class LoraWeights:
    """A LoRA adapter, its tensors in the dtype of the file."""

    config: LoraConfig
    """As PEFT reads it."""
    layers: Mapping[str, LayerFactors]
    """Layer's name in the base -> its update."""
    others: Mapping[str, Tensor]
    """Trained biases and modules, by their names in the file."""
    base: Base
    task_type: str | None
    """PEFT's; None for what is no language model."""


def read_lora_weights(folder: Path) -> LoraWeights:
    """The LoRA adapter in a folder, whole and finite.

    Raises:
        TsugikiError: no adapter there, one of another method, a broken file, tensors that lack their other half, that
            are not of the rank the config says, or that are not finite.
    """
    config = read_peft_config(folder)
    if not isinstance(config, LoraConfig):
        raise TsugikiError(f"{folder} is no LoRA adapter, and this can be done with LoRA's alone")
    tensors = read_weights(folder)
    layers, others, problems = parse_tensors(config, tensors)
    problems += not_finite(tensors)
    if problems:
        raise TsugikiError(f"{folder / ADAPTER_FILE} is broken: {summarise_list(problems)}")
    return LoraWeights(config, layers, others, read_base(folder), read_config_fields(folder).get("task_type"))


def parse_tensors(
    config: LoraConfig, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, LayerFactors], dict[str, Tensor], list[str]]:
    """The layers that are whole, the tensors that belong to none, and what is wrong by names, shapes and dtypes."""
    parts: dict[str, dict[str, Tensor]] = {}
    others: dict[str, Tensor] = {}
    problems = []
    embeddings = set()
    for key, tensor in tensors.items():
        match = _PART.fullmatch(key)
        if match is None:
            others[key] = tensor
            continue
        path = match["path"]
        parts.setdefault(path, {})[match["letter"] or match["table"] or "magnitude"] = tensor
        if match["table"]:
            embeddings.add(path)
    layers = {}
    for path, part in parts.items():
        problem = _what_is_wrong(part, config.rank_of(path), config.use_dora)
        if problem:
            problems.append(f"{path} {problem}")
        else:
            layers[path] = LayerFactors(
                part["A"], part["B"], config.scaling_of(path), part.get("magnitude"), path in embeddings
            )
    if not parts:
        problems.append("it holds no lora_A and lora_B")
    return layers, others, problems


def write_lora_weights(lora: LoraWeights, out: Path, made: Mapping[str, Any]) -> None:
    """Write a new PEFT folder, whole or not at all. Ranks and scalings are the layers', whatever the config says.

    Args:
        lora: what to write; its config says what was targeted.
        out: the folder; must not be there, or be empty.
        made: how it came about, kept in `tsugiki.json`.

    Raises:
        TsugikiError: a tensor is not finite, or the folder is there or cannot be written.
    """
    tensors = {key: tensor for path, layer in lora.layers.items() for key, tensor in _tensors(path, layer).items()}
    tensors |= lora.others
    broken = [key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise TsugikiError(f"the result is not finite in {summarise_list(broken)}; nothing was written")
    fields = dataclasses.asdict(_with_ranks(lora.config, lora.layers))
    del fields["freeze_A"]  # how it was trained, which PEFT has no field for
    common = {"peft_type": "LORA", "task_type": lora.task_type, "base_model_name_or_path": lora.base.name}
    base = {"name": lora.base.name, "fingerprint": lora.base.fingerprint}
    with new_folder(out) as part:
        save_file(
            {key: tensor.contiguous() for key, tensor in tensors.items()},
            part / ADAPTER_FILE,
            metadata={"format": "pt"},
        )
        write_json(part / ADAPTER_CONFIG_FILE, common | {"inference_mode": True} | fields)
        write_json(part / METADATA_FILE, {"format": 1, "base": base, "made": dict(made)})
        share_weights(part)


def source(folder: Path) -> dict[str, str]:
    """An adapter that another is made from, for the record of that: its folder's name, and a digest of its weights."""
    return {"name": folder.resolve().name, "weights": file_sha256(folder / ADAPTER_FILE)}


def _tensors(path: str, layer: LayerFactors) -> dict[str, Tensor]:
    form = "{}{}.lora_embedding_{}" if layer.embedding else "{}{}.lora_{}.weight"
    tensors = {form.format(PREFIX, path, "A"): layer.A, form.format(PREFIX, path, "B"): layer.B}
    if layer.magnitude is not None:
        tensors[f"{PREFIX}{path}.lora_magnitude_vector"] = layer.magnitude
    return tensors


def _with_ranks(config: LoraConfig, layers: Mapping[str, LayerFactors]) -> LoraConfig:
    """The config of these layers: the commonest rank and alpha for all, patterns for the rest."""
    ranks = {path: layer.r for path, layer in layers.items()}
    alphas = {path: _whole(layer.scaling * layer.r) for path, layer in layers.items()}
    r, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return dataclasses.replace(
        config,
        r=int(r),
        lora_alpha=alpha,
        rank_pattern={path: rank for path, rank in ranks.items() if rank != r},
        alpha_pattern={path: other for path, other in alphas.items() if other != alpha},
        use_rslora=False,
        init_lora_weights=True,
        use_dora=any(layer.magnitude is not None for layer in layers.values()),
    )


def _whole(number: float) -> float:
    """A whole number as one, also where rounding has moved it."""
    return round(number) if abs(number - round(number)) < 1e-9 * max(1, abs(number)) else number


def _what_is_wrong(part: Mapping[str, Tensor], r: int, dora: bool) -> str | None:
    if "A" not in part or "B" not in part:
        return f"has no lora_{'B' if 'A' in part else 'A'}"
    if ("magnitude" in part) != dora:
        return (
            "has a lora_magnitude_vector, and use_dora is false"
            if "magnitude" in part
            else ("has no lora_magnitude_vector, and use_dora is true")
        )
    A, B = part["A"], part["B"]
    if not (A.is_floating_point() and B.is_floating_point()):
        return f"is of {A.dtype}, {B.dtype}, no floating-point numbers"
    if A.dim() not in (2, 4) or A.dim() != B.dim() or (A.dim() == 2 and A.shape[0] != B.shape[1]):
        return f"has A {list(A.shape)} and B {list(B.shape)}, which do not go together"
    if A.dim() == 4 and (B.shape[1] == 0 or len(A) % B.shape[1]):  # a convolution in groups
        return f"has A {list(A.shape)} and B {list(B.shape)}, which do not go together"
    magnitude = part.get("magnitude")
    if magnitude is not None and magnitude.numel() != len(B):
        return f"has a lora_magnitude_vector {list(magnitude.shape)} beside B {list(B.shape)}"
    return f"is of rank {len(A)}, and the config says {r}" if len(A) != r else None
