"""Attention in a decoding step, with one new token in each row: a C function instead of about 40 operations of torch.

    q, k = RoPE(q), RoPE(k)  (arXiv:2104.09864)      append k and v to the cache      y = softmax(scale · q Kᵀ) V

The attention layers of Llama and of similar models (Mistral, Qwen, Gemma 3, Granite, …) compute this between their
projections. A layer is recognised by a trial: its `forward` is replaced if, for a token that follows others, it returns
the same output as `_decode`. The `forward` of the class still computes inputs of several tokens. It is also used if the
C function is not available, and with several threads, because the C function has only one.
"""

import inspect
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tsugiki.annotations import PreTrainedModel
from tsugiki.fast.attention import plain_attention
from tsugiki.generation.key_value_cache import GrowingCache, GrowingLayer
from tsugiki.model.inference import same_to_rounding
from tsugiki.model.linear import is_hooked
from tsugiki.model.undo import Undo, replace_forward
from tsugiki.native import can_read, native_for

_PROJECTIONS, _NORMS = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"q_norm", "k_norm"}
_PAST = 3  # tokens before the new one in the trial


def use_decode_attention(model: PreTrainedModel, undo: list[Undo]) -> None:
    """Replace, in place, the `forward` of the attention layers that pass the trial.

    Without the C function and with several threads there is no trial, because it reads all weights of the layers.
    """
    like = torch.empty(0, dtype=model.dtype, device=model.device)
    if torch.get_num_threads() > 1 or native_for("decode_attention", like) is None:
        return
    with torch.no_grad():
        for module in model.modules():
            if _has_projections(module) and _passes_trial(module):
                replace_forward(module, partial(_forward, module), undo)


