"""Freezing a base: the changes in a model that all of its adapters share."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NoReturn

import torch
from torch import nn

from tsugiki.errors import TsugikiError, warn_caller
from tsugiki.language import _
from tsugiki.model.linear import linear_of_matrix
from tsugiki.model.training_mode import (
    SavedDropout,
    disable_dropout,
    freeze_batchnorm,
    restore_dropout,
    unfreeze_batchnorm,
)
from tsugiki.model.undo import Undo, base_of, replace_forward, set_attribute
from tsugiki.model.ungrafted import output_head


def freeze(model: nn.Module, keep_dropout: bool, undo: list[Undo]) -> None:
    """Prepare a model for its first adapter: its own parameters stop training, and nothing else of it changes either.

    Args:
        model: the base.
        keep_dropout: leave the dropout in it on.
        undo: gets functions that undo this.

    Raises:
        TsugikiError: the model changes its own weights between training and evaluation (RWKV).
    """
    if getattr(getattr(model, "config", None), "rescale_every", 0) > 0:
        raise TsugikiError(
            _(
                "RWKV halves the weights of its later layers in evaluation mode, and would not halve an adapter's; "
                "load it with rescale_every 0 in its config"
            )
        )
    required_grad = {path: p.requires_grad for path, p in model.named_parameters(remove_duplicate=False)}
    undo.append(partial(_restore_grad, model, required_grad))
    model.requires_grad_(False)
    if not keep_dropout:
        saved: SavedDropout = []
        undo.append(partial(restore_dropout, saved))
        disable_dropout(model, saved)
    undo.append(partial(unfreeze_batchnorm, model))
    freeze_batchnorm(model)
    head = output_head(model)
    if type(head) is nn.Linear and "forward" not in vars(head):
        replace_forward(head, partial(linear_of_matrix, head), undo)
    set_attribute(model, "_replicate_for_data_parallel", _refuse_data_parallel, undo)
    if hasattr(model, "resize_token_embeddings"):
        set_attribute(model, "resize_token_embeddings", partial(_refuse_to_resize, model), undo)


def warn_of_float16(model: nn.Module) -> None:
    """Warn if the model would compute in float16 on a processor, which takes many times as long as in float32."""
    on_processor = any(p.dtype == torch.float16 and p.device.type == "cpu" for p in model.parameters())
    if on_processor and not torch.accelerator.is_available():
        warn_caller(
            _(
                "the model is in float16, in which processors are slow; load it in bfloat16 or float32, by "
                "from_pretrained(…, dtype=torch.bfloat16) or --base-dtype bf16"
            )
        )


def refuse_offloaded(model: nn.Module) -> None:
    """Raise a TsugikiError if accelerate keeps weights on the disk or elsewhere, and loads them for each call."""
    for path, module in model.named_modules():
        if "_hf_hook" in vars(module) and any(p is not None and p.is_meta for p in module._parameters.values()):
            raise TsugikiError(
                _(
                    "the weights of {path} are not in memory, because accelerate offloads them, so they cannot be "
                    "adapted; load the model without offloading"
                ).format(path=path)
            )


def _restore_grad(model: nn.Module, required_grad: Mapping[str, bool]) -> None:
    for path, parameter in model.named_parameters():
        parameter.requires_grad_(required_grad.get(path, False))


def _refuse_to_resize(model: Any, new_num_tokens: int | None = None, *_args: object, **_kwargs: object) -> nn.Module:
    embedding: nn.Module = model.get_input_embeddings()
    if new_num_tokens not in (None, len(base_of(embedding).weight)):  # type: ignore[arg-type]
        raise TsugikiError(
            _(
                "resize_token_embeddings would replace the layers that an adapter changes, or trained copies of "
                "them; resize the vocabulary before you graft"
            )
        )
    return embedding


def _refuse_data_parallel(*_args: object) -> NoReturn:
    raise TsugikiError(
        _(
            "nn.DataParallel copies the model at every step, and the copies have no parameters that an adapter "
            "could be grafted on. Use one device (CUDA_VISIBLE_DEVICES=0), or a process for each device (torchrun)"
        )
    )
