"""Soft prompts: trained vectors before every text. The weights of the base do not change.

    keys, values of a layer   [ virtual tokens | text ]     every token of the text sees the whole prompt,
                                ^                           and the text before itself as usual
                                └── computed by the base from trained embeddings    (prompt tuning, P-tuning)
                                    or trained directly                             (prefix tuning)

In a causal model, a text depends on what comes before it only through the keys and values of each layer, and the prompt
does not depend on the text. So a soft prompt of any kind is the beginning of the KV cache. It is computed once for all
rows of a batch. Hidden states, logits and labels are those of the text alone, so losses, evaluation and generation need
no change. The positions of the text begin after those of the prompt. Each of several packed documents sees the prompt,
but not the other documents.

Unlike the other methods, a soft prompt changes the model's outputs before the first training step.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache as function_cache
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import torch
from torch import Tensor, nn

from tsugiki.dtypes import at_least_float32
from tsugiki.errors import TsugikiError
from tsugiki.fast.document_masks import (
    attention_windows,
    extend_mask,
    has_left_padding,
    has_unknown_window,
    is_packed,
    packed_masks,
    padded_layout,
    prompt_masks,
)
from tsugiki.language import _
from tsugiki.model.context import PROMPT_ATTRIBUTE, decoder_of, max_positions
from tsugiki.model.inference import evaluating
from tsugiki.model.undo import Undo, attach, base_of, replace_module, set_attribute

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel

KeyValues: TypeAlias = list[tuple[Tensor, Tensor]]
"""The keys and values of each layer, both [1, key heads, virtual tokens, head width]."""
KeyValueFunction: TypeAlias = "Callable[[PreTrainedModel, Tensor], KeyValues]"
"""(decoder, prompt) -> the keys and values of the prompt."""

_MIN_TEXT_TOKENS = 32  # tokens of the context that a prompt leaves for the text; the probes of a model are shorter


class SoftPrompt(nn.Module):
    """The trained parameters of a soft prompt, in float32 (float64 for a float64 base) whatever the base's dtype.

    The network computes the prompt from the embedding [virtual tokens, width]. None: the embedding is the prompt.
    """

    def __init__(self, embedding: Tensor, network: nn.Module | None = None) -> None:
        super().__init__()
        self.embedding = nn.Parameter(embedding)
        self.network = network

    def forward(self) -> Tensor:
        """Compute the prompt, [virtual tokens, columns], as PEFT stores it."""
        # A copy, because ZeRO-3 frees a parameter at the end of its module's forward pass.
        prompt: Tensor = self.embedding.clone() if self.network is None else self.network(self.embedding)
        return prompt


@dataclass(frozen=True)
class CacheShape:
    """The sizes of a model's KV cache."""

    layers: int
    heads: int
    width: int
    """The width of one head."""

    @property
    def columns(self) -> int:
        """Number of elements per token: keys and values of all heads and layers."""
        return self.layers * 2 * self.heads * self.width


@dataclass
class SoftPromptAdapter:
    """A soft prompt, and the function that computes keys and values from it."""

    config: Any
    prompt: SoftPrompt
    key_values: KeyValueFunction
    shape: CacheShape
    modules: dict[str, nn.Module]
    """The modules of the base that train as a whole, by name."""

    def attach(self, model: nn.Module, undo: list[Undo]) -> None:
        """Attach the prompt to the decoder, which every forward pass goes through, and replace whole modules."""
        base = decoder_of(model)
        assert base is not None  # `cache_shape` has checked it
        set_attribute(base, PROMPT_ATTRIBUTE, len(self.prompt.embedding), undo)
        attach(
            base,
            self.prompt,
            undo,
            before=partial(_prepend_prompt, self.key_values),
            after=_drop_unrequested_cache,
        )
        for path, module in self.modules.items():
            replace_module(model, path, module, undo)

    def weight_updates(self, model: nn.Module) -> NoReturn:
        """Raise a TsugikiError: a soft prompt is not a change of the base's weights."""
        raise TsugikiError("a soft prompt does not change weights, so it cannot be merged; keep it as an adapter")


