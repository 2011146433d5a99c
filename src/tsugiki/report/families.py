"""What methods there are, and what each is: for `tsugiki methods`."""

import copy
import dataclasses
import inspect
import re
import sys
import warnings
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from tsugiki.base.loading import EMBEDDED, load_meta_model, load_model
from tsugiki.errors import TsugikiError
from tsugiki.lora.graft import add_adapter
from tsugiki.methods.lora import LORA
from tsugiki.methods.method import Method
from tsugiki.methods.table import ALL, METHODS
from tsugiki.report.formatting import Table
from tsugiki.train.config import FULL, RunConfig, validate_method

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FULL_IDEA = "every weight"
_FULL_TEXT = """Full fine-tuning: every weight trains, and the whole model is the file.

    y = f(x; θ + Δ)        Δ as large as θ

The trade-off: nothing bounds what it can learn, but weights, gradients and the two moments of the optimiser take 16
bytes a parameter, every task is a model of its own, and it wants a lower learning rate than an adapter."""
_LONG = 60  # characters of a reason in a cell


def methods_table(model: str) -> Table:
    """A row for each method, with what it trains of the model called `model`, of which no weights are read.

    Raises:
        TsugikiError: no such model.
    """
    shape = load_meta_model(model)
    total = sum(p.numel() for p in shape.parameters())
    headers = ["method", "family", "what trains", "parameters", "PEFT reads it", "merges", "goes without"]
    rows = [
        [
            name,
            method.family,
            method.about,
            _count(name, model, shape),
            _yes(method.peft),
            _yes(method.merges),
            method.slow or "–",
        ]
        for name, method in METHODS.items()
    ]
    return headers, [*rows, [FULL, ALL, _FULL_IDEA, f"{total:,} (100%)", "–", "–", "–"]]


def describe_method(name: str, model: str) -> tuple[str, Table, list[str]]:
    """What a method is, its settings with their defaults, and what else there is to know.

    Raises:
        TsugikiError: no method of this name (the message says the nearest), or no such model.
    """
    try:
        validate_method(name)
    except ValueError as error:
        raise TsugikiError(f"{name}: {error}") from error
    if name == FULL:
        return f"{FULL} · {_FULL_IDEA}\n\n{_FULL_TEXT}\n", ([], []), []
    method = METHODS[name]
    text = f"{name} · {method.family} · {method.about}\n\n{_idea(method)}\n"
    notes = [f"{setting} is {value!r} in this method" for setting, value in method.settings.items()]
    notes += [
        f"learning rate of a run that says none: {method.learning_rate:g}",
        f"parameters that train of {model}: {_count(name, model, load_meta_model(model))}",
        f"PEFT reads the file: {_yes(method.peft)}; merges into the base: {_yes(method.merges)}"
        + (f"; goes without: {method.slow}" if method.slow else ""),
    ]
    return text, _settings(name, method), notes


def count_parameters(config: Any, model: "PreTrainedModel") -> tuple[int, int]:
    """How many parameters train in `model`, which it changes, with an adapter of these settings, and of how many.

    Raises:
        TsugikiError: the settings do not fit the model.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        add_adapter(model, config.new_adapter(model), "counted")
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(size for size, trains in counts if trains), sum(size for size, _ in counts)


def _count(name: str, model: str, shape: "PreTrainedModel") -> str:
    """How much of the model called `model`, of this shape, trains; or in a few words why that cannot be said."""
    try:
        config = _default_config(name)
    except ValueError as error:
        return _shortened(f"needs settings: {error}")
    try:
        try:
            trained, total = count_parameters(config, copy.deepcopy(shape))
        except (RuntimeError, NotImplementedError):
            if model != EMBEDDED:  # its start is computed from weights, which are not read here
                return "known once it is loaded"
            trained, total = count_parameters(config, load_model(model))
    except TsugikiError as error:
        return _shortened(f"does not fit: {error}")
    return f"{trained:,} ({trained / total:.2%})"


def _default_config(name: str) -> Any:
    """What `tsugiki train --method NAME` trains with.

    Raises:
        ValueError: something has to be said first.
    """
    try:
        return RunConfig(model="-", data="-", out="-", method=name).adapter_config()
    except ValidationError as error:
        raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error


def _idea(method: Method) -> str:
    """What its file says of the method, or that of its form."""
    if method.explained:
        return inspect.cleandoc(import_module(method.explained).__doc__ or method.about)
    form = method.form
    homes = [part.__module__ for part in (form.tensors, form.to_json, form.from_json, form.config)]
    own = [home for home in homes if home.startswith("tsugiki.methods.") and home != Method.__module__]
    return inspect.cleandoc(sys.modules[own[0] if own else form.config.__module__].__doc__ or method.about)


def _settings(name: str, method: Method) -> Table:
    try:
        defaults = _default_config(name)
    except ValueError:
        defaults = None
    meanings = _meanings(inspect.getdoc(method.form.config) or "")
    rows = []
    for one in dataclasses.fields(method.form.config):
        if one.name not in method.settings:
            default = one.default_factory() if one.default_factory is not dataclasses.MISSING else one.default
            value = default if defaults is None else getattr(defaults, one.name)
            rows.append([one.name, _shown(value), meanings.get(one.name, "")])
    section = "lora" if method.form is LORA else "method_config"
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
