"""A note on the model of a run, before it trains: how much of it an adapter leaves out."""

from torch import nn

from tsugiki.language import _
from tsugiki.lora.adapter import LoraAdapter
from tsugiki.lora.hold import active_adapter, is_grafted
from tsugiki.model.ungrafted import base_modules, vocabulary_layers

_LEAST_REACHED = 0.5  # share of the weights below which the user is told that an adapter leaves out the others


def reach_notes(model: nn.Module) -> list[str]:
    """Return a note if a LoRA adapter leaves out most of the weights between embedding and head."""
    adapter = active_adapter(model) if is_grafted(model) else None
    if not isinstance(adapter, LoraAdapter):
        return []
    ends = {id(layer) for layer in vocabulary_layers(model).values()}
    inside = [(path, layer) for path, layer in base_modules(model) if id(layer) not in ends]
    sizes = {
        f"{path}.{name}": parameter.numel()
        for path, layer in inside
        for name, parameter in layer._parameters.items()
        if parameter is not None and parameter.dim() > 1 and not isinstance(layer, nn.Embedding)
    }
    reached = sum(size for name, size in sizes.items() if _is_reached(adapter, name))
    total = sum(sizes.values())
    if not total or reached / total >= _LEAST_REACHED:
        return []
    message = _(
        "the adapter is on layers with {share:.0%} of the weights between embedding and head; `tsugiki methods "
        "targets` lists the others"
    )
    return [message.format(share=reached / total)]


def _is_reached(adapter: LoraAdapter, name: str) -> bool:
    path = name.rpartition(".")[0]
    whole = any(path == saved or path.startswith(f"{saved}.") for saved in adapter.modules)
    return path in adapter.pairs or name in adapter.parameter_pairs or whole
