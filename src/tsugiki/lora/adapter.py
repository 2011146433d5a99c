"""A LoRA adapter: the pairs of all its layers and everything else that it trains, as one object.

Each target `layer` is wrapped as `LoraLinear(layer)`, `LoraEmbedding(layer)` or `LoraConv2d(layer)` and stays wrapped
while the model holds the adapter. The following are in the model only while the adapter is active: the pair of each
wrapped layer; the pairs of other parameters (`target_parameters`), in the modules that own them; and the copies that
replace the base's biases and modules (`bias`, `modules_to_save`) and the weights of a resized vocabulary.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from tsugiki.errors import TsugikiError, warn_caller
from tsugiki.language import _
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.experts import ParameterPair, activate_parameters, is_transposed, new_parameter_pair
from tsugiki.lora.layer import activate_factors, deactivate_factors, new_pair, updated_weight, wrap
from tsugiki.lora.pair import Grafted, LowRank
from tsugiki.lora.targets import find_target_parameters, find_targets
from tsugiki.lora.variants import add_magnitude
from tsugiki.model.linear import features, is_linear, oriented
from tsugiki.model.names import named_like_experts
from tsugiki.model.token_vectors import TokenVectors, attach_vectors, new_token_vectors
from tsugiki.model.trained_copies import copies_to_save, find_modules_to_save
from tsugiki.model.undo import Undo, base_of, replace_module, replace_parameter
from tsugiki.model.ungrafted import base_modules, vocabulary_layers
from tsugiki.model.weights import WeightUpdate, module_updates, quantized_copies, replace_with, shared_parameters

_MAX_RANK_FACTOR = 64
"""A rank above that of the weight is useless, but occurs where many adapters are combined into one."""


@dataclass
class LoraAdapter:
    """The trained parts of one LoRA adapter, by their names in the model before any graft."""

    config: LoraConfig
    pairs: dict[str, LowRank]
    modules: dict[str, nn.Module] = field(default_factory=dict)
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    """Trained biases, and frozen weights of a vocabulary that has more words than the base's."""
    parameter_pairs: dict[str, ParameterPair] = field(default_factory=dict)
    """The pairs of parameters that are not the weights of linear layers, by the parameters' names."""
    tokens: dict[str, TokenVectors] = field(default_factory=dict)
    """The trained vectors of single tokens, by the names of their layers."""

    @property
    def others(self) -> list[str]:
        """The names of everything that the adapter trains besides the pairs of layers."""
        biases = [f"{path}.lora_B.bias" for path, pair in self.pairs.items() if pair._parameters["bias"] is not None]
        return [*self.parameter_pairs, *self.modules, *self.parameters, *self.tokens, *biases]

    def attach(self, model: nn.Module, undo: list[Undo]) -> None:
        """Put pairs, modules and parameters into the model."""
        layers = _grafted(model, self.pairs)
        undo.append(partial(deactivate_factors, layers))
        for layer, factors in zip(layers, self.pairs.values(), strict=True):
            activate_factors(layer, factors)
        owners: dict[str, dict[str, ParameterPair]] = {}
        for path, pair in self.parameter_pairs.items():
            owner, _dot, name = path.rpartition(".")
            owners.setdefault(owner, {})[name] = pair
        for owner, pairs in owners.items():
            activate_parameters(base_of(model.get_submodule(owner)), pairs, undo)
        for path, module in self.modules.items():
            replace_module(model, path, module, undo)
        for path, parameter in self.parameters.items():
            replace_parameter(model, path, parameter, undo)
        for path, vectors in self.tokens.items():
            attach_vectors(base_of(model.get_submodule(path)), vectors, undo)

    def weight_updates(self, model: nn.Module) -> dict[str, WeightUpdate]:
        """Add ΔW to the weight of each layer with a pair; replace parameters and modules by the adapter's."""
        replacements = {id(parameter): replace_with(parameter) for parameter in self.parameters.values()}
        updates = {path: replacements[id(parameter)] for path, parameter in self.parameters.items()}
        changed: dict[tuple[int, int], WeightUpdate] = {}  # names that share a weight share its update
        for name, change in self._changes(model).items():
            replaced = self.parameters.get(name)
            update = change if replaced is None else partial(_changed, change, replaced)
            updates[name] = changed.setdefault((id(change), id(replaced)), update)
        updates |= {path: pair.updated for path, pair in self.parameter_pairs.items()}
        return updates | module_updates(self.modules)

    def _changes(self, model: nn.Module) -> dict[str, WeightUpdate]:
        """Return what the adapter does to weights that it does not replace, by their names."""
        layers = dict(base_modules(model))
        changes: dict[str, WeightUpdate] = {}
        for path, pair in self.pairs.items():
            layer = layers[path]
            if isinstance(layer, nn.Conv2d) and layer.groups > 1:
                raise TsugikiError(
                    "{path} is a convolution with {groups} groups, into whose kernel no pair can be merged; "
                    "keep the adapter separate",
                    path=path,
                    groups=layer.groups,
                )
            changes[f"{path}.weight"] = partial(updated_weight, layer, pair)
            if pair.bias is None:
                continue
            if layer._parameters.get("bias") is None:
                raise TsugikiError(
                    "lora_bias: {path} has no bias into which one can be merged; keep the adapter", path=path
                )
            changes[f"{path}.bias"] = partial(_with_bias, pair)
        of_vectors = {id(vectors): vectors.updated for vectors in self.tokens.values()}
        return changes | {f"{path}.weight": of_vectors[id(vectors)] for path, vectors in self.tokens.items()}


