"""Replace modules of a model by fused equivalents, in place and for any architecture.

A module is recognised by a trial: if its output on a probe equals that of one of our functions, it is replaced;
otherwise it stays as it is. Only `forward` of the module's instance is replaced, as with the hooks of Accelerate.
Classes, parameters, their names and checkpoints stay the same, and copies and pickles of the model work. The class's
own `forward` still runs wherever it is as fast.

While text is generated, linear layers and norms get only a few rows, for which C functions are faster.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsugiki.fast.activations import GELU_TANH, QUICK_GELU, SILU, Swish, eager_on_cpu, gated, swish
from tsugiki.fast.norms import generated_rms_norm, rms_norm
from tsugiki.lowbit.few_rows import few_rows_product
from tsugiki.model.inference import seeded
from tsugiki.model.linear import is_conv1d, is_hooked, linear_of_matrix
from tsugiki.model.undo import CHILD, Undo, replace_forward, replaced_forward, undo_all, with_modules
from tsugiki.native import native_for

_SWISHES = {"gelu_tanh": GELU_TANH, "quick_gelu": QUICK_GELU, "silu": SILU}
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **{name: partial(swish, activation=activation) for name, activation in _SWISHES.items()},
    "gelu": F.gelu,
}
_PROJECTIONS = ({"gate_proj", "up_proj", "down_proj"}, {"gate_up_proj", "down_proj"})
"""The names of a gated feed-forward network's linear layers."""


class _Equivalent(NamedTuple):
    name: str
    forward: "partial[Tensor]"


def use_fused_modules(model: nn.Module, undo: list[Undo]) -> list[str]:
    """Replace the `forward` of every module inside `model` that has a fused equivalent; return their names.

    These are gated feed-forward networks ("gated_silu", "gated_gelu_tanh", "gated_quick_gelu"), RMSNorm ("rms_norm")
    and activations ("gelu_tanh", "quick_gelu"; also "silu" and "gelu", which a model may compute step by step).
    """
    names: list[str] = []
    # Activations that the fused `forward` of their parent computes; a parent comes before its children.
    fused_with_parent: set[nn.Module] = set()
    with torch.no_grad(), seeded(0):
        for module in model.modules():
            if module not in fused_with_parent and takes_one_tensor(module):
                found = _match_gated(module) or _match_norm(module) or _match_activation(module)
                if found is not None:
                    replace_forward(module, found.forward, undo)
                    names.append(found.name)
            if replaced_forward(module) in _FORWARDS:
                fused_with_parent |= {child for child in module.children() if _may_be_activation(child)}
    return names


