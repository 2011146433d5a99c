"""Prefix tuning: trained keys and values before those of the text, in every layer (Li & Liang 2021, arXiv:2101.00190).

    for each layer:   Q [text]     K = [K_p; K_text]     V = [V_p; V_text]

    (K_p, V_p) of all layers = E [virtual tokens, layers · 2 · key heads · head width]
    with prefix_projection:  = W_2 tanh(W_1 E),  E [virtual tokens, key heads · head width]

Only the prefix trains. It has 2 · layers times the parameters of prompt tuning, and it acts on every layer directly, so
it works with smaller bases. The trade-off: the prefix takes up context, and every token's attention to it costs time.
The paper found that training through the projection is more stable. The projection has many more parameters, but only
the prefix is needed afterwards, and PEFT stores only the prefix. The paper also found that a prefix should be
initialised with the keys and values of real words. If it is drawn from the normal distribution, as in PEFT, it takes
attention away from the text from the first step on.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from tsugiki.annotations import PreTrainedModel
from tsugiki.errors import TsugikiError
from tsugiki.methods.method import AdapterFormat
from tsugiki.methods.soft_prompt import CacheShape, SoftPrompt, SoftPromptAdapter, sampled_key_values
from tsugiki.methods.soft_prompt_base import Size, SoftPromptConfig, build_for, from_json, tensors, to_json


@dataclass(frozen=True)
class PrefixTuningConfig(SoftPromptConfig):
    """Settings of prefix tuning, named as in PEFT's `PrefixTuningConfig`.

    Args:
        num_virtual_tokens: length of the prefix.
        prefix_projection: compute the prefix by two linear layers.
        encoder_hidden_size: hidden width of the projection; None: the width of a layer's keys.
        init_weights: initial value. None: drawn from the standard normal distribution (with a projection, E is).
            "zero": keys and values are zero; this still changes the model, because zero keys receive attention.
            "SAMPLE_VOCAB": the keys and values of random tokens, which disturb the base least. PEFT does not have
            this value, and does not need it to load the file.
        modules_to_save: modules trained in full, on a copy, and stored in the adapter (names or endings). None: the
            output layers of a classifier, if the model is one.
    """

    prefix_projection: bool = False
    encoder_hidden_size: Size | None = None
    init_weights: Literal["zero", "SAMPLE_VOCAB"] | None = None

    are_key_values: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_weights == "SAMPLE_VOCAB" and self.prefix_projection:
            raise TsugikiError("init_weights SAMPLE_VOCAB cannot be combined with prefix_projection; leave one out")

    @property
    def has_network(self) -> bool:
        """Whether a projection computes the prefix."""
        return self.prefix_projection

    def embedding_columns(self, model: PreTrainedModel, shape: CacheShape, with_network: bool) -> int:
        """Return the width of the prefix, or of the embedding that is projected."""
        return shape.heads * shape.width if with_network else shape.columns

    def new_network(self, model: PreTrainedModel, shape: CacheShape) -> nn.Module:
        """Return a new projection."""
        width = shape.heads * shape.width
        hidden = self.encoder_hidden_size or width
        return nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, shape.columns))

    def new_embedding(self, model: PreTrainedModel, columns: int) -> Tensor:
        """Return random values, or the keys and values of random tokens."""
        if self.init_weights == "SAMPLE_VOCAB":
            return sampled_key_values(model, self.num_virtual_tokens)
        return super().new_embedding(model, columns)

    def initialise(self, model: PreTrainedModel, prompt: SoftPrompt) -> None:
        """Set what computes the prefix to zero, if the settings say so."""
        if self.init_weights == "zero":
            last = prompt if prompt.network is None else prompt.network[-1]  # type: ignore[index]
            for weight in last.parameters():
                nn.init.zeros_(weight)


def _to_json(model: nn.Module, adapter: SoftPromptAdapter) -> dict[str, Any]:
    width = adapter.shape.heads * adapter.shape.width
    hidden = adapter.config.encoder_hidden_size or width
    sizes = {"token_dim": width, "num_attention_heads": adapter.shape.heads, "encoder_hidden_size": hidden}
    fields = to_json(model, adapter) | sizes
    if adapter.config.init_weights == "SAMPLE_VOCAB":
        fields["init_weights"] = None  # PEFT does not know this value, and the file has the trained prefix
    return fields


PREFIX_TUNING = AdapterFormat(
    "PREFIX_TUNING",
    PrefixTuningConfig,
    tensors,
    _to_json,
    partial(from_json, PrefixTuningConfig),
    build_for=build_for,
)
