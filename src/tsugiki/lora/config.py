"""The settings of a LoRA adapter, under the names that PEFT gives them; imported without torch."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass, field, fields
from functools import cached_property
from typing import Annotated, Any, Literal, TypeAlias

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BeforeValidator

from tsugiki.errors import TsugikiError, error_text
from tsugiki.model.names import Names, PatternTable, matches
from tsugiki.model.setting_checks import check_types, with_known_settings

Bias = Literal["none", "lora_only", "all"]
LARGEST_FACTOR = 1_000_000
"""The largest factor on what an adapter adds. Factors in use are below 1,000; huge ones give infinity and NaN."""
Rank: TypeAlias = Annotated[int, Ge(1)]
Alpha: TypeAlias = Annotated[float, Gt(0), Le(LARGEST_FACTOR)]


Indices: TypeAlias = Annotated[
    Sequence[int], BeforeValidator(lambda value: list(value) if isinstance(value, range) else value)
]
"""A list, a tuple or a range of integers."""
_INITIALISATIONS = r"gaussian|mica|orthogonal|pissa(_niter_\d+)?"


@with_known_settings
@dataclass(frozen=True)
class LoraConfig:
    """Settings of a low-rank adapter (Hu et al. 2021, arXiv:2106.09685), named as in PEFT's `LoraConfig`.

    Args:
        r: the rank of the update; A is [r, in], B is [out, r].
        lora_alpha: the update is scaled by `lora_alpha / r` (see `use_rslora`).
        target_modules: the layers to graft. A list holds names or name endings (`c_attn` selects every `….c_attn`); a
            string is a regular expression for the whole name, or "all-linear" for every linear layer except the output
            head. None: all linear layers inside the blocks (`tsugiki.model.targets_by_rule`); `tsugiki train` adds the
            output head where the text has tokens that the base has never written.
        exclude_modules: layers to leave out although `target_modules` selects them; matched in the same way.
        target_parameters: names or name endings of parameters that get factors, too: weights of all experts in one
            parameter (`experts.gate_up_proj`; see `tsugiki.lora.experts`), or the weight of a layer
            (`mlp.gate.weight`). As in PEFT, `exclude_modules` and `layers_to_transform` do not apply to them, and they
            allow neither dropout nor DoRA. `target_modules=[]` grafts them alone.
        trainable_token_indices: ids of tokens whose vectors train (see `model.token_vectors`): those of the embedding,
            and of the head if it shares its weight; or a list for each name of a layer, such as {"lm_head": [5]}.
        ensure_weight_tying: refuse to adapt an embedding, or to train it as a whole, without the head that shares its
            weight. In PEFT it adapts both alike.
        lora_dropout: the probability of dropping an input element on the low-rank path during training.
        lora_bias: add a trained term beside B A x, scaled by the same factor.
        bias: the biases that train: "none", those of grafted layers ("lora_only"), or "all".
        use_rslora: scale by `lora_alpha / sqrt(r)` (Kalajdzievski 2023, arXiv:2312.03732).
        modules_to_save: names or name endings of modules that train as a whole, on a copy, and are stored in the
            adapter. None: the output layers of a classifier, if the model is one.
        init_lora_weights: True: A is Kaiming-uniform and B is zero (for embeddings, A is zero and B is normal), so that
            nothing changes before training. "gaussian": A is normal with standard deviation 1/r. "pissa",
            "pissa_niter_" followed by a number, and "orthogonal" are for linear layers only; see
            `tsugiki.lora.init`. False: both are random, which changes the model at once; for tests only.
        use_dora: train the lengths of the weight's rows separately (see `tsugiki.lora.variants`).
        freeze_A: train only B (LoRA-FA, Zhang et al. 2023, arXiv:2308.03303). For an embedding A trains, too, because
            freezing it would save no memory. PEFT has no such field; the file is that of a LoRA.
        layers_to_transform: graft only in blocks with these indices.
        layers_pattern: the name of the list of blocks, needed if the first index in layer names is that of another
            list.
        rank_pattern: regular expression -> the rank of layers whose name ends in a match.
        alpha_pattern: regular expression -> the alpha of layers whose name ends in a match.
        fan_in_fan_out: whether the grafted weights are stored as [in, out]. It has no effect, because the layers tell;
            it is kept for PEFT's files.
        task_type, auto_mapping, base_model_name_or_path, revision: settings of PEFT's that say nothing about a new
            adapter; they are accepted and not kept.
        inference_mode: accepted if it is false. In PEFT, true freezes the new adapter.

    Raises:
        TsugikiError: an invalid value.
    """

    r: Rank = 8
    lora_alpha: Alpha = 8
    target_modules: Names | None = None
    exclude_modules: Names | None = None
    target_parameters: Sequence[str] | None = None
    trainable_token_indices: Indices | Mapping[str, Indices] | None = None
    ensure_weight_tying: bool = False
    lora_bias: bool = False
    lora_dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    bias: Bias = "none"
    use_rslora: bool = False
    modules_to_save: Sequence[str] | None = None
    init_lora_weights: bool | str = True
    use_dora: bool = False
    freeze_A: bool = False
    layers_to_transform: Indices | int | None = None
    layers_pattern: Names | None = None
    rank_pattern: Mapping[str, Rank] = field(default_factory=dict)
    alpha_pattern: Mapping[str, Alpha] = field(default_factory=dict)
    fan_in_fan_out: bool = False
    task_type: InitVar[Any] = None
    auto_mapping: InitVar[Any] = None
    base_model_name_or_path: InitVar[Any] = None
    revision: InitVar[Any] = None
    inference_mode: InitVar[bool] = False

    def __post_init__(
        self,
        task_type: object,
        auto_mapping: object,
        base_model_name_or_path: object,
        revision: object,
        inference_mode: bool,
    ) -> None:
        if inference_mode:
            raise TsugikiError(
                "inference_mode is true, which in PEFT freezes the new adapter; leave it out to train it"
            )
        check_types(self)
        init = self.init_lora_weights
        if isinstance(init, str) and re.fullmatch(_INITIALISATIONS, init) is None:
            raise TsugikiError(
                "init_lora_weights is {init!r}; choose True, False, 'gaussian', 'orthogonal', 'pissa' or "
                "'pissa_niter_[number]'",
                init=init,
            )
        odd = [rank for rank in (self.r, *self.rank_pattern.values()) if rank % 2]
        if init == "orthogonal" and odd:
            raise TsugikiError("init_lora_weights 'orthogonal' requires even ranks, and one is {rank}", rank=odd[0])
        if self.lora_bias and (self.use_dora or not isinstance(self.init_lora_weights, bool)):
            raise TsugikiError("lora_bias cannot be combined with use_dora or other initial values; leave one out")
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise TsugikiError(
                "layers_to_transform requires a list of target_modules; {target_modules!r} is a pattern, which "
                "can name the layers itself",
                target_modules=self.target_modules,
            )
        wanted = self.trainable_token_indices
        lists = wanted.values() if isinstance(wanted, Mapping) else [] if wanted is None else [wanted]
        if any(not ids or min(ids) < 0 or len(set(ids)) < len(ids) for ids in lists):
            raise TsugikiError(
                "trainable_token_indices has {value}; give a list of different token ids, or such a list "
                "for each name of a layer",
                value=error_text(repr(wanted), 40),
            )
        # Each raises an error for a pattern that cannot be used.
        _checked = self._ranks, self._alphas, self._block_lists

    def __getstate__(self) -> dict[str, Any]:
        """Return the settings alone, for copies and for pickle. Patterns are compiled again when they are needed."""
        return {setting.name: getattr(self, setting.name) for setting in fields(self)}

    @cached_property
    def _ranks(self) -> PatternTable[int]:
        return PatternTable("rank_pattern", self.rank_pattern)

    @cached_property
    def _alphas(self) -> PatternTable[float]:
        return PatternTable("alpha_pattern", self.alpha_pattern)

    @cached_property
    def _block_lists(self) -> PatternTable[int]:
        patterns = [self.layers_pattern] if isinstance(self.layers_pattern, str) else self.layers_pattern or ()
        return PatternTable("layers_pattern", {pattern: order for order, pattern in enumerate(patterns)})

    def rank_of(self, name: str) -> int:
        """Return the rank for the layer or the parameter called `name`."""
        return self._ranks.look_up(self.name_in_patterns(name), self.r)

    def alpha_of(self, name: str) -> float:
        """Return alpha for the layer or the parameter called `name`."""
        return self._alphas.look_up(self.name_in_patterns(name), self.lora_alpha)

    def name_in_patterns(self, name: str) -> str:
        """Return the name by which patterns match a layer: its weight's name if `target_parameters` selects that."""
        weight = f"{name}.weight"
        return weight if self.target_parameters and matches(weight, self.target_parameters) else name

    def block_index_of(self, name: str) -> int | None:
        """Return the index of a layer's block in the list that `layers_pattern` names; None if no pattern matches.

        As in PEFT, the first pattern that matches the name is used, at the first place where it matches.
        """
        parts = name.split(".")
        found = [
            (order, place)
            for place in range(1, len(parts) - 1)
            if parts[place].isdecimal() and (order := self._block_lists.look_up(".".join(parts[:place]), -1)) >= 0
        ]
        return int(parts[min(found)[1]]) if found else None

    def scaling_of(self, name: str) -> float:
        """Return the factor on B A for a layer or parameter: alpha / r, or alpha / sqrt(r) for rsLoRA."""
        rank = self.rank_of(name)
        return self.alpha_of(name) / (math.sqrt(rank) if self.use_rslora else rank)
