"""Merge adapters into a base and write the result as an ordinary model folder, without loading the base.

Each tensor that the adapters change is read, updated in float32, and rounded once to its dtype in the file. All other
tensors are copied unchanged. So memory is needed for the adapters and one tensor in float32, regardless of the size of
the model. `lora.merge` computes the same tensors in memory.

If a changed weight is stored in another form than in the model (transformers joins the experts of some models while it
loads them), or the adapter has new words, the model is loaded in the dtype of its config, changed in memory, and saved
by transformers.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tsugiki.adapters.algebra.weighted_sum import load_weighted_sum
from tsugiki.adapters.files import map_weights
from tsugiki.adapters.saved_tokenizer import saved_chat_template, words_for
from tsugiki.base.checks import quantization_settings
from tsugiki.base.loading import load_model, placeholder_model
from tsugiki.base.model_folder import copy_other_files, map_keys, read_shards, write_index
from tsugiki.base.new_words import fit_vocabulary, has_tokenizer, load_saved_tokenizer
from tsugiki.base.resolve import model_folder
from tsugiki.dtypes import at_least_float32
from tsugiki.errors import TsugikiError, summarise_list
from tsugiki.io.atomic import write_text
from tsugiki.io.file_names import CHAT_TEMPLATE_FILE
from tsugiki.io.progress import hidden_progress_bars
from tsugiki.io.shards import Entry, Shard, is_float, read_tensor, write_shard
from tsugiki.methods.peft_keys import base_name
from tsugiki.model.undo import Undo, replace_parameter, undo_all
from tsugiki.model.weights import WeightUpdate, shared_parameters, untie


@dataclass(frozen=True, eq=False)
class MergePlan:
    """The changes that a merge makes in the files of a base."""

    base: str
    folder: Path
    shards: Sequence[Shard]
    changed: Mapping[str, WeightUpdate]
    """Key in the files -> the update of the tensor."""
    added: Mapping[str, tuple[str, WeightUpdate]]
    """Key of a new tensor -> the key of the tensor that it was shared with, and the update of its copy."""
    in_memory: Mapping[str, WeightUpdate]
    """Name in the model -> the update. Used instead of `changed` if a changed weight is stored in another form than in
    the model, or the vocabulary grows."""
    config: Mapping[str, Any]
    """Fields of config.json that change."""
    new_words: Path | None = None
    """The folder of the adapter whose new words the model gets; None if the adapters bring none."""
    chat_template: str | None = None
    """The chat template that the adapters were trained with; None: the base's."""

    @property
    def size(self) -> int:
        """The bytes to copy or change, without those of added tensors."""
        return sum(shard.size for shard in self.shards)


@dataclass
class RoundingLoss:
    """The loss of the adapters' updates that is caused by rounding the merged weights to the dtypes of the files."""

    lost: float = 0.0
    """Σ ‖rounded - exact‖²"""
    total: float = 0.0
    """Σ ‖exact - before‖²"""

    def add(self, name: str, before: Tensor, exact: Tensor, rounded: Tensor) -> None:
        """Add one tensor, of the base, merged, and merged as the file will hold it, to the sums."""
        if not torch.isfinite(rounded).all():
            raise TsugikiError("merging gives values that are not finite in {name}", name=name)
        self.total += float(torch.linalg.vector_norm(exact - before)) ** 2
        self.lost += float(torch.linalg.vector_norm(rounded.to(exact.dtype) - exact)) ** 2

    @property
    def share(self) -> float:
        """The share of the updates that is lost, ‖rounded - exact‖ / ‖exact - before‖ over all tensors."""
        return math.sqrt(self.lost / self.total) if self.total else 0.0


