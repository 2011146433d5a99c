"""Freezing the base: the changes in a model that all of its adapters share.

They are made before the first adapter is added, and undone when the last one is removed.
"""

from functools import partial
from typing import Any, NoReturn

from torch import nn

from tsugiki.errors import TsugikiError
from tsugiki.language import _
from tsugiki.lora.graft_state import STATE_ATTRIBUTE, Graft
from tsugiki.lora.layer import base_of
from tsugiki.lora.swap import replace_forward, undo_all
from tsugiki.lora.targets import output_head
from tsugiki.model.linear import linear_of_matrix
from tsugiki.model.training_mode import disable_dropout, freeze_batchnorm, restore_dropout, unfreeze_batchnorm


def freeze_base(model: nn.Module, state: Graft, base_dropout: bool) -> None:
    """Prepare a model for its first adapter.

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
    state.required_grad = {path: p.requires_grad for path, p in model.named_parameters(remove_duplicate=False)}
    state.base_dropout = base_dropout
    setattr(model, STATE_ATTRIBUTE, state)
    model.requires_grad_(False)
    if not base_dropout:
        disable_dropout(model, state.saved_dropout)
    freeze_batchnorm(model)
    head = output_head(model)
    if type(head) is nn.Linear and "forward" not in vars(head):
        replace_forward(head, partial(linear_of_matrix, head), state.replaced_head)
    model._replicate_for_data_parallel = _refuse_data_parallel  # type: ignore[method-assign]
    if hasattr(model, "resize_token_embeddings"):
        model.resize_token_embeddings = partial(_refuse_to_resize, model)  # type: ignore[assignment]
    if hasattr(model, "save_pretrained"):
        import tsugiki  # the format of files is defined in a package above `lora`, which is imported on first use

        state.saving = tsugiki.replace_saving(model)


def unfreeze_base(model: nn.Module, state: Graft) -> None:
    """Undo `freeze_base`."""
    for path, parameter in model.named_parameters():
        parameter.requires_grad_(state.required_grad.get(path, False))
    restore_dropout(state.saved_dropout)
    unfreeze_batchnorm(model)
    undo_all(state.replaced_head)
    for name in (*state.saving, STATE_ATTRIBUTE, "_replicate_for_data_parallel", "resize_token_embeddings"):
        vars(model).pop(name, None)


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
