"""Tables and plots of the layers of a LoRA adapter, by the singular values of their updates."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from markupsafe import Markup
from torch import Tensor

from tsugiki.adapters.algebra.matrices import effective_rank, singular_values, update_shape
from tsugiki.adapters.lora_weights import LayerFactors
from tsugiki.language import _
from tsugiki.model.names import split_block
from tsugiki.report.formatting import Table, format_number
from tsugiki.report.plots import Series, curves

_BARS = "▁▂▃▄▅▆▇█"
_MAX_BARS = 16  # in one cell


@dataclass(frozen=True, eq=False)
class Layer:
    """The update of one layer and its singular values."""

    path: str
    block: int | None
    """The index of the model's block that contains the layer; None for layers outside blocks, such as the head."""
    kind: str
    """The layer's name relative to its block, such as `attn.c_attn`; the same in all blocks."""
    r: int
    shape: tuple[int, ...]
    values: Tensor
    """The singular values of ΔW in descending order."""

    @property
    def norm(self) -> float:
        """The Frobenius norm of ΔW."""
        return float(self.values.norm())

    @property
    def effective_rank(self) -> float:
        """The effective rank of ΔW (see `adapters.algebra.matrices`)."""
        return effective_rank(self.values)


def decompose(layers: Mapping[str, LayerFactors], advance: Callable[[int], None] = lambda done: None) -> list[Layer]:
    """Compute the singular values of each layer, and sort the layers by block; `advance(1)` is called after each."""
    split_paths = {path: split_block(path) for path in layers}
    block_lists = {owner for owner, block, _ in split_paths.values() if block is not None}
    decomposed = []
    for path, layer in layers.items():
        owner, block, rest = split_paths[path]
        kind = rest if block is None or len(block_lists) == 1 else f"{owner}.*.{rest}"
        decomposed.append(Layer(path, block, kind, layer.r, update_shape(layer), singular_values(layer)))
        advance(1)
    return sorted(decomposed, key=lambda result: block_order(result.path))


def block_order(path: str) -> tuple[bool, int, str]:
    """Return a sort key for names of layers: by block, with layers outside blocks at the end."""
    _owner, block, _rest = split_block(path)
    return block is None, block or 0, path


def layers_table(layers: Sequence[Layer]) -> Table:
    """Return a table with a row for each layer."""
    headers = [_("layer"), _("shape"), "r", "‖ΔW‖", "σ₁", _("effective rank"), "σ / σ₁"]
    return headers, [
        [
            layer.path,
            "×".join(map(str, layer.shape)),
            str(layer.r),
            format_number(layer.norm),
            format_number(float(layer.values[0])),
            f"{layer.effective_rank:.2f}",
            bars(layer.values.tolist()),
        ]
        for layer in layers
    ]


def kinds_table(layers: Sequence[Layer]) -> Table:
    """Return a table with a row for each kind of layer: means, and a bar for each block."""
    by_block = _("by block")
    headers = [_("kind"), _("layers"), _("mean ‖ΔW‖"), by_block, _("mean effective rank"), by_block]
    rows = []
    for kind, group in by_kind(layers).items():
        norms, ranks = [layer.norm for layer in group], [layer.effective_rank for layer in group]
        rows.append(
            [kind, str(len(group)), format_number(fmean(norms)), bars(norms), f"{fmean(ranks):.2f}", bars(ranks)],
        )
    return headers, rows


def layer_plots(layers: Sequence[Layer]) -> list[Markup]:
    """Return plots with a line for each kind of layer: norm by block, effective rank by block, and mean spectrum."""
    kinds = by_kind(layers)
    norms = [_by_block(kind, group, [layer.norm for layer in group]) for kind, group in kinds.items()]
    ranks = [_by_block(kind, group, [layer.effective_rank for layer in group]) for kind, group in kinds.items()]
    spectra = [_mean_spectrum(kind, group) for kind, group in kinds.items()]
    return [
        curves(norms, _("‖ΔW‖ by block")),
        curves(ranks, _("Effective rank of ΔW by block")),
        curves(spectra, _("Singular values relative to the largest, mean")),
    ]


def by_kind(layers: Sequence[Layer]) -> dict[str, list[Layer]]:
    """Group layers by kind."""
    kinds: dict[str, list[Layer]] = {}
    for layer in layers:
        kinds.setdefault(layer.kind, []).append(layer)
    return kinds


def bars(values: Sequence[float]) -> str:
    """Draw a bar of block characters for each value, relative to the largest; of many values, evenly spaced ones."""
    if len(values) > _MAX_BARS:
        values = [values[round(i * (len(values) - 1) / (_MAX_BARS - 1))] for i in range(_MAX_BARS)]
    top = max(values, default=0)
    if not top > 0:
        return " " * len(values)
    return "".join(_BARS[max(0, round(value / top * len(_BARS)) - 1)] if value > 0 else " " for value in values)


def _by_block(kind: str, layers: Sequence[Layer], figures: Sequence[float]) -> Series:
    pairs = zip(layers, figures, strict=True)
    return Series(kind, [(layer.block, value) for layer, value in pairs if layer.block is not None])


def _mean_spectrum(kind: str, layers: Sequence[Layer]) -> Series:
    """Return the mean of σ_i / σ₁ by i, over the layers that have an i-th singular value and an update."""
    spectra = [layer.values / layer.values[0] for layer in layers if layer.values[0] > 0]
    longest = max(map(len, spectra), default=0)
    means = [torch.stack([values[i] for values in spectra if len(values) > i]).mean() for i in range(longest)]
    return Series(kind, [(i + 1, float(mean)) for i, mean in enumerate(means)])