def decode_attention(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, cached: GrowingLayer, mask: Tensor | None, scale: float
) -> Tensor:
    """Append k and v to the cache and return the attention's output, [rows, 1, heads · width].

    It equals that of `plain_decode_attention` up to rounding. The C function is used in bfloat16 and float32, if no
    gradients are recorded.

    Args:
        q: [rows, 1, heads · width].
        k: [rows, 1, key heads · width]; heads are a multiple of key heads.
        v: the same as k.
        cos: the cosines of the new positions, [rows, 1, width] or [1, 1, width].
        sin: their sines.
        cached: the keys and values of the layer, which has some already.
        mask: whether a row sees a token, bool [rows, 1, 1, tokens with the new one]; None: it sees all.
        scale: the factor on the scores.
    """
    call, (rows, key_heads, past, width) = native_for("decode_attention", q), cached.keys.shape
    if call is None or torch.is_grad_enabled() or not _can_read(q, k, v, cos, sin, cached, mask):
        return plain_decode_attention(q, k, v, cos, sin, cached, mask, scale)
    if len(cos) != rows:
        cos, sin = cos.expand(rows, 1, width), sin.expand(rows, 1, width)
    cos, sin = cos.contiguous(), sin.contiguous()
    keys, values = cached.extend(k.view(rows, key_heads, 1, width), v.view(rows, key_heads, 1, width))
    y, memory = torch.empty_like(q), torch.empty(width + past + 1)
    sizes = (rows, q.shape[-1] // width, key_heads, width, past + 1)
    places = (cos.data_ptr(), sin.data_ptr(), keys.data_ptr(), values.data_ptr(), keys.stride(0), keys.stride(1))
    of_mask = (0, 0) if mask is None else (mask.data_ptr(), mask.stride(0))
    call(q.data_ptr(), k.data_ptr(), v.data_ptr(), *sizes, *places, *of_mask, scale, memory.data_ptr(), y.data_ptr())
    return y


def _can_read(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, cached: GrowingLayer, mask: Tensor | None
) -> bool:
    """Return whether the C function can read the arguments of `decode_attention`."""
    (rows, key_heads, past, width), dtype = cached.keys.shape, q.dtype
    if cached.values.shape != cached.keys.shape or not cached.keys.dtype is cached.values.dtype is dtype:
        return False
    if mask is not None and not (
        mask.dtype is torch.bool and mask.is_cpu and mask.shape == (rows, 1, 1, past + 1) and mask.stride(3) == 1
    ):
        return False
    whole = can_read(q, dtype, rows, 1, q.shape[-1]) and q.shape[-1] % (key_heads * width) == 0 and width % 2 == 0
    of_key_heads = (rows, 1, key_heads * width)
    whole = whole and can_read(k, dtype, *of_key_heads) and can_read(v, dtype, *of_key_heads)
    return whole and all(part.dtype is dtype and part.is_cpu and part.shape[1:] == (1, width) for part in (cos, sin))


def plain_decode_attention(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, cached: GrowingLayer, mask: Tensor | None, scale: float
) -> Tensor:
    """Compute `decode_attention` by its definition."""
    width = cached.keys.shape[3]
    q, k, v = (part.reshape(len(part), 1, -1, width).transpose(1, 2) for part in (q, k, v))
    q, k = (part * cos[:, None] + _rotate_half(part) * sin[:, None] for part in (q, k))
    keys, values = cached.update(k, v)
    return plain_attention(q, keys, values, mask, scale).transpose(1, 2).reshape(len(q), 1, -1)


def _rotate_half(x: Tensor) -> Tensor:
    """Rotate each pair (x_i, x_{i + width / 2}) of x [..., width] by 90 degrees."""
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


def _forward(module: nn.Module, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """Compute a decoding step by `_decode`, and any other call by the `forward` of the class."""
    output = _decode(module, hidden_states, kwargs)
    if output is None:
        return type(module).forward(module, hidden_states, **kwargs)  # type: ignore[no-any-return]
    return output, None


def _decode(module: Any, x: Tensor, arguments: dict[str, Any]) -> Tensor | None:
    """Return the output of an attention layer for its hidden states x and other arguments.

    None if this is not a decoding step, or the C function cannot be used.
    """
    if x.shape[1] != 1 or torch.get_num_threads() > 1 or module.training or native_for("decode_attention", x) is None:
        return None
    cache = arguments.get("cache", arguments.get("past_key_values"))  # its name depends on the version
    number, width = module.layer_idx, module.head_dim
    embeddings: Any = arguments.get("position_embeddings")
    if not isinstance(cache, GrowingCache) or len(cache.layers) <= number:
        return None
    cached = cache.layers[number]
    if not isinstance(cached, GrowingLayer):  # it holds the prefix of an adapter
        return None
    if embeddings is None or embeddings[0].shape[-1] != width or not cached.is_initialized or not cached.keys.numel():
        return None
    modules = module._modules
    q, k, v = modules["q_proj"](x), modules["k_proj"](x), modules["v_proj"](x)
    if "q_norm" in modules:
        q = modules["q_norm"](q.view(len(q), 1, -1, width)).view(q.shape)
        k = modules["k_norm"](k.view(len(k), 1, -1, width)).view(k.shape)
    cos, sin = embeddings
    y = decode_attention(q, k, v, cos, sin, cached, arguments.get("attention_mask"), module.scaling)
    return modules["o_proj"](y)  # type: ignore[no-any-return]


def _has_projections(module: nn.Module) -> bool:
    """Return whether the module has the children and attributes of such an attention layer."""
    names = module._modules.keys()
    if names not in (_PROJECTIONS, _PROJECTIONS | _NORMS) or is_hooked(module):
        return False
    return all(isinstance(getattr(module, name, None), int | float) for name in ("layer_idx", "head_dim", "scaling"))


def _passes_trial(module: Any) -> bool:
    """Return whether `_decode` and the `forward` of the class give the same output and the same cached keys."""
    try:
        own, other = _of_trial(module, by_class=True), _of_trial(module, by_class=False)
        return all(same_to_rounding(ours, theirs) for ours, theirs in zip(other, own, strict=True))
    except Exception:  # a layer of another kind may raise anything
        return False


def _of_trial(module: Any, by_class: bool) -> tuple[Tensor, Tensor]:
    """Return the output of a new token of two rows, of which one has padding, and the keys of all tokens."""
    forward, cache, dtype = type(module).forward, GrowingCache(), module.config.dtype
    name = "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, _PAST + 1, module.config.hidden_size, generator=generator).to(dtype)
    frequencies = 10 ** -torch.linspace(0, 3, module.head_dim // 2)
    angles = torch.outer(torch.arange(1.0, _PAST + 2), frequencies).repeat(1, 2)[None]
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    seen = torch.ones(2, 1, _PAST + 1, _PAST + 1, dtype=torch.bool).tril()
    seen[1, :, 1:, 0] = False

    def arguments(tokens: slice) -> dict[str, Any]:
        mask = seen[:, :, tokens, : tokens.stop]
        return {name: cache, "position_embeddings": (cos[:, tokens], sin[:, tokens]), "attention_mask": mask}

    past, new = slice(0, _PAST), slice(_PAST, _PAST + 1)
    forward(module, x[:, past], **arguments(past))
    token, given = x[:, new], arguments(new)
    y: Any = forward(module, token, **given)[0] if by_class else _decode(module, token, given)
    return y, cache.layers[module.layer_idx].keys