def plan_merge(
    base: str, adapters: Sequence[Path], weights: Sequence[float] | None = None, *, allow_base_mismatch: bool = False
) -> MergePlan:
    """Read the adapters in some folders, and determine their changes to the files of the base.

    The updates of several are added, each with its factor in `weights` (None: 1 for each). Adapters that were trained
    on another base are merged only with `allow_base_mismatch`.
    """
    plan = _plan_merge(base, adapters, weights, allow_base_mismatch)
    templates = {template for folder in adapters if (template := saved_chat_template(folder)) is not None}
    return replace(plan, chat_template=templates.pop() if len(templates) == 1 else None)


def _plan_merge(base: str, adapters: Sequence[Path], weights: Sequence[float] | None, mismatch: bool) -> MergePlan:
    folder = model_folder(base)
    shards = read_shards(folder)
    shard_of = {key: shard for shard in shards for key in shard.entries}
    model = placeholder_model(base)
    rows = len(model.get_input_embeddings().weight)
    sizes = {adapter_folder: words_for(model, adapter_folder) or rows for adapter_folder in adapters}
    new_words = next((adapter_folder for adapter_folder, size in sizes.items() if size > rows), None)
    if new_words is not None:
        fit_vocabulary(model, sizes[new_words])
    mapping = map_keys(model, shard_of)
    shared = shared_parameters(model)
    with _values_to_compare(model, adapters, shard_of, mapping.key_of, shared):
        adapter = load_weighted_sum(model, adapters, weights, allow_base_mismatch=mismatch)
    updates: dict[str, WeightUpdate] = adapter.weight_updates(model)
    added, config = _untied(model, updates, mapping.key_of, shared)
    if new_words is not None:
        if "vocab_size" not in model.config.to_dict():
            raise TsugikiError(
                "{base} keeps the size of its vocabulary where a merge with new words cannot change it", base=base
            )
        config["vocab_size"] = sizes[new_words]
        return MergePlan(base, folder, shards, {}, {}, updates, config, new_words)
    not_in_files = [name for name in updates if not any(other in mapping.key_of for other in shared.get(name, [name]))]
    if any(name in mapping.converted for name in not_in_files):
        if quantization_settings(model.config):
            raise _quantized_error(not_in_files[0], model.config)
        return MergePlan(base, folder, shards, {}, {}, updates, config)
    if not_in_files:
        raise TsugikiError(
            "{base} is not a complete model: {names} is missing", base=base, names=summarise_list(not_in_files)
        )
    changed = {}
    shapes = model.state_dict()
    for name, key in mapping.key_of.items():
        if name not in updates:
            continue
        changed[key] = updates[name]
        entry = shard_of[key].entries[key]
        if entry.shape != shapes[name].shape:
            raise TsugikiError(
                "{key} of {base} is {shape} in its files, and {expected} by its config",
                key=key,
                base=base,
                shape=list(entry.shape),
                expected=list(shapes[name].shape),
            )
        if not is_float(entry):
            raise _quantized_error(key, model.config)
    return MergePlan(base, folder, shards, changed, added, {}, config)


def _quantized_error(name: str, config: object) -> TsugikiError:
    """Return the error for merging into a quantised weight."""
    method = quantization_settings(config).get("quant_method", "integers")
    return TsugikiError(
        "{name} is quantised ({method}), and merging into this format is not supported; merge into the "
        "unquantised model, or load the adapter without merging it",
        name=name,
        method=method,
    )


