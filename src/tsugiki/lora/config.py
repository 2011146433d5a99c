"""What a LoRA adapter is: its settings, under the names that PEFT gives them."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar, get_args

from tsugiki.errors import TsugikiError

Bias = Literal["none", "lora_only", "all"]
_STARTS = r"gaussian|orthogonal|pissa(_niter_\d+)?"
T = TypeVar("T")


@dataclass(frozen=True)
class LoraConfig:
    """Settings of a low-rank adapter (Hu et al. 2021, arXiv:2106.09685), named as in PEFT's `LoraConfig`.

    Args:
        r: rank of the update; A is [r, in], B is [out, r].
        lora_alpha: the update is scaled by `lora_alpha / r` (see `use_rslora`).
        target_modules: which layers to graft. A list holds names or name endings (`c_attn` finds every
            `….c_attn`); a string is a regular expression for the whole name, or "all-linear" for every
            linear layer but the output head. None: the model type decides (`tsugiki.architectures`).
        exclude_modules: layers left out although `target_modules` finds them; matched the same way.
        lora_dropout: probability of dropping an input element on the low-rank path, while training.
        bias: which biases train: "none", those of grafted layers ("lora_only"), or "all".
        use_rslora: scale by `lora_alpha / sqrt(r)` (Kalajdzievski 2023, arXiv:2312.03732).
        modules_to_save: modules trained whole, on a copy, and stored in the adapter (names or endings).
        init_lora_weights: True: A Kaiming-uniform, B zero (embeddings: A zero, B normal), so that nothing
            changes before training. "gaussian": A normal with standard deviation 1/r. "pissa",
            "pissa_niter_" and a number, "orthogonal": see `tsugiki.lora.initialise`; of linear layers only.
            False: both random, which changes the model at once; for tests only.
        use_dora: train the lengths of the weight's rows too, and apart (see `tsugiki.lora.dora`).
        freeze_A: train B alone (LoRA-FA, Zhang et al. 2023, arXiv:2308.03303); an embedding, which has no input to
            keep, trains both. PEFT has no such field: the file is a LoRA.
        layers_to_transform: graft only in blocks with these indices.
        layers_pattern: name of the list that holds the blocks, where the first index in a name is not theirs.
        rank_pattern: another rank for layers whose name ends in a match of the key.
        alpha_pattern: another alpha, likewise.
        fan_in_fan_out: whether grafted weights lie as [in, out]. Kept for the file: the layer itself tells.

    Raises:
        TsugikiError: a value that cannot be meant.
    """

    r: int = 8
    lora_alpha: float = 8
    target_modules: Sequence[str] | str | None = None
    exclude_modules: Sequence[str] | str | None = None
    lora_dropout: float = 0.0
    bias: Bias = "none"
    use_rslora: bool = False
    modules_to_save: Sequence[str] | None = None
    init_lora_weights: bool | str = True
    use_dora: bool = False
    freeze_A: bool = False
    layers_to_transform: Sequence[int] | int | None = None
    layers_pattern: Sequence[str] | str | None = None
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    fan_in_fan_out: bool = False

    def __post_init__(self) -> None:
        for where, rank in [
            ("r", self.r),
            *((f"rank_pattern[{k!r}]", v) for k, v in self.rank_pattern.items()),
        ]:
            if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
                raise TsugikiError(f"{where} is {rank!r}; a rank is a whole number of at least 1")
        for where, alpha in [
            ("lora_alpha", self.lora_alpha),
            *((f"alpha_pattern[{k!r}]", v) for k, v in self.alpha_pattern.items()),
        ]:
            if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
                raise TsugikiError(f"{where} is {alpha!r}; alpha is a finite number above 0")
        if not 0 <= self.lora_dropout < 1:
            raise TsugikiError(f"lora_dropout is {self.lora_dropout!r}; it must be at least 0 and below 1")
        if self.bias not in get_args(Bias):
            raise TsugikiError(f"bias is {self.bias!r}; choose one of {', '.join(get_args(Bias))}")
        blocks = self.layers_to_transform
        listed = blocks if isinstance(blocks, list | tuple | range) else [blocks or 0]
        if not all(isinstance(one, int) for one in listed):
            raise TsugikiError(f"layers_to_transform is {blocks!r}; it is the number of a block, or a list of them")
        start = self.init_lora_weights
        if not isinstance(start, bool) and re.fullmatch(_STARTS, str(start)) is None:
            raise TsugikiError(
                f"init_lora_weights is {start!r}; known are True, False, 'gaussian', 'orthogonal', 'pissa' and "
                "'pissa_niter_[number]'"
            )
        odd = [rank for rank in (self.r, *self.rank_pattern.values()) if rank % 2]
        if start == "orthogonal" and odd:
            raise TsugikiError(f"init_lora_weights 'orthogonal' asks for even ranks, and one is {odd[0]}")
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise TsugikiError(
                "layers_to_transform goes with a list of target_modules; "
                f"{self.target_modules!r} is a pattern and can name the layers itself"
            )
        patterns = [p for p in (self.target_modules, self.exclude_modules) if isinstance(p, str)]
        for pattern in [*patterns, *self.rank_pattern, *self.alpha_pattern]:
            try:
                re.compile(pattern)
            except re.error as error:
                raise TsugikiError(f"{pattern!r} is not a regular expression: {error}") from error

    def rank_of(self, name: str) -> int:
        """The rank for the layer called `name`."""
        return _look_up(self.rank_pattern, name, self.r)

    def alpha_of(self, name: str) -> float:
        """The alpha for the layer called `name`."""
        return _look_up(self.alpha_pattern, name, self.lora_alpha)

    def scaling_of(self, name: str) -> float:
        """The factor on B A x for the layer called `name`: alpha / r, or alpha / sqrt(r) for rsLoRA."""
        rank = self.rank_of(name)
        return self.alpha_of(name) / (math.sqrt(rank) if self.use_rslora else rank)


def _look_up(patterns: Mapping[str, T], name: str, default: T) -> T:
    """The value of the first pattern that matches the whole name or its end after a dot, as in PEFT."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default
