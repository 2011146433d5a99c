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

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from torch import Tensor, nn

from tsugiki.annotations import PreTrainedModel
from tsugiki.methods.method import AdapterFormat
from tsugiki.methods.soft_prompt import CacheShape, embedding_width
from tsugiki.methods.soft_prompt_base import Size, SoftPromptConfig, build_for, from_json, tensors, to_json


@dataclass(frozen=True)
class PromptEncoderConfig(SoftPromptConfig):
    """Settings of P-tuning, named as in PEFT's `PromptEncoderConfig`.

    Args:
        num_virtual_tokens: length of the prompt.
        encoder_reparameterization_type: the network that computes the prompt, "MLP" or "LSTM".
        encoder_hidden_size: hidden width of the network; None: the width of the base's embeddings.
        encoder_num_layers: number of layers of the LSTM; the MLP always has three.
        modules_to_save: modules trained in full, on a copy, and stored in the adapter (names or endings). None: the
            output layers of a classifier, if the model is one.
    """

    encoder_reparameterization_type: Literal["MLP", "LSTM"] = "MLP"
    encoder_hidden_size: Size | None = None
    encoder_num_layers: Annotated[int, Ge(1), Le(64)] = 2

    @property
    def has_network(self) -> bool:
        """True: a network always computes a new prompt."""
        return True

    def new_network(self, model: PreTrainedModel, shape: CacheShape) -> nn.Module:
        """Return a new network that computes the prompt."""
        width = embedding_width(model)
        hidden = self.encoder_hidden_size or width
        if self.encoder_reparameterization_type == "LSTM":
            return _LSTMEncoder(width, hidden, self.encoder_num_layers)
        hidden_layers = [nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()]
        return nn.Sequential(*hidden_layers, nn.Linear(hidden, width))


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


def _from_json(fields: Mapping[str, Any]) -> PromptEncoderConfig:
    return from_json(PromptEncoderConfig, fields, harmless=["encoder_dropout"])


P_TUNING = AdapterFormat("P_TUNING", PromptEncoderConfig, tensors, to_json, _from_json, build_for=build_for)
