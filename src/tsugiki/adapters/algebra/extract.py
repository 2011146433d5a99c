"""Extract a LoRA adapter from a model that was fully fine-tuned: the best approximation of the change of each layer.

    ΔW = W' - W ≈ B A        B = U[:, :r] σ[:r]^½,   A = σ[:r]^½ Vᵀ[:r]

U σ Vᵀ is computed by a randomised decomposition (Halko, Martinsson and Tropp 2011, arXiv:0909.4061): ΔW is projected
onto a few random directions more than the rank, and power iterations make the largest singular values dominate. Both
models are read from their files tensor by tensor, so only one layer of each is in memory.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tsugiki.adapters.algebra.combine import ProgressIterator
from tsugiki.adapters.algebra.matrices import RankReduction, best_factors
from tsugiki.adapters.lora_weights import LayerFactors, LoraWeights
from tsugiki.adapters.metadata import BaseReference
from tsugiki.annotations import PreTrainedModel
from tsugiki.base.identity import named_identity, named_settings, why_different
from tsugiki.base.loading import load_meta_model
from tsugiki.base.model_folder import LazyTensors, map_keys
from tsugiki.base.resolve import model_folder
from tsugiki.errors import TsugikiError, summarise_list, warn_caller
from tsugiki.language import _
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.targets import find_targets, shortest_target_modules
from tsugiki.model.inference import seeded
from tsugiki.model.linear import is_conv1d
from tsugiki.model.weights import shared_parameters

_OVERSAMPLING = 8  # directions more than the rank; the paper recommends 5 to 10
_POWER_ITERATIONS = 4


@dataclass(frozen=True, eq=False)
class Extraction:
    """An extracted adapter, and the share of the change that it holds."""

    lora: LoraWeights
    kept: Mapping[str, RankReduction]
    """For each layer in the adapter, the share of its change that is kept at the rank."""
    unchanged: Sequence[str]
    """Targeted layers whose weights are the base's."""
    not_captured: Mapping[str, float]
    """Parameters that changed but are not targeted -> ‖ΔW‖²."""

    @property
    def total_energy(self) -> float:
        """‖ΔW‖² of all changes."""
        return sum(layer.total for layer in self.kept.values()) + sum(self.not_captured.values())

    @property
    def energy(self) -> float:
        """The share of ‖ΔW‖² that the adapter holds."""
        return sum(layer.kept for layer in self.kept.values()) / self.total_energy


@torch.no_grad()
def extract(
    finetuned: str,
    base: str,
    r: int,
    target_modules: Sequence[str] | str = "all-linear",
    track: ProgressIterator = iter,
) -> Extraction:
    """Return the adapter with which `base` comes closest to `finetuned`. The result is deterministic.

    A warning says if their configs differ, such as in the base of the rotary positions. Models of different shapes, or
    not stored in floating point, are errors, and so are targets that do not exist or did not change.

    A shared weight, such as that of an embedding and an output head, is captured completely only if all layers that use
    it are targeted, because an adapter has a separate update for each layer.

    Args:
        finetuned: the fine-tuned model: a folder, or a hub id.
        base: the model that it was fine-tuned from; a name that `load_model` takes.
        r: the rank of every update; a layer with fewer inputs or outputs gets a smaller rank.
        target_modules: linear layers and embeddings, as in `LoraConfig`.
        track: iterates over the layers.
    """
    config = LoraConfig(r=r, lora_alpha=r, target_modules=target_modules)
    model = load_meta_model(base)
    targets = find_targets(model, config)
    for path, layer in targets.items():
        if isinstance(layer, nn.Conv2d):
            message = _("{path} is a {kind}; only linear layers and embeddings are supported")
            raise TsugikiError(message.format(path=path, kind=type(layer).__name__))
    after, before = (_StoredModel(name, model) for name in (finetuned, base))
    names = _names_of_parameters(model)
    layers: dict[str, LayerFactors] = {}
    kept: dict[str, RankReduction] = {}
    for path in track(list(targets)):
        delta = _change(after, before, names[f"{path}.weight"])
        if delta is not None:
            layers[path], kept[path] = _low_rank(targets[path], delta, r)
            del delta  # frees the memory before the next layer is read
    not_captured = _not_captured(after, before, names, {f"{path}.weight" for path in targets})
    if not layers:
        elsewhere = (
            _("; these parameters changed: {names}").format(names=summarise_list(list(not_captured)))
            if not_captured
            else ""
        )
        message = _("none of the {count} targeted layers of {finetuned} differs from {base}{elsewhere}")
        raise TsugikiError(message.format(count=len(targets), finetuned=finetuned, base=base, elsewhere=elsewhere))
    config = dataclasses.replace(
        config,
        target_modules=shortest_target_modules(model, config, {path: targets[path] for path in layers}),
        fan_in_fan_out=any(is_conv1d(targets[path]) for path in layers),
    )
    _warn_of_other_settings(finetuned, base)
    reference = BaseReference(name=base, **dict(named_identity(base)))
    unchanged = [path for path in targets if path not in layers]
    return Extraction(LoraWeights(config, layers, {}, reference, "CAUSAL_LM"), kept, unchanged, not_captured)


