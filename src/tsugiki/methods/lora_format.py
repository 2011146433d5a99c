"""LoRA: two low-rank factors for each target layer, whose own weight is frozen.

    y = W x + b + s · B A dropout(x)        A [r, in],  B [out, r],  s = alpha / r

    lora      B is initialised with zeros, so nothing changes before training    Hu et al. 2021, arXiv:2106.09685
    rslora    s = alpha / √r, so that high ranks learn as fast as low ones       Kalajdzievski 2023, arXiv:2312.03732

Only r (in + out) parameters train instead of in · out. Merged into the weight, W + s · B A, the adapter costs nothing.
The trade-off: the update of a layer has at most rank r, and the choice of target layers matters more than r. The layer
itself is in `tsugiki.lora.layer`.

The tensors in the file have PEFT's names and shapes:

    base_model.model.<module path>.lora_A.weight            [r, in]; convolution: [r, in, height, width]
    base_model.model.<module path>.lora_B.weight            [out, r]; convolution: [out, r / groups, 1, 1]
    base_model.model.<module path>.lora_embedding_A         [r, entries]   (embeddings)
    base_model.model.<module path>.lora_embedding_B         [width, r]
    base_model.model.<module path>.lora_B.bias              [out]   (lora_bias)
    base_model.model.<module path>.lora_magnitude_vector    [out]; convolution: [1, out, 1, 1]   (DoRA)
    base_model.model.<module path>.base_layer.bias          (a trained bias of a grafted layer)
    base_model.model.<parameter path>                       (other biases, modules_to_save)
    base_model.model.<module path>.token_adapter.trainable_tokens_delta    [tokens, width]   (trainable_token_indices)
    base_model.model.<module path>[.base_layer…].lora_A.weight   [experts · r, in]; likewise B   (target_parameters)

The last line is for a parameter of a module, such as the weights of all experts (`tsugiki.lora.experts`). If several
parameters of the module have factors, the names for the last parameter have no `.base_layer`, the names for the
parameter before it have one, and so on.

If the vocabulary of the base was resized, the file also has the weights of its embedding and output head, as in PEFT.
They replace those of the base while the adapter is active, and do not train.

PiSSA starts from factors A0 and B0 whose product is not zero, and its update is B A - B0 A0. The file has it as the
LoRA of rank 2r that computes the same: lora_A is A above A0, lora_B is B next to -B0. The ranks in the config are
doubled and its alphas raised, so that the scaling stays the same. Every version of PEFT reads it as an ordinary LoRA.
`tsugiki.json` marks the file as PiSSA, so that loading splits the factors again and training can continue. A resumed
run reads this from its own config.

Related methods are settings of LoRA, and each is explained in its own module: DoRA (`tsugiki.lora.variants`), PiSSA and
orthogonal initialisation (`tsugiki.lora.init`), and a separate learning rate for B
(`tsugiki.training.step.setup`).

LoRA-FA (Zhang et al. 2023, arXiv:2308.03303) is y = W x + s B A x with A [r, in] frozen at its random initial value,
and only B [out, r] trained. The gradient of B needs A x [tokens, r] only, so no layer keeps its input x [tokens, in]
for the backward pass (with dropout, it keeps the mask). The update is limited to the r directions of x that A happens
to see. PEFT's optimiser of the same name also corrects the gradient of B by (A Aᵀ)⁻¹; here the run's optimiser is used
as it is.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from tsugiki.errors import TsugikiError, error_text
from tsugiki.language import _, marked
from tsugiki.lora.adapter import LoraAdapter, new_lora_adapter, trained_biases
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.experts import is_transposed, parameter_pair_shapes
from tsugiki.lora.layer import pair_shapes
from tsugiki.lora.targets import find_target_parameters, find_targets, shortest_target_modules
from tsugiki.methods.method import MERGE_WITH_PEFT, AdapterFormat, check_shapes, equal_when_rounded, read_fields
from tsugiki.methods.peft_keys import PREFIX, bias_key, factor_keys, magnitude_key, parameter_keys, token_key
from tsugiki.model.linear import is_conv1d
from tsugiki.model.names import matches, name_pattern, named_like_experts
from tsugiki.model.trained_copies import find_modules_to_save, names_for_file, saved_in_file, saved_tensors
from tsugiki.model.undo import Undo, replace_parameter, undo_all
from tsugiki.model.ungrafted import base_modules, vocabulary_layers, with_first_names
from tsugiki.model.weights import quantized_copies, shared_parameters

_HARMLESS = frozenset(
    {
        # for parallel engines; they do not change what is computed
        *("megatron_config", "megatron_core"),
        # how A and B were initialised; the file has their trained values
        *("eva_config", "loftq_config", "corda_config", "lora_ga_config"),
        # has an effect only together with `use_qalora`
        "qalora_group_size",
        # what the backward pass keeps; the result is the same
        "velora_config",
        # how PEFT computes; it does not read the field from a file
        "runtime_config",
    }
)
# Values of `init_lora_weights` that leave the frozen weights unchanged. With all others (PiSSA, OLoRA, CorDA, LoftQ,
# LoRA-GA), PEFT changes the base, and the file fits only the changed one.
_INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal", "mica")
_NOT_SUPPORTED = {
    **dict.fromkeys(("kasa_config", "monteclora_config", "use_bdlora"), MERGE_WITH_PEFT),
    "layer_replication": marked(
        "it repeats layers of the base, which all adapters of a model share; load it with PEFT"
    ),
    "alora_invocation_tokens": marked("which tokens it changes depends on the text; load it with PEFT"),
    "arrow_config": marked("which of several adapters it uses depends on the text; load it with PEFT"),
    "use_qalora": marked(
        "it adds the inputs of a quantised layer in groups, and PEFT cannot merge it; load it with PEFT"
    ),
}
"""Fields that are not supported -> what to do, and the reason where their effect cannot be merged either."""
_NO_EFFECT = frozenset(
    {
        *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
        # each matters only together with another setting, which is refused
        *("megatron_core", "qalora_group_size"),
    }
)
"""Settings of PEFT's `LoraConfig` that do not change what a new adapter computes."""
FIELDS_OF_PEFT = _HARMLESS | _NOT_SUPPORTED.keys() | _NO_EFFECT | {"inference_mode"}
"""The fields of PEFT's `LoraConfig` that ours does not have. Any other field is refused, unless its value is empty."""


