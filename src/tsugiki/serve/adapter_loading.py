"""Load adapters into the served model. The functions that take the model are for the thread that owns it."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from tsugiki.adapters.algebra.combine import refuse_more_than_updates
from tsugiki.adapters.algebra.weighted_sum import load_weighted_sum
from tsugiki.adapters.files import content_digest, map_weights, read_adapter_config
from tsugiki.adapters.format import read_adapter, warn_of_unknown_base
from tsugiki.adapters.lora_weights import read_lora_weights
from tsugiki.adapters.saved_tokenizer import words_for
from tsugiki.errors import TsugikiError
from tsugiki.fast.layers import add_adapter
from tsugiki.fast.mixed_batch import mixed_batch
from tsugiki.generation.batch import find_batch_mode
from tsugiki.generation.request import BatchMode
from tsugiki.io.digests import FileState, file_state, sha256
from tsugiki.io.file_names import ADAPTER_CONFIG_FILE, ADAPTER_FILE, CHAT_TEMPLATE_FILE, METADATA_FILE
from tsugiki.language import _
from tsugiki.lora.graft import remove_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FileStates: TypeAlias = tuple[tuple[str, FileState], ...]
"""The names of an adapter's files and their states."""
_BYTES = 4  # bytes of a number in memory
_FILES = (ADAPTER_CONFIG_FILE, ADAPTER_FILE, METADATA_FILE, CHAT_TEMPLATE_FILE)


def load_served(model: "PreTrainedModel", folder: Path, key: str, allow_base_mismatch: bool = False) -> BatchMode:
    """Load an adapter under the name `key`, and return how its rows can be batched with other rows.

    Unlike `load_adapter`, this does not compare the logits with and without the adapter, to warn of one without any
    effect. The comparison would take most of the time, in which no other request gets a token.
    """
    _refuse_new_words(model, folder)
    config = read_adapter_config(folder)
    add_adapter(model, read_adapter(model, folder, config, allow_base_mismatch=allow_base_mismatch), key)
    if not allow_base_mismatch:
        warn_of_unknown_base(model, folder)
    return _batch_mode(model, key)


def load_mix(
    model: "PreTrainedModel",
    folders: Sequence[Path],
    weights: Sequence[float],
    key: str,
    allow_base_mismatch: bool = False,
) -> BatchMode:
    """Load the sum of adapters with factors on their updates as one adapter; otherwise as `load_served`."""
    for folder in folders:
        _refuse_new_words(model, folder)
        refuse_more_than_updates(read_lora_weights(folder), folder.name)
    add_adapter(model, load_weighted_sum(model, folders, weights, allow_base_mismatch=allow_base_mismatch), key)
    return _batch_mode(model, key)


def _refuse_new_words(model: "PreTrainedModel", folder: Path) -> None:
    words = words_for(model, folder)
    if words is not None and words != len(model.get_input_embeddings().weight):
        raise TsugikiError(_("it adds words to the vocabulary, which other adapters do not have; merge it instead"))


def _batch_mode(model: "PreTrainedModel", key: str) -> BatchMode:
    """Return how rows of the active adapter can be batched with other rows; if that fails, remove the adapter."""
    try:
        model.eval()
        try:
            with mixed_batch(model, [key]):
                pass
        except TsugikiError:  # its updates cannot be selected for each row
            return "same" if find_batch_mode(model) == "mixed" else "alone"
        return "mixed"
    except BaseException:
        remove_adapter(model, key)
        raise


def digest_of(folders: Sequence[Path], weights: Sequence[float]) -> str:
    """Return the digest of an adapter or a mix; the order of a mix's parts has no effect."""
    digests = [content_digest(folder) for folder in folders]
    if not weights:
        return digests[0]
    return sha256(f"{digest} {weight!r}\n".encode() for digest, weight in sorted(zip(digests, weights, strict=True)))


def memory_of(folders: Sequence[Path]) -> int:
    """Return how many bytes adapters take in memory; files that cannot be read do not count."""
    size = 0
    with suppress(TsugikiError):
        for folder in folders:
            size += sum(_BYTES * tensor.numel() for tensor in map_weights(folder).values())
    return size


def adapter_file_states(folder: Path, names: Sequence[str] = _FILES) -> FileStates:
    """Return the names and states of an adapter's files, which differ if one of them is replaced."""
    states = []
    for name in names:
        with suppress(OSError):
            states.append((name, file_state((folder / name).stat())))
    return tuple(states)
