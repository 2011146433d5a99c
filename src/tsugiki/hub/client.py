"""Adapters on the Hugging Face Hub, or on a server that speaks its language (`HF_ENDPOINT`).

    push(publication.files, "me/soseki", may_replace_card=is_own_card)     # one commit, or nothing
    pull("me/soseki", library_folder() / "soseki")                         # a new folder, or nothing

What is sent is chosen elsewhere (`report.publication`). What is fetched are the files of an adapter by their names,
and no others: nothing pickled, no code. An adapter appears in its folder when its files were read, and are whole.
"""

import logging
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from tsugiki.adapters.verify import find_problems
from tsugiki.errors import TsugikiError, error_text, summarise_list
from tsugiki.io.atomic import new_folder
from tsugiki.io.file_names import ADAPTER_CONFIG_FILE, ADAPTER_FILE, METADATA_FILE

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CARD_FILE = "README.md"
HUB_FILES = (ADAPTER_CONFIG_FILE, ADAPTER_FILE, METADATA_FILE, "run.json", CARD_FILE)
"""All that is sent or fetched; of a repository, these files are ours."""
Outcome: TypeAlias = Literal["sent", "updated", "unchanged"]
_TIMEOUT = 10  # seconds that the hub may take for its first answer


@dataclass(frozen=True)
class Pushed:
    """What became of a push."""

    url: str
    """Of the repository."""
    commit: str
    outcome: Outcome
    """Whether an adapter was there before, which the repository's history keeps, and whether anything differed."""
    kept_card: bool
    """Whether the card that was there stayed, because a person wrote or edited it."""


def push(
    files: Mapping[str, bytes | Path],
    repo_id: str,
    *,
    may_replace_card: Callable[[str], bool],
    private: bool = False,
    message: str = "Adapter",
) -> Pushed:
    """Send files to a repository of adapters in one commit; it is created where there is none.

    Of the files of an adapter that are there already, those that are not in `files` are removed: they told of another
    adapter. The rest of the repository stays as it is.

    Args:
        files: names, which are among `HUB_FILES`, and contents.
        repo_id: USER/NAME.
        may_replace_card: whether a card that is there already, given as its text, may be replaced.
        private: whether a new repository is for its owners alone.
        message: of the commit.

    Raises:
        TsugikiError: no such name, nobody is logged in, the repository holds a model or is public against `private`,
            or the hub refuses or cannot be reached. There is no commit then.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, get_token

    check_repo_id(repo_id)
    if not message.strip():
        raise TsugikiError("the message of the commit is empty; say what is sent, or leave --message out")
    if get_token() is None:
        raise TsugikiError(
            "nobody is logged in to the hub: run `hf auth login`, or set HF_TOKEN to a token that may write"
        )
    api = _api()
    with _explained(repo_id):
        url = api.create_repo(repo_id, private=private or None, exist_ok=True)
        there = api.model_info(repo_id, timeout=_TIMEOUT)
    names = {file.rfilename for file in there.siblings or ()}
    if "config.json" in names and ADAPTER_CONFIG_FILE not in names:
        raise TsugikiError(f"{repo_id} holds a model, and an adapter does not belong beside it; choose another name")
    if private and not there.private:
        raise TsugikiError(
            f"{repo_id} is there already, and everyone can see it; make it private on the hub, or leave --private out"
        )
    with _explained(repo_id):
        kept_card = CARD_FILE in names and not may_replace_card(_read_text(api, repo_id, CARD_FILE, there.sha))
        sent = [
            CommitOperationAdd(name, content) for name, content in files.items() if name != CARD_FILE or not kept_card
        ]
        stale = [CommitOperationDelete(name) for name in HUB_FILES if name in names and name not in files]
        commit = api.create_commit(repo_id, [*sent, *stale], commit_message=message, parent_commit=there.sha)
    changed: Outcome = "updated" if ADAPTER_FILE in names else "sent"
    return Pushed(str(url), commit.oid, "unchanged" if commit.oid == there.sha else changed, kept_card)


def pull(repo_id: str, out: Path, revision: str | None = None) -> str:
    """Fetch the adapter of a repository into the new folder `out`, whole or not at all.

    Args:
        repo_id: USER/NAME.
        out: must not be there, or be empty.
        revision: a branch, a tag or a commit; the newest where nothing is said.

    Returns:
        The commit that was fetched.

    Raises:
        TsugikiError: no such repository or revision, no adapter in it or a broken one, `out` is there, or the hub
            cannot be reached.
    """
    check_repo_id(repo_id)
    api = _api()
    with new_folder(out) as part:
        with _explained(repo_id, revision):
            there = api.model_info(repo_id, revision=revision, timeout=_TIMEOUT)
            names = {file.rfilename for file in there.siblings or ()}
            _refuse_no_adapter(repo_id, names)
            for name in HUB_FILES:
                if name in names:
                    api.hf_hub_download(repo_id, name, revision=there.sha, local_dir=part)
        shutil.rmtree(part / ".cache", ignore_errors=True)  # huggingface_hub's notes on what it fetched
        problems = find_problems(part)
        if problems:
            raise TsugikiError(f"{repo_id} is no whole adapter: {summarise_list(problems)}")
    return str(there.sha)


def refuse_unknown_base(base: str) -> None:
    """Ask that the hub has a model of this name.

    Raises:
        TsugikiError: it has not, or it cannot be asked.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    with _explained(base):
        try:
            _api().model_info(base, timeout=_TIMEOUT)
        except RepositoryNotFoundError as error:
            raise TsugikiError(
                f"the base, {base}, is not on the hub; name it as the hub does by --base, or say --base none"
            ) from error


