"""Parameters that a model uses under several names, such as an embedding that is also the output head."""

from collections.abc import Collection, Mapping
from functools import partial

from torch import nn

from tsugiki.errors import warn_caller
from tsugiki.language import _
from tsugiki.model.freeze import Replaced, copy_configs, restore_configs
from tsugiki.model.linear import is_quantized
from tsugiki.model.undo import Undo, base_of
from tsugiki.model.weight_updates import WeightUpdate


def shared_parameters(model: nn.Module) -> dict[str, list[str]]:
    """Return, for each name of a parameter with several names, all of its names, which are those before any graft."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name.replace(".base_layer.", "."))
    return {name: group for group in names.values() if len(group) > 1 for name in group}


def shared_in_part(model: nn.Module, updates: Mapping[str, WeightUpdate]) -> set[str]:
    """Return the layers whose parameter is shared with another layer that does not get the same update."""
    shared = shared_parameters(model)
    return {
        name.rpartition(".")[0]
        for name, update in updates.items()
        if any(updates.get(other) is not update for other in shared.get(name, ()))
    }


def quantized_copies(model: nn.Module, parameter: str) -> list[str]:
    """Return the names of layers whose weight is this parameter in the model's files, but is quantised in the model."""
    tied = getattr(model, "all_tied_weights_keys", {})
    layers = [name.rpartition(".")[0] for name, source in tied.items() if source == parameter]
    return [name for name in layers if is_quantized(base_of(model.get_submodule(name)))]


def untie(model: nn.Module, layers: Collection[str], undo: list[Undo]) -> bool:
    """Record in the model's config that embedding and output head are two weights, if one of `layers` is either.

    `layers` are those whose weight is not shared any more. A copy of the config takes its place. Returns whether the
    config has changed.
    """
    config = getattr(model, "config", None)
    tied = config is not None and getattr(config, "tie_word_embeddings", False)
    if not tied or not _embedding_paths(model) & set(layers):
        return False
    replaced: Replaced = []
    undo.append(partial(restore_configs, replaced))
    copy_configs(model, replaced)
    undo.append(partial(setattr, model.config, "tie_word_embeddings", True))
    model.config.tie_word_embeddings = False  # type: ignore[union-attr]
    warn_caller(
        _(
            "the adapter changes the weight that the embedding and the output head share, but not in both places "
            "alike; merged, they are two weights (tie_word_embeddings=False)"
        )
    )
    return True


def _embedding_paths(model: nn.Module) -> set[str]:
    """Return the names of the input embedding and of the output head."""
    if not hasattr(model, "get_input_embeddings"):
        return set()
    ends = (model.get_input_embeddings(), model.get_output_embeddings())  # type: ignore[operator]
    return {path for path, module in model.named_modules() if any(module is end for end in ends)}