@torch.no_grad()
def write_merged(plan: MergePlan, out: Path, advance: Callable[[int], None] = lambda done: None) -> RoundingLoss:
    """Write the merged model into an empty folder.

    `advance` is called with the number of bytes that were written since the last call; `plan.size` in total.
    """
    loss = RoundingLoss()
    if plan.in_memory:
        _write_in_memory(plan, out, loss)
        advance(plan.size)
    else:
        added: dict[str, tuple[str, Entry]] = {}
        for shard in plan.shards:
            new = {
                key: (like, partial(_merged_tensor, shard, like, update, loss))
                for key, (like, update) in plan.added.items()
                if like in shard.entries
            }
            changed = {
                key: partial(_merged_tensor, shard, key, update, loss)
                for key, update in plan.changed.items()
                if key in shard.entries
            }
            write_shard(shard, out / shard.path.name, changed, new, advance)
            added |= {key: (shard.path.name, shard.entries[like]) for key, (like, _) in new.items()}
        write_index(plan.folder, out, added)
    copy_other_files(plan.folder, out, plan.config)
    if plan.new_words is not None and has_tokenizer(plan.new_words):
        load_saved_tokenizer(plan.new_words).save_pretrained(out)
    if plan.chat_template is not None:
        write_text(out / CHAT_TEMPLATE_FILE, plan.chat_template)
    return loss


def _merged_tensor(shard: Shard, key: str, update: WeightUpdate, loss: RoundingLoss) -> Tensor:
    return _merged(key, read_tensor(shard, key), update, loss)


def _merged(name: str, weight: Tensor, update: WeightUpdate, loss: RoundingLoss) -> Tensor:
    """Return the merged weight in the dtype of `weight`."""
    before = weight.to(at_least_float32(weight.dtype))
    exact = update(before)
    rounded = exact.to(weight.dtype)
    loss.add(name, before, exact, rounded)
    return rounded


def _write_in_memory(plan: MergePlan, out: Path, loss: RoundingLoss) -> None:
    model = load_model(plan.base, "auto")
    if plan.new_words is not None:
        fit_vocabulary(model, plan.config["vocab_size"])
    for name, update in plan.in_memory.items():
        merged = _merged(name, model.get_parameter(name), update, loss)
        replace_parameter(model, name, nn.Parameter(merged.contiguous(), requires_grad=False), [])
    for name, value in plan.config.items():
        setattr(model.config, name, value)
    with hidden_progress_bars():
        model.save_pretrained(out)


def _untied(
    model: nn.Module, updates: Mapping[str, WeightUpdate], key_of: Mapping[str, str], shared: Mapping[str, list[str]]
) -> tuple[dict[str, tuple[str, WeightUpdate]], dict[str, Any]]:
    """Find shared weights that have to be separated because their uses do not get the same update.

    The result is `MergePlan.added` and `MergePlan.config`.
    """
    added: dict[str, tuple[str, WeightUpdate]] = {}
    untied: list[str] = []
    for name, names in shared.items():
        keys = [key_of[other] for other in names if other in key_of]
        if all(updates.get(other) is updates.get(names[0]) for other in names) or not keys:
            continue
        untied.append(name)
        if name not in key_of:
            added[name] = (keys[0], updates.get(name, _unchanged))
    if not untied:
        return {}, {}
    if not untie(model, [name.rpartition(".")[0] for name in untied], []):
        raise TsugikiError(
            "{names} share one weight in this model; its config has no field to make them several",
            names=summarise_list(untied),
        )
    return added, {"tie_word_embeddings": False}


def _unchanged(weight: Tensor) -> Tensor:
    return weight


@contextmanager
def _values_to_compare(
    model: nn.Module,
    adapters: Sequence[Path],
    shard_of: Mapping[str, Shard],
    key_of: Mapping[str, str],
    shared: Mapping[str, list[str]],
) -> Iterator[None]:
    """Within the block, give the placeholder model the real values of those weights that an adapter's file also holds.

    PEFT stores the frozen weight of an embedding that has LoRA factors or was resized. When the adapter is read, this
    weight is compared with the base's.
    """
    undo: list[Undo] = []
    for folder in adapters:
        for tensor in map_weights(folder):
            names = shared.get(base_name(tensor), [base_name(tensor)])
            key = next((key_of[name] for name in names if name in key_of), None)
            if key is not None:
                weight = nn.Parameter(read_tensor(shard_of[key], key), requires_grad=False)
                for name in names:
                    replace_parameter(model, name, weight, undo)
    yield
    undo_all(undo)