def _activation_forward(module: nn.Module, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    return function(x) if eager_on_cpu(x) else _own_forward(module, x)


def _norm_forward(module: nn.Module, x: Tensor, eps: str, offset: float) -> Tensor:
    weight: Tensor = module.weight  # type: ignore[assignment]
    if weight.requires_grad or not eager_on_cpu(x, weight):
        return _own_forward(module, x)
    return rms_norm(x, weight, getattr(module, eps), offset)


def _gated_forward(module: Any, x: Tensor, activation: Swish) -> Tensor:
    if not eager_on_cpu(x):
        return _own_forward(module, x)
    if "gate_up_proj" in module._modules:
        gate, up = module.gate_up_proj(x).chunk(2, dim=-1)
    else:
        gate, up = module.gate_proj(x), module.up_proj(x)
    return module.down_proj(gated(gate, up, activation))  # type: ignore[no-any-return]


_FORWARDS = (_activation_forward, _norm_forward, _gated_forward)


def _own_forward(module: nn.Module, x: Tensor) -> Tensor:
    return type(module).forward(module, x)  # type: ignore[no-any-return]


def _match_activation(module: nn.Module) -> _Equivalent | None:
    """Match an activation by its output on a probe; the probe has large values, because some activations clip them."""
    if not _may_be_activation(module):
        return None
    probe = torch.cat([torch.linspace(-6, 6, 97), torch.tensor([-1e3, -30.0, 30.0, 1e3])])
    for name, function in _ACTIVATIONS.items():
        if _computes(module, probe, function(probe)):
            return _Equivalent(name, partial(_activation_forward, module, function=function))
    return None


def _match_norm(module: nn.Module) -> _Equivalent | None:
    found = rms_norm_of(module)
    return found and _Equivalent("rms_norm", partial(_norm_forward, module, eps=found[0], offset=found[1]))


def rms_norm_of(module: nn.Module) -> tuple[str, float] | None:
    """Match RMSNorm: the only parameter is a weight [width], and eps is one of the module's float attributes.

    Returns the name of that attribute, and the offset (see `norms.rms_norm`); None if the module is not RMSNorm.
    """
    weight = module._parameters.get("weight")
    if len(list(module.parameters())) != 1 or weight is None or weight.dim() != 1:
        return None
    scales = torch.tensor([1e-3, 1e-2, 1.0, 30.0], device=weight.device)  # eps makes a difference for small inputs only
    probe = torch.randn(4, len(weight), device=weight.device) * scales[:, None]
    for eps in (name for name, value in vars(module).items() if isinstance(value, float)):
        for offset in (0.0, 1.0):
            if _computes(module, probe, rms_norm(probe, weight.detach().float(), getattr(module, eps), offset)):
                return eps, offset
    return None


def _match_gated(module: nn.Module) -> _Equivalent | None:
    """Match a gated feed-forward network, on a copy with small layers: its own may be large, grafted or quantised.

    Returns the name, such as "gated_silu", and the fused `forward`; None if the module is not such a network. A child
    that an adapter added is ignored, because a hook calls it after any `forward`.
    """
    acts = [name for name, child in module._modules.items() if child is not None and _may_be_activation(child)]
    if len(acts) != 1 or module._modules.keys() - {*acts, CHILD} not in _PROJECTIONS:
        return None
    found = _match_activation(module._modules[acts[0]])  # type: ignore[arg-type]
    activation = _SWISHES.get(found.name) if found else None
    if found is None or activation is None:
        return None
    # Outer width 8 and inner width 6 differ, so that a module of other products does not fit and raises. Some
    # networks limit gate and up, to 10 for example, so half of the rows give values beyond that.
    shapes = {"gate_proj": (8, 6), "up_proj": (8, 6), "gate_up_proj": (8, 12), "down_proj": (6, 8)}
    small = with_modules(module, {name: nn.Linear(*shapes[name]) for name in module._modules if name in shapes})
    probe = torch.randn(16, 8) * torch.tensor([3.0, 100.0] * 8)[:, None]
    if not _computes(small, probe, _gated_forward(small, probe, activation)):
        return None
    return _Equivalent(f"gated_{found.name}", partial(_gated_forward, module, activation=activation))


def _may_be_activation(module: nn.Module) -> bool:
    """Return whether the module has no children, parameters or buffers, and so may be a function of its input alone."""
    return not any(any(True for _ in own) for own in (module.children(), module.parameters(), module.buffers()))


def takes_one_tensor(module: nn.Module) -> bool:
    """Return whether the module's `forward` is its class's and has one parameter."""
    return "forward" not in vars(module) and len(inspect.signature(module.forward).parameters) == 1


def _computes(module: nn.Module, probe: Tensor, expected: Tensor) -> bool:
    """Return whether the module's own `forward` gives this output for the probe."""
    try:
        output: Any = _own_forward(module, probe)
        return isinstance(output, Tensor) and torch.allclose(output, expected, rtol=1e-5, atol=1e-5)
    except Exception:  # a module of another kind may raise anything
        return False


@contextmanager
def fast_generation(model: nn.Module) -> Iterator[None]:
    """Within the block, C functions compute RMSNorm and the products of few rows, in bfloat16 and float32.

    The results are equal up to rounding (see `few_rows_product` and `generated_rms_norm`). Layers with hooks and
    subclasses of `nn.Linear` do not change; quantised layers always use `few_integer_rows`. Only the `forward` of
    modules is replaced, so adapters can be added, switched and removed within the block.
    """
    undo: list[Undo] = []
    try:
        with torch.no_grad(), seeded(0):
            for module in model.modules():
                _replace(module, undo)
        yield
    finally:
        undo_all(undo)


def _replace(module: nn.Module, undo: list[Undo]) -> None:
    weight = module._parameters.get("weight")
    if weight is None or weight.dtype not in (torch.bfloat16, torch.float32) or is_hooked(module):
        return
    transposed = is_conv1d(module)
    is_product = type(module) is nn.Linear or transposed
    has_function = native_for("few_rows_transposed" if transposed else "few_rows", weight) is not None
    if not has_function and not (is_product and weight.dtype == torch.float32):  # for which oneDNN may be faster
        return
    if is_product:
        replace_forward(module, partial(linear_of_matrix, module, product=few_rows_product), undo)
    elif takes_one_tensor(module) and (found := rms_norm_of(module)) is not None:
        replace_forward(module, partial(_norm, module, eps=found[0], offset=found[1]), undo)


def _norm(module: nn.Module, x: Tensor, eps: str, offset: float) -> Tensor:
    return generated_rms_norm(x, module.weight, getattr(module, eps), offset)  # type: ignore[arg-type]