@runtime_checkable
class PeftConfig(Protocol):
    """A config of PEFT, which is recognised by its attributes, so that PEFT need not be installed."""

    peft_type: Any

    def to_dict(self) -> dict[str, Any]:
        """Return the settings by name."""


def config_of_peft(config: PeftConfig) -> LoraConfig:
    """Return the settings of PEFT's `LoraConfig` for a new adapter; one that would change the result is refused.

    A setting that ours does not have is left out if its value is empty, false or 0, which is taken to mean off.
    """
    kind = type(config).__name__
    if getattr(config.peft_type, "value", config.peft_type) != "LORA":
        raise TsugikiError(
            "graft takes PEFT's LoraConfig, and not its {kind}; the config of another method is "
            "tsugiki.methods.table.METHODS[name].configure({{…}}), with a name that `tsugiki methods` lists",
            kind=kind,
        )
    known = {field.name for field in dataclasses.fields(LoraConfig)} | {"inference_mode"}
    settings: dict[str, Any] = {
        name: sorted(value) if isinstance(value, set) else value
        for name, value in config.to_dict().items()
        if name not in _NO_EFFECT and value not in (None, {}, [])
    }
    unknown = [
        f"{name}={error_text(repr(value), 80)}" for name, value in settings.items() if name not in known and value
    ]
    if unknown:
        raise TsugikiError(
            "{kind}: {unknown} would change the result and is not supported; leave it out",
            kind=kind,
            unknown=", ".join(unknown),
        )
    if "target_parameters" in settings:
        settings.setdefault("target_modules", [])  # PEFT then adapts these parameters alone
    return LoraConfig(**{name: value for name, value in settings.items() if name in known})


