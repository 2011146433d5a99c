"""Notes on a run before it begins: the base's licence, its chat template, and the share of weights with an adapter."""

from typing import TYPE_CHECKING

from torch import nn

from tsugiki.base.card import read_card
from tsugiki.base.resolve import EMBEDDED
from tsugiki.data.read.files import record_kinds
from tsugiki.data.records import Completion, Conversation
from tsugiki.language import _
from tsugiki.lora.adapter import LoraAdapter
from tsugiki.lora.hold import active_adapter, is_grafted
from tsugiki.model.ungrafted import base_modules, vocabulary_layers
from tsugiki.training.config import RunConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_LEAST_REACHED = 0.5


def model_notes(config: RunConfig, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Return the notes on a run, one sentence each.

    Args:
        config: the settings of the run.
        model: the prepared model.
        tokenizer: its tokenizer.
    """
    notes = [] if config.model == EMBEDDED else _terms(config.model)
    return [*notes, *_template(config, tokenizer), *_reach(model)]


def _terms(name: str) -> list[str]:
    card, notes = read_card(name), []
    if card.license:
        notes.append(
            _("the licence of {name} is {license}; read its terms before you publish an adapter").format(
                name=name, license=card.license
            )
        )
    if card.gated:
        notes.append(_("{name} is gated: its users accept its terms on the hub").format(name=name))
    return notes


def _template(config: RunConfig, tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Return a note if a chat model does not see its own chat template in the data."""
    kinds = record_kinds(config.data, config.columns)
    if not tokenizer.chat_template or Conversation in kinds:
        return []
    if kinds == {Completion}:
        return [
            _(
                "the tokenizer has a chat template, but prompt and completion are joined without it; give messages "
                "instead if the model is to answer in a chat"
            )
        ]
    return [
        _(
            "the tokenizer has a chat template, and the data are plain text: if the model is a chat model, it may "
            "answer worse afterwards; its base model learns plain text better"
        )
    ]


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
    return [
        _(
            "the adapter is on layers with {share:.0%} of the weights between embedding and head; `tsugiki methods "
            "targets --model …` lists the others"
        ).format(share=reached / total)
    ]


def _is_reached(adapter: LoraAdapter, name: str) -> bool:
    path = name.rpartition(".")[0]
    whole = any(path == saved or path.startswith(f"{saved}.") for saved in adapter.modules)
    return path in adapter.pairs or name in adapter.parameter_pairs or whole
