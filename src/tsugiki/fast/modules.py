"""The quicker equals put into a model, in place, without knowing its architecture.

What a module computes is found out by trying: where its output on a probe is not that of one of ours, it stays as it
is. Only `forward` of the module's instance changes, as with the hooks of Accelerate: classes, parameters, their names
and checkpoints do not, and copies and pickles work. The module's own `forward` still serves wherever it is as good.
"""

import copy
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsugiki.base.inference import seeded
from tsugiki.fast.activations import GELU_TANH, QUICK_GELU, SILU, Swish, eager_on_cpu, swish
from tsugiki.fast.gated import gated
from tsugiki.fast.norms import rms_norm
from tsugiki.lora.swap import CHILD

ReplacedModules = list[tuple[nn.Module, str]]
"""Modules whose forward was replaced, and by what."""

_FORMS = {"gelu_tanh": GELU_TANH, "quick_gelu": QUICK_GELU, "silu": SILU}
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **{name: partial(swish, form=form) for name, form in _FORMS.items()},
    "gelu": F.gelu,
}
_PARTS = ({"gate_proj", "up_proj", "down_proj"}, {"gate_up_proj", "down_proj"})

_Found = tuple[str, "partial[Tensor]"] | None


def use_fused_modules(model: nn.Module) -> ReplacedModules:
    """Replace what has a quicker equal inside `model`; returns what `restore_modules` needs.

    That is: gated feed-forward parts ("gated_silu", "gated_gelu_tanh", "gated_quick_gelu"), RMSNorm ("rms_norm"), and
    activations ("gelu_tanh", "quick_gelu"; "silu" and "gelu", which torch has, in case they are written out).
    """
    sped_up: ReplacedModules = []
    inside: set[nn.Module] = set()
    with torch.no_grad(), seeded(0):
        for module in model.modules():
            if module not in inside and _takes_one_tensor(module):
                found = _find_gated(module) or _find_norm(module) or _find_activation(module)
                if found is not None:
                    name, module.forward = found
                    sped_up.append((module, name))
            if _is_sped_up(module):
                inside |= {child for child in module.children() if _is_activation(child)}
    return sped_up


def restore_modules(sped_up: ReplacedModules) -> None:
    """Give the modules their own forward back; one that was wrapped again since keeps what wraps it."""
    for module, _ in sped_up:
        if _is_sped_up(module):
            del module.forward


def _activation_forward(module: nn.Module, x: Tensor, quick: Callable[[Tensor], Tensor]) -> Tensor:
    return quick(x) if eager_on_cpu(x) else _own(module, x)


def _norm_forward(module: nn.Module, x: Tensor, eps: str, offset: float) -> Tensor:
    weight: Tensor = module.weight  # type: ignore[assignment]
    if weight.requires_grad or not eager_on_cpu(x, weight):
        return _own(module, x)
    return rms_norm(x, weight, getattr(module, eps), offset)


def _gated_forward(module: Any, x: Tensor, form: Swish) -> Tensor:
    if not eager_on_cpu(x):
        return _own(module, x)
    if "gate_up_proj" in module._modules:
        gate, up = module.gate_up_proj(x).chunk(2, dim=-1)
    else:
        gate, up = module.gate_proj(x), module.up_proj(x)
    return module.down_proj(gated(gate, up, form))  # type: ignore[no-any-return]


_FORWARDS = (_activation_forward, _norm_forward, _gated_forward)


def _own(module: nn.Module, x: Tensor) -> Tensor:
    return type(module).forward(module, x)  # type: ignore[no-any-return]


def _is_sped_up(module: nn.Module) -> bool:
    forward = vars(module).get("forward")
    return isinstance(forward, partial) and forward.func in _FORWARDS


def _find_activation(module: nn.Module) -> _Found:
    if not _is_activation(module):
        return None
    probe = torch.cat([torch.linspace(-6, 6, 97), torch.tensor([-1e3, -30.0, 30.0, 1e3])])  # far out some are clipped
    for name, quick in _ACTIVATIONS.items():
        if _agree(module, probe, quick(probe)):
            return name, partial(_activation_forward, module, quick=quick)
    return None


def _find_norm(module: nn.Module) -> _Found:
    """One whose only parameter is a weight [width]; eps is one of its numbers."""
    weight = module._parameters.get("weight")
    if len(list(module.parameters())) != 1 or weight is None or weight.dim() != 1:
        return None
    scales = torch.tensor([1e-3, 1e-2, 1.0, 30.0], device=weight.device)  # eps shows in small numbers
    probe = torch.randn(4, len(weight), device=weight.device) * scales[:, None]
    for eps in (name for name, value in vars(module).items() if isinstance(value, float)):
        for offset in (0.0, 1.0):
            if _agree(module, probe, rms_norm(probe, weight.detach().float(), getattr(module, eps), offset)):
                return "rms_norm", partial(_norm_forward, module, eps=eps, offset=offset)
    return None


def _find_gated(module: nn.Module) -> _Found:
    """Tried with small layers in the place of its own, which may be large, grafted or packed.

    What an adapter adds to it is called by a hook, and so after any forward.
    """
    acts = [name for name, child in module._modules.items() if child is not None and _is_activation(child)]
    if len(acts) != 1 or module._modules.keys() - {*acts, CHILD} not in _PARTS:
        return None
    act = _find_activation(module._modules[acts[0]])  # type: ignore[arg-type]
    form = _FORMS.get(act[0]) if act else None
    if form is None:
        return None
    small = copy.copy(module)
    shapes = {"gate_proj": (8, 6), "up_proj": (8, 6), "gate_up_proj": (8, 12), "down_proj": (6, 8)}
    vars(small)["_modules"] = {
        name: nn.Linear(*shapes[name]) if name in shapes else child for name, child in module._modules.items()
    }
    probe = 3 * torch.randn(4, 8)
    if not _agree(small, probe, _gated_forward(small, probe, form)):
        return None
    return f"gated_{act[0]}", partial(_gated_forward, module, form=form)  # type: ignore[index]


def _is_activation(module: nn.Module) -> bool:
    """Whether it can be one: a function of its input alone."""
    return not any(any(True for _ in own) for own in (module.children(), module.parameters(), module.buffers()))


def _takes_one_tensor(module: nn.Module) -> bool:
    """Whether its class's forward does, and nothing was put in that one's place."""
    return "forward" not in vars(module) and len(inspect.signature(module.forward).parameters) == 1


def _agree(module: nn.Module, probe: Tensor, ours: Tensor) -> bool:
    try:
        theirs: Any = _own(module, probe)
        return isinstance(theirs, Tensor) and torch.allclose(theirs, ours, rtol=1e-5, atol=1e-5)
    except Exception:  # whatever it is, it is not one of these
        return False
