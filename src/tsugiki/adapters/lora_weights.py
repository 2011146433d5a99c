"""LoRA adapters as tensors, without a model, for operations on adapters.

A PiSSA adapter is read as PEFT reads its file, as a LoRA of twice the rank.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tsugiki.adapters.files import (
    not_finite,
    read_base,
    read_config_fields,
    read_peft_config,
    read_weights,
    write_adapter_files,
)
from tsugiki.adapters.metadata import BaseReference, Metadata, Provenance
from tsugiki.errors import TsugikiError, summarise_list
from tsugiki.io.atomic import new_folder
from tsugiki.io.file_names import ADAPTER_FILE
from tsugiki.language import _
from tsugiki.lora.config import LoraConfig
from tsugiki.methods.peft_keys import factor_keys, magnitude_key, parse_factor_key
from tsugiki.model.names import matches, name_pattern


@dataclass(frozen=True, eq=False)
class LayerFactors:
    """The update of one layer, ΔW = scaling · B A."""

    A: Tensor
    """[r, in]; embedding: [r, entries]; convolution: [r, in, height, width]."""
    B: Tensor
    """[out, r]; embedding: [width, r]; convolution: [out, r / groups, 1, 1]."""
    scaling: float
    magnitude: Tensor | None = None
    """DoRA's magnitude, [out]; convolution: [1, out, 1, 1]."""
    embedding: bool = False

    @property
    def r(self) -> int:
        """The rank."""
        return len(self.A)


@dataclass(frozen=True, eq=False)
class LoraWeights:
    """A LoRA adapter; its tensors have the dtype of the file."""

    config: LoraConfig
    """The settings as PEFT reads them."""
    layers: Mapping[str, LayerFactors]
    """Name of a layer in the base -> its update."""
    others: Mapping[str, Tensor]
    """Trained biases and modules, and the factors of parameters that are not weights of layers, such as experts, by
    their names in the file."""
    base: BaseReference
    task_type: str | None
    """PEFT's task type; None if the file names none."""


def read_lora_weights(folder: Path) -> LoraWeights:
    """Read the LoRA adapter in a folder, and check that it is complete and finite and has no `lora_bias`."""
    config = read_peft_config(folder)
    if not isinstance(config, LoraConfig):
        raise TsugikiError("{folder} is not a LoRA adapter, and this operation supports only LoRA", folder=folder)
    if config.lora_bias:
        raise TsugikiError(
            "{folder} has lora_bias, which is no update of a weight; this operation does not support it", folder=folder
        )
    tensors = read_weights(folder)
    layers, others, problems = parse_tensors(config, tensors)
    problems += not_finite(tensors)
    if problems:
        raise TsugikiError(
            "{path} is broken: {problems}", path=folder / ADAPTER_FILE, problems=summarise_list(problems)
        )
    return LoraWeights(config, layers, others, read_base(folder), read_config_fields(folder).get("task_type"))


def parse_tensors(
    config: LoraConfig, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, LayerFactors], dict[str, Tensor], list[str]]:
    """Group the tensors of a file, of which only names, shapes and dtypes are used, by layer.

    `config` holds the settings as PEFT reads them. The result is the layers that are complete, the tensors that are not
    factors of a layer, and the problems, a clause for each.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    others: dict[str, Tensor] = {}
    problems = []
    embeddings = set()
    for name, tensor in tensors.items():
        key = parse_factor_key(name)
        if key is None or _is_of_parameter(config, key.layer):
            others[name] = tensor
            continue
        parts.setdefault(key.layer, {})[key.part] = tensor
        if key.is_embedding:
            embeddings.add(key.layer)
    layers = {}
    for layer, found in parts.items():
        problem = _problem(found, config.rank_of(layer), config.use_dora)
        if problem:
            problems.append(f"{layer} {problem}")
        else:
            layers[layer] = LayerFactors(
                found["A"], found["B"], config.scaling_of(layer), found.get("magnitude"), layer in embeddings
            )
    if not parts and not parameter_factors(others):
        problems.append(_("it holds no lora_A and lora_B"))
    return layers, others, problems


def parameter_factors(others: Iterable[str]) -> list[str]:
    """Return the names of factors of parameters among the tensors that are not factors of a layer."""
    return [name for name in others if parse_factor_key(name) is not None]


def write_lora_weights(lora: LoraWeights, out: Path, provenance: Provenance | None) -> None:
    """Write a new PEFT folder, which appears complete or not at all.

    The ranks and scalings of the layers are written, not those of the config.
    """
    tensors, fields = _lora_files(lora)
    broken = not_finite(tensors)
    if broken:
        raise TsugikiError("the result is wrong: {broken}; nothing was written", broken=summarise_list(broken))
    with new_folder(out) as temporary:
        write_adapter_files(temporary, tensors, fields, Metadata(base=lora.base, provenance=provenance))


def _lora_files(lora: LoraWeights) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of an adapter by their names in PEFT's file, and the fields of its config."""
    tensors = {key: tensor for path, layer in lora.layers.items() for key, tensor in _tensors(path, layer).items()}
    settings = dataclasses.asdict(_with_ranks(lora.config, lora.layers))
    del settings["freeze_A"]  # a setting of training, for which PEFT has no field
    if not settings["target_parameters"]:
        del settings["target_parameters"]  # older releases of PEFT do not have it
    return {**tensors, **lora.others}, {"peft_type": "LORA", "task_type": lora.task_type} | settings


