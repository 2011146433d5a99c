"""Soft prompts: trained vectors in front of every text, before a base that stays as it is.

    keys, values of a layer   [ virtual tokens | text ]     every token of the text sees the whole prompt,
                                ^                           and the text before it as always
                                └── of trained embeddings, run through the base    (prompt tuning, P-tuning)
                                    or trained themselves                          (prefix tuning)

A causal layer knows what stands before a text by its keys and values alone, and a prompt does not see the text. So a
prompt of any kind is the beginning of the KV cache, computed once for all rows of a batch: hidden states, logits and
labels are those of the text, and losses, evaluation and generation need not know of it. Positions of the text go on
behind the prompt. Packed documents each see the prompt, and not each other.

An untrained prompt is not nothing: unlike the other methods, these change the model before the first step.
"""

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from functools import cache as remembered
from functools import partial
from typing import Any, NoReturn, TypeAlias

import torch
from torch import Tensor, nn

from tsugiki.base.inference import evaluating
from tsugiki.dtypes import at_least_float32
from tsugiki.errors import TsugikiError
from tsugiki.fast.document_masks import (
    apart,
    extend_mask,
    is_unknown,
    masks,
    packed,
    packed_layout,
    padded_layout,
    windows,
)
from tsugiki.lora.layer import base_of
from tsugiki.lora.swap import CHILD, Undo
from tsugiki.methods.method import read_fields

KeyValues: TypeAlias = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer, [1, key heads, virtual tokens, width]."""

_STORED = "prompt_embeddings"
"""PEFT's name of the prompt as it is used; what computes it, PEFT does not store."""
_NETWORK = "tsugiki."
"""Before the names of ours, of what computes it: training goes on from there, and PEFT passes over them."""
_ROOM = 32  # tokens of text, in which everything that tries a model out fits
_OF_THE_MODEL = frozenset({"token_dim", "num_layers", "num_attention_heads", "num_transformer_submodules"})


class SoftPrompt(nn.Module):
    """The prompt of one adapter: `embedding` [virtual tokens, width], and what computes the prompt of it, if anything.

    In float32 (float64 for a float64 base) whatever the base's dtype.
    """

    def __init__(self, embedding: Tensor, network: nn.Module | None = None) -> None:
        super().__init__()
        self.embedding = nn.Parameter(embedding)
        self.network = network

    def forward(self) -> Tensor:
        """[virtual tokens, columns], what PEFT stores."""
        prompt: Tensor = self.embedding if self.network is None else self.network(self.embedding)
        return prompt


@dataclass(frozen=True)
class CacheShape:
    """What a model's KV cache holds of a token."""

    layers: int
    heads: int
    width: int

    @property
    def columns(self) -> int:
        """Numbers of a token: keys and values of all layers."""
        return self.layers * 2 * self.heads * self.width


@dataclass
class SoftPromptAdapter:
    """One soft prompt, and what makes keys and values of it: a function of the base and of the prompt."""

    config: Any
    prompt: SoftPrompt
    key_values: Callable[[Any, Tensor], KeyValues]
    shape: CacheShape

    @property
    def wrapped(self) -> Collection[str]:
        """No layer is grafted."""
        return ()

    def attach(self, model: nn.Module) -> list[Undo]:
        """Hang the prompt into the layers' own module, through which every call goes."""
        base = decoder_of(model)
        base.add_module(CHILD, self.prompt.to(base.device).train(base.training))
        before = base.register_forward_pre_hook(partial(_put_in_front, self.key_values), with_kwargs=True)
        after = base.register_forward_hook(_keep_unasked_cache, with_kwargs=True)
        return [partial(_take_out, base, [before, after])]

    def weight_updates(self, model: nn.Module) -> NoReturn:
        """Raise a TsugikiError: a soft prompt is not a change of the base's weights."""
        raise TsugikiError("a soft prompt is no change of weights and cannot be merged; keep it as an adapter")


def prompt_of_embeddings(config: Any, prompt: SoftPrompt, shape: CacheShape) -> SoftPromptAdapter:
    """An adapter whose prompt is embeddings, [virtual tokens, width of an embedded token]."""
    return SoftPromptAdapter(config, prompt, _run_through, shape)


def prompt_of_key_values(config: Any, prompt: SoftPrompt, shape: CacheShape) -> SoftPromptAdapter:
    """An adapter whose prompt is keys and values, [virtual tokens, shape.columns]."""
    return SoftPromptAdapter(config, prompt, partial(_as_key_values, shape), shape)


def check_length(virtual_tokens: int) -> None:
    """Refuse what is no number of tokens.

    Raises:
        TsugikiError: it is none.
    """
    if isinstance(virtual_tokens, bool) or not isinstance(virtual_tokens, int) or virtual_tokens < 1:
        raise TsugikiError(f"num_virtual_tokens is {virtual_tokens!r}; it is a whole number of at least 1")