@torch.no_grad()
def cache_shape(model: "PreTrainedModel", virtual_tokens: int) -> CacheShape:
    """Return the sizes of the model's KV cache, found by running two tokens through the decoder.

    A model that is not a causal decoder with a KV cache is an error, and so is a prompt that is too long for its
    context.
    """
    unsuitable = _(
        "{kind} is not a decoder language model with a KV cache, which a soft prompt needs; use another method",
        kind=type(model).__name__,
    )
    base = decoder_of(model)
    if base is None or getattr(model.config, "is_encoder_decoder", False):
        raise TsugikiError(unsuitable)
    try:
        with evaluating(base):
            first, second = (run_decoder(base, rows) for rows in _probes(embedding_width(model), base.device))
        keys, values = (torch.stack(of_layers) for of_layers in zip(*first, strict=True))
    except Exception as error:  # any error means that the decoder does not work as expected
        raise TsugikiError(unsuitable) from error
    # The first token is the same in both probes, so in a causal model its keys are, too. A meta tensor has no values.
    causal = keys.is_meta or torch.allclose(first[-1][0][:, :, 0], second[-1][0][:, :, 0], rtol=1e-3, atol=1e-3)
    if keys.shape != values.shape or keys.dim() != 5 or keys.shape[3] != 2 or not causal:
        raise TsugikiError(unsuitable)
    context = max_positions(model)
    if context is not None and virtual_tokens > context - _MIN_TEXT_TOKENS:
        raise TsugikiError(
            "num_virtual_tokens is {count}, but the model's context is {context} tokens, of which the text "
            "needs at least {least}; choose {most} or fewer",
            count=virtual_tokens,
            context=context,
            least=_MIN_TEXT_TOKENS,
            most=max(context - _MIN_TEXT_TOKENS, 0),
        )
    return CacheShape(layers=keys.shape[0], heads=keys.shape[2], width=keys.shape[4])


def embedding_of(model: "PreTrainedModel") -> nn.Module:
    """Return the frozen token embedding, whose output enters the first layer."""
    return base_of(model.get_input_embeddings())


def embedding_width(model: "PreTrainedModel") -> int:
    """Return the width of a token's embedding."""
    return int(embedding_of(model).weight.shape[1])  # type: ignore[index]


def random_rows(model: "PreTrainedModel", rows: int, columns: int) -> Tensor:
    """Draw [rows, columns] from the standard normal distribution, as `nn.Embedding` is initialised.

    The values are drawn on the processor, so that they are the same on every device.
    """
    return torch.randn(rows, columns, dtype=at_least_float32(model.dtype)).to(model.device)


def sampled_rows(model: "PreTrainedModel", rows: int) -> Tensor:
    """Return the embeddings of random tokens, [rows, embedding width]."""
    embedding = embedding_of(model)
    ids = torch.randint(0, len(embedding.weight), (rows,))  # type: ignore[arg-type]
    embedded: Tensor = embedding(ids.to(model.device))
    return embedded


@torch.no_grad()
def sampled_key_values(model: "PreTrainedModel", rows: int) -> Tensor:
    """Return the keys and values of a text of random tokens, [rows, columns], in the layout of `split_key_values`."""
    base = decoder_of(model)
    assert base is not None  # `cache_shape` has checked it
    with evaluating(base):
        of_layers = [torch.cat(both) for both in run_decoder(base, sampled_rows(model, rows))]
    return torch.stack(of_layers).permute(3, 0, 1, 2, 4).reshape(rows, -1).to(at_least_float32(base.dtype))


