"""Prefix tuning: keys and values in front of the text's, in every layer (Li & Liang 2021, arXiv:2101.00190).

    for each layer:   Q [text]     K = [K_p; K_text]     V = [V_p; V_text]

    (K_p, V_p) of all layers = E [virtual tokens, layers · 2 · key heads · head width]
    with prefix_projection:  = W_2 tanh(W_1 E),  E [virtual tokens, key heads · head width]

Only the prefix trains: 2 · layers times the numbers of prompt tuning, and it steers every layer directly, so that it
works with smaller bases. The trade-off: it costs context and the attention to it. The paper found learning through the
projection steadier; that trains many more numbers, of which the prefix alone is needed afterwards and stored by PEFT.
It also found that a prefix should begin at what the layers keep of real words: one drawn from the normal distribution,
PEFT's start, takes attention off the text from the first step on.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from tsugiki.errors import TsugikiError
from tsugiki.methods.method import AdapterFormat
from tsugiki.methods.soft_prompt import (
    CacheShape,
    SoftPrompt,
    SoftPromptAdapter,
    cache_shape,
    check_length,
    from_json,
    holds_network,
    prompt_of_key_values,
    random_rows,
    sampled_key_values,
    tensors,
    to_json,
)


@dataclass(frozen=True)
class PrefixTuningConfig:
    """Settings of prefix tuning, named as in PEFT's `PrefixTuningConfig`.

    Args:
        num_virtual_tokens: length of the prefix.
        prefix_projection: learn it through two layers.
        encoder_hidden_size: width between them; that of a layer's keys where nothing is said.
        init_weights: None: drawn from the standard normal distribution (with a projection, E is). "zero": keys and
            values begin at zero, which is not nothing: zero keys are attended to. "SAMPLE_VOCAB", which PEFT does not
            have and need not know of: at those of random tokens, the start that disturbs the base least.

    Raises:
        TsugikiError: a value that cannot be meant.
    """

    num_virtual_tokens: int = 20
    prefix_projection: bool = False
    encoder_hidden_size: int | None = None
    init_weights: Literal["zero", "SAMPLE_VOCAB"] | None = None

    def __post_init__(self) -> None:
        check_length(self.num_virtual_tokens)
        if not isinstance(self.prefix_projection, bool):
            raise TsugikiError(f"prefix_projection is {self.prefix_projection!r}; it is true or false")
        hidden = self.encoder_hidden_size
        if hidden is not None and (isinstance(hidden, bool) or not isinstance(hidden, int) or hidden < 1):
            raise TsugikiError(f"encoder_hidden_size is {hidden!r}; it is a whole number of at least 1")
        if self.init_weights not in (None, "zero", "SAMPLE_VOCAB"):
            raise TsugikiError(f"init_weights is {self.init_weights!r}; choose zero or SAMPLE_VOCAB, or leave it out")
        if self.init_weights == "SAMPLE_VOCAB" and self.prefix_projection:
            raise TsugikiError("init_weights SAMPLE_VOCAB goes without prefix_projection, which has no such start")

    def new_adapter(self, model: nn.Module) -> SoftPromptAdapter:
        """A fresh prefix for `model`, which stays as it is.

        Raises:
            TsugikiError: a model without a KV cache, or a prefix too long for its context.
        """
        return _new(model, self, self.prefix_projection)


def _new(model: nn.Module, config: PrefixTuningConfig, with_network: bool) -> SoftPromptAdapter:
    shape = cache_shape(model, config.num_virtual_tokens)
    length = config.num_virtual_tokens
    if config.init_weights == "SAMPLE_VOCAB":
        return prompt_of_key_values(config, SoftPrompt(sampled_key_values(model, length)), shape)
    columns = shape.heads * shape.width if with_network else shape.columns
    embedding = random_rows(model, length, columns)
    network = _projection(config, shape).to(embedding) if with_network else None
    if config.init_weights == "zero":
        for weight in network[-1].parameters() if network is not None else [embedding]:
            nn.init.zeros_(weight)
    return prompt_of_key_values(config, SoftPrompt(embedding, network), shape)


def _projection(config: PrefixTuningConfig, shape: CacheShape) -> nn.Sequential:
    width = shape.heads * shape.width
    hidden = config.encoder_hidden_size or width
    return nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, shape.columns))


def _for_file(model: nn.Module, config: PrefixTuningConfig, stored: Collection[str]) -> SoftPromptAdapter:
    """PEFT's files hold the prefix alone: it then trains itself."""
    return _new(model, config, holds_network(stored))


def _to_json(model: nn.Module, adapter: SoftPromptAdapter) -> dict[str, Any]:
    width = adapter.shape.heads * adapter.shape.width
    hidden = adapter.config.encoder_hidden_size or width
    sizes = {"token_dim": width, "num_attention_heads": adapter.shape.heads, "encoder_hidden_size": hidden}
    fields = to_json(model, adapter) | sizes
    if adapter.config.init_weights == "SAMPLE_VOCAB":
        fields["init_weights"] = None  # a start of ours, which the file no longer needs
    return fields


def _from_json(fields: Mapping[str, Any]) -> PrefixTuningConfig:
    config: PrefixTuningConfig = from_json(PrefixTuningConfig, fields)
    return config


PREFIX_TUNING = AdapterFormat("PREFIX_TUNING", PrefixTuningConfig, tensors, _to_json, _from_json, build_for=_for_file)