@torch.no_grad()
def cache_shape(model: Any, virtual_tokens: int) -> CacheShape:
    """What the model's KV cache holds, found out by trying, where a prompt of this length has room.

    Raises:
        TsugikiError: a model without such a cache, or too long a prompt for its context.
    """
    unfit = f"{type(model).__name__} is no decoder language model with a KV cache, which a soft prompt begins"
    base = decoder_of(model)
    if base is None or getattr(model.config, "is_encoder_decoder", False):
        raise TsugikiError(unfit)
    try:
        with evaluating(base):
            first, other = (_run_through(base, rows) for rows in _two_tries(embedding_width(model), base.device))
        keys, values = (torch.stack(one) for one in zip(*first, strict=True))
    except Exception as error:  # whatever it is, it is no such model
        raise TsugikiError(unfit) from error
    # a model on the meta device has its shapes alone
    causal = keys.is_meta or torch.allclose(first[-1][0][:, :, 0], other[-1][0][:, :, 0], rtol=1e-3, atol=1e-3)
    if keys.shape != values.shape or keys.dim() != 5 or keys.shape[3] != 2 or not causal:
        raise TsugikiError(unfit)
    context = _positions(model)
    if context is not None and virtual_tokens > context - _ROOM:
        raise TsugikiError(
            f"num_virtual_tokens is {virtual_tokens}, but the model's context is {context} tokens, of which text needs "
            f"{_ROOM} at least; choose {max(context - _ROOM, 0)} or fewer"
        )
    return CacheShape(layers=keys.shape[0], heads=keys.shape[2], width=keys.shape[4])


def decoder_of(model: Any) -> Any:
    """The module of embeddings and layers that `model(…)` and `model.base_model(…)` both call; None where none is."""
    return model.get_decoder() if hasattr(model, "get_decoder") else None


def embedding_of(model: Any) -> nn.Module:
    """The base's embedding of tokens; what it gives is what enters the first layer."""
    return base_of(model.get_input_embeddings())


def embedding_width(model: Any) -> int:
    """Width of an embedded token."""
    return int(embedding_of(model).weight.shape[1])  # type: ignore[index]


def random_rows(model: Any, rows: int, columns: int) -> Tensor:
    """Rows drawn from the standard normal distribution, as `nn.Embedding` begins."""
    return torch.randn(rows, columns, dtype=at_least_float32(model.dtype), device=model.device)


def sampled_rows(model: Any, rows: int) -> Tensor:
    """Embeddings of random tokens, [rows, width]."""
    embedding = embedding_of(model)
    ids = torch.randint(0, len(embedding.weight), (rows,))  # type: ignore[arg-type]
    embedded: Tensor = embedding(ids.to(model.device))
    return embedded


@torch.no_grad()
def sampled_key_values(model: Any, rows: int) -> Tensor:
    """What the layers keep of random tokens in a row, [rows, columns] as `_as_key_values` takes them apart."""
    base = decoder_of(model)
    with evaluating(base):
        of_layers = [torch.cat(both) for both in _run_through(base, sampled_rows(model, rows))]
    dtype = at_least_float32(base.dtype)
    return torch.stack(of_layers).permute(3, 0, 1, 2, 4).reshape(rows, -1).to(dtype)


def virtual_tokens(model: Any) -> int:
    """Length of the soft prompt that is active in the model; 0 where there is none."""
    prompt = getattr(decoder_of(model), CHILD, None)
    return len(prompt.embedding) if isinstance(prompt, SoftPrompt) else 0


def context_length(model: Any) -> int:
    """The most tokens of text that the model takes at once, behind a soft prompt if one is active.

    Without a prompt 2,048 where its config does not say (BLOOM).
    """
    return (_positions(model) or 2048) - virtual_tokens(model)


def tensors(model: nn.Module, adapter: SoftPromptAdapter) -> dict[str, Tensor]:
    """A prompt in a file (see `AdapterFormat.tensors`): as PEFT uses it, and what computes it."""
    network = dict(adapter.prompt.named_parameters()) if adapter.prompt.network is not None else {}
    return {_STORED: adapter.prompt(), **{_NETWORK + name: weight for name, weight in network.items()}}


def holds_network(stored: Collection[str]) -> bool:
    """Whether these tensors of a file hold what computes the prompt, and not the prompt alone, as PEFT's do."""
    return any(name.startswith(_NETWORK) for name in stored)


def to_json(model: nn.Module, adapter: SoftPromptAdapter) -> dict[str, Any]:
    """The config's fields, and those in which PEFT keeps the model's sizes."""
    fields = {
        **asdict(adapter.config),
        "token_dim": embedding_width(model),
        "num_layers": adapter.shape.layers,
        "num_transformer_submodules": 1,
    }
    if "encoder_hidden_size" in fields:
        fields["encoder_hidden_size"] = fields["encoder_hidden_size"] or fields["token_dim"]
    return fields


