"""LoRA on a parameter that is not the weight of a linear layer, such as the weights of all experts in one tensor.

    W [experts, out, in]   →   W_e + scaling · B_e A_e  for each expert e        A_e [r, in],  B_e [out, r]

While an adapter is active, the module that owns the parameter gets a child with the pairs, and a `forward` that runs
that of the module's class on a shallow copy, whose parameter is the updated one. (`fast.layers` computes the same
without the sum.) An input dropout is not defined, because the module's inputs are multiplied in its own code.

As in PEFT's file, the factors of all experts are two matrices: A [experts · r, in] has the rows of the experts one
after the other, and the columns of B [out, r · experts] are ordered by row of A_e first, then by expert. A parameter
that its module stores transposed, [experts, in, out], has the transposed update; transformers' modules of experts mark
this by the attribute `is_transposed`. A parameter of two dimensions is treated as a stack of one matrix.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tsugiki.lora.init import init_random_
from tsugiki.lora.pair import LowRank
from tsugiki.model.undo import Undo, attach, attached, replace_forward, with_parameters


class ParameterPair(LowRank):
    """The factors A [experts · r, in] and B [out, r · experts] of the update of one parameter.

    `transposed` is whether the parameter is [experts, in, out] and not [experts, out, in].
    """

    def __init__(self, A: Tensor, B: Tensor, scaling: float, shape: torch.Size, transposed: bool) -> None:
        super().__init__(A, B, scaling, 0.0)
        self.shape, self.transposed = shape, transposed

    def matrices(self) -> tuple[Tensor, Tensor]:
        """Return the factors L and R of ΔW = scaling · L R, as matrices or stacks, as the parameter is."""
        if len(self.shape) == 2:
            return self.B, self.A
        experts = self.shape[0]
        A = self.A.view(experts, -1, self.A.shape[1])
        B = self.B.view(len(self.B), -1, experts).permute(2, 0, 1).contiguous()
        return (A.mT, B.mT) if self.transposed else (B, A)

    def delta(self) -> Tensor:
        """Return ΔW in the shape of the parameter."""
        left, right = self.matrices()
        return self.scaling * (left @ right)

    def updated(self, weight: Tensor) -> Tensor:
        """Return W + ΔW in the dtype of the pair, for merging."""
        delta = self.delta()
        return weight.to(delta.dtype) + delta

    def in_place_of(self, weight: Tensor) -> Tensor:
        """Return what the module computes with while the adapter is active: W + ΔW in the dtype of W."""
        return self.updated(weight).to(weight.dtype)


class JoinedParameterPairs(ParameterPair):
    """The pairs that several adapters have for one parameter."""

    def __init__(self, pairs: Sequence[ParameterPair]) -> None:
        nn.Module.__init__(self)
        self.pairs, self.scaling = nn.ModuleList(pairs), 1.0
        self.shape, self.transposed = pairs[0].shape, pairs[0].transposed

    def matrices(self) -> tuple[Tensor, Tensor]:
        """Return the factors of the sum of the updates; L is multiplied by the scalings."""
        found = [(*pair.matrices(), pair.scaling) for pair in self.pairs if isinstance(pair, ParameterPair)]
        return torch.cat([scaling * left for left, _, scaling in found], -1), torch.cat([r for _, r, _ in found], -2)


class LoraParameters(nn.ModuleDict):
    """The pairs of the parameters of one module, by the parameters' names; a child of that module."""


def new_parameter_pair(parameter: Tensor, transposed: bool, r: int, scaling: float, init: bool | str) -> ParameterPair:
    """Return a new pair of rank r for each expert, initialised as in PEFT (see `init_random_`).

    The parameter is a matrix [out, in], or a stack of matrices.
    """
    at = parameter.device if parameter.is_meta else torch.device("cpu")  # the same values on every device
    dtype = torch.float64 if parameter.dtype == torch.float64 else torch.float32
    shapes = parameter_pair_shapes(parameter.shape, transposed, r)
    A, B = (torch.empty(shape, dtype=dtype, device=at) for shape in shapes)
    pair = ParameterPair(A, B, scaling, parameter.shape, transposed)
    init_random_(pair, r, init)
    return pair.to(parameter.device)


def parameter_pair_shapes(shape: torch.Size, transposed: bool, r: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the shapes of A and B of rank r for a parameter of this shape."""
    experts = shape[0] if len(shape) == 3 else 1
    width_in, width_out = (shape[-2], shape[-1]) if transposed else (shape[-1], shape[-2])
    return (experts * r, width_in), (width_out, r * experts)


def is_transposed(owner: nn.Module, parameter: Tensor) -> bool:
    """Return whether a parameter of this module is [experts, in, out]."""
    return parameter.dim() == 3 and bool(getattr(owner, "is_transposed", False))


def activate_parameters(owner: nn.Module, pairs: Mapping[str, ParameterPair], undo: list[Undo]) -> None:
    """Let a module compute with pairs for its parameters, by the parameters' names."""
    attach(owner, LoraParameters(pairs), undo)
    replace_forward(owner, partial(forward_with_sums, owner), undo)


def forward_with_sums(owner: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Run the forward of the module's class with W + ΔW in the place of each parameter that has a pair."""
    own = owner._parameters
    sums = {name: pair.in_place_of(own[name]) for name, pair in attached(owner).items()}
    return type(owner).forward(with_parameters(owner, sums), *args, **kwargs)