def new_lora_adapter(model: nn.Module, config: LoraConfig) -> LoraAdapter:
    """Return a new, untrained LoRA adapter for `model`, which is not changed."""
    targets = find_targets(model, config)
    target_parameters = find_target_parameters(model, config)
    for path, layer in targets.items():
        _check_fit(path, layer, config)
    _warn_of_ranks_too_high(targets, config)
    if config.use_dora or config.lora_bias:
        _check_names(model, targets, config)
    modules = copies_to_save(model, config.modules_to_save)
    pairs = {path: _pair(path, layer, config) for path, layer in targets.items()}
    if target_parameters:
        _check_parameter_settings(next(iter(target_parameters)), config)
    parameter_pairs = {
        path: _parameter_pair(path, owner, parameter, config) for path, (owner, parameter) in target_parameters.items()
    }
    trained = trained_biases(model, config, targets)
    if config.bias != "none" and not trained:
        raise TsugikiError("bias is {bias!r}, but none of these layers has a bias; use bias='none'", bias=config.bias)
    biases = {path: nn.Parameter(bias.detach().clone()) for path, bias in trained.items()}
    if config.ensure_weight_tying:
        _refuse_to_tie(model, [*pairs, *modules])
    tokens = new_token_vectors(model, config.trainable_token_indices)
    both = [path for path in tokens if path in pairs or path in modules]
    if both:
        raise TsugikiError(
            "trainable_token_indices trains tokens of {path}, which is in target_modules or modules_to_save, "
            "too; leave it out of one of them",
            path=both[0],
        )
    return LoraAdapter(config, pairs, modules, biases, parameter_pairs, tokens)


