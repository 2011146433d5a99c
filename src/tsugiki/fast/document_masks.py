"""Attention masks that keep the documents of a packed row apart, with or without a soft prompt before them.

How a model can be made to mask documents from each other depends on its architecture and on transformers (5.24): most
do it by position ids that start again at 0, if there is no attention mask and no cache; OPT needs an attention mask;
BLOOM can do neither. So `detect_document_masking` tries them: if two documents share a row, the second must have the
same hidden states as alone, whatever the first contains. Some models attend within a window, or to a number of selected
tokens; in the trial the second document is longer than this number, unless all rows of the run are shorter.

Two answers can share their prompt: a row has the prompt, an answer, and another answer, whose positions continue those
of the prompt. With position ids alone, a model would hide the prompt from the other answer, so it also gets the masks.
`shares_prompts` tries whether the other answer then has the same hidden states as after its own copy of the prompt.

With a soft prompt, every token sees the prompt. Packed documents see it but not each other, nothing sees the padding
between the prompt and the text, and a sliding window counts positions within the document.
"""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsugiki.annotations import PreTrainedModel
from tsugiki.errors import TsugikiError
from tsugiki.fast.attention import NAME, additive_mask
from tsugiki.model.context import PROMPT_ATTRIBUTE, max_positions, possible_windows
from tsugiki.model.inference import evaluating, last_hidden_states, on_first_blocks, same_to_rounding

DocumentMasking: TypeAlias = Literal["position_ids", "attention_mask", "separate_rows"]
"""By position ids that restart in each document, by a 4-d attention mask, or by a separate row for each document."""

FLASH = "flash_attention_2"
"""The name of flash attention as transformers' `attn_implementation`."""

_FIRST, _SECOND = 9, 14  # the lengths of the two documents of a trial, in tokens
_PAIRS = 4  # pairs of documents in a trial, if they are short
_SHORT = 64  # tokens
_SAME = 1e-5  # largest relative difference that another first document may make; a leak of LFM2's convolutions is 4e-4
_MOST_ROUNDING = 2  # largest difference from a document alone, relative to the same difference at the start of a row
_ADDITIVE_MASKS = ("eager", "sdpa", NAME)  # the attention implementations that take an additive mask
_PROMPT, _PADDING = -1, -2  # take the place of a document's number


@dataclass(frozen=True)
class RowLayout:
    """The positions and documents of the keys in the rows of a batch; the last `queries` of them are the queries."""

    positions: Tensor
    """The position of each key in its document, after the prompt, [rows, keys]."""
    documents: Tensor
    """The number of each key's document in its row, [rows, keys]. Every query sees keys with the number `_PROMPT`, and
    none sees keys with the number `_PADDING`."""
    queries: int


def detect_document_masking(model: PreTrainedModel, row_length: int = 512) -> DocumentMasking:
    """Return the first kind of masking that keeps documents apart in this model; the model is left as it was.

    Attention windows of at least `row_length` tokens, the length of the run's rows, have no effect.
    """
    masking = on_first_blocks(_detect)(model, row_length)
    return _detect(model, row_length) if masking == "separate_rows" else masking


def _detect(model: PreTrainedModel, row_length: int) -> DocumentMasking:
    kinds: tuple[DocumentMasking, ...] = ("position_ids", "attention_mask")
    return next((masking for masking in kinds if _passes_trials(model, masking, row_length)), "separate_rows")


