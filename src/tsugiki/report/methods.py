"""The table and the descriptions of the methods, and the table of the layers that LoRA grafts."""

import copy
import dataclasses
import inspect
import re
import warnings
from collections import Counter
from typing import Any

from pydantic import ValidationError
from torch import nn

from tsugiki.annotations import PreTrainedModel
from tsugiki.base.loading import load_meta_model, load_model
from tsugiki.base.resolve import EMBEDDED
from tsugiki.errors import TsugikiError
from tsugiki.io.formatting import argument_descriptions
from tsugiki.language import _, marked
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.experts import is_transposed
from tsugiki.lora.targets import find_targets
from tsugiki.methods.method import Method
from tsugiki.methods.table import METHODS
from tsugiki.model.linear import features, is_linear
from tsugiki.model.targets_by_rule import reasons_against
from tsugiki.model.ungrafted import base_modules, find_stacks
from tsugiki.report.table import Table
from tsugiki.training.settings.config import RunConfig, validate_method

_REASON_LENGTH = 60  # characters of a reason in a cell

_FAMILIES = (marked("additive"), marked("reparametrised"), marked("selective"), marked("full fine-tuning"))
"""The families, for the catalogue."""


def methods_table(model: str) -> Table:
    """Return a table of all methods, with the trainable parameters of a model, whose weights are not read."""
    shape = load_meta_model(model)
    headers = [_("method"), _("family"), _("what is trained"), _("trainable parameters")]
    headers += [_("PEFT reads it"), _("mergeable"), _("not accelerated")]
    rows = [
        [
            name,
            _(method.family),
            _(method.summary),
            _count(name, model, shape),
            _yes(method.readable_by_peft),
            _yes(method.mergeable),
            _(method.not_accelerated) if method.not_accelerated else "–",
        ]
        for name, method in METHODS.items()
    ]
    return Table(headers, rows)


def describe_method(name: str, model: str) -> tuple[str, Table, list[str]]:
    """Return a method's formula and paper, a table of its settings with their defaults, and further facts."""
    try:
        validate_method(name)
    except ValueError as error:
        raise TsugikiError(f"{name}: {error}") from error
    method = METHODS[name]
    title = f"{name} · {_(method.family)} · {_(method.summary)}"
    guide = _("what it costs and when to use it: docs/methods.md")
    text = "\n\n".join(filter(None, (title, f"    {method.formula}", method.paper, guide))) + "\n"
    notes = [
        _("{setting} is {value!r} in this method", setting=setting, value=value)
        for setting, value in method.fixed_settings.items()
    ]
    facts = _(
        "PEFT reads the file: {reads}; can be merged into the base: {merges}",
        reads=_yes(method.readable_by_peft),
        merges=_yes(method.mergeable),
    )
    if method.not_accelerated:
        facts += _("; not accelerated: {what}", what=_(method.not_accelerated))
    notes += [
        _("default learning rate: {rate}", rate=_learning_rate(method)),
        _("trainable parameters of {model}: {count}", model=model, count=_count(name, model, load_meta_model(model))),
        facts,
    ]
    return text, _settings(name, method), notes


def _learning_rate(method: Method) -> str:
    if method.learning_rate is not None:
        return f"{method.learning_rate:g}"
    factor = method.learning_rate_factor
    if factor == 1:
        return _("by the width of the model")
    return _("by the width of the model, {factor:.2g} times LoRA's", factor=factor)