def _probes(width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return two pairs of embedded tokens, both [2, width], that differ in the second token only."""
    tokens = torch.linspace(-1, 1, 2 * width, device=device).view(2, width)
    return tokens, torch.cat([tokens[:1], tokens[1:].flip(-1)])


def run_decoder(base: "PreTrainedModel", prompt: Tensor) -> KeyValues:
    """Compute the keys and values that the decoder caches for these embeddings, [virtual tokens, width]."""
    from transformers import DynamicCache

    cache = DynamicCache()  # the model's own class may drop what leaves a sliding window
    # `forward` is called directly, because the hooks would put the prompt before itself.
    output = base.forward(inputs_embeds=prompt[None].to(base.dtype), use_cache=True, **{_cache_argument(base): cache})
    kept = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    through: tuple[Tensor, ...] = _BackwardThroughOutput.apply(output[0], *kept)  # type: ignore[no-untyped-call]
    return list(zip(through[::2], through[1::2], strict=True))


class _BackwardThroughOutput(torch.autograd.Function):
    """Returns the keys and values of a decoder, and passes a gradient of zero to the decoder's output as well.

    A block whose weights are sharded over processes gathers them when the gradient of its output arrives. Keys and
    values are computed inside the block, so with their gradients alone the weights would not be gathered.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, *kept: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(output)
        return kept

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        (output,) = ctx.saved_tensors
        return torch.zeros_like(output), *gradients


def split_key_values(shape: CacheShape, base: "PreTrainedModel", prompt: Tensor) -> KeyValues:
    """Split a prompt, [virtual tokens, layers · 2 · heads · width], into the keys and values of each layer."""
    parts = prompt.to(base.dtype).view(len(prompt), shape.layers, 2, shape.heads, shape.width).permute(1, 2, 3, 0, 4)
    return [(keys[None], values[None]) for keys, values in parts]


def _prepend_prompt(
    key_values: KeyValueFunction, base: "PreTrainedModel", args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[()], dict[str, Any]]:
    """Change the decoder's arguments so that the prompt precedes the text. This is a forward pre-hook."""
    names = _argument_names(type(base).forward)
    kwargs = {**dict(zip(names, args, strict=False)), **kwargs}
    text = kwargs["input_ids"] if kwargs.get("input_ids") is not None else kwargs.get("inputs_embeds")
    if text is None:
        return (), kwargs  # the decoder raises its own error
    recomputes = any(getattr(module, "gradient_checkpointing", False) for module in base.modules())
    if base.training and torch.is_grad_enabled() and recomputes:
        raise TsugikiError(
            "gradient checkpointing drops the KV cache, which holds the soft prompt; call "
            "model.gradient_checkpointing_disable()"
        )
    mask, positions, length = kwargs.get("attention_mask"), kwargs.get("position_ids"), len(base.tsugiki.embedding)
    padded = (has_unknown_window(base) or attention_windows(base) != [None]) and has_left_padding(mask)
    cache = kwargs.pop("past_key_values", None) if kwargs.get("cache") is None else kwargs["cache"]
    is_first_call = cache is None or not cache.get_seq_length()
    if is_first_call:
        cache = _start_cache(cache, key_values(base, base.tsugiki()), text.shape[0], unlimited=padded)
    kwargs[_cache_argument(base)] = cache
    if mask is not None:
        kwargs["attention_mask"] = (
            prompt_masks(base, padded_layout(mask, text.shape[1], length)) if padded else extend_mask(mask, length)
        )
    elif is_first_call and positions is not None and is_packed(positions):
        kwargs["attention_mask"] = packed_masks(base, positions, length)
    if positions is not None:
        kwargs["position_ids"] = positions + length
    if "use_cache" in names and kwargs.get("use_cache") is None:
        kwargs["use_cache"] = getattr(base.config, "use_cache", True)
    return (), kwargs


def _start_cache(cache: "DynamicCache | None", prompt: KeyValues, rows: int, unlimited: bool) -> "DynamicCache":
    """Put the prompt into the empty cache, or into a new one if `cache` is None, once for each row of the batch.

    If `unlimited`, the layers of the cache are replaced by layers that keep every token, without a sliding window. A
    cache of another class, such as one of fixed length, is an error.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    if cache is None:
        cache = DynamicCache()
    if not isinstance(cache, DynamicCache):
        raise TsugikiError(
            "a soft prompt cannot be put into a cache of fixed length ({kind}); leave cache_implementation "
            "out, or set it to 'dynamic'",
            kind=type(cache).__name__,
        )
    if unlimited:
        cache.layers = [DynamicLayer() for _ in prompt]
    for layer, (keys, values) in enumerate(prompt):
        cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), layer)
    return cache


def _drop_unrequested_cache(base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Remove the cache from the output unless the caller set `use_cache`. This is a forward hook."""
    name = _cache_argument(base)
    if kwargs.get("use_cache", True) or not hasattr(output, "keys") or name not in output:
        return output
    return type(output)(**{key: value for key, value in output.items() if key != name})


def _cache_argument(base: nn.Module) -> str:
    """Return the name of the decoder's argument for the cache, which transformers renamed in 5.24."""
    return "cache" if "cache" in _argument_names(type(base).forward) else "past_key_values"


@function_cache
def _argument_names(forward: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of a decoder's arguments, in order."""
    return tuple(inspect.signature(forward).parameters)[1:]
