"""Notes on the model of a run, before it trains: terms of its use, and what an adapter leaves out."""

from torch import nn

from tsugiki.annotations import PreTrainedModel
from tsugiki.base.card import read_card
from tsugiki.base.resolve import EMBEDDED
from tsugiki.language import _
from tsugiki.lora.adapter import LoraAdapter
from tsugiki.lora.hold import active_adapter, is_grafted
from tsugiki.model.ungrafted import base_modules, vocabulary_layers

_LEAST_REACHED = 0.5  # share of the weights below which the user is told that an adapter leaves out the others


def model_notes(name: str, model: PreTrainedModel) -> list[str]:
    """Return the notes on a grafted model with this name, one sentence each."""
    notes = [] if name == EMBEDDED else _terms(name)
    return [*notes, *_reach(model)]


def _terms(name: str) -> list[str]:
    card, notes = read_card(name), []
    if card.license:
        message = _("the licence of {name} is {license}; read its terms before you publish an adapter")
        notes.append(message.format(name=name, license=card.license))
    if card.gated:
        notes.append(_("{name} is gated: its users accept its terms on the hub").format(name=name))
    return notes


def _reach(model: nn.Module) -> list[str]:
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
