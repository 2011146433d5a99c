"""The bases on this machine that the page can train on; a request names one of this list."""

from collections.abc import Iterator
from pathlib import Path

from tsugiki.base.resolve import EMBEDDED
from tsugiki.io.file_names import MODEL_CONFIG_FILE, MODEL_FILES
from tsugiki.serve.folders import entries

_MOST_FOLDERS = 200  # that are searched
_MOST = 100  # bases that are listed


def bases_here(model: str, directory: Path) -> list[str]:
    """Return the server's own base, the embedded one, those in a folder and the folders in it, and those of the hub.

    Folders and GGUF files have their paths relative to `directory`; of the hub, what was downloaded is listed.
    """
    found = dict.fromkeys([model, EMBEDDED, *_in_folder(directory), *_from_hub()])
    return list(found)[:_MOST]


def _in_folder(directory: Path) -> Iterator[str]:
    folders = [Path(entry.path) for entry in entries(directory) if entry.is_dir(follow_symlinks=False)]
    for folder in [directory, *folders[:_MOST_FOLDERS]]:
        for entry in entries(folder):
            path = Path(entry.path)
            is_gguf = path.suffix.lower() == ".gguf" and entry.is_file(follow_symlinks=False)
            if is_gguf or (entry.is_dir(follow_symlinks=False) and _is_model(path)):
                yield path.relative_to(directory).as_posix()


def _is_model(folder: Path) -> bool:
    return (folder / MODEL_CONFIG_FILE).is_file() and any(folder.glob(MODEL_FILES))


def _from_hub() -> Iterator[str]:
    """Yield the ids of the models in the cache of the Hugging Face Hub."""
    from huggingface_hub.constants import HF_HUB_CACHE

    for folder in sorted(Path(HF_HUB_CACHE).glob("models--*--*")):
        if any(_is_model(snapshot) for snapshot in folder.glob("snapshots/*")):
            yield folder.name.removeprefix("models--").replace("--", "/", 1)