def from_json(config: type[Any], fields: Mapping[str, Any], harmless: Collection[str] = ()) -> Any:
    """A config from a file's fields; the model's own sizes show in the shape of what is stored."""
    return read_fields(config, fields, _OF_THE_MODEL | frozenset(harmless))


def _positions(model: Any) -> int | None:
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    length = getattr(config, "max_position_embeddings", None)
    return int(length) if length else None


def _two_tries(width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Two embedded tokens, and again with another second one, of which the first knows nothing in a causal model."""
    tokens = torch.linspace(-1, 1, 2 * width, device=device).view(2, width)
    return tokens, torch.cat([tokens[:1], tokens[1:].flip(-1)])


def _take_out(base: nn.Module, hooks: list[Any]) -> None:
    for hook in hooks:
        hook.remove()
    del base._modules[CHILD]


def _run_through(base: Any, prompt: Tensor) -> KeyValues:
    """What the base's layers keep of embeddings [virtual tokens, width] that stand at the beginning."""
    from transformers import DynamicCache

    cache = DynamicCache()  # not the model's own kind, which may forget what leaves a sliding window
    # Past the hooks, which would put the prompt before itself.
    base.forward(inputs_embeds=prompt[None].to(base.dtype), use_cache=True, **{_cache_name(base): cache})
    return [(layer.keys, layer.values) for layer in cache.layers]


def _as_key_values(shape: CacheShape, base: Any, prompt: Tensor) -> KeyValues:
    """Rows of [layers, keys and values, heads, width] taken apart."""
    parts = prompt.to(base.dtype).view(len(prompt), shape.layers, 2, shape.heads, shape.width).permute(1, 2, 3, 0, 4)
    return [(keys[None], values[None]) for keys, values in parts]


def _put_in_front(
    key_values: Callable[[Any, Tensor], KeyValues], base: Any, args: tuple[Any, ...], given: dict[str, Any]
) -> tuple[tuple[()], dict[str, Any]]:
    """The base's arguments with the prompt in front of the text; a hook."""
    names = _names(type(base).forward)
    given = {**dict(zip(names, args, strict=False)), **given}
    text = given["input_ids"] if given.get("input_ids") is not None else given.get("inputs_embeds")
    if text is None:
        return (), given  # the base has a word on this itself
    if base.training and torch.is_grad_enabled() and _checkpoints(base):
        raise TsugikiError(
            "gradient checkpointing drops the KV cache, which a soft prompt begins; call "
            "model.gradient_checkpointing_disable()"
        )
    mask, positions, length = given.get("attention_mask"), given.get("position_ids"), len(base.tsugiki.embedding)
    padded = (is_unknown(base) or windows(base) != [None]) and apart(mask)
    cache = given.pop("past_key_values", None) if given.get("cache") is None else given["cache"]
    begins = cache is None or not cache.get_seq_length()
    if begins:
        cache = _begin(cache, key_values(base, base.tsugiki()), text.shape[0], whole=padded)
    given[_cache_name(base)] = cache
    if mask is not None:
        given["attention_mask"] = (
            masks(base, *padded_layout(mask, text.shape[1], length)) if padded else extend_mask(mask, length)
        )
    elif begins and positions is not None and packed(positions):
        given["attention_mask"] = masks(base, *packed_layout(positions, length))
    if positions is not None:
        given["position_ids"] = positions + length
    if "use_cache" in names and given.get("use_cache") is None:
        given["use_cache"] = getattr(base.config, "use_cache", True)
    return (), given


def _checkpoints(base: nn.Module) -> bool:
    """Whether activations are computed anew in the backward pass."""
    return any(getattr(module, "gradient_checkpointing", False) for module in base.modules())


def _begin(cache: Any, prompt: KeyValues, rows: int, whole: bool) -> Any:
    """The cache that was given, or a new one, with the prompt in it; `whole`: it forgets nothing."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    if cache is None:
        cache = DynamicCache()
    if not isinstance(cache, DynamicCache):
        raise TsugikiError(
            f"a soft prompt does not fit a cache of fixed length ({type(cache).__name__}); leave cache_implementation "
            "out, or use 'dynamic'"
        )
    if whole:
        cache.layers = [DynamicLayer() for _ in prompt]
    for layer, (keys, values) in enumerate(prompt):
        cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), layer)
    return cache


def _keep_unasked_cache(base: Any, args: tuple[Any, ...], given: dict[str, Any], output: Any) -> Any:
    """The output without a cache where none was asked for; a hook."""
    name = _cache_name(base)
    if given.get("use_cache", True) or not hasattr(output, "keys") or name not in output:
        return output
    return type(output)(**{key: value for key, value in output.items() if key != name})


def _cache_name(base: nn.Module) -> str:
    """What a base calls its cache: transformers before 5.24 had another word."""
    return "cache" if "cache" in _names(type(base).forward) else "past_key_values"


@remembered
def _names(forward: Callable[..., Any]) -> tuple[str, ...]:
    """What a base's forward takes, in order."""
    return tuple(inspect.signature(forward).parameters)[1:]