def is_repo_id(text: str) -> bool:
    """Whether this can be the name of a repository, with its owner or, as old ones have it, without."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True


def check_repo_id(repo_id: str) -> None:
    """Ask that this can be the name of a repository of somebody's.

    Raises:
        TsugikiError: it cannot.
    """
    if not is_repo_id(repo_id) or "/" not in repo_id:
        raise TsugikiError(
            f"{repo_id!r} is no repository: write USER/NAME, such as me/soseki, of letters, digits, -, _ and ."
        )


def _refuse_no_adapter(repo_id: str, names: set[str]) -> None:
    if ADAPTER_CONFIG_FILE not in names:
        kind = "it is a model; name it as --model" if "config.json" in names else f"it has no {ADAPTER_CONFIG_FILE}"
        raise TsugikiError(f"{repo_id} is no adapter: {kind}")
    if ADAPTER_FILE not in names:
        pickled = next((name for name in sorted(names) if name.startswith("adapter_model.")), None)
        hint = f"; {pickled} is pickled and is never fetched: ask its author for safetensors" if pickled else ""
        raise TsugikiError(f"{repo_id} has no {ADAPTER_FILE}{hint}")


def _read_text(api: "HfApi", repo_id: str, name: str, revision: str | None) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = api.hf_hub_download(repo_id, name, revision=revision, local_dir=folder)
        return Path(path).read_text(encoding="utf-8", errors="replace")


def _api() -> "HfApi":
    """The hub, quiet but for its bars in a terminal."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        disable_progress_bars()
    return HfApi(library_name="tsugiki", library_version=version("tsugiki"))


@contextmanager
def _explained(repo_id: str, revision: str | None = None) -> Iterator[None]:
    """Make one sentence of what the hub, or the way to it, says."""
    import httpx2

    try:
        yield
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError, KeyError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of this machine's disk
        raise TsugikiError(_sentence(error, repo_id, revision)) from error


def _sentence(error: Exception, repo_id: str, revision: str | None) -> str:
    import httpx2
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        return _sentence(error.__cause__, repo_id, revision)
    said = error_text(getattr(error, "server_message", None) or error)
    if isinstance(error, GatedRepoError):
        return f"{repo_id} asks for consent: accept its terms on the hub and log in (hf auth login)"
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id} has no revision {revision!r}"
    if isinstance(error, RepositoryNotFoundError):
        return f"no {repo_id} on the hub, or it is not for you to see: check the name, or log in (hf auth login)"
    if isinstance(error, HfHubHTTPError):
        return _STATUS.get(error.response.status_code, _OTHER_STATUS).format(
            repo=repo_id, said=said, status=error.response.status_code
        )
    if isinstance(error, OfflineModeIsEnabled):
        return "the hub is not to be asked: HF_HUB_OFFLINE is set"
    if isinstance(error, httpx2.HTTPError | httpx2.InvalidURL):
        return f"the hub at {constants.ENDPOINT} cannot be reached ({said or type(error).__name__}); is the network up?"
    if isinstance(error, UnicodeEncodeError):
        return "your token has characters that no token has: correct HF_TOKEN, or log in anew (hf auth login)"
    if "Consistency check failed" in said:
        return f"{repo_id} was cut short on its way; pull it again"
    if "Invalid metadata" in said:
        return f"the hub does not take the card: {said.removeprefix('Invalid metadata in README.md. ')}"
    return f"the server at {constants.ENDPOINT} did not answer as the hub does: {said or type(error).__name__}"


_STATUS = {
    401: "the hub does not accept your token for {repo}: log in anew (hf auth login), or correct HF_TOKEN",
    403: "your token may not do this to {repo}: it needs write access there ({said})",
    404: "the hub has nothing of the name {repo} ({said})",
    409: "{repo} is being changed by someone else; try again in a moment",
    412: "{repo} was changed by someone else meanwhile; push again",
    429: "the hub was asked too often; try again in a few minutes",
}
_OTHER_STATUS = "the hub answered {status} about {repo}: {said}; try again later"
