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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from tsugiki.errors import TsugikiError
from tsugiki.language import _
from tsugiki.methods.method import AdapterFormat
from tsugiki.methods.soft_prompt import (
    CacheShape,
    SoftPrompt,
    SoftPromptAdapter,
    adapter_from_key_values,
    cache_shape,
    check_heads,
    check_size,
    random_rows,
    sampled_key_values,
)
from tsugiki.methods.soft_prompt_file import check_file, from_json, has_network, tensors, to_json, with_saved_modules
from tsugiki.model.names import check_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class PrefixTuningConfig:
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

    num_virtual_tokens: int = 20
    prefix_projection: bool = False
    encoder_hidden_size: int | None = None
    init_weights: Literal["zero", "SAMPLE_VOCAB"] | None = None
    modules_to_save: Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_names("modules_to_save", self.modules_to_save)
        check_size("num_virtual_tokens", self.num_virtual_tokens)
        if not isinstance(self.prefix_projection, bool):
            raise TsugikiError(
                _("prefix_projection is {prefix_projection!r}; it must be true or false").format(
                    prefix_projection=self.prefix_projection
                )
            )
        if self.encoder_hidden_size is not None:
            check_size("encoder_hidden_size", self.encoder_hidden_size)
        if self.init_weights not in (None, "zero", "SAMPLE_VOCAB"):
            raise TsugikiError(
                _("init_weights is {init_weights!r}; choose zero or SAMPLE_VOCAB, or leave it out").format(
                    init_weights=self.init_weights
                )
            )
        if self.init_weights == "SAMPLE_VOCAB" and self.prefix_projection:
            raise TsugikiError(_("init_weights SAMPLE_VOCAB cannot be combined with prefix_projection; leave one out"))

    def new_adapter(self, model: nn.Module) -> "SoftPromptAdapter[PrefixTuningConfig]":
        """Build a new prefix for `model`, which is not changed.

        Raises:
            TsugikiError: the model has no KV cache, or the prefix is too long for its context.
        """
        check_heads(model, self)
        return _build(model, self, cache_shape(model, self.num_virtual_tokens), self.prefix_projection)


def _build(
    model: "PreTrainedModel", config: PrefixTuningConfig, shape: CacheShape, with_network: bool
) -> SoftPromptAdapter[PrefixTuningConfig]:
    length = config.num_virtual_tokens
    if config.init_weights == "SAMPLE_VOCAB":
        return adapter_from_key_values(model, config, SoftPrompt(sampled_key_values(model, length)), shape)
    columns = shape.heads * shape.width if with_network else shape.columns
    embedding = random_rows(model, length, columns)
    network = _new_projection(config, shape).to(embedding) if with_network else None
    if config.init_weights == "zero":
        for weight in network[-1].parameters() if network is not None else [embedding]:
            nn.init.zeros_(weight)
    return adapter_from_key_values(model, config, SoftPrompt(embedding, network), shape)


def _new_projection(config: PrefixTuningConfig, shape: CacheShape) -> nn.Sequential:
    width = shape.heads * shape.width
    hidden = config.encoder_hidden_size or width
    return nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, shape.columns))


def _build_for(
    model: "PreTrainedModel", config: PrefixTuningConfig, file_tensors: Mapping[str, Tensor]
) -> SoftPromptAdapter[PrefixTuningConfig]:
    """Build an adapter for a file. PEFT's files have the prefix alone, which then trains without a projection."""
    config = with_saved_modules(model, config, file_tensors)
    shape = cache_shape(model, config.num_virtual_tokens)
    check_file(
        file_tensors,
        (config.num_virtual_tokens, shape.columns),
        shape.heads * shape.width,
        partial(_new_projection, config, shape),
    )
    return _build(model, config, shape, has_network(file_tensors))


def _to_json(model: nn.Module, adapter: SoftPromptAdapter[PrefixTuningConfig]) -> dict[str, Any]:
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
    build_for=_build_for,
)
