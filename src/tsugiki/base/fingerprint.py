"""Which base an adapter belongs to: a digest of the base's stored tensors.

An adapter loads without complaint into any model of the same shape and then writes nonsense. The digest is
taken from the files, before any casting, tensor by tensor, so that resharding does not change it. Of a GGUF file it
is taken from the tensors in that file, as they are packed there: a new name or chat template in it changes nothing,
another quantisation does.
"""

import functools
from pathlib import Path

from torch import nn

from tsugiki.base.gguf.conversion_cache import gguf_fingerprint
from tsugiki.base.loading import gguf_path, local_folder
from tsugiki.io.digests import combined_digest, digest_part
from tsugiki.io.shards import Shard, read_shard


def base_fingerprint(model: nn.Module) -> str | None:
    """The fingerprint of the files that `model` was loaded from; None where they cannot be found."""
    name = getattr(model, "name_or_path", "")
    return named_fingerprint(name) if name else None


def named_fingerprint(name: str) -> str | None:
    """The fingerprint of the model called `name`, as `load_model` takes it; None where its files are not here."""
    packed = gguf_path(name)
    if packed is not None:
        return gguf_fingerprint(packed)
    folder = local_folder(name)
    return folder_fingerprint(folder) if folder else None


def folder_fingerprint(folder: Path) -> str | None:
    """`sha256:` and 64 digits over name, dtype, shape and bytes of every tensor in the folder's safetensors.

    None where the folder has no safetensors.
    """
    files = sorted(folder.resolve().glob("model*.safetensors"))
    return _digest_files(tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in files))


@functools.lru_cache(maxsize=8)
def _digest_files(files: tuple[tuple[Path, int, int], ...]) -> str | None:
    """Digest of all tensors in the files; size and time are there so that a file that changed is read again."""
    digests = {name: digest for path, _, _ in files for name, digest in _digest_tensors(read_shard(path)).items()}
    return combined_digest(digests) if digests else None


def _digest_tensors(shard: Shard) -> dict[str, str]:
    with shard.path.open("rb") as file:
        return {
            name: digest_part(file, entry.begin, entry.end, f"{entry.dtype} {list(entry.shape)} ")
            for name, entry in shard.entries.items()
        }
