"""The parts of a fine-tuning method.

The file of a method defines three things:

    a config         a frozen dataclass of its settings, under PEFT's names, with `new_adapter(model)`
    an adapter       the parameters that train, and functions that attach them (the Protocol `lora.hold.Adapter`)
    an AdapterFormat functions that write config and adapter to a folder in PEFT's format, and read them

A `Method` is a config class with some settings fixed, under the name that `--method` takes. Several methods can share
one config class: `rslora` is `LoraConfig` with `use_rslora=True`. `methods.table` lists all methods and formats.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Generic, Literal, TypeAlias, TypeVar, cast

import torch
from torch import Tensor, nn

from tsugiki.errors import TsugikiError, error_text, summarise_list
from tsugiki.language import _, marked
from tsugiki.lora.graft import graft, new_adapter
from tsugiki.methods.peft_keys import PREFIX
from tsugiki.model.setting_checks import refuse_unknown_settings
from tsugiki.model.trained_copies import saved_in_file

Family: TypeAlias = Literal["additive", "reparametrised", "selective", "full fine-tuning"]

ConfigT = TypeVar("ConfigT")
AdapterT = TypeVar("AdapterT")


MERGE_WITH_PEFT = marked("merge the adapter with PEFT (merge_and_unload), and use the result as a model")
"""The end of messages about an adapter of PEFT that is not supported."""


def _new_adapter(model: nn.Module, config: Any, file_tensors: Mapping[str, Tensor]) -> Any:
    return new_adapter(model, config)


def build_with_saved_modules(model: nn.Module, config: Any, file_tensors: Mapping[str, Tensor]) -> Any:
    """Build an adapter for a file, with the modules of `modules_to_save` that the file has."""
    saved = saved_in_file(model, config.modules_to_save, PREFIX, file_tensors)
    return new_adapter(model, dataclasses.replace(config, modules_to_save=saved))


@dataclass(frozen=True)
class AdapterFormat(Generic[ConfigT, AdapterT]):
    """The file format of the adapters with one config class."""

    peft_type: str
    """The `peft_type` of `adapter_config.json`. If PEFT does not have the method, it begins with TSUGIKI_, and PEFT
    refuses the file because of it."""
    config: type[ConfigT]
    tensors: Callable[[nn.Module, AdapterT], dict[str, Tensor]]
    """(model, adapter) -> the adapter's tensors by their names in the file. Saving writes these tensors; loading
    copies into them."""
    to_json: Callable[[nn.Module, AdapterT], dict[str, Any]]
    """(model, adapter) -> the method's fields of `adapter_config.json`."""
    from_json: Callable[[Mapping[str, Any]], ConfigT]
    """The method's fields of `adapter_config.json` -> the config. Raises TsugikiError for an unknown field that would
    change the result. The caller adds the name of the file to the message."""
    load_tensors: Callable[[nn.Module, AdapterT, Mapping[str, Tensor]], None] | None = None
    """(model, adapter, tensors of a file) -> None: copies the file's tensors into the adapter. Their names and shapes
    have been checked against `tensors`. None: each is copied into the tensor of the same name in `tensors`."""
    extra_settings: Callable[[ConfigT], dict[str, Any]] | None = None
    """Config -> the settings that PEFT has no field for. They are saved in `tsugiki.json`, which PEFT does not read,
    and replace the values that `from_json` returns. None: PEFT has a field for every setting."""
    build_for: Callable[[nn.Module, ConfigT, Mapping[str, Tensor]], AdapterT] = _new_adapter
    """(model, config, tensors of a file) -> an adapter to load that file into. It differs from a new adapter if the
    file has fewer tensors than a new adapter trains. If the config gives sizes, they are compared with the file's
    (`check_shapes`) before memory is allocated for them."""