def trained_biases(model: nn.Module, config: LoraConfig, targets: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Return the base's biases that `config` trains, by name: those of the targets, or all outside of saved modules."""
    if config.bias == "none":
        return {}
    owners = dict(base_modules(model)) if config.bias == "all" else targets
    saved_whole = tuple(find_modules_to_save(model, config.modules_to_save))
    return {
        f"{path}.bias": bias
        for path, owner in owners.items()
        if isinstance(bias := owner._parameters.get("bias"), nn.Parameter)
        and not any(path == whole or path.startswith(f"{whole}.") for whole in saved_whole)
    }


def _refuse_to_tie(model: nn.Module, changed: Collection[str]) -> None:
    """Raise a TsugikiError if embedding and head share a weight, and one of them is among the changed layers."""
    shared = shared_parameters(model)
    ends = [path for path in changed if path in vocabulary_layers(model)]
    tied = [path for path in ends if f"{path}.weight" in shared or quantized_copies(model, f"{path}.weight")]
    if tied:
        raise TsugikiError(
            "ensure_weight_tying would adapt {path} and the layers that share its weight as one, which is not "
            "supported; leave it out, or merge the adapter with PEFT (merge_and_unload) and use the result as "
            "a model",
            path=tied[0],
        )


def _with_bias(pair: LowRank, bias: Tensor) -> Tensor:
    assert pair.bias is not None
    return bias.to(pair.bias.dtype) + pair.scaling * pair.bias


def _changed(change: WeightUpdate, replaced: Tensor, _: Tensor) -> Tensor:
    return change(replaced)


def _grafted(model: nn.Module, paths: Collection[str]) -> list[Grafted]:
    """Return the grafted layers with these names; layers that are not grafted yet are wrapped first.

    A layer that is in several places is wrapped in all of them. A wrapped layer without a pair computes what the layer
    does, so there is nothing to undo if an error interrupts this.
    """
    layers = [_submodule(model, path) for path in paths]
    plain = {id(layer): layer for layer in layers if not isinstance(layer, Grafted)}
    if not plain:
        return layers
    grafted: dict[int, Grafted] = {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if id(module) in plain:
            if id(module) not in grafted:
                grafted[id(module)] = wrap(module)
                grafted[id(module)].training = module.training
            if _submodule(model, name) is module:  # not yet replaced by another name of its parent
                replace_module(model, name, grafted[id(module)], [])
    return [_submodule(model, path) for path in paths]


def _submodule(model: nn.Module, path: str) -> Any:
    """Return the same as `get_submodule`, twenty times faster."""
    module: Any = model
    for child in path.split("."):
        module = module._modules[child]
    return module


def _pair(path: str, layer: nn.Module, config: LoraConfig) -> LowRank:
    """Return a new pair for the layer called `path`."""
    pair = new_pair(layer, config.rank_of(path), config.scaling_of(path), config.lora_dropout, config.init_lora_weights)
    if config.use_dora:
        add_magnitude(pair, oriented(layer))
    if config.freeze_A and not isinstance(layer, nn.Embedding):
        pair.A.requires_grad_(False)
    pair.B.requires_grad_(config.init_lora_weights != "mica")
    if config.lora_bias:
        pair.bias = nn.Parameter(pair.B.new_zeros(len(pair.B)))
    return pair


def _parameter_pair(path: str, owner: nn.Module, parameter: nn.Parameter, config: LoraConfig) -> ParameterPair:
    """Return a new pair for the parameter called `path`."""
    rank, scaling, transposed = config.rank_of(path), config.scaling_of(path), is_transposed(owner, parameter)
    pair = new_parameter_pair(parameter, transposed, rank, scaling, config.init_lora_weights)
    if config.freeze_A:
        pair.A.requires_grad_(False)
    return pair


def _check_parameter_settings(path: str, config: LoraConfig) -> None:
    """Raise a TsugikiError for a setting that is not defined for a parameter, as in PEFT."""
    if config.lora_dropout:
        raise TsugikiError(
            "lora_dropout is {lora_dropout}, and must be 0 for target_parameters: the inputs of {path} are "
            "multiplied inside its module, where none can be dropped",
            lora_dropout=config.lora_dropout,
            path=path,
        )
    if config.use_dora or config.lora_bias:
        setting = "use_dora" if config.use_dora else "lora_bias"
        raise TsugikiError(
            "{setting} is not defined for target_parameters such as {path}; leave out one of the two",
            setting=setting,
            path=path,
        )
    if isinstance(config.init_lora_weights, str) and config.init_lora_weights != "gaussian":
        raise TsugikiError(
            "init_lora_weights {init_lora_weights!r} is for linear layers only; for target_parameters such as "
            "{path} use True or 'gaussian'",
            init_lora_weights=config.init_lora_weights,
            path=path,
        )


def _check_names(model: nn.Module, targets: Collection[str], config: LoraConfig) -> None:
    """Raise a TsugikiError for a layer that would be stored as a parameter, which PEFT allows for plain LoRA alone."""
    named = named_like_experts(model, targets)
    if named:
        raise TsugikiError(
            "{setting}: PEFT would take the name of {path} for that of experts ({count} such), so no file that "
            "it reads could be written; leave it out of the targets, or use LoRA",
            setting="use_dora" if config.use_dora else "lora_bias",
            path=named[0],
            count=len(named),
        )


def _check_fit(path: str, layer: nn.Module, config: LoraConfig) -> None:
    """Raise a TsugikiError if the settings cannot be used for this layer."""
    rank, init = config.rank_of(path), config.init_lora_weights
    kind, full_rank = type(layer).__name__, min(features(layer))
    if rank > _MAX_RANK_FACTOR * full_rank:
        raise TsugikiError(
            "the rank for {path} is {rank}, more than {factor} times the highest that its update can have "
            "({highest}); lower r or rank_pattern",
            path=path,
            rank=rank,
            factor=_MAX_RANK_FACTOR,
            highest=full_rank,
        )
    weight = layer._parameters.get("weight")
    reads = "DoRA" if config.use_dora else "PiSSA" if str(init).startswith("pissa") else None
    if reads and weight is not None and (not weight.is_floating_point() or weight.itemsize < 2):
        raise TsugikiError(
            "{setting} reads the weights of its layers, and {path} is quantised by a {kind}; load the base "
            "unquantised, or use plain LoRA",
            setting=reads,
            path=path,
            kind=kind,
        )
    decomposes = isinstance(init, str) and init not in ("gaussian", "mica")
    if (config.lora_bias or decomposes) and not is_linear(layer):
        setting = f"init_lora_weights {init!r}" if decomposes else "lora_bias"
        raise TsugikiError(
            "{setting} is for linear layers only, and {path} is a {kind}; leave it out of the targets",
            setting=setting,
            path=path,
            kind=kind,
        )
    if str(init).startswith("pissa") and rank > full_rank:
        raise TsugikiError(
            "init_lora_weights {init!r}: {path} has only {count} principal directions, fewer than rank {rank}; "
            "lower the rank",
            init=init,
            path=path,
            count=full_rank,
            rank=rank,
        )
    if not isinstance(layer, nn.Conv2d):
        return
    if rank % layer.groups:
        raise TsugikiError(
            "{path} is a {kind} with {groups} groups, and rank {rank} is not a multiple of that; change the rank",
            path=path,
            kind=kind,
            groups=layer.groups,
            rank=rank,
        )
    if config.use_dora and layer.groups > 1:
        raise TsugikiError(
            "use_dora: {path} is a {kind} with {groups} groups, for which DoRA is not defined; leave it out of "
            "the targets",
            path=path,
            kind=kind,
            groups=layer.groups,
        )
    if layer.padding_mode != "zeros":
        raise TsugikiError(
            "{path} is a {kind} with padding_mode {padding_mode!r}, and only 'zeros' is supported; leave it "
            "out of the targets",
            path=path,
            kind=kind,
            padding_mode=layer.padding_mode,
        )


def _warn_of_ranks_too_high(targets: Mapping[str, nn.Module], config: LoraConfig) -> None:
    high = [name for name, layer in targets.items() if config.rank_of(name) > min(features(layer))]
    if high:
        highest = min(features(targets[high[0]]))
        message = _(
            "rank {rank} is above the highest rank that the update of {path} can have ({highest}; {count} such "
            "layers): training works, but rank {highest} can express the same",
            rank=config.rank_of(high[0]),
            path=high[0],
            highest=highest,
            count=len(high),
        )
        warn_caller(message)
