"""Compute a model's own loss without materialising the logits: `model(input_ids=…, labels=…)` uses `chunked_loss`.

So all code that trains a model by its own loss, such as transformers' Trainer, becomes faster. Only `forward` of the
model's instance is replaced. It calls the class's `forward` in all other cases: without labels, without gradients
(an evaluation may need the logits), or with an argument that is not supported here.
"""

from dataclasses import fields
from functools import partial, update_wrapper
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from tsugiki.annotations import PreTrainedModel
from tsugiki.fast.document_masks import with_shared_prompts
from tsugiki.fast.head import Head, find_head
from tsugiki.fast.loss import (
    AnswerTokens,
    chunked_answer_losses,
    chunked_loss,
    plain_answer_losses,
    token_losses,
)
from tsugiki.model.context import IGNORE_INDEX
from tsugiki.model.inference import evaluating, on_first_blocks, probe_ids, same_to_rounding
from tsugiki.model.undo import Undo, replace_forward, replaced_forward

_INPUTS = {"input_ids", "inputs_embeds", "attention_mask", "position_ids", "use_cache"}
_PACKED = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}
_LOSS = {"labels", "shift_labels", "num_items_in_batch", "ignore_index"}
_KNOWN = _INPUTS | _PACKED | _LOSS
_OUTPUT_FIELDS = {field.name for field in fields(CausalLMOutputWithPast)}


def enable_chunked_loss(model: PreTrainedModel, undo: list[Undo]) -> None:
    """Let `model(…, labels=…)` compute its loss a few rows at a time, in place; `undo` gets what undoes it.

    If gradients are on, the output then holds the loss and no logits. The loss is the mean over the target tokens, or
    their sum divided by `num_items_in_batch`. The model is not changed if its own loss on a probe is different, or if
    its `forward` has been replaced already.
    """
    head = None if "forward" in vars(model) else find_head(model)
    if head is not None and _has_same_loss(model, head):
        # The output layer is looked up at each call, because grafting may replace it.
        ours = partial(_forward, model, head.scale, head.softcap)
        # Trainer and generate read the names of a model's arguments from the signature of its forward.
        replace_forward(model, update_wrapper(ours, MethodType(type(model).forward, model), updated=()), undo)


def has_chunked_loss(model: nn.Module) -> bool:
    """Return whether `model(…, labels=…)` computes its loss a few rows at a time."""
    return replaced_forward(model) is _forward


def losses_without_logits(model: PreTrainedModel, labels: Tensor, **inputs: Any) -> Tensor:
    """Return the cross-entropy of every token in nats, [rows, length], computed a few rows at a time.

    The model is in evaluation mode, and `has_chunked_loss(model)` must hold. The labels [rows, length] are shifted
    already, with `IGNORE_INDEX` where there is no target, whose loss is 0. The result is in float32 or wider and has no
    gradient.
    """
    with torch.no_grad():
        return token_losses(model.base_model(**inputs).last_hidden_state, head_of(model), labels)


def answer_log_probabilities(model: PreTrainedModel, answers: AnswerTokens, **inputs: Any) -> Tensor:
    """Return the log-probability of each answer, summed over its tokens, in nats, [answers], in float32 or wider.

    `inputs` are the arguments of the model, without labels. Where `has_chunked_loss` does not hold, the model computes
    its logits as a whole. A reference is computed by the same function without gradients: the bits are the same.
    Answers may share prompts if `shares_prompts` holds for the model; then `inputs` have `position_ids`.
    """
    if answers.share_prompts:
        inputs = with_shared_prompts(model, inputs)
    if has_chunked_loss(model):
        hidden = model.base_model(**inputs, use_cache=False).last_hidden_state
        return -chunked_answer_losses(hidden, head_of(model), answers)
    logits = model(**inputs, use_cache=False).logits
    return -plain_answer_losses(logits, Head(nn.Identity()), answers)


def head_of(model: PreTrainedModel) -> Head:
    """Return the head of a model, for which `has_chunked_loss` must hold."""
    _, scale, softcap = vars(model)["forward"].args
    return Head(model.get_output_embeddings(), scale, softcap)


def _forward(model: PreTrainedModel, scale: float, softcap: float | None, /, *args: Any, **kwargs: Any) -> Any:
    if not _applies(model, args, kwargs):
        return type(model).forward(model, *args, **kwargs)
    inputs = {name: value for name, value in kwargs.items() if name not in _LOSS}
    loss_arguments = {name: value for name, value in kwargs.items() if name in _LOSS}
    outputs = model.base_model(*args, **inputs)
    head = Head(model.get_output_embeddings(), scale, softcap)
    loss = _loss(outputs.last_hidden_state, head, **loss_arguments)
    return CausalLMOutputWithPast(loss=loss, **{name: outputs[name] for name in outputs.keys() & _OUTPUT_FIELDS})


def _applies(model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether a call needs only a loss for training, and `chunked_loss` gives the same loss as the model."""
    if kwargs.get("labels") is None or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    custom_loss = hasattr(model, "_loss_function")  # set by `model.loss_function = …`
    # The first argument is the token ids in every model; the order of the others differs.
    return kwargs.keys() <= _KNOWN and len(args) <= 1 and model.config.return_dict and not custom_loss


def _loss(
    hidden: Tensor,
    head: Head,
    labels: Tensor,
    shift_labels: Tensor | None = None,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = IGNORE_INDEX,
) -> Tensor:
    """Compute `transformers.loss.loss_utils.ForCausalLMLoss` from hidden states [..., length, width]."""
    if shift_labels is None:
        hidden, labels = hidden[..., :-1, :], labels[..., 1:]
    else:
        labels = shift_labels.view(hidden.shape[:-1])
    labels = labels.to(hidden.device)
    labels = labels.masked_fill(labels == ignore_index, IGNORE_INDEX)
    count = (labels != IGNORE_INDEX).sum() if num_items_in_batch is None else num_items_in_batch
    return chunked_loss(hidden, head, labels) / (count.to(hidden.device) if isinstance(count, Tensor) else count)


@on_first_blocks
def _has_same_loss(model: PreTrainedModel, head: Head) -> bool:
    """Return whether the model's own loss on a probe equals `_loss`, with the divisor that Trainer passes."""
    ids = probe_ids(model)
    labels = ids.clone()
    labels[:, ::3] = IGNORE_INDEX
    with evaluating(model):
        try:
            theirs = model(input_ids=ids, use_cache=False, labels=labels, num_items_in_batch=7).loss
        except TypeError:  # the model's loss does not take num_items_in_batch
            return False
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        ours = _loss(hidden, head, labels, num_items_in_batch=7)
    return same_to_rounding(ours.to(model.dtype), theirs.to(model.dtype))