@dataclass(frozen=True)
class Method:
    """A fine-tuning method."""

    family: Family
    summary: str
    """A short description of the parameters that the method trains."""
    formula: str
    """What the method computes, in one line."""
    paper: str
    """Its authors, year and number on arXiv; empty for full fine-tuning."""
    config_name: str
    """The module and the name of the config class, which is imported when the method is used."""
    fixed_settings: Mapping[str, Any] = field(default_factory=dict)
    """The settings of the config class that define this method. The user cannot change them."""
    learning_rate: float | None = None
    """The learning rate if the user sets none. The fewer parameters a method trains, the higher it should be; the
    values come from the papers or from PEFT's examples. None: it depends on the model."""
    learning_rate_factor: float = 1
    """The factor on LoRA's learning rate for the model, if `learning_rate` is None."""
    readable_by_peft: bool = True
    """Whether PEFT can load the files."""
    mergeable: bool = True
    """Whether the adapter can be merged into the weights of the base."""
    not_accelerated: str = ""
    """The fast paths that this method cannot use; empty: it can use all of them."""
    prepare: Callable[..., object] = graft
    """(model, config, base_dropout=…): makes the method's parameters trainable and freezes all others. Unless
    `base_dropout` is set, it turns the dropout of the base off."""

    @property
    def config(self) -> type[Any]:
        """The config class."""
        module, _dot, name = self.config_name.rpartition(".")
        config: type[Any] = getattr(import_module(module), name)
        return config

    @property
    def trains_adapter(self) -> bool:
        """Whether the method trains an adapter. Otherwise it trains the base's own weights and saves a whole model."""
        return self.family != "full fine-tuning"

    @property
    def trains_base_weights(self) -> bool:
        """Whether the method always trains weights of the base, or copies of them."""
        return self.family in ("selective", "full fine-tuning")

    def check_fixed_settings(self, settings: Mapping[str, Any]) -> None:
        """Raise a TsugikiError if one of the user's settings differs from the value that the method fixes."""
        for name, value in self.fixed_settings.items():
            if settings.get(name, value) != value:
                raise TsugikiError(
                    "{name} is {value!r} in this method; remove it from the settings", name=name, value=value
                )

    def configure(self, settings: Mapping[str, Any]) -> Any:
        """Build the config from the user's settings and the fixed ones."""
        self.check_fixed_settings(settings)
        refuse_unknown_settings(settings, [setting.name for setting in dataclasses.fields(self.config)])
        return self.config(**{**settings, **self.fixed_settings})


def read_fields(config: type[ConfigT], fields: Mapping[str, Any], harmless: frozenset[str] = frozenset()) -> ConfigT:
    """Build a config from the method's fields of a file, and refuse every unknown field that has a value.

    `harmless` names fields that the class does not have and that do not change the result.
    """
    known = {setting.name for setting in dataclasses.fields(cast(Any, config))}
    unknown = [
        f"{name}={error_text(repr(value), 80)}"
        for name, value in fields.items()
        if name not in known | harmless and value not in (None, False, {}, [])
    ]
    if unknown:
        raise TsugikiError(
            "{unknown} is not known to Tsugiki, so it cannot tell whether it changes the result; {hint}",
            unknown=", ".join(unknown),
            hint=_(MERGE_WITH_PEFT),
        )
    return config(**{name: value for name, value in fields.items() if name in known and value is not None})


def equal_when_rounded(a: Tensor, b: Tensor) -> bool:
    """Return whether two weights are equal in the dtype of one of them, since a file and a base may differ in it."""
    return a.shape == b.shape and (torch.equal(a.to(b), b) or torch.equal(b.to(a), a))


def check_shapes(expected: Mapping[str, Sequence[int]], found: Mapping[str, Tensor]) -> None:
    """Raise a TsugikiError unless a file has these tensors, by name, in these shapes."""
    problems = shape_problems(expected, found)
    if problems:
        raise TsugikiError(summarise_list(problems))


def shape_problems(expected: Mapping[str, Sequence[int]], found: Mapping[str, Tensor]) -> list[str]:
    """Return the problems for which `check_shapes` raises an error, a clause for each."""
    missing = [_("{name} is missing", name=key) for key in expected if key not in found]
    return missing + [
        _("{name} is {shape}, expected {expected}", name=key, shape=list(found[key].shape), expected=list(shape))
        for key, shape in expected.items()
        if key in found and list(found[key].shape) != list(shape)
    ]
