"""LoRA files from before transformers renamed the layers of a model, or joined its experts.

transformers renames the weights of old checkpoints while it loads them, by a table of rules for each model type
(`transformers.conversion_mapping`). The same rules tell which layer of today's model an old adapter means:

    language_model.model.layers.0.self_attn.q_proj   →  model.language_model.layers.0.self_attn.q_proj
    model.layers.0.block_sparse_moe.experts.3.w1     →  model.layers.0.mlp.experts.gate_up_proj, a parameter
    model.layers.0.block_sparse_moe.gate             →  model.layers.0.mlp.gate.weight, a parameter

Where each expert had layers of its own, their factors become those of a parameter for all experts (`lora.experts`). If
several layers became one weight, as w1 [m, d] and w3 [m, d] became W [2m, d], their ranks add up:

    A = [A1; A3]  [2r, d]        B = [[B1, 0], [0, B3]]  [2m, 2r]
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from torch import Tensor, nn

from tsugiki.errors import TsugikiError, error_text, warn_caller
from tsugiki.language import _
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.experts import is_transposed
from tsugiki.lora.targets import find_target_parameters, find_targets, shortest_target_modules
from tsugiki.methods.lora_format import parameter_factor_keys
from tsugiki.methods.method import check_shapes
from tsugiki.methods.peft_keys import PREFIX, WRAPPERS, factor_keys
from tsugiki.model.linear import is_graftable
from tsugiki.model.names import conversion_rules, matches, name_pattern, shortest_endings
from tsugiki.model.ungrafted import base_modules

_Stack: TypeAlias = dict[tuple[int, int], str]
"""(number among the layers that were joined, number of the expert) -> name of a layer in the file."""


@dataclass(frozen=True)
class _Names:
    """What the names of the layers in a file mean in a model."""

    layers: Mapping[str, str]
    """Name in the file -> name of a layer of the model that can be grafted."""
    parameters: Mapping[str, str]
    """Name in the file -> name of a matrix of another module, such as the router of experts."""
    modules: Mapping[str, str]
    """Name in the file -> another name of a module of the model."""
    stacks: Mapping[str, _Stack]
    """Name of a parameter for all experts -> the layers that became this parameter."""


def with_current_names(
    model: nn.Module, config: Any, tensors: Mapping[str, Tensor]
) -> tuple[Any, Mapping[str, Tensor]]:
    """Return the settings and the tensors of a file under the names that layers have in `model`.

    A file without old names is returned as it is. Names that no rule explains stay, but names that a wrapper around the
    model has given are an error.
    """
    _refuse_wrapped(model, tensors)
    names = _find_names(model, config, tensors) if isinstance(config, LoraConfig) else None
    if names is None or not (names.parameters or names.modules or names.stacks):
        return config, tensors
    in_stacks = {layer for stack in names.stacks.values() for layer in stack.values()}
    found = {_renamed_key(key, names): tensor for key, tensor in tensors.items() if _layer_of(key) not in in_stacks}
    joined = {name: _joined(model, name, stack, config, tensors) for name, stack in names.stacks.items()}
    config = _renamed_config(model, config, names, {name: A.shape[1] for name, (A, _B) in joined.items()})
    keys = parameter_factor_keys(model, find_target_parameters(model, config))
    for name, (A, B) in joined.items():
        found |= zip(keys[name], (A.flatten(0, 1), B.permute(1, 2, 0).flatten(1)), strict=True)
    return config, found


def _refuse_wrapped(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    wrapped = [key for key in tensors if WRAPPERS.search(key)]
    modules = dict(base_modules(model)) if wrapped else {}
    key = next((k for k in wrapped if _layer_of(k) not in modules or ".default." in k.rpartition(".lora_")[2]), None)
    if key is not None:
        message = _(
            "{key} is not PEFT's name but that of a tensor in a wrapped model; `tsugiki adapters import FOLDER --model "
            "BASE --out NAME` converts such a file"
        )
        raise TsugikiError(message.format(key=error_text(key, 100)))


def _find_names(model: nn.Module, config: LoraConfig, tensors: Mapping[str, Tensor]) -> _Names:
    modules = dict(base_modules(model))
    layers: dict[str, str] = {}
    parameters: dict[str, str] = {}
    renamed: dict[str, str] = {}
    stacks: dict[str, _Stack] = {}
    rules: list[Any] | None = None
    for layer in dict.fromkeys(map(_layer_of, tensors)):
        name = layer
        if name and name not in modules:
            if rules is None:  # as transformers: renamings come first
                rules = sorted(conversion_rules(model, add_legacy=False), key=lambda rule: hasattr(rule, "operations"))
            name, number = _apply(rules, layer)
            if number is not None and _is_stack(modules, name):
                stacks.setdefault(name, {})[number, int(re.findall(r"\.(\d+)\.", layer)[-1])] = layer
            elif name in modules:
                renamed[layer] = name
        module = modules.get(name)
        if module is None or tensors.keys().isdisjoint(_factors(layer)):
            continue
        if is_graftable(module):
            layers[layer] = name
        elif _has_matrix(module) and not matches(f"{name}.weight", config.target_parameters or ()):
            parameters[layer] = f"{name}.weight"
    return _Names(layers, parameters, renamed, stacks)


def _apply(rules: Iterable[Any], layer: str) -> tuple[str, int | None]:
    """Return today's name of a layer, or that of the parameter which it became a part of, and its number in that."""
    name = f"{layer}.weight"
    for rule in rules:
        new, source = rule.rename_source_key(name)
        if source is not None and hasattr(rule, "operations"):
            kinds = [(type(step).__name__, step.dim) for step in rule.operations if hasattr(step, "dim")]
            of_experts = len(kinds) == len(rule.operations) and kinds[:1] == [("MergeModulelist", 0)]
            if of_experts and kinds[1:] in ([], [("Concatenate", 1)]) and len(rule.target_patterns) == 1:
                return new, rule.source_patterns.index(source)
            return layer, None
        name = new
    return name.removesuffix(".weight"), None


