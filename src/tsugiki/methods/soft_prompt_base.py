"""What all soft prompts share beside the mechanism (`soft_prompt`): settings, a new adapter, and the file as in PEFT.

The file has the final prompt, and its config the sizes of the model.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Annotated, Any, ClassVar, TypeAlias

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn

from tsugiki.annotations import PreTrainedModel
from tsugiki.errors import TsugikiError
from tsugiki.methods.method import ConfigT, check_shapes, read_fields
from tsugiki.methods.soft_prompt import (
    CacheShape,
    SoftPrompt,
    SoftPromptAdapter,
    cache_shape,
    embedding_width,
    random_rows,
    run_decoder,
    split_key_values,
)
from tsugiki.model.setting_checks import check_types
from tsugiki.model.trained_copies import copies_to_save, names_for_file, saved_in_file, saved_tensors
from tsugiki.model.ungrafted import find_modules, task_heads

Size: TypeAlias = Annotated[int, Ge(1), Le(1 << 20)]
"""The length of a prompt or the width of a network."""

_PROMPT_KEY = "prompt_embeddings"
"""PEFT's name for the prompt in a file. It stores the final prompt, not the network that computes it."""
_NETWORK_PREFIX = "tsugiki."
"""Prefix of the names of our own tensors in a file: the network that computes the prompt, with which training can
continue. PEFT ignores them."""
_PREFIX = "base_model."
"""PEFT's prefix of the names of whole modules in the files of soft prompts."""
_MODEL_SIZE_FIELDS = frozenset({"token_dim", "num_layers", "num_attention_heads", "num_transformer_submodules"})


@dataclass(frozen=True)
class SoftPromptConfig:
    """The settings that all soft prompts share, and what distinguishes the methods."""

    num_virtual_tokens: Size = 20
    modules_to_save: Sequence[str] | None = None

    are_key_values: ClassVar[bool] = False
    """Whether the prompt consists of keys and values; otherwise of embeddings, from which the base computes them."""

    def __post_init__(self) -> None:
        check_types(self)

    @property
    def has_network(self) -> bool:
        """Whether a network computes a new prompt from the trained embedding."""
        return False

    def embedding_columns(self, model: PreTrainedModel, shape: CacheShape, with_network: bool) -> int:
        """Return the width of the trained embedding. Without a network, the embedding is the prompt."""
        return embedding_width(model)

    def new_network(self, model: PreTrainedModel, shape: CacheShape) -> nn.Module | None:
        """Return a new network; None if the method has none."""
        return None

    def new_embedding(self, model: PreTrainedModel, columns: int) -> Tensor:
        """Return a new embedding, [virtual tokens, columns]; those of files are replaced afterwards."""
        return random_rows(model, self.num_virtual_tokens, columns)

    def initialise(self, model: PreTrainedModel, prompt: SoftPrompt) -> None:
        """Change the initial value of a new prompt."""

    def new_adapter(self, model: PreTrainedModel) -> "SoftPromptAdapter":
        """Build a new prompt for `model`, which is not changed."""
        _check_heads(model, self)
        adapter = _build(model, self, cache_shape(model, self.num_virtual_tokens), self.has_network)
        with torch.no_grad():
            self.initialise(model, adapter.prompt)
        return adapter


def build_for(
    model: PreTrainedModel, config: SoftPromptConfig, file_tensors: Mapping[str, Tensor]
) -> SoftPromptAdapter:
    """Build an adapter for a file. PEFT's files have the prompt alone, which then trains without a network.

    The shapes in the file are compared with those that the config gives before memory is allocated for them.
    """
    saved = saved_in_file(model, config.modules_to_save, _PREFIX, file_tensors)
    config = replace(config, modules_to_save=saved)
    shape, length = cache_shape(model, config.num_virtual_tokens), config.num_virtual_tokens
    expected: dict[str, Sequence[int]] = {_PROMPT_KEY: (length, config.embedding_columns(model, shape, False))}
    with_network = any(name.startswith(_NETWORK_PREFIX) for name in file_tensors)
    if with_network:
        with torch.device("meta"):
            embedding = torch.empty(length, config.embedding_columns(model, shape, True))
            trained = SoftPrompt(embedding, config.new_network(model, shape))
        expected |= {_NETWORK_PREFIX + name: weight.shape for name, weight in trained.named_parameters()}
    check_shapes(expected, file_tensors)
    return _build(model, config, shape, with_network)


def _build(
    model: PreTrainedModel, config: SoftPromptConfig, shape: CacheShape, with_network: bool
) -> SoftPromptAdapter:
    columns = config.embedding_columns(model, shape, with_network)
    embedding = config.new_embedding(model, columns)
    network = config.new_network(model, shape) if with_network else None
    prompt = SoftPrompt(embedding, None if network is None else network.to(embedding))
    key_values = partial(split_key_values, shape) if config.are_key_values else run_decoder
    return SoftPromptAdapter(config, prompt, key_values, shape, copies_to_save(model, config.modules_to_save))


def _check_heads(model: nn.Module, config: SoftPromptConfig) -> None:
    """Raise a TsugikiError if a new soft prompt of a classifier would leave out its output layers."""
    wanted = config.modules_to_save
    left_out = [] if wanted is None else [name for name in task_heads(model) if name not in find_modules(model, wanted)]
    if left_out:
        raise TsugikiError(
            "modules_to_save leaves out {path}, an output layer of this {kind}, without which PEFT would not "
            "apply a soft prompt; add it, or leave modules_to_save out",
            path=left_out[0],
            kind=type(model).__name__,
        )


def tensors(model: nn.Module, adapter: SoftPromptAdapter) -> dict[str, Tensor]:
    """Return the tensors of the file: the final prompt, as in PEFT, and the network that computes it, if any."""
    prompt, saved = adapter.prompt, saved_tensors(adapter.modules, _PREFIX)
    if prompt.network is None:
        return {_PROMPT_KEY: prompt.embedding, **saved}
    return {
        _PROMPT_KEY: prompt(),
        **saved,
        **{_NETWORK_PREFIX + name: weight for name, weight in prompt.named_parameters()},
    }


def to_json(model: PreTrainedModel, adapter: SoftPromptAdapter) -> dict[str, Any]:
    """Return the fields of the config, and the fields in which PEFT keeps the sizes of the model."""
    fields = asdict(adapter.config)
    del fields["modules_to_save"]
    fields |= {
        "modules_to_save": names_for_file(model, adapter.modules),
        "token_dim": embedding_width(model),
        "num_layers": adapter.shape.layers,
        "num_transformer_submodules": 1,
    }
    if "encoder_hidden_size" in fields:
        fields["encoder_hidden_size"] = fields["encoder_hidden_size"] or fields["token_dim"]
    return fields


def from_json(config: type[ConfigT], fields: Mapping[str, Any], harmless: Collection[str] = ()) -> ConfigT:
    """Build a config from a file's fields. The sizes of the model are ignored: the tensors' shapes show them."""
    return read_fields(config, fields, _MODEL_SIZE_FIELDS | frozenset(harmless))
