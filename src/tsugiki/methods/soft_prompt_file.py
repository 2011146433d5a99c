"""The file of a soft prompt, as in PEFT: the final prompt, and the sizes of the model in the config."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tsugiki.methods.method import ConfigT, check_shapes, read_fields
from tsugiki.methods.soft_prompt import PromptConfigT, SoftPrompt, SoftPromptAdapter, embedding_width
from tsugiki.model.trained_copies import names_for_file, saved_in_file, saved_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PROMPT_KEY = "prompt_embeddings"
"""PEFT's name for the prompt in a file. It stores the final prompt, not the network that computes it."""
_NETWORK_PREFIX = "tsugiki."
"""Prefix of the names of our own tensors in a file: the network that computes the prompt, with which training can
continue. PEFT ignores them."""
_PREFIX = "base_model."
"""PEFT's prefix of the names of whole modules in the files of soft prompts."""
_MODEL_SIZE_FIELDS = frozenset({"token_dim", "num_layers", "num_attention_heads", "num_transformer_submodules"})


def with_saved_modules(model: nn.Module, config: ConfigT, file_tensors: Collection[str]) -> ConfigT:
    """Return the config with the full names of the modules that a file with these tensors has."""
    saved = saved_in_file(model, config.modules_to_save, _PREFIX, file_tensors)  # type: ignore[attr-defined]
    return replace(config, modules_to_save=saved)  # type: ignore[type-var]


def tensors(model: nn.Module, adapter: SoftPromptAdapter[PromptConfigT]) -> dict[str, Tensor]:
    """Return the tensors of the file: the final prompt, as in PEFT, and the network that computes it, if any."""
    prompt, saved = adapter.prompt, saved_tensors(adapter.modules, _PREFIX)
    if prompt.network is None:
        return {_PROMPT_KEY: prompt.embedding, **saved}
    return {
        _PROMPT_KEY: prompt(),
        **saved,
        **{_NETWORK_PREFIX + name: weight for name, weight in prompt.named_parameters()},
    }


def has_network(file_tensors: Collection[str]) -> bool:
    """Return whether a file with these tensors has the network that computes the prompt. PEFT's files do not."""
    return any(name.startswith(_NETWORK_PREFIX) for name in file_tensors)


def check_file(
    file_tensors: Mapping[str, Tensor], prompt: tuple[int, int], width: int, network: Callable[[], nn.Module]
) -> None:
    """Check that a soft prompt in a file has the sizes that its config gives, before memory is allocated for them.

    Args:
        file_tensors: the tensors in the file.
        prompt: the shape of the prompt.
        width: the width of the embedding from which the network, if the file has one, computes the prompt.
        network: builds that network; it is called on the meta device.

    Raises:
        TsugikiError: a tensor is missing, or has another shape.
    """
    expected: dict[str, Sequence[int]] = {_PROMPT_KEY: prompt}
    if has_network(file_tensors):
        with torch.device("meta"):
            trained = SoftPrompt(torch.empty(prompt[0], width), network())
        expected |= {_NETWORK_PREFIX + name: weight.shape for name, weight in trained.named_parameters()}
    check_shapes(expected, file_tensors)


def to_json(model: "PreTrainedModel", adapter: SoftPromptAdapter[PromptConfigT]) -> dict[str, Any]:
    """Return the fields of the config, and the fields in which PEFT keeps the sizes of the model."""
    fields = {
        **asdict(adapter.config),
        "token_dim": embedding_width(model),
        "num_layers": adapter.shape.layers,
        "num_transformer_submodules": 1,
        "modules_to_save": names_for_file(model, adapter.modules),
    }
    if "encoder_hidden_size" in fields:
        fields["encoder_hidden_size"] = fields["encoder_hidden_size"] or fields["token_dim"]
    return fields


def from_json(config: type[ConfigT], fields: Mapping[str, Any], harmless: Collection[str] = ()) -> ConfigT:
    """Build a config from a file's fields. The sizes of the model are ignored: the tensors' shapes show them."""
    return read_fields(config, fields, _MODEL_SIZE_FIELDS | frozenset(harmless))