def _tensors(model: nn.Module, adapter: LoraAdapter) -> dict[str, Tensor]:
    layers = dict(base_modules(model))
    tensors: dict[str, Tensor] = {}
    for path, pair in adapter.pairs.items():
        key_A, key_B = factor_keys(path, isinstance(layers[path], nn.Embedding))
        tensors[key_A], tensors[key_B] = pair.A, pair.B
        if pair.A0 is not None and pair.B0 is not None:
            tensors[key_A], tensors[key_B] = torch.cat([pair.A, pair.A0]), torch.cat([pair.B, -pair.B0], 1)
        if pair.magnitude is not None:
            tensors[magnitude_key(path)] = pair.magnitude
        if pair.bias is not None:
            tensors[bias_key(path)] = pair.bias
    for path, keys in parameter_factor_keys(model, adapter.parameter_pairs).items():
        pair = adapter.parameter_pairs[path]
        tensors |= zip(keys, (pair.A, pair.B), strict=True)
    tensors |= saved_tensors(adapter.modules, PREFIX)
    for path, vectors in with_first_names(adapter.tokens).items():
        tensors[token_key(path)] = vectors.vectors
    for path, parameter in with_first_names(adapter.parameters).items():
        tensors[parameter_keys(path)[path.rpartition(".")[0] in adapter.pairs]] = parameter
    return tensors


def parameter_factor_keys(model: nn.Module, paths: Collection[str]) -> dict[str, tuple[str, str]]:
    """Return the names of A and B in the file for each of these parameters of the base."""
    modules = dict(base_modules(model))
    keys: dict[str, tuple[str, str]] = {}
    for owner in dict.fromkeys(path.rpartition(".")[0] for path in paths):
        own = [name for name in modules[owner]._parameters if f"{owner}.{name}" in paths]
        for depth, name in enumerate(reversed(own)):  # PEFT wraps the module once for each, in the parameters' order
            keys[f"{owner}.{name}"] = factor_keys(f"{owner}{'.base_layer' * depth}", False)
    return keys


def _load_tensors(model: nn.Module, adapter: LoraAdapter, file_tensors: Mapping[str, Tensor]) -> None:
    """Copy the tensors of a file into an adapter. For PiSSA, the file has A above A0, and B next to -B0."""
    layers = dict(base_modules(model))
    split: set[str] = set()
    for path, pair in adapter.pairs.items():
        if pair.A0 is None or pair.B0 is None:
            continue
        key_A, key_B = factor_keys(path, isinstance(layers[path], nn.Embedding))
        A, A0 = file_tensors[key_A].chunk(2)
        B, negative_B0 = file_tensors[key_B].chunk(2, 1)
        pair.A.copy_(A)
        pair.A0.copy_(A0)
        pair.B.copy_(B)
        pair.B0.copy_(-negative_B0)
        split |= {key_A, key_B}
    for key, tensor in _tensors(model, adapter).items():
        if key not in split:
            tensor.copy_(file_tensors[key])


