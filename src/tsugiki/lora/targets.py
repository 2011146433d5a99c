"""The layers and parameters that a LoRA config selects: by name, by pattern, or by the model type's defaults."""

from collections.abc import Collection, Mapping, Sequence

from torch import nn

from tsugiki.errors import TsugikiError
from tsugiki.language import _, ngettext
from tsugiki.lora.config import LoraConfig
from tsugiki.model.architectures import architecture_of, model_type
from tsugiki.model.linear import is_graftable, is_linear, is_stored_in_out
from tsugiki.model.names import Names, matches, shortest_endings, split_block
from tsugiki.model.targets_by_rule import default_layers
from tsugiki.model.trained_copies import saved_endings
from tsugiki.model.ungrafted import base_modules, list_graftable, output_head, stack_endings, with_first_names


def find_targets(model: nn.Module, config: LoraConfig) -> dict[str, nn.Module]:
    """Find the layers that `config` grafts: those of `target_modules`, and linear layers of `target_parameters`.

    The result has the frozen layers by their names in the ungrafted model. A layer with several names has the first.
    """
    layers = dict(base_modules(model))
    saved = saved_endings(model, config.modules_to_save)
    selected = [name for name in _select(model, layers, config.target_modules) if _is_admitted(name, config, saved)]
    parameters = config.target_parameters or ()
    both = [name for name in selected if matches(f"{name}.weight", parameters)]
    if both:
        raise TsugikiError(
            "target_modules and target_parameters both select the weight of {path} ({count} such); leave it "
            "out of one of the two",
            path=both[0],
            count=len(both),
        )
    selected += [name for name, layer in layers.items() if _is_selected_weight(f"{name}.weight", layer, parameters)]
    if not selected and not (parameters and config.target_modules == []):
        raise TsugikiError("{targets} matches no layer; {hint}", targets=_describe(config), hint=list_graftable(layers))
    wrong = [name for name in selected if not is_graftable(layers[name])]
    if wrong:
        raise TsugikiError(
            "{targets} matches {path}, a {kind}, which cannot be grafted ({count} such); {hint}",
            targets=_describe(config),
            path=wrong[0],
            kind=type(layers[wrong[0]]).__name__,
            count=len(wrong),
            hint=list_graftable(layers),
        )
    return with_first_names({name: layers[name] for name in selected})


def find_target_parameters(model: nn.Module, config: LoraConfig) -> dict[str, tuple[nn.Module, nn.Parameter]]:
    """Find the parameters that `target_parameters` selects, except weights of linear layers (see `find_targets`).

    The result has, by a parameter's name in the ungrafted model, the module that owns it, and the parameter.
    """
    wanted = config.target_parameters
    if not wanted:
        return {}
    selected = {
        name: (owner, parameter)
        for path, owner in base_modules(model)
        for attribute, parameter in owner._parameters.items()
        if parameter is not None and matches(name := f"{path}.{attribute}", wanted)
    }
    if not selected:
        stacks = stack_endings(dict(base_modules(model)))
        hint = (
            _("its stacks of matrices are called {stacks}", stacks=", ".join(stacks))
            if stacks
            else _("it has no stack of matrices")
        )
        raise TsugikiError(
            "target_parameters={wanted} matches no parameter of the model; {hint}", wanted=", ".join(wanted), hint=hint
        )
    found = {name: owned for name, owned in selected.items() if not _is_selected_weight(name, owned[0], wanted)}
    for name, (_other, parameter) in found.items():
        if parameter.dim() not in (2, 3):
            raise TsugikiError(
                ngettext(
                    "target_parameters selects {name}, which has {count} axis; only a matrix, or a stack of "
                    "matrices, has a low-rank update",
                    "target_parameters selects {name}, which has {count} axes; only a matrix, or a stack of "
                    "matrices, has a low-rank update",
                    parameter.dim(),
                    name=name,
                    count=parameter.dim(),
                )
            )
        if not parameter.is_floating_point() or parameter.itemsize < 2:
            raise TsugikiError(
                "target_parameters selects {name}, which is quantised ({dtype}); load the base unquantised",
                name=name,
                dtype=parameter.dtype,
            )
    return found


