"""Which layers a config means: by name, by pattern, or by a table of known architectures."""

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from tsugiki.architectures import architecture_of, model_type
from tsugiki.errors import TsugikiError
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.layer import Grafted, LoraLinear, features, is_graftable, is_linear
from tsugiki.lora.swap import CHILD


def find_targets(model: nn.Module, config: LoraConfig) -> dict[str, nn.Module]:
    """The layers that `config` grafts: name in the ungrafted model -> frozen layer.

    Raises:
        TsugikiError: nothing matches (the message lists what would), or something matches that is no
            linear layer, no embedding and no convolution.
    """
    layers = dict(base_modules(model))
    matched = [name for name in layers if _is_target(model, name, layers[name], config)]
    if not matched:
        raise TsugikiError(f"{_described(config)} matches no layer; {_would_match(layers)}")
    wrong = [name for name in matched if not is_graftable(layers[name])]
    if wrong:
        kinds = sorted({type(layers[name]).__name__ for name in wrong})
        raise TsugikiError(
            f"{_described(config)} matches {wrong[0]}, a {kinds[0]}, which cannot be grafted "
            f"({len(wrong)} such); {_would_match(layers)}"
        )
    targets = {name: layers[name] for name in matched}
    _warn_of_ranks_too_high(targets, config)
    return targets


def find_modules_to_save(model: nn.Module, config: LoraConfig) -> dict[str, nn.Module]:
    """The modules that train whole: name -> module.

    Raises:
        TsugikiError: a name of `modules_to_save` that matches nothing.
    """
    found: dict[str, nn.Module] = {}
    layers = dict(base_modules(model))
    for wanted in config.modules_to_save or ():
        hits = {name: layer for name, layer in layers.items() if _ends_in(name, [wanted])}
        if not hits:
            raise TsugikiError(f"modules_to_save names {wanted!r}, which the model does not have")
        found.update(hits)
    return found


def find_modules(model: nn.Module, wanted: Sequence[str] | str) -> dict[str, nn.Module]:
    """Modules of any kind by names or name endings, or by one regular expression for the whole name: name -> module."""
    return {name: module for name, module in base_modules(model) if matches(name, wanted)}


def base_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every module of the model as it was before any graft: grafted layers stand for their base, what is added is not
    there."""
    found: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, Grafted):
            found.append((name, module.base_layer))
        elif not re.search(rf"(^|\.)(base_layer|lora|{CHILD})(\.|$)", name) and name:
            found.append((name, module))
    return found


def _is_target(model: nn.Module, name: str, layer: nn.Module, config: LoraConfig) -> bool:
    if config.exclude_modules and matches(name, config.exclude_modules):
        return False
    if any(re.match(rf"(^|.*\.){re.escape(m)}($|\..*)", name) for m in config.modules_to_save or ()):
        return False
    targets = config.target_modules
    if targets == "all-linear":
        return is_linear(layer) and layer is not output_head(model)
    if targets is None:
        targets = _default_targets(model)
    return matches(name, targets) and (isinstance(targets, str) or _in_chosen_layers(name, config))


def matches(name: str, wanted: Sequence[str] | str) -> bool:
    """Whether a pattern is the whole name, or one of a list is the name or its end after a dot."""
    return re.fullmatch(wanted, name) is not None if isinstance(wanted, str) else _ends_in(name, wanted)


def _ends_in(name: str, endings: Sequence[str]) -> bool:
    return any(name == ending or name.endswith(f".{ending}") for ending in endings)


def _in_chosen_layers(name: str, config: LoraConfig) -> bool:
    chosen = config.layers_to_transform
    if chosen is None:
        return True
    lists = [config.layers_pattern] if isinstance(config.layers_pattern, str) else config.layers_pattern
    # The first number in a name is the block's; a later one may be an expert's.
    patterns = [rf"(?:^|.*?\.){p}\.(\d+)\." for p in lists or ()] or [r"(?:.*?\.)?[^.]*\.(\d+)\."]
    hits = [match for pattern in patterns if (match := re.match(pattern, name))]
    return bool(hits) and int(hits[0][1]) in ([chosen] if isinstance(chosen, int) else chosen)


def _default_targets(model: nn.Module) -> Sequence[str]:
    architecture = architecture_of(model)
    if architecture is None:
        raise TsugikiError(
            f"no default target_modules for {model_type(model)!r}; "
            f"name them, or use 'all-linear'; {_would_match(dict(base_modules(model)))}"
        )
    return architecture.target_modules


def output_head(model: Any) -> nn.Module | None:
    """The layer that makes logits, below any graft; None where the model names none."""
    head: nn.Module | None = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return head.base_layer if isinstance(head, LoraLinear) else head


def _described(config: LoraConfig) -> str:
    targets = config.target_modules
    shown = targets if isinstance(targets, str) or targets is None else ", ".join(targets)
    extra = f" in layers {config.layers_to_transform}" if config.layers_to_transform is not None else ""
    return f"target_modules={shown}{extra}"


def _would_match(layers: Mapping[str, nn.Module]) -> str:
    endings = sorted({name.rpartition(".")[2] for name, layer in layers.items() if is_graftable(layer)})
    return f"these can be grafted: {', '.join(endings)}" if endings else "the model has no layer that can be grafted"


def _warn_of_ranks_too_high(targets: Mapping[str, nn.Module], config: LoraConfig) -> None:
    high = [name for name, layer in targets.items() if config.rank_of(name) > min(features(layer))]
    if high:
        fits = min(features(targets[high[0]]))
        warnings.warn(
            f"rank {config.rank_of(high[0])} is above what {high[0]} can hold ({fits}; {len(high)} such layers): "
            "it works, but a smaller rank says the same",
            stacklevel=4,
        )