def _build_for(model: nn.Module, config: LoraConfig, file_tensors: Mapping[str, Tensor]) -> LoraAdapter:
    """Build an adapter for a file, if the ranks in the file are those that the config gives."""
    saved = saved_in_file(model, config.modules_to_save, PREFIX, file_tensors)
    config = dataclasses.replace(config, modules_to_save=saved)
    if config.bias != "none" and not trained_biases(model, config, find_targets(model, config)):
        config = dataclasses.replace(config, bias="none")  # in PEFT it has no effect where there is no bias
    vocabulary = _vocabulary_of(model, config, file_tensors)
    ranks = _as_ordinary_lora(config)
    expected: dict[str, tuple[int, ...]] = {}
    for path, layer in find_targets(model, config).items():
        keys = factor_keys(path, isinstance(layer, nn.Embedding))
        expected |= zip(keys, pair_shapes(layer, ranks.rank_of(path)), strict=True)
    target_parameters = find_target_parameters(model, config)
    for path, keys in parameter_factor_keys(model, target_parameters).items():
        owner, parameter = target_parameters[path]
        shapes = parameter_pair_shapes(parameter.shape, is_transposed(owner, parameter), config.rank_of(path))
        expected |= zip(keys, shapes, strict=True)
    check_shapes(expected, file_tensors)
    undo: list[Undo] = []
    try:  # DoRA keeps the lengths of a weight's rows
        for path, weight in vocabulary.items():
            replace_parameter(model, path, weight, undo)
        adapter = new_lora_adapter(model, config)
    finally:
        undo_all(undo)
    adapter.parameters |= vocabulary
    return adapter


