"""P-tuning: a prompt that is computed by a small network (Liu et al. 2021, arXiv:2103.10385).

    E [virtual tokens, width] ── MLP, or LSTM and MLP ── P [virtual tokens, width] ──┐
                                                                                     ├── frozen layers ── logits
    embedded text ───────────────────────────────────────────────────────────────────┘

    MLP    width → hidden → hidden → width, with ReLU between
    LSTM   bidirectional, width → 2 · hidden, then an MLP 2 · hidden → 2 · hidden → width

E and the network train. Only P is needed afterwards, and PEFT stores only P. All virtual tokens share the network and
so learn together, which the paper finds more stable than prompt tuning. The trade-off: in addition to the context and
the attention that a prompt costs, there are some millions of parameters while training. This is the first version of
P-tuning; the method called P-tuning v2 is `prefix_tuning`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from torch import Tensor, nn

from tsugiki.errors import TsugikiError
from tsugiki.language import _
from tsugiki.methods.method import AdapterFormat
from tsugiki.methods.soft_prompt import (
    CacheShape,
    SoftPrompt,
    SoftPromptAdapter,
    adapter_from_embeddings,
    cache_shape,
    check_heads,
    check_size,
    embedding_width,
    random_rows,
)
from tsugiki.methods.soft_prompt_file import check_file, from_json, has_network, tensors, to_json, with_saved_modules
from tsugiki.model.names import check_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Encoder: TypeAlias = Literal["MLP", "LSTM"]


@dataclass(frozen=True)
class PromptEncoderConfig:
    """Settings of P-tuning, named as in PEFT's `PromptEncoderConfig`.

    Args:
        num_virtual_tokens: length of the prompt.
        encoder_reparameterization_type: the network that computes the prompt, "MLP" or "LSTM".
        encoder_hidden_size: hidden width of the network; None: the width of the base's embeddings.
        encoder_num_layers: number of layers of the LSTM; the MLP always has three.
        modules_to_save: modules trained in full, on a copy, and stored in the adapter (names or endings). None: the
            output layers of a classifier, if the model is one.
    """

    num_virtual_tokens: int = 20
    encoder_reparameterization_type: Encoder = "MLP"
    encoder_hidden_size: int | None = None
    encoder_num_layers: int = 2
    modules_to_save: Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_names("modules_to_save", self.modules_to_save)
        check_size("num_virtual_tokens", self.num_virtual_tokens)
        if self.encoder_reparameterization_type not in get_args(Encoder):
            raise TsugikiError(
                _("encoder_reparameterization_type is {value!r}; choose MLP or LSTM").format(
                    value=self.encoder_reparameterization_type
                )
            )
        if self.encoder_hidden_size is not None:
            check_size("encoder_hidden_size", self.encoder_hidden_size)
        check_size("encoder_num_layers", self.encoder_num_layers, most=64)

    def new_adapter(self, model: nn.Module) -> "SoftPromptAdapter[PromptEncoderConfig]":
        """Build a new prompt and its network for `model`, which is not changed.

        Raises:
            TsugikiError: the model has no KV cache, or the prompt is too long for its context.
        """
        check_heads(model, self)
        return _build(model, self, cache_shape(model, self.num_virtual_tokens), with_network=True)


class _LSTMEncoder(nn.Module):
    """A bidirectional LSTM, followed by an MLP."""

    def __init__(self, width: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, hidden, layers, bidirectional=True, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(2 * hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, width))

    def forward(self, embedding: Tensor) -> Tensor:
        """Compute the prompt, [virtual tokens, width], from the embedding of the same shape."""
        states, _other = self.lstm(embedding)
        prompt: Tensor = self.mlp(states)
        return prompt


def _build(
    model: "PreTrainedModel", config: PromptEncoderConfig, shape: CacheShape, with_network: bool
) -> SoftPromptAdapter[PromptEncoderConfig]:
    width = embedding_width(model)
    embedding = random_rows(model, config.num_virtual_tokens, width)
    network = _new_network(config, width).to(embedding) if with_network else None
    return adapter_from_embeddings(model, config, SoftPrompt(embedding, network), shape)


def _new_network(config: PromptEncoderConfig, width: int) -> nn.Module:
    hidden = config.encoder_hidden_size or width
    if config.encoder_reparameterization_type == "LSTM":
        return _LSTMEncoder(width, hidden, config.encoder_num_layers)
    hidden_layers = [nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()]
    return nn.Sequential(*hidden_layers, nn.Linear(hidden, width))


def _build_for(
    model: "PreTrainedModel", config: PromptEncoderConfig, file_tensors: Mapping[str, Tensor]
) -> SoftPromptAdapter[PromptEncoderConfig]:
    """Build an adapter for a file. PEFT's files have the prompt alone, which then trains without a network."""
    config = with_saved_modules(model, config, file_tensors)
    shape, width = cache_shape(model, config.num_virtual_tokens), embedding_width(model)
    check_file(file_tensors, (config.num_virtual_tokens, width), width, partial(_new_network, config, width))
    return _build(model, config, shape, has_network(file_tensors))


def _from_json(fields: Mapping[str, Any]) -> PromptEncoderConfig:
    return from_json(PromptEncoderConfig, fields, harmless=["encoder_dropout"])


P_TUNING = AdapterFormat("P_TUNING", PromptEncoderConfig, tensors, to_json, _from_json, build_for=_build_for)
