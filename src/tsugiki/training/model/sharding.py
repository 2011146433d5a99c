"""The weights of a model, split over several processes (PyTorch's `fully_shard`, also called FSDP2).

    process 0   1/n of each weight of every block ──┐
    process 1   1/n of each weight of every block ──┼── gathered for one block at a time, forward and backward,
    …                                               │   and freed after it
    each        the whole adapter ──────────────────┘

A base that does not fit on one device is split in this way, in its own dtype; quantised values are split as well. The
blocks of the decoder are gathered one at a time; the embedding, the last norm and the output head are one more unit,
which stays gathered from the forward to the backward pass, because the loss reads the weight of the head. Every pass
sends the whole base to every process, so a base that does fit should not be split.

The adapter is whole on every process. So any process can save it alone, and its gradients are those of the rows of one
process: they are summed in one buffer, as without sharding. In full fine-tuning there is no adapter: weights, gradients
and the state of the optimiser are all split, and torch averages the gradients over the processes.
With a `compute_dtype`, every forward pass computes in it, also those of an evaluation.

All processes must call the model equally often, as `model(…)` and not as `model.base_model(…)`, because calling the
model gathers its weights.
"""

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tsugiki.errors import TsugikiError
from tsugiki.lora.graft import trainable_parameters
from tsugiki.lora.hold import is_grafted
from tsugiki.lora.pair import LowRank
from tsugiki.methods.full import config_to_save
from tsugiki.model.inference import decoder_blocks


def shard(model: nn.Module, device: torch.device, compute_dtype: torch.dtype | None = None) -> dict[str, nn.Parameter]:
    """Split the weights of a model over all processes, in place, and move it to `device`, one whole unit at a time.

    The model must be complete, with the same weights on every process: grafted, with its fast paths, and with the
    weights of a checkpoint, if any. Parameters that are split are replaced, so the optimiser must be made afterwards,
    from the parameters that are returned: name -> parameter that trains. For full fine-tuning, weights are cast to
    `compute_dtype` when they are gathered; None: they keep their own.

    Raises:
        TsugikiError: this is the only process, or this version of torch cannot split integer weights.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    if not torch.distributed.is_initialized():
        raise TsugikiError("weights can be split over several processes only: start them with torchrun")
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32 if compute_dtype else None)
    kept_whole = _adapter_parameters(model) if is_grafted(model) else set()
    try:
        for unit in [*decoder_blocks(model), model]:
            fully_shard(unit, mesh=mesh, mp_policy=policy, ignored_params=kept_whole)
    except RuntimeError as error:  # of torch 2.10, whose FSDP asks for gradients of all that it splits
        if "floating point" not in str(error):
            raise
        raise TsugikiError(
            "torch {version} cannot split integer weights: install a newer one, or use --base-dtype bf16",
            version=torch.__version__,
        ) from error
    model.to(device)  # what is not split: the adapter, and buffers
    return trainable_parameters(model)


def is_sharded(model: nn.Module) -> bool:
    """Return whether `shard` has split the weights of the model."""
    if "torch.distributed.fsdp" not in sys.modules:  # importing it takes half a second, and only `shard` needs it
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def is_split(tensor: Tensor) -> bool:
    """Return whether each process has a part of the tensor: whether it is a DTensor, without importing the class."""
    return hasattr(tensor, "full_tensor")


def check_optimizer(model: nn.Module, optimizer: Optimizer) -> None:
    """Check that the optimiser has every parameter that trains; one from before `shard` would train nothing."""
    if is_sharded(model):
        model.reshard()  # type: ignore[operator]  # after an evaluation, the module holds what it has gathered
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    missing = [name for name, parameter in trainable_parameters(model).items() if id(parameter) not in known]
    if missing:
        raise TsugikiError(
            "{missing} is not in the optimiser ({count} such) and would not train: make the optimiser after the "
            "model is on its device and sharded",
            missing=missing[0],
            count=len(missing),
        )


def whole_state(model: nn.Module, keep: bool) -> dict[str, Tensor]:
    """Gather a sharded model's state dict on the processor, tensor by tensor. All processes must call this together.

    With `keep` False, this process only takes part, and gets an empty one. A parameter with several names (a tied
    weight) is one tensor.
    """
    whole: dict[int, Tensor] = {}
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in whole:
            gathered = _whole(tensor)
            whole[id(tensor)] = gathered.cpu() if keep else torch.empty(0)
        if keep:
            state[name] = whole[id(tensor)]
    return state


def whole_model(model: nn.Module, keep: bool) -> nn.Module:
    """Return a model that can be saved. All processes must call this together; only those with `keep` need the result.

    A model that `shard` has not split, or that has an adapter to save, is returned as it is. Otherwise it is a copy
    with whole weights, which is on the processor and has no buffers.
    """
    if not is_sharded(model) or is_grafted(model):
        return model
    state = whole_state(model, keep)
    if not keep:
        return model
    from torch.distributed.fsdp import FSDPModule

    kind: Any = next(kind for kind in type(model).__mro__ if not issubclass(kind, FSDPModule))
    with torch.device("meta"):
        whole: Any = kind(config_to_save(model))
    whole.load_state_dict(state, assign=True)
    whole.tie_weights()
    whole.generation_config = model.generation_config
    return whole  # type: ignore[no-any-return]


def whole_optimizer_state(optimizer: Optimizer, keep: bool) -> dict[str, Any]:
    """Gather the optimiser's state dict on the processor; the arguments are those of `whole_state`."""
    own = optimizer.state_dict()
    state = {
        index: {name: _on_processor(value, keep) for name, value in entries.items()}
        for index, entries in own["state"].items()
    }
    return {**own, "state": state if keep else {}}


def split_optimizer_state(optimizer: Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """Split a state dict from `whole_optimizer_state` as the sharded parameters are, for `load_state_dict`."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    split = {
        index: {name: _split_like(parameters[index], value) for name, value in entries.items()}
        for index, entries in state["state"].items()
    }
    return {**state, "state": split}


def _adapter_parameters(model: nn.Module) -> set[nn.Parameter]:
    """Return the parameters that train, and those of LoRA's pairs that do not."""
    pairs = [module for module in model.modules() if isinstance(module, LowRank)]
    return {p for p in model.parameters() if p.requires_grad} | {p for pair in pairs for p in pair.parameters()}


def _whole(tensor: Tensor) -> Tensor:
    whole: Tensor = tensor.full_tensor() if is_split(tensor) else tensor  # type: ignore[attr-defined]
    return whole.detach()


def _on_processor(value: Any, keep: bool) -> Any:
    if not isinstance(value, Tensor):
        return value
    gathered = _whole(value)
    return gathered.cpu() if keep else None


def _split_like(parameter: Tensor, value: Any) -> Any:
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.shape == parameter.shape:
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value
