"""Dropout inside the frozen base: off while an adapter trains.

Frozen weights gain nothing from dropout; it only costs time and noise. Models keep it in two forms: as
`nn.Dropout` modules, and as bare floats that their forward passes on (OPT's `dropout` and `layerdrop`,
BLOOM's `hidden_dropout`, every SDPA attention's `attention_dropout`).
"""

from torch import nn

SavedDropout = list[tuple[nn.Module, str, float]]


def disable_dropout(model: nn.Module) -> SavedDropout:
    """Set every dropout probability inside `model` to 0; returns what `restore_dropout` needs."""
    silenced: SavedDropout = []
    for module in model.modules():
        names = ["p"] if isinstance(module, nn.modules.dropout._DropoutNd) else []
        names += [name for name in vars(module) if "drop" in name]
        for name in names:
            value = getattr(module, name)
            if isinstance(value, float) and value > 0:
                silenced.append((module, name, value))
                setattr(module, name, 0.0)
    return silenced


def restore_dropout(silenced: SavedDropout) -> None:
    """Put the probabilities back that `disable_dropout` took."""
    for module, name, value in silenced:
        setattr(module, name, value)
