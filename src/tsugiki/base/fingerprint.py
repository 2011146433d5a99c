"""Fingerprints of base models, which tell whether an adapter belongs to a base.

An adapter loads without an error into any model of the same shape, but the output is nonsense if the weights are
others than those it was trained on. So an adapter records the fingerprint of its base: a digest over the tensors in the
base's files, each with its name, dtype and shape. Sharding and casting do not change it. For a GGUF file the digest is
over its quantised tensors: another quantisation changes it, another chat template does not.
"""

import functools
from pathlib import Path

from torch import nn

from tsugiki.base.gguf.conversion_cache import gguf_fingerprint
from tsugiki.base.resolve import gguf_path, local_folder
from tsugiki.io.digests import combined_digest, tensor_digest
from tsugiki.io.file_names import MODEL_FILES
from tsugiki.io.shards import Shard, read_shard


def base_fingerprint(model: nn.Module) -> str | None:
    """Return the fingerprint of the files that `model` was loaded from, or None if they cannot be found."""
    name = getattr(model, "name_or_path", "")
    return named_fingerprint(name) if name else None


def named_fingerprint(name: str) -> str | None:
    """Return the fingerprint of the model with this name (see `load_model`), or None if it is not on this machine."""
    gguf = gguf_path(name)
    if gguf is not None:
        return gguf_fingerprint(gguf)
    folder = local_folder(name)
    return folder_fingerprint(folder) if folder else None


def folder_fingerprint(folder: Path) -> str | None:
    """Return `sha256:` and 64 digits over name, dtype, shape and bytes of every tensor in the folder's safetensors.

    Returns None if the folder has no safetensors.
    """
    files = sorted(folder.resolve().glob(MODEL_FILES))
    return _digest_files(tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in files))


def is_different_base(fingerprint: str | None, name: str) -> bool:
    """Return whether the model called `name` is certainly not the base with this fingerprint.

    False if either fingerprint is unknown. Computing the model's own fingerprint reads all of its weights.
    """
    return fingerprint is not None and fingerprints_differ(fingerprint, named_fingerprint(name))


def fingerprints_differ(one: str | None, other: str | None) -> bool:
    """Return whether two fingerprints are certainly of different bases; False if either is unknown."""
    return bool(one and other and one != other)


@functools.lru_cache(maxsize=8)
def _digest_files(files: tuple[tuple[Path, int, int], ...]) -> str | None:
    """Digest all tensors in these files.

    Args:
        files: path, size and modification time of each; a file that changed has another cache key.
    """
    digests = {name: digest for path, _, _ in files for name, digest in _digest_tensors(read_shard(path)).items()}
    return combined_digest(digests) if digests else None


def _digest_tensors(shard: Shard) -> dict[str, str]:
    with shard.path.open("rb") as file:
        return {
            name: tensor_digest(file, entry.begin, entry.end, f"{entry.dtype} {list(entry.shape)} ")
            for name, entry in shard.entries.items()
        }