def _warn_of_other_settings(finetuned: str, base: str) -> None:
    why = why_different(named_settings(finetuned), named_settings(base))
    if why:
        message = _(
            "an adapter changes weights only, so with this one {base} computes something else than {finetuned}: {why}"
        )
        warn_caller(message.format(base=base, finetuned=finetuned, why=why))


class _StoredModel:
    """The parameters of a model in its files, read one at a time."""

    def __init__(self, name: str, shape: PreTrainedModel) -> None:
        self.name = name
        self.tensors = LazyTensors(model_folder(name))
        self.keys = map_keys(shape, self.tensors.keys()).key_of

    def read(self, names: Sequence[str]) -> Tensor:
        """Read a parameter, which has all these names in the model; it must be finite and of 16 bits or more."""
        key = next((self.keys[name] for name in names if name in self.keys), None)
        if key is None:
            message = _("{name} has no {tensor}: it is incomplete, or has another architecture")
            raise TsugikiError(message.format(name=self.name, tensor=names[0]))
        tensor = self.tensors[key]
        if not tensor.is_floating_point() or tensor.itemsize < 2:
            message = _("{name} stores {key} as {dtype}; pass a model in 16 bits or more")
            raise TsugikiError(message.format(name=self.name, key=key, dtype=tensor.dtype))
        if not torch.isfinite(tensor).all():
            raise TsugikiError(_("{name} is broken: {key} is not finite").format(name=self.name, key=key))
        return tensor


def _names_of_parameters(model: nn.Module) -> dict[str, list[str]]:
    """Return, for each name of a parameter, that name and then the other names of the same parameter."""
    shared = shared_parameters(model)
    return {
        name: [name, *(other for other in shared.get(name, ()) if other != name)]
        for name, _ in model.named_parameters(remove_duplicate=False)
    }


def _change(after: _StoredModel, before: _StoredModel, names: Sequence[str]) -> Tensor | None:
    """Return the change of a parameter in float32, or None if it did not change."""
    new, old = after.read(names), before.read(names)
    if new.shape != old.shape:
        raise TsugikiError(
            _("{tensor} is {shape} in {first} and {other} in {second}; an adapter cannot change shapes").format(
                tensor=names[0], shape=list(new.shape), first=after.name, other=list(old.shape), second=before.name
            )
        )
    delta = new.float() - old.float()
    return delta if delta.any() else None


def _low_rank(layer: nn.Module, delta: Tensor, r: int) -> tuple[LayerFactors, RankReduction]:
    is_embedding = isinstance(layer, nn.Embedding)
    if is_embedding or is_conv1d(layer):  # their weights are stored as [in, out]
        delta = delta.T
    with seeded(0):
        U, S, V = torch.svd_lowrank(delta, min(r + _OVERSAMPLING, *delta.shape), niter=_POWER_ITERATIONS)
    B, A = best_factors(U, S, V.T, r)
    kept = float(S[:r].square().sum(dtype=torch.float64))
    reduction = RankReduction(min(delta.shape), len(A), kept, _energy(delta))
    return LayerFactors(A, B, 1.0, embedding=is_embedding), reduction


def _not_captured(
    after: _StoredModel, before: _StoredModel, names: Mapping[str, Sequence[str]], targeted: set[str]
) -> dict[str, float]:
    """Return ‖ΔW‖² of each parameter that changed and has a name that is not targeted, by one of its names."""
    found: dict[str, float] = {}
    for name, all_names in names.items():
        if name in targeted or any(other in found for other in all_names):
            continue
        delta = _change(after, before, all_names)
        if delta is not None:
            found[name] = _energy(delta)
    return found


def _energy(delta: Tensor) -> float:
    return float(torch.linalg.vector_norm(delta, dtype=torch.float64)) ** 2
