"""Fingerprints of the training records of a model or an adapter, and the search for learned texts.

`eval` compares its texts with them, so that a result on learned text is not mistaken for a result on new text. What is
made from an adapter or a model inherits its fingerprints. A fingerprint is the digest of a text and a sketch, the
lowest byte of each slot of its signature (see `duplicates`): 142 bytes, from which the text cannot be read. Of very
many texts there are digests only, so that only equal texts are found.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tsugiki.data.duplicates import EMPTY, SLOTS, is_similar
from tsugiki.data.store import DIGEST_BYTES, RecordIndex
from tsugiki.errors import TsugikiError, error_text
from tsugiki.io.atomic import new_file
from tsugiki.io.file_names import LEARNED_FILE
from tsugiki.language import _

_NO_HASH = 255  # the byte of an empty slot; a hash that ends in it counts as 254
_MOST_PAIRS = 100_000_000  # beyond, only equal texts are searched: comparing this many sketches takes some seconds
_ROWS = 1 << 12  # sketches computed or compared at a time, to limit memory
_MOST_SKETCHES = 1_000_000  # texts; the sketches of more would rarely be compared, because of `_MOST_PAIRS`


@dataclass(frozen=True, eq=False)
class Fingerprints:
    """The fingerprints of texts."""

    digests: npt.NDArray[np.uint8]
    """[texts, 16]"""
    sketches: npt.NDArray[np.uint8]
    """[texts, 126]; [0, 126] if there are too many texts."""

    def __len__(self) -> int:
        return len(self.digests)


def fingerprints(index: RecordIndex, numbers: npt.NDArray[np.int64]) -> Fingerprints:
    """Return the fingerprints of the records with these numbers."""
    sketches = np.empty((len(numbers) if len(numbers) <= _MOST_SKETCHES else 0, SLOTS), np.uint8)
    for start in range(0, len(sketches), _ROWS):
        sketches[start : start + _ROWS] = _sketches(index.signatures[numbers[start : start + _ROWS]])
    return Fingerprints(np.asarray(index.digests[numbers], np.uint8), sketches)


def write_fingerprints(found: Sequence[Fingerprints], folder: Path) -> None:
    """Write fingerprints into a folder, for `read_fingerprints`, each text once. Without any, no file is written."""
    from safetensors.numpy import save

    if not found:
        return
    digests, first = np.unique(np.concatenate([texts.digests for texts in found]), axis=0, return_index=True)
    have_sketches = len(first) <= _MOST_SKETCHES and all(len(texts.sketches) == len(texts) for texts in found)
    sketches = np.concatenate([texts.sketches for texts in found])[first if have_sketches else slice(0)]
    with new_file(folder / LEARNED_FILE, replace=True) as temporary:
        temporary.write_bytes(save({"digests": digests, "sketches": sketches}))


def read_fingerprints(folder: Path) -> Fingerprints | None:
    """Read the fingerprints of the texts that a model or an adapter in a folder has learned; None if there are none.

    For a checkpoint, they are in its own folder or in the folder of its run.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    places = [folder, folder.parent.parent] if folder.name.startswith("checkpoint-") else [folder]
    path = next((place / LEARNED_FILE for place in places if (place / LEARNED_FILE).is_file()), None)
    if path is None:
        return None
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise _damaged(path, error_text(error, 100)) from error
    digests, sketches = tensors.get("digests"), tensors.get("sketches")
    if digests is None or sketches is None or {digests.dtype.name, sketches.dtype.name} != {"uint8"}:
        raise _damaged(path, "digests, sketches")
    if digests.shape[1:] != (DIGEST_BYTES,) or sketches.shape not in ((len(digests), SLOTS), (0, SLOTS)):
        raise _damaged(path, f"{digests.shape}, {sketches.shape}")
    return Fingerprints(digests, sketches)


def learned_by(folders: Iterable[Path | None]) -> list[Fingerprints]:
    """Return the fingerprints in the folders of models and adapters, of those that have any; None: not a folder."""
    found = [read_fingerprints(folder) for folder in folders if folder is not None]
    return [texts for texts in found if texts is not None]


def _damaged(path: Path, reason: str) -> TsugikiError:
    return TsugikiError(_("{path} is damaged ({reason}); remove it to go without it").format(path=path, reason=reason))


def find_learned(
    index: RecordIndex, learned: Sequence[Fingerprints], numbers: npt.NDArray[np.int64] | None = None
) -> tuple[set[int], set[int]]:
    """Return which records are among learned texts: the numbers of those with the same text, and of others with nearly
    the same text. Only the records with these numbers are looked for; None: all.
    """
    numbers = np.arange(len(index)) if numbers is None else numbers
    same: set[int] = set()
    near: set[int] = set()
    for texts in learned:
        known = {digest.tobytes() for digest in texts.digests}
        same |= {number for number in numbers.tolist() if index.digests[number].tobytes() in known}
        if len(texts.sketches) and len(numbers) * len(texts) <= _MOST_PAIRS:
            near |= {number for number in numbers.tolist() if number not in same and _is_near(index, number, texts)}
    return same, near - same


def _is_near(index: RecordIndex, number: int, learned: Fingerprints) -> bool:
    signature = index.signatures[number]
    sketch = _sketches(signature)
    for start in range(0, len(learned.sketches), _ROWS):
        rows = learned.sketches[start : start + _ROWS]
        filled = (rows != _NO_HASH) | (sketch != _NO_HASH)
        equal = ((rows == sketch) & (rows != _NO_HASH)).sum(axis=1) / filled.sum(axis=1)
        if is_similar(equal, signature).any():
            return True
    return False


def _sketches(signatures: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint8]:
    lowest = np.minimum(signatures & 0xFF, _NO_HASH - 1)
    return np.where(signatures == EMPTY, _NO_HASH, lowest).astype(np.uint8)