def _tensors(path: str, layer: LayerFactors) -> dict[str, Tensor]:
    key_A, key_B = factor_keys(path, layer.embedding)
    magnitude = {} if layer.magnitude is None else {magnitude_key(path): layer.magnitude}
    return {key_A: layer.A, key_B: layer.B} | magnitude


def _is_of_parameter(config: LoraConfig, owner: str) -> bool:
    """Return whether factors with this name are those of a parameter, such as the weights of all experts."""
    wanted = config.target_parameters
    if not wanted or matches(f"{owner}.weight", wanted):
        return False
    return not matches(owner, config.target_modules or ())


def _with_ranks(config: LoraConfig, layers: Mapping[str, LayerFactors]) -> LoraConfig:
    """Return a config with the ranks and scalings of these layers: the most common ones, and patterns for the rest."""
    ranks = {path: layer.r for path, layer in layers.items()}
    alphas = {path: _rounded(layer.scaling * layer.r) for path, layer in layers.items()}
    r, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    # A bare name would be a pattern for the names that end with it, too.
    patterns = {path: name_pattern(config.name_in_patterns(path)) for path in layers}
    return dataclasses.replace(
        config,
        r=int(r),
        lora_alpha=alpha,
        rank_pattern={patterns[path]: rank for path, rank in ranks.items() if rank != r},
        alpha_pattern={patterns[path]: other for path, other in alphas.items() if other != alpha},
        use_rslora=False,
        init_lora_weights=True,
        use_dora=any(layer.magnitude is not None for layer in layers.values()),
    )


def _rounded(number: float) -> float:
    """Return the nearest whole number if `number` differs from it only by rounding errors, else `number`."""
    return round(number) if abs(number - round(number)) < 1e-9 * max(1, abs(number)) else number


def _problem(parts: Mapping[str, Tensor], r: int, use_dora: bool) -> str | None:
    """Return the problem of a layer's tensors, as a predicate for a message; None if there is none."""
    if "A" not in parts or "B" not in parts:
        return _("has no lora_{part}", part="B" if "A" in parts else "A")
    if "magnitude" in parts and not use_dora:
        return _("has a lora_magnitude_vector, but use_dora is false")
    if "magnitude" not in parts and use_dora:
        return _("has no lora_magnitude_vector, but use_dora is true")
    A, B = parts["A"], parts["B"]
    if not (A.is_floating_point() and B.is_floating_point()):
        return _("has the dtypes {first} and {second}, which are not floating-point", first=A.dtype, second=B.dtype)
    is_linear = A.dim() == B.dim() == 2 and len(A) == B.shape[1]
    is_convolution = A.dim() == B.dim() == 4 and B.shape[1] > 0 and len(A) % B.shape[1] == 0
    if not (is_linear or is_convolution):
        return _("has A {first} and B {second}, which cannot be multiplied", first=list(A.shape), second=list(B.shape))
    magnitude = parts.get("magnitude")
    if magnitude is not None and magnitude.numel() != len(B):
        return _(
            "has a lora_magnitude_vector {first}, but B {second}", first=list(magnitude.shape), second=list(B.shape)
        )
    return _("is of rank {rank}, but the config gives {expected}", rank=len(A), expected=r) if len(A) != r else None
