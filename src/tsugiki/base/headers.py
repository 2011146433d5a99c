"""Read the headers of a model's weight files, which list their tensors; files on the hub by range requests."""

from collections.abc import Mapping
from pathlib import Path

from tsugiki.base.model_folder import read_shards
from tsugiki.base.resolve import gguf_path, local_folder, split_revision
from tsugiki.errors import TsugikiError, error_text
from tsugiki.io.file_names import MODEL_FILE, MODEL_INDEX_FILE
from tsugiki.io.quiet import hidden_progress_bars
from tsugiki.io.shards import Entry
from tsugiki.language import _


def folder_entries(folder: Path) -> dict[str, Entry]:
    """Return the entries of all tensors in a model's folder.

    Raises:
        TsugikiError: a file is missing or broken (see `read_shards`).
    """
    return {key: entry for shard in read_shards(folder) for key, entry in shard.entries.items()}


def weight_entries(name: str) -> tuple[Mapping[str, Entry] | None, bool]:
    """Return the entries of a model's tensors, and whether its weights are on this machine.

    Of a model on the hub only the index and the headers are downloaded, at most about 100 kB of each file.

    Args:
        name: a folder or a hub id; not a GGUF file.

    Returns:
        None instead of the entries if the hub cannot be reached.

    Raises:
        TsugikiError: a file is missing or broken, or the repository has no safetensors weights.
    """
    assert gguf_path(name) is None
    folder = local_folder(name)
    if folder is not None and (Path(name).expanduser() == folder or _has_weights(folder)):
        return folder_entries(folder), True
    return _hub_entries(name), False


def _has_weights(folder: Path) -> bool:
    """Return whether the weights of a model on the hub have been downloaded."""
    if (folder / MODEL_INDEX_FILE).is_file():
        try:
            return bool(folder_entries(folder))
        except TsugikiError:  # some files may not have been downloaded
            return False
    return (folder / MODEL_FILE).is_file()


def _hub_entries(name: str) -> dict[str, Entry] | None:
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, NotASafetensorsRepoError, SafetensorsParsingError

    repo_id, revision = split_revision(name)
    try:
        with hidden_progress_bars():
            found = HfApi().get_safetensors_metadata(repo_id, revision=revision)
    except NotASafetensorsRepoError as error:
        raise TsugikiError(
            _("{folder} has no safetensors weights: neither {file} nor {index} exists").format(
                folder=name, file=MODEL_FILE, index=MODEL_INDEX_FILE
            )
        ) from error
    except (SafetensorsParsingError, HfHubHTTPError, ValueError, AttributeError, TypeError) as error:
        raise TsugikiError(
            _("the weights of {name} cannot be read: {error}").format(name=name, error=error_text(error))
        ) from error
    except (httpx2.HTTPError, OSError):
        return None
    return {
        key: Entry(tensor.dtype, tuple(tensor.shape), *tensor.data_offsets)
        for file in found.files_metadata.values()
        for key, tensor in file.tensors.items()
    }
