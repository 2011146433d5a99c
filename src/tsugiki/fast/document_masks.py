"""Attention masks of text behind a soft prompt, which every token sees, whatever keeps the text apart.

Packed documents see the prompt and not each other; padding between the prompt and the text is seen by none; a sliding
window counts from a token's own place.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tsugiki.errors import TsugikiError
from tsugiki.fast.attention import NAME

_ADDITIVE_MASKS = ("eager", "sdpa", NAME)  # attention that takes a mask of numbers
_EVERYWHERE, _NOWHERE = -1, -2  # instead of a document's number: of the prompt, and of padding


def extend_mask(mask: Any, length: int) -> Tensor:
    """A mask of the text, [rows, tokens] or [rows, 1, queries, keys], with columns of a prompt that all see."""
    if not isinstance(mask, Tensor):
        raise TsugikiError(
            f"a soft prompt takes an attention mask of two or four dimensions, not a {type(mask).__name__}"
        )
    seen = mask.dim() == 2 or mask.dtype == torch.bool
    columns = mask.new_full((*mask.shape[:-1], length), 1 if seen else 0)
    return torch.cat([columns, mask], dim=-1)


def apart(mask: Any) -> bool:
    """Whether padding stands before tokens, and so between them and the prompt."""
    return isinstance(mask, Tensor) and mask.dim() == 2 and bool((mask.long().diff(dim=-1) > 0).any())


def packed(positions: Tensor) -> bool:
    """Whether a row holds several documents, as transformers tells: a position does not follow the one before."""
    return bool((positions.diff(dim=-1) != 1).any())


def packed_layout(positions: Tensor, length: int) -> tuple[Tensor, Tensor, int]:
    """Places and documents [rows, prompt + tokens] of packed rows behind a prompt, and the number of tokens."""
    places = torch.cat([_prompt_places(positions, length), positions + length], dim=-1)
    document = (positions.diff(prepend=positions[:, :1] - 1) != 1).cumsum(-1)
    return places, F.pad(document, (length, 0), value=_EVERYWHERE), positions.shape[-1]


def padded_layout(mask: Tensor, tokens: int, length: int) -> tuple[Tensor, Tensor, int]:
    """The same of rows with padding, of which the last `tokens` are new: padding is a document by itself."""
    places = (mask.long().cumsum(-1) - 1).clamp(min=0) + length
    document = torch.where(mask.bool(), 0, _NOWHERE)
    places = torch.cat([_prompt_places(places, length), places], dim=-1)
    return places, F.pad(document, (length, 0), value=_EVERYWHERE), tokens


def _prompt_places(like: Tensor, length: int) -> Tensor:
    return torch.arange(length, device=like.device).expand(len(like), -1)


def windows(base: Any) -> list[int | None]:
    """How many tokens the layers see at most, each number once; None: all."""
    config = base.config.get_text_config()
    window: int | None = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    return [window] if not kinds else [window if kind == "sliding_attention" else None for kind in sorted(kinds)]


def is_unknown(base: Any) -> bool:
    """Whether layers see less than all by a rule that no mask of ours follows."""
    config = base.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    return bool(kinds) or any(getattr(config, name, None) for name in ("attention_chunk_size", "window_size"))


def masks(base: Any, places: Tensor, document: Tensor, tokens: int) -> Tensor | dict[str, Tensor]:
    """Masks of rows behind a prompt (see `_mask`), in the form in which the model makes its own.

    Raises:
        TsugikiError: a kind of attention for which this is not known.
    """
    config = base.config.get_text_config()
    if config._attn_implementation not in _ADDITIVE_MASKS:
        raise TsugikiError(
            f"{config._attn_implementation} attention takes no mask, which packed or padded rows behind a soft prompt "
            "need; use model.set_attn_implementation('sdpa')"
        )
    if is_unknown(base):
        raise TsugikiError(
            f"rows of several documents, or padded on the left, do not go with a soft prompt in {type(base).__name__}"
        )
    kinds = sorted(set(getattr(config, "layer_types", None) or ()))
    made = [_mask(places, document, tokens, base.dtype, window) for window in windows(base)]
    return dict(zip(kinds, made, strict=True)) if kinds else made[0]


def _mask(places: Tensor, document: Tensor, tokens: int, dtype: torch.dtype, window: int | None) -> Tensor:
    """[rows, 1, tokens, keys], 0 where one of the last tokens sees a key, the type's lowest number elsewhere.

    Args:
        places: of the keys [rows, keys], in the text of their own and behind the prompt.
        document: the number of each key's; those of the prompt are seen from all.
        tokens: how many of the keys ask.
        dtype: of the mask.
        window: how many tokens are seen at most; None: all.
    """
    order = torch.arange(places.shape[-1], device=places.device)
    own = document[:, -tokens:, None] == document[:, None]
    seen = (own | (document[:, None] == _EVERYWHERE)) & (order <= order[-tokens:, None])
    if window is not None:
        seen &= places[:, -tokens:, None] - places[:, None] < window
    mask = torch.zeros(seen.shape, dtype=dtype, device=places.device)
    return mask.masked_fill(~seen, torch.finfo(dtype).min)[:, None]
