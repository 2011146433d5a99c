"""What every method is here: a form of adapter, and a name under which it is trained.

A form is three things in one file: a config (a frozen dataclass under PEFT's names, with `new_adapter`), an adapter
(what trains, how it takes its place in a model, how it is merged: `lora.graft.Adapter`), and an `AdapterFormat`,
which says how both are written in a PEFT folder. A `Method` is a form with some of its settings decided;
`methods.table` lists them.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from tsugiki.errors import TsugikiError

PREFIX = "base_model.model."
"""Before the name of a module of the base, in PEFT's files."""

Family: TypeAlias = Literal["additive", "reparametrised", "selective"]


def _fresh(model: nn.Module, config: Any, stored: Collection[str]) -> Any:
    return config.new_adapter(model)


@dataclass(frozen=True)
class AdapterFormat:
    """A form of adapter as it is stored."""

    peft_type: str
    """Of `adapter_config.json`. One of ours begins with TSUGIKI_, and PEFT refuses it by that name."""
    config: type[Any]
    """The class of its settings."""
    tensors: Callable[[nn.Module, Any], dict[str, Tensor]]
    """Model and adapter -> the adapter's own parameters under their names in the file; loading fills what saving
    writes."""
    to_json: Callable[[nn.Module, Any], dict[str, Any]]
    """Model and adapter -> the fields of `adapter_config.json` that the form has of its own."""
    from_json: Callable[[Mapping[str, Any]], Any]
    """The form's own fields -> its config. Raises TsugikiError for a field that would change the result and that is not
    known; the message need not name the file."""
    fill: Callable[[nn.Module, Any, Mapping[str, Tensor]], None] | None = None
    """Puts stored tensors, which have the names and shapes of `tensors`, into an adapter; None where `tensors` gives
    the parameters themselves, to be copied into."""
    beside: Callable[[Any], dict[str, Any]] | None = None
    """Config -> those of its settings that PEFT has no field for; they are kept in a file that PEFT does not read, and
    replace what `from_json` makes of PEFT's fields."""
    empty: Callable[[nn.Module, Any, Collection[str]], Any] = _fresh
    """Model, config and the names of a file's tensors -> an adapter for these to be filled into: a fresh one, unless
    the file holds less than a fresh one trains."""


@dataclass(frozen=True)
class Method:
    """A way to adapt a model, by the name that `--method` takes."""

    family: Family
    about: str
    """The idea, in a few words."""
    form: AdapterFormat
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What of the form's settings makes it this method."""
    learning_rate: float = 1e-4
    """Of a run that says none: what trains little wants a high one. From the papers, or PEFT's own examples."""
    peft: bool = True
    """Whether PEFT reads the file."""
    merges: bool = True
    """Whether it can be folded into the base's weights."""
    explained: str = ""
    """The module whose docstring tells the idea; empty: the form's own."""
    slow: str = ""
    """Which fast paths it cannot use; empty: it uses all."""

    def refuse_decided(self, given: Mapping[str, Any]) -> None:
        """Ask that settings which somebody gave leave alone what makes the method.

        Raises:
            TsugikiError: one says otherwise.
        """
        decided = [name for name, value in self.settings.items() if given.get(name, value) != value]
        if decided:
            raise TsugikiError(f"{decided[0]} is {self.settings[decided[0]]!r} in this method; leave it out")

    def configure(self, given: Mapping[str, Any]) -> Any:
        """The config of an adapter, from the settings that somebody gave.

        Raises:
            TsugikiError: a setting that the form does not have, that the method decides, or a value that cannot be.
        """
        known = [one.name for one in dataclasses.fields(self.form.config)]
        unknown = [name for name in given if name not in known]
        if unknown:
            raise TsugikiError(f"{', '.join(unknown)}: no such setting; known are {', '.join(sorted(known))}")
        self.refuse_decided(given)
        return self.form.config(**{**given, **self.settings})


def check_names(field: str, value: object) -> None:
    """Ask that a setting names modules: a list of names or name endings, a regular expression, or None.

    Raises:
        TsugikiError: it does not.
    """
    if isinstance(value, str):
        try:
            re.compile(value)
        except re.error as error:
            raise TsugikiError(f"{field}: {value!r} is not a regular expression: {error}") from error
    elif value is not None and not (isinstance(value, Sequence) and all(isinstance(name, str) for name in value)):
        raise TsugikiError(f"{field} is {value!r}; it is a list of names, or a pattern")


def read_fields(config: type[Any], fields: Mapping[str, Any], harmless: frozenset[str] = frozenset()) -> Any:
    """A config from the fields of a file, all of which it must know.

    Args:
        config: its class.
        fields: the form's own, by name.
        harmless: names of fields that change nothing of what is computed.

    Raises:
        TsugikiError: a field that is not known and says something, or a value that cannot be.
    """
    known = {one.name for one in dataclasses.fields(config)}
    unknown = [
        f"{name}={value!r}"
        for name, value in fields.items()
        if name not in known | harmless and value not in (None, False, {}, [])
    ]
    if unknown:
        raise TsugikiError(f"{', '.join(unknown)} would change the result and is not supported")
    try:
        return config(**{name: value for name, value in fields.items() if name in known and value is not None})
    except (TypeError, ValueError, AttributeError) as error:  # a list where names and values belong, say
        raise TsugikiError(str(error)) from error