def shortest_target_modules(model: nn.Module, config: LoraConfig, targets: Collection[str]) -> list[str]:
    """Return short `target_modules` with which `config` selects exactly the layers called `targets`."""
    layers = dict(base_modules(model))
    own = {id(layers[name]) for name in targets}
    saved = saved_endings(model, config.modules_to_save)
    others = [name for name, layer in layers.items() if id(layer) not in own and _is_admitted(name, config, saved)]
    endings = shortest_endings(targets, others)
    if wrong := [name for name in others if matches(name, endings)]:
        raise TsugikiError(
            "this adapter cannot be saved: target_modules={target_modules} would select other layers than "
            "those that were grafted, such as {selected}; choose other target_modules",
            target_modules=endings,
            selected=wrong[0],
        )
    return endings


def _select(model: nn.Module, layers: Mapping[str, nn.Module], targets: Names | None) -> list[str]:
    """Return the names of the layers that `target_modules` selects, without regard to the other settings."""
    if targets == "all-linear":
        head = output_head(model)
        return [name for name, layer in layers.items() if is_linear(layer) and layer is not head]
    if targets is not None and "all-linear" in targets and not isinstance(targets, str):
        raise TsugikiError(
            "target_modules: 'all-linear' is no name in a list of layers; name them all; {hint}",
            hint=list_graftable(layers),
        )
    if targets is None:
        targets = _default_targets(model)
        names = set(targets)
        if all(name in layers for name in names):  # quicker than `matches` for the thousands of layers of experts
            return [name for name in layers if name in names]
    return [name for name in layers if matches(name, targets)]


def _is_selected_weight(name: str, owner: nn.Module, wanted: Names) -> bool:
    """Return whether `wanted` selects a parameter that is the weight of a linear layer, which is grafted as a layer.

    A weight that is stored as [in, out] does not count, because its factors as a parameter differ from those of its
    layer.
    """
    return name.endswith(".weight") and matches(name, wanted) and is_linear(owner) and not is_stored_in_out(owner)


def _is_admitted(name: str, config: LoraConfig, saved: Sequence[str]) -> bool:
    """Return whether the settings other than `target_modules` let a layer be grafted."""
    if config.exclude_modules and matches(name, config.exclude_modules):
        return False
    if any(f".{module}." in f".{name}." for module in saved):
        return False
    return _is_in_chosen_block(name, config)


def _is_in_chosen_block(name: str, config: LoraConfig) -> bool:
    """Return whether `layers_to_transform` and `layers_pattern` admit the block that a layer is in.

    As in PEFT, an empty list admits all blocks, and a layer that `target_modules` lists by its full name is admitted in
    any block.
    """
    chosen, targets = config.layers_to_transform, config.target_modules
    indices = [chosen] if isinstance(chosen, int) else chosen
    if not indices or (targets is not None and not isinstance(targets, str) and name in targets):
        return True
    if config.layers_pattern:
        return config.block_index_of(name) in indices
    # The list of blocks has a name, so a number at the very beginning is not a block's.
    _dot, index, inside = split_block(name.partition(".")[2])
    return inside != "" and index in indices


def _default_targets(model: nn.Module) -> Sequence[str]:
    """Return the names of the layers, or their endings, that are grafted if the config names none."""
    row = architecture_of(model)
    targets = default_layers(model) if row is None or row.target_modules is None else row.target_modules
    if not targets:
        raise TsugikiError(
            "no default target_modules for {name!r}; name them, or use 'all-linear'; {hint}",
            name=model_type(model),
            hint=list_graftable(dict(base_modules(model))),
        )
    return targets


def _describe(config: LoraConfig) -> str:
    targets = config.target_modules
    shown = targets if isinstance(targets, str) or targets is None else ", ".join(targets)
    if config.layers_to_transform is None:
        return f"target_modules={shown}"
    return f"target_modules={shown}" + _(" in layers {blocks}", blocks=config.layers_to_transform)
