"""P-tuning: a prompt that a small network writes (Liu et al. 2021, arXiv:2103.10385).

    E [virtual tokens, width] ── MLP, or LSTM and MLP ── P [virtual tokens, width] ──┐
                                                                                     ├── frozen layers ── logits
    embedded text ───────────────────────────────────────────────────────────────────┘

    MLP    width → hidden → hidden → width, with ReLU between
    LSTM   both directions, width → 2 · hidden, then 2 · hidden → 2 · hidden → width

E and the network train; only P is needed afterwards, and only P is stored by PEFT. Since the network is shared by all
virtual tokens, they learn together, which the paper finds steadier than prompt tuning. The trade-off: beside context
and attention, some millions of parameters while training. This is the first P-tuning; what is called P-tuning v2 is
`prefix_tuning`.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor, nn

from tsugiki.errors import TsugikiError
from tsugiki.methods.method import AdapterFormat
from tsugiki.methods.soft_prompt import (
    SoftPrompt,
    SoftPromptAdapter,
    cache_shape,
    check_length,
    embedding_width,
    from_json,
    holds_network,
    prompt_of_embeddings,
    random_rows,
    tensors,
    to_json,
)

Encoder = Literal["MLP", "LSTM"]


@dataclass(frozen=True)
class PromptEncoderConfig:
    """Settings of P-tuning, named as in PEFT's `PromptEncoderConfig`.

    Args:
        num_virtual_tokens: length of the prompt.
        encoder_reparameterization_type: what writes it.
        encoder_hidden_size: width inside; that of the base's embeddings where nothing is said.
        encoder_num_layers: layers of the LSTM; the MLP has always the same.

    Raises:
        TsugikiError: a value that cannot be meant.
    """

    num_virtual_tokens: int = 20
    encoder_reparameterization_type: Encoder = "MLP"
    encoder_hidden_size: int | None = None
    encoder_num_layers: int = 2

    def __post_init__(self) -> None:
        check_length(self.num_virtual_tokens)
        if self.encoder_reparameterization_type not in get_args(Encoder):
            raise TsugikiError(
                f"encoder_reparameterization_type is {self.encoder_reparameterization_type!r}; choose MLP or LSTM"
            )
        for name in ("encoder_hidden_size", "encoder_num_layers"):
            size = getattr(self, name)
            if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
                raise TsugikiError(f"{name} is {size!r}; it is a whole number of at least 1")

    def new_adapter(self, model: nn.Module) -> SoftPromptAdapter:
        """A fresh prompt and its encoder for `model`, which stays as it is.

        Raises:
            TsugikiError: a model without a KV cache, or a prompt too long for its context.
        """
        return _new(model, self, with_network=True)


class _Recurrent(nn.Module):
    """An LSTM in both directions, and an MLP on what it gives."""

    def __init__(self, width: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, hidden, layers, bidirectional=True, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(2 * hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, width))

    def forward(self, embedding: Tensor) -> Tensor:
        """[virtual tokens, width] to the same."""
        states, _ = self.lstm(embedding)
        prompt: Tensor = self.mlp(states)
        return prompt


def _new(model: nn.Module, config: PromptEncoderConfig, with_network: bool) -> SoftPromptAdapter:
    shape, width = cache_shape(model, config.num_virtual_tokens), embedding_width(model)
    embedding = random_rows(model, config.num_virtual_tokens, width)
    network = _network(config, width).to(embedding) if with_network else None
    return prompt_of_embeddings(config, SoftPrompt(embedding, network), shape)


def _network(config: PromptEncoderConfig, width: int) -> nn.Module:
    hidden = config.encoder_hidden_size or width
    if config.encoder_reparameterization_type == "LSTM":
        return _Recurrent(width, hidden, config.encoder_num_layers)
    between = [nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()]
    return nn.Sequential(*between, nn.Linear(hidden, width))


def _for_file(model: nn.Module, config: PromptEncoderConfig, stored: Collection[str]) -> SoftPromptAdapter:
    """PEFT's files hold the prompt alone: it then trains itself."""
    return _new(model, config, holds_network(stored))


def _from_json(fields: Mapping[str, Any]) -> PromptEncoderConfig:
    config: PromptEncoderConfig = from_json(PromptEncoderConfig, fields, harmless=["encoder_dropout"])
    return config


P_TUNING = AdapterFormat("P_TUNING", PromptEncoderConfig, tensors, to_json, _from_json, build_for=_for_file)
