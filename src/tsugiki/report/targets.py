"""The table of a model's linear layers, for `tsugiki methods targets`."""

from dataclasses import dataclass

from torch import nn

from tsugiki.base.loading import load_meta_model
from tsugiki.language import _
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.experts import is_transposed
from tsugiki.lora.targets import find_targets, reasons_against
from tsugiki.model.linear import features, is_linear
from tsugiki.model.ungrafted import base_modules, find_stacks
from tsugiki.report.formatting import Table


@dataclass(frozen=True)
class _Kind:
    """Layers of the same size whose names differ only in indices."""

    name: str
    size: tuple[int, int]
    """(inputs, outputs)."""
    reason: str
    """Why they are not grafted; empty if they are."""


def targets_table(model: str) -> tuple[Table, list[str]]:
    """Return a table of the linear layers of a model, whose weights are not read, and a line with their numbers.

    Raises:
        TsugikiError: there is no such model, or none of its layers is a default target.
    """
    shape = load_meta_model(model)
    config = LoraConfig()
    targets = find_targets(shape, config)
    reasons = reasons_against(shape)
    linear = {name: layer for name, layer in base_modules(shape) if is_linear(layer)}
    numbers: dict[_Kind, int] = {}
    for name, layer in linear.items():
        reason = "" if name in targets else reasons.get(name) or _("not a default of this model type")
        kind = _Kind(_without_indices(name), features(layer), reason)
        numbers[kind] = numbers.get(kind, 0) + 1
    rows = [_row(kind, number, config.r) for kind, number in numbers.items()] + _experts(shape)
    trained = config.r * sum(map(sum, map(features, targets.values())))
    headers = [
        _("layer"),
        _("number"),
        _("inputs → outputs"),
        _("grafted by default"),
        _("parameters, r={r}").format(r=config.r),
    ]
    line = _("{count} of {all} linear layers, {trained:,} trainable parameters")
    return (headers, rows), [line.format(count=len(targets), all=len(linear), trained=trained)]


def _experts(model: nn.Module) -> list[list[str]]:
    """Return a row for each kind of parameter that holds the weights of several experts."""
    modules = dict(base_modules(model))
    numbers: dict[tuple[str, str], int] = {}
    for name, stack in find_stacks(modules).items():
        owner = modules[name.rpartition(".")[0]]
        outputs, inputs = stack.shape[-2:] if not is_transposed(owner, stack) else stack.shape[:-3:-1]
        kind = _without_indices(name), f"{len(stack)} × ({inputs} → {outputs})"
        numbers[kind] = numbers.get(kind, 0) + 1
    why = _("no: experts; target_parameters adapts them")
    return [[name, str(number), size, why, "–"] for (name, size), number in numbers.items()]


def _row(kind: _Kind, number: int, r: int) -> list[str]:
    parameters = f"{number * r * sum(kind.size):,}" if not kind.reason else "–"
    inputs, outputs = kind.size
    return [
        kind.name,
        str(number),
        f"{inputs} → {outputs}",
        _("no: {reason}").format(reason=kind.reason) if kind.reason else _("yes"),
        parameters,
    ]


def _without_indices(name: str) -> str:
    return ".".join("*" if part.isdecimal() else part for part in name.split("."))
