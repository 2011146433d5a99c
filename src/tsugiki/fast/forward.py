"""A model's own loss without whole logits: `model(input_ids=…, labels=…)` by `chunked_loss`.

So that whatever trains a model by its loss, such as transformers' Trainer, gains it. Only `forward` of the model's
instance changes; the class's own serves every other call: without labels, without gradients (whoever evaluates may
want logits), or with an argument whose meaning is not known here.
"""

from dataclasses import fields
from functools import partial, update_wrapper
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast

from tsugiki.base.inference import evaluating, probe_ids, same_to_rounding
from tsugiki.fast.loss import Head, chunked_loss, find_head
from tsugiki.labels import IGNORE_INDEX

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_Form = tuple[float, float | None]
"""Scale and cap of the logits. The layer is looked up at every call: a graft takes its place."""

_INPUTS = {"input_ids", "inputs_embeds", "attention_mask", "position_ids", "use_cache"}
_PACKED = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}
_LOSS = {"labels", "shift_labels", "num_items_in_batch", "ignore_index"}
_KNOWN = _INPUTS | _PACKED | _LOSS
_KEPT = {field.name for field in fields(CausalLMOutputWithPast)}


def enable_chunked_loss(model: "PreTrainedModel") -> None:
    """Let `model(…, labels=…)` compute its loss a few rows at a time, in place; `disable_chunked_loss` undoes it.

    Where gradients are on, its output then holds the loss, the mean over the learned tokens or their sum over
    `num_items_in_batch`, and no logits. A model stays as it is where its loss on a probe is another, or where something
    else has replaced its forward already.
    """
    head = None if "forward" in vars(model) else find_head(model)
    if head is not None and _same_loss(model, head):
        ours = partial(_forward, model, (head.scale, head.softcap))
        # Trainer and generate read what a model takes off the signature of its forward.
        model.forward = update_wrapper(ours, MethodType(type(model).forward, model), updated=())


def disable_chunked_loss(model: "PreTrainedModel") -> None:
    """Give the model its own forward back; one that was wrapped again since keeps what wraps it."""
    ours = vars(model).get("forward")
    if isinstance(ours, partial) and ours.func is _forward:
        del model.forward


def _forward(model: "PreTrainedModel", form: _Form, /, *args: Any, **given: Any) -> Any:
    if not _applies(model, args, given):
        return type(model).forward(model, *args, **given)
    inputs = {name: value for name, value in given.items() if name not in _LOSS}
    asked = {name: value for name, value in given.items() if name in _LOSS}
    outputs = model.base_model(*args, **inputs)
    loss = _loss(outputs.last_hidden_state, Head(model.get_output_embeddings(), *form), **asked)
    return CausalLMOutputWithPast(loss=loss, **{name: outputs[name] for name in outputs.keys() & _KEPT})


def _applies(model: "PreTrainedModel", args: tuple[Any, ...], given: dict[str, Any]) -> bool:
    """Whether a call asks for nothing but a loss to learn from, which the chunks give as the model would."""
    if given.get("labels") is None or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    own_loss = hasattr(model, "_loss_function")  # what `model.loss_function = …` sets
    # The first argument is the ids in every model; the order of others is each model's own.
    return given.keys() <= _KNOWN and len(args) <= 1 and model.config.return_dict and not own_loss


def _loss(
    hidden: Tensor,
    head: Head,
    labels: Tensor,
    shift_labels: Tensor | None = None,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = IGNORE_INDEX,
) -> Tensor:
    """`transformers.loss.loss_utils.ForCausalLMLoss`, from hidden states [..., length, width]."""
    if shift_labels is None:
        hidden, labels = hidden[..., :-1, :], labels[..., 1:]
    else:
        labels = shift_labels.view(hidden.shape[:-1])
    labels = labels.to(hidden.device)
    labels = labels.masked_fill(labels == ignore_index, IGNORE_INDEX)
    count = (labels != IGNORE_INDEX).sum() if num_items_in_batch is None else num_items_in_batch
    return chunked_loss(hidden, head, labels) / torch.as_tensor(count, device=hidden.device)


def _same_loss(model: "PreTrainedModel", head: Head) -> bool:
    """Whether the model's own loss is this one, and takes the count that Trainer gives."""
    ids = probe_ids(model)
    labels = ids.clone()
    labels[:, ::3] = IGNORE_INDEX
    with evaluating(model):
        try:
            theirs = model(input_ids=ids, use_cache=False, labels=labels, num_items_in_batch=7).loss
        except TypeError:  # the model's loss knows no such count
            return False
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        ours = _loss(hidden, head, labels, num_items_in_batch=7)
    return same_to_rounding(ours.to(model.dtype), theirs.to(model.dtype))
