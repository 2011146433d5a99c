"""An adapter out of a model that was fine-tuned whole: what its layers gained, as far as a rank can hold it.

    ΔW = W' - W ≈ B A        B = U[:, :r] σ[:r]^½,   A = σ[:r]^½ Vᵀ[:r]

U σ Vᵀ is found by a randomised decomposition (Halko, Martinsson and Tropp 2011, arXiv:0909.4061): ΔW is seen through a
few random directions more than the rank, and power iterations make the largest stand out. Both models are read from
their files a tensor at a time, so there is one layer of each in memory, however large the models are.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tsugiki.adapters.algebra.combine import Track
from tsugiki.adapters.algebra.matrices import balanced
from tsugiki.adapters.algebra.truncate import RankReduction
from tsugiki.adapters.format import Base
from tsugiki.adapters.lora_weights import LayerFactors, LoraWeights
from tsugiki.base.fingerprint import named_fingerprint
from tsugiki.base.inference import seeded
from tsugiki.base.loading import load_meta_model, model_folder
from tsugiki.base.model_folder import LazyTensors, map_keys
from tsugiki.errors import TsugikiError, summarise_list
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.frozen_layer import is_conv1d
from tsugiki.lora.shared_parameters import shared_parameters
from tsugiki.lora.targets import find_targets, shortest_target_modules

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MORE = 8  # directions than the rank: the paper advises 5 to 10
_POWER_ITERATIONS = 4


@dataclass(frozen=True, eq=False)
class Extraction:
    """What was found."""

    lora: LoraWeights
    kept: Mapping[str, RankReduction]
    """Of each layer that has an update."""
    unchanged: Sequence[str]
    """Layers that were meant, and are the base's."""
    left: Mapping[str, float]
    """Parameters that changed and that the adapter does not reach -> ‖ΔW‖²."""

    @property
    def energy(self) -> float:
        """The share of all change, as a sum of squares, that the adapter holds."""
        whole = sum(layer.whole for layer in self.kept.values()) + sum(self.left.values())
        return sum(layer.kept for layer in self.kept.values()) / whole


@torch.no_grad()
def extract(
    finetuned: str, base: str, r: int, target_modules: Sequence[str] | str = "all-linear", track: Track = iter
) -> Extraction:
    """The adapter with which `base` comes nearest to `finetuned`; the same each time.

    A weight with two uses, such as an embedding that is the output head too, is reached where both are targeted: an
    adapter has an update for each.

    Args:
        finetuned: a model folder, or a hub id.
        base: the same, or 'embedded'.
        r: rank of every update; lower only where a layer's own is.
        target_modules: linear layers and embeddings, as `LoraConfig` has them.
        track: goes through the layers.

    Raises:
        TsugikiError: there is no such model; the two are not of one shape, or not stored as floating-point numbers; or
            the layers meant do not exist, cannot be extracted, or are all the base's.
    """
    config = LoraConfig(r=r, lora_alpha=r, target_modules=target_modules)
    model = load_meta_model(base)
    targets = find_targets(model, config)
    for path, layer in targets.items():
        if isinstance(layer, nn.Conv2d):
            raise TsugikiError(f"{path} is a {type(layer).__name__}; linear layers and embeddings can be extracted")
    after, before = (_Stored(name, model) for name in (finetuned, base))
    uses = _uses(model)
    layers: dict[str, LayerFactors] = {}
    kept: dict[str, RankReduction] = {}
    for path in track(list(targets)):
        delta = _change(after, before, uses[f"{path}.weight"])
        if delta is not None:
            layers[path], kept[path] = _low_rank(targets[path], delta, r)
            del delta  # before the next is made
    left = _left(after, before, uses, {f"{path}.weight" for path in targets})
    if not layers:
        elsewhere = f"; what changed is {summarise_list(list(left))}" if left else ""
        raise TsugikiError(f"of the {len(targets)} layers meant in {finetuned}, none differs from {base}'s{elsewhere}")
    config = dataclasses.replace(
        config,
        target_modules=shortest_target_modules(model, config, layers),
        fan_in_fan_out=any(is_conv1d(targets[path]) for path in layers),
    )
    base_of_it = Base(base, named_fingerprint(base))
    unchanged = [path for path in targets if path not in layers]
    return Extraction(LoraWeights(config, layers, {}, base_of_it, "CAUSAL_LM"), kept, unchanged, left)


class _Stored:
    """The parameters of a model called `name`, each read from its file when it is asked for."""

    def __init__(self, name: str, shape: "PreTrainedModel") -> None:
        self.name = name
        self.tensors = LazyTensors(model_folder(name))
        self.keys = map_keys(shape, self.tensors.keys()).key_of

    def read(self, uses: Sequence[str]) -> Tensor:
        """The parameter that has these names in a model.

        Raises:
            TsugikiError: it is not there, is not finite, or is not in 16 bits or more.
        """
        key = next((self.keys[use] for use in uses if use in self.keys), None)
        if key is None:
            raise TsugikiError(f"{self.name} has no {uses[0]}: it is not whole, or of another architecture")
        tensor = self.tensors[key]
        if not tensor.is_floating_point() or tensor.itemsize < 2:
            raise TsugikiError(f"{self.name} holds {key} as {tensor.dtype}; give a model in 16 bits or more")
        if not torch.isfinite(tensor).all():
            raise TsugikiError(f"{self.name} is broken: {key} is not finite")
        return tensor


def _uses(model: nn.Module) -> dict[str, list[str]]:
    """Parameter's name -> that name, and the names of others that are the same parameter."""
    shared = shared_parameters(model)
    return {
        name: [name, *(other for other in shared.get(name, ()) if other != name)]
        for name, _ in model.named_parameters(remove_duplicate=False)
    }


def _change(after: _Stored, before: _Stored, uses: Sequence[str]) -> Tensor | None:
    """How a parameter changed, in float32; None where it did not."""
    new, old = after.read(uses), before.read(uses)
    if new.shape != old.shape:
        raise TsugikiError(
            f"{uses[0]} is {list(new.shape)} in {after.name} and {list(old.shape)} in {before.name}; an adapter "
            "changes no shapes"
        )
    delta = new.float() - old.float()
    return delta if delta.any() else None


def _low_rank(layer: nn.Module, delta: Tensor, r: int) -> tuple[LayerFactors, RankReduction]:
    is_embedding = isinstance(layer, nn.Embedding)
    if is_embedding or is_conv1d(layer):  # which are stored as [in, out]
        delta = delta.T
    with seeded(0):
        U, S, V = torch.svd_lowrank(delta, min(r + _MORE, *delta.shape), niter=_POWER_ITERATIONS)
    B, A = balanced(U, S, V.T, r)
    kept = float(S[:r].square().sum(dtype=torch.float64))
    whole = _energy(delta)
    return LayerFactors(A, B, 1.0, embedding=is_embedding), RankReduction(min(delta.shape), len(A), kept, whole)


def _left(after: _Stored, before: _Stored, uses: Mapping[str, Sequence[str]], reached: set[str]) -> dict[str, float]:
    """Parameters that changed, but for those whose every use is reached -> ‖ΔW‖², each shared one once."""
    left: dict[str, float] = {}
    for name, names in uses.items():
        if name in reached or any(other in left for other in names):
            continue
        delta = _change(after, before, names)
        if delta is not None:
            left[name] = _energy(delta)
    return left


def _energy(delta: Tensor) -> float:
    return float(torch.linalg.vector_norm(delta, dtype=torch.float64)) ** 2
