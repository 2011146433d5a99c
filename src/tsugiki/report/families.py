"""What methods there are, and what each is: for `tsugiki methods`."""

import copy
import dataclasses
import inspect
import re
import warnings
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from tsugiki.base.loading import EMBEDDED, load_meta_model, load_model
from tsugiki.errors import TsugikiError
from tsugiki.lora.config import LoraConfig
from tsugiki.methods.method import Method
from tsugiki.methods.table import METHODS
from tsugiki.report.formatting import Table
from tsugiki.train.config import RunConfig, validate_method

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LONG = 60  # characters of a reason in a cell


def methods_table(model: str) -> Table:
    """A row for each method, with what it trains of the model called `model`, of which no weights are read.

    Raises:
        TsugikiError: no such model.
    """
    shape = load_meta_model(model)
    headers = ["method", "family", "what trains", "parameters", "PEFT reads it", "merges", "goes without"]
    rows = [
        [
            name,
            method.family,
            method.summary,
            _count(name, model, shape),
            _yes(method.readable_by_peft),
            _yes(method.mergeable),
            method.not_accelerated or "–",
        ]
        for name, method in METHODS.items()
    ]
    return headers, rows


def describe_method(name: str, model: str) -> tuple[str, Table, list[str]]:
    """What a method is, its settings with their defaults, and what else there is to know.

    Raises:
        TsugikiError: no method of this name (the message says the nearest), or no such model.
    """
    try:
        validate_method(name)
    except ValueError as error:
        raise TsugikiError(f"{name}: {error}") from error
    method = METHODS[name]
    text = f"{name} · {method.family} · {method.summary}\n\n{_idea(method)}\n"
    notes = [f"{setting} is {value!r} in this method" for setting, value in method.fixed_settings.items()]
    notes += [
        f"learning rate of a run that says none: {method.learning_rate:g}",
        f"parameters that train of {model}: {_count(name, model, load_meta_model(model))}",
        f"PEFT reads the file: {_yes(method.readable_by_peft)}; merges into the base: {_yes(method.mergeable)}"
        + (f"; goes without: {method.not_accelerated}" if method.not_accelerated else ""),
    ]
    return text, _settings(name, method), notes


def count_parameters(method: Method, config: Any, model: "PreTrainedModel") -> tuple[int, int]:
    """Count the parameters of `model` that the method trains with this config, and all parameters. Changes `model`.

    Raises:
        TsugikiError: the settings do not fit the model.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        method.prepare(model, config, False)
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(size for size, trains in counts if trains), sum(size for size, _ in counts)


def _count(name: str, model: str, shape: "PreTrainedModel") -> str:
    """How much of the model called `model`, of this shape, trains; or in a few words why that cannot be said."""
    method = METHODS[name]
    try:
        config = _default_config(name)
    except ValueError as error:
        return _shortened(f"needs settings: {error}")
    try:
        try:
            trained, total = count_parameters(method, config, copy.deepcopy(shape))
        except (RuntimeError, NotImplementedError):
            if model != EMBEDDED:  # its start is computed from weights, which are not read here
                return "known once it is loaded"
            trained, total = count_parameters(method, config, load_model(model))
    except TsugikiError as error:
        return _shortened(f"does not fit: {error}")
    return f"{trained:,} ({trained / total:.2%})"


def _default_config(name: str) -> Any:
    """What `tsugiki train --method NAME` trains with.

    Raises:
        ValueError: something has to be said first.
    """
    try:
        return RunConfig(model="-", data="-", out="-", method=name).adapter_config
    except ValidationError as error:
        raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error


def _idea(method: Method) -> str:
    """Return the docstring that explains the method."""
    module = import_module(method.doc_module or method.config.__module__)
    return inspect.cleandoc(module.__doc__ or method.summary)


def _settings(name: str, method: Method) -> Table:
    try:
        defaults = _default_config(name)
    except ValueError:
        defaults = None
    meanings = _meanings(inspect.getdoc(method.config) or "")
    rows = []
    for one in dataclasses.fields(method.config):
        if one.name not in method.fixed_settings:
            default = one.default_factory() if one.default_factory is not dataclasses.MISSING else one.default
            value = default if defaults is None else getattr(defaults, one.name)
            rows.append([one.name, _shown(value), meanings.get(one.name, "")])
    if not rows:
        return [], []
    section = "lora" if method.config is LoraConfig else "method_config"
    return [f"--set NAME=VALUE, or {section}: in a file", "default", "meaning"], rows


def _meanings(docstring: str) -> Mapping[str, str]:
    """What an `Args:` section says of each name."""
    found: dict[str, str] = {}
    name = ""
    for line in docstring.partition("Args:\n")[2].splitlines():
        if begun := re.match(r" {4}(\w+): (.*)", line):
            name, found[begun[1]] = begun[1], begun[2]
        elif name and line.startswith(" " * 8):
            found[name] += " " + line.strip()
        else:
            break
    return found


def _shown(value: object) -> str:
    return "–" if value is None or value is dataclasses.MISSING else str(value)


def _yes(fact: bool) -> str:
    return "yes" if fact else "no"


def _shortened(reason: str) -> str:
    first = reason.partition(";")[0]
    return first if len(first) <= _LONG else first[: _LONG - 1].rstrip() + "…"
