"""Adapters folded into their base and written as an ordinary model folder, from file to file.

    plan = plan_merge("base", [Path("adapter")])       # of the base, no more than the shape
    with new_folder(out) as part:
        rounding = write_merged(plan, part)            # a tensor at a time

Each tensor that an adapter changes is read, computed in float32 and rounded once to the type it is stored in; all else
is copied to the byte. So what is in memory is the adapters and one tensor in float32, whatever the size of the model.
`lora.merge` makes the same tensors in memory.

Where a weight that changes is not in the files as the model has it (experts that transformers puts together when it
loads them), the model is loaded in the type that its config says, changed in memory, and saved by transformers.
"""

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tsugiki.adapters.algebra.weighted_sum import load_weighted_sum
from tsugiki.adapters.format import read_weights
from tsugiki.adapters.merge.quantized import QuantizedWeight, cannot_be_merged_into, quantized_weight
from tsugiki.base.loading import load_model, model_folder, placeholder_model
from tsugiki.base.model_folder import copy_other_files, map_keys, read_shards, write_index
from tsugiki.base.progress_bars import hidden_progress_bars
from tsugiki.dtypes import at_least_float32
from tsugiki.errors import TsugikiError, summarise_list
from tsugiki.io.shards import Entry, Shard, is_float, read_tensor, write_shard
from tsugiki.lora.merge import untie
from tsugiki.lora.shared_parameters import shared_parameters
from tsugiki.lora.swap import WeightUpdate, replace_parameter
from tsugiki.methods.peft_keys import PREFIX


@dataclass(frozen=True, eq=False)
class MergePlan:
    """What a merge changes in the files of a base."""

    base: str
    folder: Path
    shards: Sequence[Shard]
    changed: Mapping[str, WeightUpdate]
    """By key in the files."""
    added: Mapping[str, tuple[str, WeightUpdate]]
    """New key -> key of the tensor that it was one with, and what becomes of that."""
    in_memory: Mapping[str, WeightUpdate]
    """By name in the model, where the files do not hold each weight as the model has it; `changed` is empty then."""
    config: Mapping[str, Any]
    """Fields of config.json that become others."""
    coded: Mapping[str, QuantizedWeight]
    """Those of `changed` that are held in few bits."""

    @property
    def size(self) -> int:
        """Bytes that are written, but for what is added."""
        return sum(shard.size for shard in self.shards)


@dataclass
class Rounding:
    """What is lost of all changes where they are rounded to the types of the files."""

    lost: float = 0.0
    """Σ ‖rounded - exact‖²"""
    whole: float = 0.0
    """Σ ‖exact - before‖²"""

    def add(self, name: str, before: Tensor, exact: Tensor, rounded: Tensor) -> None:
        """Count one tensor.

        Raises:
            TsugikiError: it is not finite.
        """
        if not torch.isfinite(rounded).all():
            raise TsugikiError(f"merging gives values that are not finite in {name}")
        self.whole += float(torch.linalg.vector_norm(exact - before)) ** 2
        self.lost += float(torch.linalg.vector_norm(rounded.to(exact.dtype) - exact)) ** 2

    @property
    def share(self) -> float:
        """‖lost‖ / ‖change‖."""
        return math.sqrt(self.lost / self.whole) if self.whole else 0.0


def plan_merge(
    base: str, adapters: Sequence[Path], weights: Sequence[float] | None = None, *, allow_base_mismatch: bool = False
) -> MergePlan:
    """Read the adapters, and find what of the base's files they change.

    Args:
        base: the model, as `load_model` takes it.
        adapters: their folders; of several the updates are summed.
        weights: a factor on the update of each; 1 where nothing is said.
        allow_base_mismatch: merge adapters that were trained on another base.

    Raises:
        TsugikiError: a base that is not whole, an adapter that does not fit it or cannot be merged, several that
            have no sum, or weights that are held in few bits.
    """
    folder = model_folder(base)
    shards = read_shards(folder)
    home = {key: shard for shard in shards for key in shard.entries}
    model = placeholder_model(base)
    names = map_keys(model, home)
    groups = shared_parameters(model)
    with _real_values(model, adapters, {name: (home[key], key) for name, key in names.key_of.items()}, groups):
        adapter = load_weighted_sum(model, adapters, weights, allow_base_mismatch=allow_base_mismatch)
    changes: dict[str, WeightUpdate] = adapter.weight_updates(model)
    added, config = _untied(model, changes, names.key_of, groups)
    gone = [name for name in changes if not any(one in names.key_of for one in groups.get(name, [name]))]
    if any(name in names.converted for name in gone):
        if getattr(model.config, "quantization_config", None):
            raise cannot_be_merged_into(gone[0], model.config)
        return MergePlan(base, folder, shards, {}, {}, changes, config, {})
    if gone:
        raise TsugikiError(f"{base} is not a whole model: {summarise_list(gone)} is missing")
    changed = {name: key for name, key in names.key_of.items() if name in changes}
    coded = {}
    shapes = model.state_dict()
    for name, key in changed.items():
        entry = home[key].entries[key]
        if entry.shape != shapes[name].shape:
            raise TsugikiError(
                f"{key} of {base} is {list(entry.shape)} in its files, and {list(shapes[name].shape)} by its config"
            )
        if not is_float(entry):
            coded[key] = quantized_weight(key, home, model.config)
    by_key = {key: changes[name] for name, key in changed.items()}
    return MergePlan(base, folder, shards, by_key, added, {}, config, coded)


