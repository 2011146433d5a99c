"""Check whether the tensors of an adapter's file fit a model."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tsugiki.language import _
from tsugiki.lora.targets import base_modules
from tsugiki.methods.method import equal_when_rounded, shape_problems
from tsugiki.methods.peft_keys import base_name, parameter_keys
from tsugiki.model.names import split_block
from tsugiki.model.shared_parameters import shared_parameters


def misfits(model: nn.Module, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """List the problems with the names, shapes and dtypes of an adapter's tensors, a clause for each.

    PEFT may store weights of the base with an adapter, and a weight that embedding and head share twice; a tensor equal
    to such a weight is not listed. If `model` is on the meta device, a tensor of the right name and shape counts as
    equal.

    Args:
        model: the base.
        expected: the tensors that an adapter of this config has for this model.
        found: the tensors in the file.
    """
    surplus = [key for key in found if key not in expected]
    owners = dict(base_modules(model)) if surplus else {}
    shared = shared_parameters(model) if surplus else {}
    return [
        *shape_problems({key: tensor.shape for key, tensor in expected.items()}, found),
        *(
            _("{name} is not part of the adapter").format(name=key)
            for key in surplus
            if not _is_copy(owners, shared, expected, found, key)
        ),
        *(
            _("{name} holds numbers of the type {dtype}, expected {expected}").format(
                name=key, dtype=found[key].dtype, expected=tensor.dtype
            )
            for key, tensor in expected.items()
            if key in found and _kind(found[key]) != _kind(tensor)
        ),
    ]


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """List the tensors that hold infinities or NaN, a clause for each."""
    # `torch.isfinite` does not support 8-bit floating-point numbers.
    comparable = {key: tensor.float() if tensor.itemsize == 1 else tensor for key, tensor in tensors.items()}
    return [
        _("{name} is not finite").format(name=key)
        for key, tensor in comparable.items()
        if not torch.isfinite(tensor).all()
    ]


def differing_blocks(model: nn.Module, tensors: Mapping[str, Tensor]) -> str:
    """Return a clause for a message if the last block that a file changes is not the model's last block."""
    counts: list[dict[str, int]] = [{}, {}]
    for found, names in zip(
        counts, (map(base_name, tensors), (name for name, _layer in base_modules(model))), strict=True
    ):
        for path, index, _inside in map(split_block, names):
            if index is not None:
                found[path] = max(found.get(path, 0), index + 1)
    in_file, here = counts
    differing = [path for path in in_file if here.get(path, in_file[path]) != in_file[path]]
    if not differing:
        return ""
    path = differing[0]
    return _("its last block is {path}.{last}, and that of this model {path}.{here}; ").format(
        path=path, last=in_file[path] - 1, here=here[path] - 1
    )


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()


def _is_copy(
    owners: Mapping[str, nn.Module],
    shared: Mapping[str, list[str]],
    expected: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    key: str,
) -> bool:
    """Return whether a tensor of a file is a copy: of a weight of the base, or of a tensor under another of its names.

    Args:
        owners: the modules of the base, by name.
        shared: the names of its shared parameters.
        expected: the tensors of the adapter.
        found: the tensors of the file.
        key: the name of the tensor in the file.
    """
    name, tensor = base_name(key), found[key]
    path, _dot, attribute = name.rpartition(".")
    owner = owners.get(path)
    weight = owner._parameters.get(attribute) if owner is not None else None
    if weight is None or weight.shape != tensor.shape:
        return False
    if weight.is_meta or equal_when_rounded(weight, tensor):
        return True
    others = {other for shared_name in shared.get(name, ()) for other in parameter_keys(shared_name)}
    return any(torch.equal(found[other], tensor) for other in others & expected.keys() & found.keys())