def _joined(
    model: nn.Module, name: str, stack: _Stack, config: LoraConfig, tensors: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return A [experts, r, in] and B [experts, out, r] of the parameter that the layers of a stack became."""
    owner, _dot, attribute = name.rpartition(".")
    experts, out, width = dict(base_modules(model))[owner]._parameters[attribute].shape  # type: ignore[union-attr]
    numbers = sorted({number for number, _expert in stack})
    first = {number: stack[min(place for place in stack if place[0] == number)] for number in numbers}
    ranks = {number: config.rank_of(layer) for number, layer in first.items()}
    rows = {number: len(tensors.get(factor_keys(layer, False)[1], ())) for number, layer in first.items()}
    missing = [(number, expert) for number in numbers for expert in range(experts) if (number, expert) not in stack]
    if missing:
        message = _(
            "{layer} has factors, and the same layer of expert {expert} has none; all {count} experts must have"
        )
        raise TsugikiError(message.format(layer=first[missing[0][0]], expert=missing[0][1], count=experts))
    expected: dict[str, tuple[int, int]] = {}
    for (number, _expert), layer in stack.items():
        expected |= zip(factor_keys(layer, False), ((ranks[number], width), (rows[number], ranks[number])), strict=True)
    check_shapes(expected, tensors)
    like, scaling = tensors[factor_keys(first[numbers[0]], False)[0]], config.scaling_of(first[numbers[0]])
    A, B = like.new_zeros(experts, sum(ranks.values()), width), like.new_zeros(experts, out, sum(ranks.values()))
    start = 0
    for number in numbers:
        end, height = start + ranks[number], rows[number]
        for expert in range(experts):
            layer = stack[number, expert]
            A[expert, start:end], own_B = (tensors[key] for key in factor_keys(layer, False))
            B[expert, number * height : (number + 1) * height, start:end] = own_B * (config.scaling_of(layer) / scaling)
        start = end
    return A, B


def _renamed_config(model: nn.Module, config: LoraConfig, names: _Names, ranks: Mapping[str, int]) -> LoraConfig:
    """Return the settings under today's names; `ranks` are those of the parameters of `names.stacks`."""
    wanted = {
        name: (config.rank_of(layer), config.alpha_of(layer))
        for layer, name in (*names.layers.items(), *names.parameters.items())
    }
    for name, stack in names.stacks.items():
        layer, rank = stack[min(stack)], ranks[name]
        factor = rank / config.rank_of(layer)  # so that the scaling stays the same
        wanted[name] = rank, config.alpha_of(layer) * (math.sqrt(factor) if config.use_rslora else factor)
    modules = dict(base_modules(model))
    parameters = [*names.parameters.values(), *names.stacks]
    if parameters:
        all_names = {f"{path}.{attribute}" for path, module in modules.items() for attribute in module._parameters}
        endings = shortest_endings(parameters, all_names.difference(parameters))
        if config.lora_dropout:
            message = _("lora_dropout is 0 and not {dropout} here, because the experts are one parameter now ({name})")
            warn_caller(message.format(dropout=config.lora_dropout, name=endings[0]))
        own = [*(config.target_parameters or ()), *endings]
        config = replace(config, target_parameters=own, lora_dropout=0.0)
    config = _with_targets(model, config, modules, names.layers.values())
    other_ranks = {name: rank for name, (rank, _alpha) in wanted.items() if config.rank_of(name) != rank}
    other_alphas = {name: alpha for name, (_rank, alpha) in wanted.items() if config.alpha_of(name) != alpha}
    return replace(
        config,
        rank_pattern={name_pattern(name): rank for name, rank in other_ranks.items()} | dict(config.rank_pattern),
        alpha_pattern={name_pattern(name): alpha for name, alpha in other_alphas.items()} | dict(config.alpha_pattern),
    )


def _with_targets(
    model: nn.Module, config: LoraConfig, modules: Mapping[str, nn.Module], layers: Collection[str]
) -> LoraConfig:
    """Return the settings with `target_modules` that select these layers, the same ones if they still do."""
    targets = config.target_modules
    if targets is not None and not isinstance(targets, str):
        graftable = [name for name, module in modules.items() if is_graftable(module)]
        targets = [target for target in targets if any(matches(name, [target]) for name in graftable)]
    config = replace(config, target_modules=targets)
    try:
        selected: Collection[str] = find_targets(model, config).keys()
    except TsugikiError:  # the old names
        selected = ()
    if set(layers) <= set(selected):
        return config
    config = replace(config, exclude_modules=None, layers_to_transform=None, layers_pattern=None)
    return replace(config, target_modules=shortest_target_modules(model, config, layers))


def _layer_of(key: str) -> str:
    """Return the name of the layer that a tensor of a file belongs to."""
    name = re.sub(r"(\.base_layer)+(?=\.)", "", key.removeprefix(PREFIX))
    layer, *rest = re.split(r"\.lora_|\.token_adapter\.", name, maxsplit=1)
    return layer if rest else name.rpartition(".")[0]


def _renamed_key(key: str, names: _Names) -> str:
    layer = _layer_of(key)
    return key.replace(layer, names.modules.get(layer, layer), 1)


def _factors(layer: str) -> set[str]:
    return {*factor_keys(layer, False), *factor_keys(layer, True)}


def _has_matrix(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    return weight is not None and weight.dim() == 2


def _is_stack(modules: Mapping[str, nn.Module], name: str) -> bool:
    """Return whether this is the name of a parameter [experts, out, in]."""
    path, _dot, attribute = name.rpartition(".")
    parameter = modules[path]._parameters.get(attribute) if path in modules else None
    return parameter is not None and parameter.dim() == 3 and not is_transposed(modules[path], parameter)