@torch.no_grad()
def rounding_of(plan: MergePlan, advance: Callable[[int], None] = lambda done: None) -> Rounding:
    """What `write_merged` would lose where weights are held in few bits; nothing is written.

    Args:
        plan: what would be written.
        advance: called with 1 for each of `plan.coded`.

    Raises:
        TsugikiError: values that are not finite, or a base that cannot be read.
    """
    rounding = Rounding()
    for key, weight in plan.coded.items():
        _make_codes(weight, plan.changed[key], rounding)
        advance(1)
    return rounding


@torch.no_grad()
def write_merged(plan: MergePlan, out: Path, advance: Callable[[int], None] = lambda done: None) -> Rounding:
    """Write the merged model into the folder `out`, which is there and empty.

    Args:
        plan: what to write.
        out: where to.
        advance: called with the number of bytes done since the last call, of `plan.size` in all.

    Raises:
        TsugikiError: values that are not finite, or a base that cannot be read.
        OSError: the folder cannot be written.
    """
    rounding = Rounding()
    if plan.in_memory:
        _write_in_memory(plan, out, rounding)
        advance(plan.size)
    else:
        added: dict[str, tuple[str, Entry]] = {}
        for shard in plan.shards:
            new = {
                key: (like, partial(_make, shard, like, change, rounding))
                for key, (like, change) in plan.added.items()
                if like in shard.entries
            }
            write_shard(shard, out / shard.path.name, _changed_in(shard, plan, rounding), new, advance)
            added |= {key: (shard.path.name, shard.entries[like]) for key, (like, _) in new.items()}
        write_index(plan.folder, out, added)
    copy_other_files(plan.folder, out, plan.config)
    return rounding


def _changed_in(shard: Shard, plan: MergePlan, rounding: Rounding) -> dict[str, Callable[[], Tensor]]:
    """What makes each tensor of a file that is another afterwards."""
    changed: dict[str, Callable[[], Tensor]] = {
        key: partial(_make, shard, key, change, rounding)
        for key, change in plan.changed.items()
        if key in shard.entries and key not in plan.coded
    }
    for key, weight in plan.coded.items():
        if key in shard.entries:
            changed[key] = partial(_make_codes, weight, plan.changed[key], rounding)
        if weight.scale_key in shard.entries:
            changed[weight.scale_key] = partial(_make_scale, weight, plan.changed[key])
    return changed


def _make(shard: Shard, key: str, change: WeightUpdate, rounding: Rounding) -> Tensor:
    return _changed(key, read_tensor(shard, key), change, rounding)


def _changed(name: str, stored: Tensor, change: WeightUpdate, rounding: Rounding) -> Tensor:
    """What becomes of a tensor, in the type it is stored in."""
    before = stored.to(at_least_float32(stored.dtype))
    exact = change(before)
    rounded = exact.to(stored.dtype)
    rounding.add(name, before, exact, rounded)
    return rounded


def _make_codes(weight: QuantizedWeight, change: WeightUpdate, rounding: Rounding) -> Tensor:
    before = weight.read()
    exact = change(before)
    codes, scale = weight.encode(exact)
    rounding.add(weight.key, before, exact, weight.decode(codes, scale))
    return codes


def _make_scale(weight: QuantizedWeight, change: WeightUpdate) -> Tensor:
    return weight.encode(change(weight.read()))[1]


def _write_in_memory(plan: MergePlan, out: Path, rounding: Rounding) -> None:
    model = load_model(plan.base, "auto")
    for name, change in plan.in_memory.items():
        merged = _changed(name, model.get_parameter(name), change, rounding)
        replace_parameter(model, name, nn.Parameter(merged.contiguous(), requires_grad=False))
    for name, value in plan.config.items():
        setattr(model.config, name, value)
    with hidden_progress_bars(not sys.stderr.isatty()):
        model.save_pretrained(out)


def _untied(
    model: nn.Module, changes: Mapping[str, WeightUpdate], keys: Mapping[str, str], groups: Mapping[str, list[str]]
) -> tuple[dict[str, tuple[str, WeightUpdate]], dict[str, Any]]:
    """What must be added to the files, and said in the config, because one tensor becomes several."""
    added: dict[str, tuple[str, WeightUpdate]] = {}
    untied: list[str] = []
    for name, group in groups.items():
        stored = [keys[one] for one in group if one in keys]
        if all(changes.get(one) is changes.get(group[0]) for one in group) or not stored:
            continue
        untied.append(name)
        if name not in keys:
            added[name] = (stored[0], changes.get(name, _unchanged))
    if not untied:
        return {}, {}
    if not untie(model, [name.rpartition(".")[0] for name in untied]):
        raise TsugikiError(
            f"{summarise_list(untied)} are one weight in this model; its config cannot say that they are several"
        )
    return added, {"tie_word_embeddings": False}


def _unchanged(weight: Tensor) -> Tensor:
    return weight


@contextmanager
def _real_values(
    model: nn.Module,
    adapters: Sequence[Path],
    stored: Mapping[str, tuple[Shard, str]],
    groups: Mapping[str, list[str]],
) -> Iterator[None]:
    """Let the hollow model have real values where an adapter's file brings a copy of them, to be compared.

    PEFT stores the frozen weight of a grafted embedding.
    """
    undo = []
    for folder in adapters:
        for key in read_weights(folder):
            name = key.removeprefix(PREFIX).replace(".base_layer.", ".")
            group = groups.get(name, [name])
            found = next((stored[one] for one in group if one in stored), None)
            if name != key.removeprefix(PREFIX) and found is not None:
                real = nn.Parameter(read_tensor(*found), requires_grad=False)
                undo += [replace_parameter(model, one, real) for one in group]
    yield
    for one in reversed(undo):
        one()
