"""Which base an adapter belongs to: a digest of the base's stored tensors.

An adapter loads without complaint into any model of the same shape and then writes nonsense. The digest is
taken from the files, before any casting, tensor by tensor, so that resharding does not change it.
"""

import functools
import hashlib
from pathlib import Path

from torch import nn

from tsugiki.adapters.shard import Shard, chunks, read_shard
from tsugiki.models import local_folder


def base_fingerprint(model: nn.Module) -> str | None:
    """The fingerprint of the files that `model` was loaded from; None where they cannot be found."""
    name = getattr(model, "name_or_path", "")
    folder = local_folder(name) if name else None
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
    digests = {key: digest for path, _, _ in files for key, digest in _digest_tensors(read_shard(path)).items()}
    if not digests:
        return None
    total = hashlib.sha256()
    for name in sorted(digests):
        total.update(f"{name}\0{digests[name]}\n".encode())
    return f"sha256:{total.hexdigest()}"


def _digest_tensors(shard: Shard) -> dict[str, str]:
    digests = {}
    with shard.path.open("rb") as file:
        for name, entry in shard.entries.items():
            digest = hashlib.sha256(f"{entry.dtype} {list(entry.shape)} ".encode())
            file.seek(entry.begin)
            for piece in chunks(file, entry.end - entry.begin):
                digest.update(piece)
            digests[name] = digest.hexdigest()
    return digests