def shares_prompts(model: PreTrainedModel, masking: DocumentMasking, row_length: int = 512) -> bool:
    """Return whether two answers in a row of this model can share their prompt; the model is left as it was.

    `masking` is what `detect_document_masking` returned for the model and the length of the run's rows.
    """
    if masking == "separate_rows" or (masking == "position_ids" and not takes_packed_masks(model.base_model)):
        return False
    return on_first_blocks(_passes_trials)(model, masking, row_length, _SECOND // 2)


def _passes_trials(model: PreTrainedModel, masking: DocumentMasking, row_length: int, prompt: int = 0) -> bool:
    """Return whether this masking keeps documents apart. The second one shares `prompt` tokens with the first one."""
    trials = [_documents(model, _PAIRS, _SECOND)]
    windows = [window for window in possible_windows(model) if window < row_length]
    if windows:
        beyond = max(windows) + max(16, max(windows) // 4)
        longest = max(min(beyond, row_length, (max_positions(model) or row_length) - _FIRST), _SECOND)
        trials.append(_documents(model, _PAIRS if longest <= _SHORT else 1, longest))
    with evaluating(model):
        try:
            return all(_keeps_apart(model, masking, *documents, prompt) for documents in trials)
        except Exception:  # the model does not take such a mask; its own code may raise anything
            return False


@on_first_blocks
def attends_to_later_tokens(model: PreTrainedModel) -> bool:
    """Return whether hidden states depend on later tokens, as in BERT; the model is left as it was."""
    embedded: list[Tensor] = []

    def start_graph(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    hook = model.get_input_embeddings().register_forward_hook(start_graph)
    try:
        with evaluating(model), torch.enable_grad():
            hidden = last_hidden_states(model, {"input_ids": _documents(model, 1, _SECOND)[-1]})[:, : _SECOND // 2]
            weights = torch.linspace(-1, 1, hidden.numel(), device=hidden.device).view(hidden.shape)
            found = torch.autograd.grad((hidden * weights).sum(), embedded, allow_unused=True)
    except (AssertionError, RuntimeError):  # a model may have no gradients in evaluation mode (Reformer)
        return False
    finally:
        hook.remove()
    return any(gradient is not None and bool(gradient.flatten(0, -2)[_SECOND // 2 :].any()) for gradient in found)


def mask_documents(
    batch: dict[str, Tensor], masking: DocumentMasking, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Return the arguments of a model for packed rows, so that it masks documents from each other.

    The batch has `input_ids`, `labels` and `position_ids`, [rows, length]; positions start at 0 in each document. An
    attention mask has this dtype, which is the model's.
    """
    match masking:
        case "position_ids":
            return batch
        case "attention_mask":
            return {**batch, "attention_mask": document_mask(_packed_layout(batch["position_ids"]), dtype)}
        case "separate_rows":  # one document in each row, which causal attention masks correctly
            return {name: tensor for name, tensor in batch.items() if name != "position_ids"}


def count_documents(positions: Tensor) -> Tensor:
    """Return the number of each token's document in its row, [rows, length].

    A new document starts where a position does not follow the one before, as transformers detects packed rows.
    """
    return (positions.diff(prepend=positions[:, :1] - 1) != 1).cumsum(-1)


def is_packed(positions: Tensor) -> bool:
    """Return whether a row holds several documents, given the positions [rows, length]."""
    return bool((positions.diff(dim=-1) != 1).any())


def document_mask(layout: RowLayout, dtype: torch.dtype, window: int | None = None) -> Tensor:
    """Return the additive mask of rows with several documents, [rows, 1, queries, keys].

    The mask is additive, not boolean, because eager attention would add a boolean mask as numbers. With a window, a
    token sees that many positions, itself included. A document that begins at a position n > 0 shares a prompt: it sees
    the first n tokens of the last document before it that begins at 0.
    """
    positions, documents, queries = layout.positions, layout.documents, layout.queries
    order = torch.arange(positions.shape[-1], device=positions.device)
    visible = (documents[:, -queries:, None] == documents[:, None]) | (documents[:, None] == _PROMPT)
    pairs, prompts = (positions == 0).cumsum(-1), _first_positions(positions, documents)
    visible |= (pairs[:, -queries:, None] == pairs[:, None]) & (positions[:, None] < prompts[:, -queries:, None])
    visible &= order <= order[-queries:, None]
    if window is not None:
        visible &= positions[:, -queries:, None] - positions[:, None] < window
    return additive_mask(~visible, dtype)[:, None]


def _first_positions(positions: Tensor, documents: Tensor) -> Tensor:
    """Return the position of the first token of each token's document, [rows, tokens]."""
    order = torch.arange(positions.shape[-1], device=positions.device)
    begins = torch.where(documents.diff(prepend=documents[:, :1] - 1) != 0, order, 0).cummax(-1).values
    return positions.gather(-1, begins)


def with_shared_prompts(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the model's arguments for rows with shared prompts: position ids alone would hide the prompts."""
    if "attention_mask" in inputs:
        return inputs
    return {**inputs, "attention_mask": packed_masks(model.base_model, inputs["position_ids"])}


def packed_masks(base: Any, positions: Tensor, prompt: int = 0) -> Tensor | dict[str, Tensor]:
    """Return the masks of packed rows with these positions [rows, tokens], in the form that the decoder makes itself.

    The rows follow a soft prompt of `prompt` tokens.

    A model makes these masks itself from position ids, but it first tests whether there are several documents, once for
    each kind of attention layer, and on an accelerator the host waits for each result. To avoid the wait, these masks
    are passed as `attention_mask`, together with the position ids.
    """
    return prompt_masks(base, _packed_layout(positions, prompt))


def takes_packed_masks(base: Any) -> bool:
    """Return whether `packed_masks` supports this decoder, and no soft prompt is attached to it."""
    additive = base.config.get_text_config()._attn_implementation in _ADDITIVE_MASKS
    return additive and not has_unknown_window(base) and not hasattr(base, PROMPT_ATTRIBUTE)


def flash_arguments(positions: Tensor) -> dict[str, Any]:
    """Return the arguments by which flash attention finds the documents of packed rows, without any mask.

    transformers' flash attention can find them itself, but only in a batch of one row, and the host has to wait for the
    device in each layer. The positions of the text, [rows, tokens], are on the CPU.
    """
    starts = (positions.diff(prepend=positions[:, :1], dim=-1) != 1).flatten().nonzero()[:, 0].to(torch.int32)
    ends = F.pad(starts, (0, 1), value=positions.numel())
    longest = int(ends.diff().max())
    return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}


def keeps_apart_by_flash(model: PreTrainedModel) -> bool:
    """Return whether `flash_arguments` keep documents apart in a model whose attention is flash attention."""
    documents = _documents(model, _PAIRS, _SECOND)
    with evaluating(model):
        return _keeps_apart(model, "flash", *documents)


def prompt_masks(base: Any, layout: RowLayout) -> Tensor | dict[str, Tensor]:
    """Return the masks of rows with this layout, in the form in which the decoder makes its own.

    They are a mask [rows, 1, queries, keys], or such a mask for each kind of attention layer that the config names, by
    its name. A kind of attention for which no mask is known is an error.
    """
    config = base.config.get_text_config()
    if config._attn_implementation not in _ADDITIVE_MASKS:
        raise TsugikiError(
            "{kind} attention takes no mask, which packed rows, or padded rows with a soft prompt, need; use "
            "model.set_attn_implementation('sdpa')",
            kind=config._attn_implementation,
        )
    if has_unknown_window(base):
        raise TsugikiError(
            "{kind} has attention for which no mask is known, but packed rows need one, and so does a soft "
            "prompt with padding on the left; use a batch of single documents padded on the right",
            kind=type(base).__name__,
        )
    kinds = sorted(set(getattr(config, "layer_types", None) or ()))
    masks = [document_mask(layout, base.dtype, window) for window in attention_windows(base)]
    return dict(zip(kinds, masks, strict=True)) if kinds else masks[0]


def extend_mask(mask: Any, length: int) -> Tensor:
    """Return a mask of the text with `length` columns before it for a prompt that every token sees.

    It is [rows, tokens] or [rows, 1, queries, keys].
    """
    if not isinstance(mask, Tensor):
        raise TsugikiError(
            "a soft prompt takes an attention mask of two or four dimensions, not a {kind}", kind=type(mask).__name__
        )
    visible = 1 if mask.dim() == 2 or mask.dtype == torch.bool else 0
    return torch.cat([mask.new_full((*mask.shape[:-1], length), visible), mask], dim=-1)


def has_left_padding(mask: Any) -> bool:
    """Return whether padding precedes tokens in a 2-d mask, so that it would lie between a soft prompt and the text."""
    return isinstance(mask, Tensor) and mask.dim() == 2 and bool((mask.long().diff(dim=-1) > 0).any())


def _packed_layout(positions: Tensor, length: int = 0) -> RowLayout:
    """Return the layout of packed rows with these positions, [rows, tokens], after a prompt of `length` tokens."""
    with_prompt = torch.cat([_prompt_positions(positions, length), positions + length], dim=-1)
    documents = F.pad(count_documents(positions), (length, 0), value=_PROMPT)
    return RowLayout(with_prompt, documents, positions.shape[-1])


def padded_layout(mask: Tensor, queries: int, length: int) -> RowLayout:
    """Return the layout of rows with padding on the left, after a prompt of `length` tokens.

    The mask [rows, tokens] is 0 for padding. The last `queries` tokens are new; the others are in the cache.
    """
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0) + length
    documents = F.pad(torch.where(mask.bool(), 0, _PADDING), (length, 0), value=_PROMPT)
    return RowLayout(torch.cat([_prompt_positions(positions, length), positions], dim=-1), documents, queries)


def attention_windows(base: Any) -> list[int | None]:
    """Return the sliding window of each kind of attention layer, sorted by the kind's name; None: no window."""
    config = base.config.get_text_config()
    window: int | None = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    return [window] if not kinds else [window if kind == "sliding_attention" else None for kind in sorted(kinds)]


def has_unknown_window(base: Any) -> bool:
    """Return whether layers of the model restrict attention by a rule that `document_mask` does not know."""
    config = base.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    return bool(kinds) or any(getattr(config, name, None) for name in ("attention_chunk_size", "window_size"))


def _prompt_positions(like: Tensor, length: int) -> Tensor:
    return torch.arange(length, device=like.device).expand(len(like), -1)


def _documents(model: PreTrainedModel, rows: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return two different first documents, and a second document of this length, [rows, tokens], from a fixed seed."""
    config = model.config.get_text_config()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (rows, 2 * _FIRST + length), generator=generator)
    pad = getattr(config, "pad_token_id", None)
    ids[ids == pad] = 1 if pad == 0 else 0  # a model may treat padding differently from text
    first, other, second = torch.split(ids.to(model.device), [_FIRST, _FIRST, length], dim=1)
    return first, other, second


def _keeps_apart(
    model: PreTrainedModel,
    masking: DocumentMasking | Literal["flash"],
    first: Tensor,
    other: Tensor,
    second: Tensor,
    shared: int = 0,
) -> bool:
    """Return whether the second document's hidden states after each first document are the same as alone, to rounding.

    They differ by rounding, because rows of other lengths are computed by other kernels. Layers that round their input
    to 8 bits increase the difference (to 20 % in Gemma 3). So it is compared with the difference for a document at the
    beginning of a row, which no other document can influence. No mask and no positions are given for this: a mask
    without the model's window, or positions that it counts from another number, would change both differences alike.

    The first `shared` tokens of the second document are not there twice: they are before the first document, as a
    prompt of both, and the states of the others are compared.
    """
    prompt, rest = second[:, :shared], second[:, shared:]
    packed = _packed_states(model, torch.cat([prompt, first], 1), rest, masking, shared)[1]
    beside_other = _packed_states(model, torch.cat([prompt, other], 1), rest, masking, shared)[1]
    alone = last_hidden_states(model, {"input_ids": second})[:, shared:]
    if _difference(packed, beside_other) > _SAME:
        return False
    if same_to_rounding(packed, alone):
        return True
    beginning = second[:, :_SECOND]  # a short document, for which other kernels are used than for the row
    leading = last_hidden_states(model, {"input_ids": torch.cat([beginning, other], 1)})[:, :_SECOND]
    rounding = _difference(leading, last_hidden_states(model, {"input_ids": beginning}))
    return _difference(packed, alone) <= _MOST_ROUNDING * rounding


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).float().norm() / b.float().norm())


def _packed_states(
    model: PreTrainedModel,
    first: Tensor,
    second: Tensor,
    masking: DocumentMasking | Literal["flash"],
    shared: int = 0,
) -> tuple[Tensor, ...]:
    """Return the hidden states of two documents in one row, [rows, length, width] each.

    The second one follows the first `shared` tokens of the row.
    """
    lengths = first.shape[1], second.shape[1]
    ids = torch.cat([first, second], dim=1)
    positions = torch.cat([torch.arange(lengths[0]), torch.arange(lengths[1]) + shared]).expand(len(ids), -1)
    batch: dict[str, Any] = {"input_ids": ids, "position_ids": positions.to(ids.device)}
    if masking == "flash":
        flash = flash_arguments(positions)
        batch |= {name: end.to(ids.device) if isinstance(end, Tensor) else end for name, end in flash.items()}
    else:
        batch = mask_documents(batch, masking, model.dtype)
    if shared:
        batch = with_shared_prompts(model, batch)
    return torch.split(last_hidden_states(model, batch), list(lengths), dim=1)