def _vocabulary_of(model: nn.Module, config: LoraConfig, file_tensors: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    """Return frozen copies of the file's weights of embedding and head, by name, if they differ from the base's."""
    shared = shared_parameters(model)
    saved_whole = tuple(f"{path}." for path in find_modules_to_save(model, config.modules_to_save))
    copies: dict[str, nn.Parameter] = {}
    for path, layer in vocabulary_layers(model).items():
        weight, name = layer._parameters.get("weight"), f"{path}.weight"
        if weight is None or name in copies:
            continue
        # A weight that embedding and head share stays one, except where a module trains as a whole.
        names = shared.get(name, [name])
        for shared_name in names:
            for key in parameter_keys(shared_name):
                if key in file_tensors and len(file_tensors[key]) != len(weight):
                    raise TsugikiError(
                        "the vocabulary of its base has {words} words ({key}), and this one has {own}; call "
                        "model.resize_token_embeddings({words}) first",
                        words=len(file_tensors[key]),
                        key=key,
                        own=len(weight),
                    )
        frozen = [shared_name for shared_name in names if not shared_name.startswith(saved_whole)]
        keys = [key for shared_name in frozen for key in parameter_keys(shared_name) if key in file_tensors]
        if keys and not weight.is_meta and not equal_when_rounded(weight, file_tensors[keys[0]]):
            check_shapes({keys[0]: weight.shape}, file_tensors)
            quantized = quantized_copies(model, name)
            if quantized:
                raise TsugikiError(
                    "the file has other weights for {path}, of which {head} has a quantised copy; load the base "
                    "unquantised",
                    path=path,
                    head=quantized[0],
                )
            copies |= dict.fromkeys(frozen, nn.Parameter(file_tensors[keys[0]].to(weight), requires_grad=False))
    return copies


def _to_json(model: nn.Module, adapter: LoraAdapter) -> dict[str, Any]:
    config, layers = adapter.config, dict(base_modules(model))
    fields = dataclasses.asdict(_as_ordinary_lora(config))
    del fields["freeze_A"]  # PEFT has no such field; it matters for training only
    as_modules = [path for path in adapter.pairs if not matches(f"{path}.weight", config.target_parameters or ())]
    renamed = dict.fromkeys(named_like_experts(model, as_modules))
    if renamed:
        fields |= _as_parameters(adapter, list(renamed))
        as_modules = [path for path in as_modules if path not in renamed]
    if renamed or config.target_modules is None or config.target_modules == "all-linear":
        fields["target_modules"] = shortest_target_modules(model, config, as_modules)
    if not fields["target_parameters"]:
        del fields["target_parameters"]  # older releases of PEFT do not have it
    else:
        fields["lora_dropout"] = 0.0  # PEFT demands it; dropout matters for training only
    fields["fan_in_fan_out"] = any(is_conv1d(layers[path]) for path in as_modules)
    for name in ("ensure_weight_tying", "lora_bias"):  # older releases of PEFT do not have them
        if not fields[name]:
            del fields[name]
    if config.trainable_token_indices:
        fields["trainable_token_indices"] = _token_indices(model, adapter)
    else:
        del fields["trainable_token_indices"]  # older releases of PEFT do not have it
    fields["modules_to_save"] = names_for_file(model, adapter.modules)
    return fields


def _as_parameters(adapter: LoraAdapter, layers: Sequence[str]) -> dict[str, Any]:
    """Return the fields of the file in which the weights of these layers are target parameters."""
    config = _as_ordinary_lora(adapter.config)
    weights = {path: f"{path}.weight" for path in layers}
    patterns = {path: name_pattern(weight) for path, weight in weights.items()}
    ranks = {patterns[path]: config.rank_of(path) for path in layers} if config.rank_pattern else {}
    alphas = {patterns[path]: config.alpha_of(path) for path in layers} if config.alpha_pattern else {}
    return {
        "target_parameters": [*(config.target_parameters or ()), *weights.values()],
        "rank_pattern": ranks | dict(config.rank_pattern),
        "alpha_pattern": alphas | dict(config.alpha_pattern),
    }


def _token_indices(model: nn.Module, adapter: LoraAdapter) -> dict[str, list[int]]:
    """Return the ids of the trained tokens, by names with which PEFT selects exactly the layers that have them."""
    return {
        name: vectors.indices.tolist()
        for path, vectors in with_first_names(adapter.tokens).items()
        for name in names_for_file(model, [path]) or ()
    }


def _as_ordinary_lora(config: LoraConfig) -> LoraConfig:
    """Return the config under which PiSSA's factors are saved, a LoRA of twice the rank; other configs as they are."""
    if not _is_pissa(config):
        return config
    factor = math.sqrt(2) if config.use_rslora else 2  # so that alpha / √r, or alpha / r, stays the same
    return dataclasses.replace(
        config,
        init_lora_weights=True,
        r=2 * config.r,
        rank_pattern={name: 2 * rank for name, rank in config.rank_pattern.items()},
        lora_alpha=factor * config.lora_alpha,
        alpha_pattern={name: factor * alpha for name, alpha in config.alpha_pattern.items()},
    )


def _extra_settings(config: LoraConfig) -> dict[str, Any]:
    settings: dict[str, Any] = {"freeze_A": True} if config.freeze_A else {}
    if not _is_pissa(config):
        return settings
    kept = ("r", "rank_pattern", "lora_alpha", "alpha_pattern")
    # The file replaces the initial factors, so loading uses the initialisation that is computed fastest.
    return {name: getattr(config, name) for name in kept} | {"init_lora_weights": "pissa_niter_0"} | settings


def _is_pissa(config: LoraConfig) -> bool:
    return str(config.init_lora_weights).startswith("pissa")


def _from_json(fields: Mapping[str, Any]) -> LoraConfig:
    initialisation = fields.get("init_lora_weights", True)
    if initialisation not in _INITIALISATIONS:
        message = _(
            "init_lora_weights={initialisation} has changed the base, too, which is not in the file; save it "
            "in PEFT as an ordinary LoRA: save_pretrained(…, path_initial_model_for_weight_conversion=…); or {hint}"
        )
        shown = error_text(repr(initialisation), 40)
        raise TsugikiError(message.format(initialisation=shown, hint=_(MERGE_WITH_PEFT)))
    for name, instead in _NOT_SUPPORTED.items():
        if fields.get(name):
            raise TsugikiError(
                "{name}={value} is not supported: {reason}",
                name=name,
                value=error_text(repr(fields[name]), 80),
                reason=_(instead),
            )
    if fields.get("target_parameters") and fields.get("target_modules") is None:
        fields = {**fields, "target_modules": []}  # PEFT writes the layers that it has grafted
    known = initialisation if initialisation in (True, False, "gaussian", "mica") else True
    return read_fields(LoraConfig, {**fields, "init_lora_weights": known}, _HARMLESS)


LORA = AdapterFormat("LORA", LoraConfig, _tensors, _to_json, _from_json, _load_tensors, _extra_settings, _build_for)
