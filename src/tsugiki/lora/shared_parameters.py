"""Parameters that a model uses under several names, such as an embedding that is also the output head."""

from torch import nn


def shared_parameters(model: nn.Module) -> dict[str, list[str]]:
    """Find the parameters that have several names.

    Returns:
        Each such name -> all names of its parameter, itself included. The names are those before any graft.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name.replace(".base_layer.", "."))
    return {name: group for group in names.values() if len(group) > 1 for name in group}
