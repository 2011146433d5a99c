"""Dropout inside the frozen base: switched off while an adapter trains.

Frozen weights gain nothing from dropout; it only costs time and adds noise. Models hold it in two forms: as
`nn.Dropout` modules, and as bare floats that their `forward` passes on (OPT's `dropout` and `layerdrop`, BLOOM's
`hidden_dropout`, the `attention_dropout` of every SDPA attention).
"""

from torch import nn

SavedDropout = list[tuple[nn.Module, str, float]]
"""Module, attribute and former probability."""


def disable_dropout(model: nn.Module) -> SavedDropout:
    """Set every dropout probability inside `model` to 0, and return the former ones for `restore_dropout`."""
    saved: SavedDropout = []
    for module in model.modules():
        names = ["p"] if isinstance(module, nn.modules.dropout._DropoutNd) else []
        names += [name for name in vars(module) if "drop" in name]
        for name in names:
            value = getattr(module, name)
            if isinstance(value, float) and value > 0:
                saved.append((module, name, value))
                setattr(module, name, 0.0)
    return saved


def restore_dropout(saved: SavedDropout) -> None:
    """Undo `disable_dropout`."""
    for module, name, value in saved:
        setattr(module, name, value)
