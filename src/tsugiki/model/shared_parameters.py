"""Parameters that a model uses under several names, such as an embedding that is also the output head."""

from torch import nn

from tsugiki.model.linear import is_quantized
from tsugiki.model.undo import base_of


def shared_parameters(model: nn.Module) -> dict[str, list[str]]:
    """Find the parameters that have several names.

    Returns:
        Each such name -> all names of its parameter, itself included. The names are those before any graft.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name.replace(".base_layer.", "."))
    return {name: group for group in names.values() if len(group) > 1 for name in group}


def quantized_copies(model: nn.Module, parameter: str) -> list[str]:
    """Return the names of layers whose weight is this parameter in the model's files, but is quantised in the model."""
    tied = getattr(model, "all_tied_weights_keys", {})
    layers = [name.rpartition(".")[0] for name, source in tied.items() if source == parameter]
    return [name for name in layers if is_quantized(base_of(model.get_submodule(name)))]
