"""The reference of preference tuning and reinforcement learning: the model as it was before, with shared weights.

TRL compares a model with its reference, and knows a model with an adapter by PEFT's class alone. For all others, its
trainers load the base a second time, from the files that the config names: another model, if an adapter was trained
before or merged in memory. So a grafted model looks at the trainer that trains it, and refuses another reference than
`reference_model(model)`.
"""

import copy
import sys
from traceback import walk_stack
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import nn

from tsugiki.errors import TsugikiError
from tsugiki.language import _
from tsugiki.lora.graft import Model
from tsugiki.lora.hold import STATE_ATTRIBUTE, check_can_switch, find_state, require_state
from tsugiki.model.freeze import keep_unpacked, repacking_layers
from tsugiki.model.ungrafted import unwrapped

_REFERENCE_OF = "_tsugiki_reference_of"
"""The attribute of a reference that holds the `Graft` of its model."""


def reference_model(model: Model) -> Model:
    """Return a model that computes what a grafted model computes now, and keeps doing so while that is trained.

    It shares the weights of the base, and has a copy of what trains in the active adapter, as the reference of PEFT and
    TRL. Within `disable_adapter(model)`, it is the base alone. It is in evaluation mode and does not train.

    Raises:
        TsugikiError: nothing is grafted, an adapter is merged, or the call is inside a `mixed_batch` block.
    """
    base = unwrapped(model)
    state = require_state(base)
    check_can_switch(state)
    tensors = [*base.parameters(), *base.buffers()]
    copies: dict[int, Any] = {id(shared): shared for shared in (state, *(t for t in tensors if not t.requires_grad))}
    reference: Any = copy.deepcopy(base, copies)
    # A copy of the model has the same function in its own `forward`. That of TRL has captured the `forward` of the
    # model that trains, and would still call it.
    forward = vars(reference).get("forward")
    if isinstance(forward, MethodType):
        reference.forward = MethodType(_copied_function(forward.__func__, copies), reference)
    for layer in repacking_layers(reference):
        keep_unpacked(layer)  # `eval` would repack a weight that the model shares, and then no gradient passes through
    delattr(reference, STATE_ATTRIBUTE)
    setattr(reference, _REFERENCE_OF, state)
    return reference.requires_grad_(False).eval()  # type: ignore[no-any-return]


def _copied_function(function: Any, copies: dict[int, Any]) -> Any:
    """Return a function with copies of what it has captured, such as the `forward` that TRL has put its own around."""
    cells = tuple(CellType(copy.deepcopy(cell.cell_contents, copies)) for cell in function.__closure__ or ())
    copied = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, cells)
    copied.__kwdefaults__ = function.__kwdefaults__
    vars(copied).update(vars(function))
    return copied


def train(model: nn.Module, mode: bool = True) -> nn.Module:
    """Do the same as the method of the model's class, unless a trainer of TRL calls it that would train wrongly."""
    owner: object = model
    for frame, _line in walk_stack(sys._getframe(1)):
        owner = frame.f_locals.get("self")
        if not isinstance(owner, nn.Module):  # a wrapper calls the method of the model inside
            break
    if any(kind.__module__.startswith("trl.") for kind in type(owner).__mro__):
        _check_trainer(model, owner)
    return type(model).train(model, mode)


def _check_trainer(model: nn.Module, trainer: Any) -> None:
    """Raise a TsugikiError if this trainer of TRL would change the base, or compute with other weights."""
    kind = type(trainer).__name__
    if getattr(trainer, "use_vllm", False) or hasattr(trainer, "weight_transfer"):  # the latter is of AsyncGRPOTrainer
        message = _(
            "{trainer} would give vLLM the weights of a grafted model under names that vLLM does not have, and without "
            "the adapter; generate without vLLM (use_vllm), or train with PEFT and read its adapter by load_adapter"
        )
        raise TsugikiError(message.format(trainer=kind))
    reference = getattr(trainer, "ref_model", None)
    if reference is None:
        return
    if getattr(trainer.args, "sync_ref_model", False):
        message = _("{trainer} with sync_ref_model would change the weights of the base; leave sync_ref_model out")
        raise TsugikiError(message.format(trainer=kind))
    if vars(unwrapped(reference)).get(_REFERENCE_OF) is not find_state(model):
        message = _(
            "{trainer} holds another reference than this model before training, such as a base that it has loaded "
            "itself; give it tsugiki.reference_model(model), as ref_model=… or by trainer.ref_model = … before train()"
        )
        raise TsugikiError(message.format(trainer=kind))
