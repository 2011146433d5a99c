"""The blocks of a model: the equal parts that its hidden states pass through one after another."""

from torch import nn


def decoder_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the blocks of the decoder: the members of the largest list of modules; none if there is no list."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=lambda module: sum(p.numel() for p in module.parameters()), default=[]))