def _trainable(method: Method, config: Any, model: PreTrainedModel) -> str:
    """Return how many parameters of `model` the method trains with this config, and their share. Changes `model`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        method.prepare(model, config, base_dropout=False)
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    trained = sum(size for size, trains in sizes if trains)
    return f"{trained:,} ({trained / sum(size for size, _ in sizes):.2%})"


def _count(name: str, model: str, shape: PreTrainedModel) -> str:
    """Return how many parameters of a model are trainable, or a short reason why the number is not known."""
    method = METHODS[name]
    try:
        config = _default_config(name)
    except ValueError as error:
        return _shorten(_("requires settings: {error}", error=error))
    try:
        try:
            return _trainable(method, config, copy.deepcopy(shape))
        except (RuntimeError, NotImplementedError):
            if model != EMBEDDED:  # the method is initialised from weights, which are not read here
                return _("known when the model is loaded")
            return _trainable(method, config, load_model(model))
    except TsugikiError as error:
        return _shorten(_("does not fit: {error}", error=error))


def _default_config(name: str) -> Any:
    """Return the config that `tsugiki train --method NAME` uses; a ValueError names a setting that it requires."""
    try:
        return RunConfig(model="-", data=("-",), out="-", method=name).adapter_config
    except ValidationError as error:
        raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error


def _settings(name: str, method: Method) -> Table:
    try:
        defaults = _default_config(name)
    except ValueError:
        defaults = None
    meanings = argument_descriptions(inspect.getdoc(method.config) or "")
    rows = []
    for field in dataclasses.fields(method.config):
        if field.name not in method.fixed_settings:
            default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
            value = default if defaults is None else getattr(defaults, field.name)
            shown = "–" if value in (None, dataclasses.MISSING) else str(value)
            rows.append([field.name, shown, _meaning(meanings.get(field.name, ""))])
    if not rows:
        return Table([], [])
    section = "lora" if method.config is LoraConfig else "method_config"
    setting = _("--set NAME=VALUE, or {section}: in the YAML file", section=section)
    return Table([setting, _("default"), _("meaning")], rows)


def _meaning(description: str) -> str:
    """Translate the description of a setting. The catalogue contains it as a flag's help, with escaped brackets."""
    text = (description[:1].upper() + description[1:]).replace("[", r"\[")
    shown = _(text) if text else ""
    return description if shown == text else shown.replace(r"\[", "[")


def _yes(fact: bool) -> str:
    return _("yes") if fact else _("no")


def _shorten(reason: str) -> str:
    first = re.split("[;。]", reason)[0]
    return first if len(first) <= _REASON_LENGTH else first[: _REASON_LENGTH - 1].rstrip() + "…"


def targets_table(model: str) -> tuple[Table, list[str]]:
    """Return a table of the linear layers of a model, whose weights are not read, and a line with their numbers.

    Layers are in one row if they have the same size, and names that differ only in indices.
    """
    shape = load_meta_model(model)
    config = LoraConfig()
    targets = find_targets(shape, config)
    reasons = reasons_against(shape)
    linear = {name: layer for name, layer in base_modules(shape) if is_linear(layer)}
    kinds: Counter[tuple[str, int, int, str]] = Counter()
    for name, layer in linear.items():
        reason = "" if name in targets else reasons.get(name) or _("not a default of this model type")
        kinds[_without_indices(name), *features(layer), reason] += 1
    rows = [
        [
            name,
            str(number),
            f"{inputs} → {outputs}",
            _("no: {reason}", reason=reason) if reason else _("yes"),
            "–" if reason else f"{number * config.r * (inputs + outputs):,}",
        ]
        for (name, inputs, outputs, reason), number in kinds.items()
    ]
    rows += _experts(shape)
    trained = config.r * sum(map(sum, map(features, targets.values())))
    headers = [_("layer"), _("number"), _("inputs → outputs"), _("grafted by default")]
    headers.append(_("parameters, r={r}", r=config.r))
    line = _(
        "{count} of {all} linear layers, {trained:,} trainable parameters",
        count=len(targets),
        all=len(linear),
        trained=trained,
    )
    return Table(headers, rows), [line]


def _experts(model: nn.Module) -> list[list[str]]:
    """Return a row for each kind of parameter that holds the weights of several experts."""
    modules = dict(base_modules(model))
    numbers: Counter[tuple[str, str]] = Counter()
    for name, stack in find_stacks(modules).items():
        owner = modules[name.rpartition(".")[0]]
        outputs, inputs = stack.shape[-2:] if not is_transposed(owner, stack) else stack.shape[:-3:-1]
        numbers[_without_indices(name), f"{len(stack)} × ({inputs} → {outputs})"] += 1
    why = _("no: experts; target_parameters adapts them")
    return [[name, str(number), size, why, "–"] for (name, size), number in numbers.items()]


def _without_indices(name: str) -> str:
    return ".".join("*" if part.isdecimal() else part for part in name.split("."))
