"""The layers of a LoRA adapter by the singular values of their updates: tables and plots."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from markupsafe import Markup
from torch import Tensor

from tsugiki.adapters.algebra.spectrum import effective_rank, update_shape
from tsugiki.adapters.lora_weights import LayerFactors
from tsugiki.lora.names import split_block
from tsugiki.report.formatting import Table, figure
from tsugiki.report.plots import Series, curves

_BARS = "▁▂▃▄▅▆▇█"
_WIDEST = 16  # bars of one cell


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer's update, measured."""

    path: str
    block: int | None
    """Which of the model's blocks it is in; None of one that is in none, such as the head."""
    kind: str
    """Its name in that block, `attn.c_attn` for example, which other blocks have too."""
    r: int
    shape: tuple[int, ...]
    values: Tensor
    """The singular values of ΔW, the largest first."""

    @property
    def norm(self) -> float:
        """‖ΔW‖_F."""
        return float(self.values.norm())

    @property
    def effective_rank(self) -> float:
        """How many directions ΔW uses (see `adapters.spectrum`)."""
        return effective_rank(self.values)


def measured(layers: Mapping[str, LayerFactors], spectra: Mapping[str, Tensor]) -> list[Layer]:
    """The layers of a file with their singular values, in the order of the blocks."""
    places = {path: split_block(path) for path in layers}
    lists = {owner for owner, block, _ in places.values() if block is not None}
    found = []
    for path, layer in layers.items():
        owner, block, rest = places[path]
        kind = rest if block is None or len(lists) == 1 else f"{owner}.*.{rest}"
        found.append(Layer(path, block, kind, layer.r, update_shape(layer), spectra[path]))
    return sorted(found, key=lambda one: block_order(one.path))


def block_order(path: str) -> tuple[bool, int, str]:
    """To sort the names of layers by: as the blocks come, and what is in none at the end."""
    _, block, _ = split_block(path)
    return block is None, block or 0, path


def layers_table(layers: Sequence[Layer]) -> Table:
    """A row for each layer."""
    headers = ["layer", "shape", "r", "‖ΔW‖", "σ₁", "effective rank", "σ / σ₁"]
    return headers, [
        [
            layer.path,
            "×".join(map(str, layer.shape)),
            str(layer.r),
            figure(layer.norm),
            figure(float(layer.values[0])),
            f"{layer.effective_rank:.2f}",
            bars(layer.values.tolist()),
        ]
        for layer in layers
    ]


def kinds_table(layers: Sequence[Layer]) -> Table:
    """A row for each kind of layer: means, and bars for its blocks from the first to the last."""
    headers = ["kind", "layers", "mean ‖ΔW‖", "by block", "mean effective rank", "by block"]
    rows = []
    for kind, some in by_kind(layers).items():
        norms, ranks = [layer.norm for layer in some], [layer.effective_rank for layer in some]
        rows.append(
            [kind, str(len(some)), figure(fmean(norms)), bars(norms), f"{fmean(ranks):.2f}", bars(ranks)],
        )
    return headers, rows


def layer_plots(layers: Sequence[Layer]) -> list[Markup]:
    """Norm and effective rank by block, and the mean spectrum, with a line for each kind."""
    kinds = by_kind(layers)
    norms = [_by_block(kind, some, [one.norm for one in some]) for kind, some in kinds.items()]
    ranks = [_by_block(kind, some, [one.effective_rank for one in some]) for kind, some in kinds.items()]
    drawn = [
        curves(norms, "‖ΔW‖ by block"),
        curves(ranks, "Effective rank of ΔW by block"),
        curves([_mean_spectrum(kind, some) for kind, some in kinds.items()], "Singular values over the largest, mean"),
    ]
    return [one for one in drawn if one]


def by_kind(layers: Sequence[Layer]) -> dict[str, list[Layer]]:
    """The layers of each kind."""
    kinds: dict[str, list[Layer]] = {}
    for layer in layers:
        kinds.setdefault(layer.kind, []).append(layer)
    return kinds


def bars(values: Sequence[float]) -> str:
    """A bar for each number, over the largest of them; evenly taken where there are many."""
    if len(values) > _WIDEST:
        values = [values[round(i * (len(values) - 1) / (_WIDEST - 1))] for i in range(_WIDEST)]
    top = max(values, default=0)
    if not top > 0:
        return " " * len(values)
    return "".join(_BARS[max(0, round(value / top * len(_BARS)) - 1)] if value > 0 else " " for value in values)


def _by_block(kind: str, layers: Sequence[Layer], figures: Sequence[float]) -> Series:
    pairs = zip(layers, figures, strict=True)
    return Series(kind, [(layer.block, value) for layer, value in pairs if layer.block is not None])


def _mean_spectrum(kind: str, layers: Sequence[Layer]) -> Series:
    """σ_i / σ₁ by i, over the layers that have an i-th value and any update."""
    spectra = [layer.values / layer.values[0] for layer in layers if layer.values[0] > 0]
    longest = max(map(len, spectra), default=0)
    means = [torch.stack([one[i] for one in spectra if len(one) > i]).mean() for i in range(longest)]
    return Series(kind, [(i + 1, float(mean)) for i, mean in enumerate(means)])
