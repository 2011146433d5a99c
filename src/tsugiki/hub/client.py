"""Upload and download adapters to and from the Hugging Face Hub, or a server with the same API (`HF_ENDPOINT`).

`hub.publication` prepares the files that are sent. Only the files of an adapter are downloaded, by their names: no
pickled files and no code. The new folder appears after its files have been checked.
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

from tsugiki.adapters.files import read_config_fields
from tsugiki.adapters.verify import read_adapter_files
from tsugiki.errors import TsugikiError, error_text, summarise_list
from tsugiki.io.atomic import new_folder
from tsugiki.io.file_names import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    CHAT_TEMPLATE_FILE,
    METADATA_FILE,
    RECORD_FILE,
    TOKENIZER_FILES,
)
from tsugiki.language import _, marked

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CARD_FILE = "README.md"
HUB_FILES = (ADAPTER_CONFIG_FILE, ADAPTER_FILE, METADATA_FILE, RECORD_FILE, CARD_FILE)
"""The files of an adapter on the hub. An adapter can also have files of a tokenizer (`TOKENIZER_FILES`)."""
Outcome: TypeAlias = Literal["sent", "updated", "unchanged"]
_TIMEOUT = 10  # seconds until the first response of the hub


@dataclass(frozen=True)
class Pushed:
    """The result of a push."""

    url: str
    commit: str
    """The hash of the new commit, or of the existing commit if nothing changed."""
    outcome: Outcome
    """Sent if the repository had no adapter before, updated if it had an adapter, unchanged if all files were equal."""
    kept_card: bool
    """Whether the repository's model card was kept because it was written or edited by hand."""


def push(
    files: Mapping[str, bytes | Path],
    repo_id: str,
    *,
    may_replace_card: Callable[[str], bool],
    private: bool = False,
    message: str = "Adapter",
) -> Pushed:
    """Upload the files of an adapter in one commit. The repository is created if it does not exist.

    Files of `HUB_FILES` that are in the repository but not in `files` are deleted, because they belong to the previous
    adapter, and so are those of `TOKENIZER_FILES` if there was one. Other files in the repository are not changed.

    `files` maps names of `HUB_FILES` or `TOKENIZER_FILES` to the content, or to the local file with the content.
    `may_replace_card` gets the text of the repository's model card and returns whether it may be replaced. With
    `private`, the repository is created as a private one, and one that is public is an error. After an error, nothing
    is committed.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, get_token

    check_repo_id(repo_id)
    if not message.strip():
        raise TsugikiError("the commit message is empty; pass another --message, or omit it")
    if get_token() is None:
        raise TsugikiError(
            "not logged in to the hub: run `hf auth login`, or set HF_TOKEN to a token with write access"
        )
    api = _api()
    with _hub_errors(repo_id):
        url = api.create_repo(repo_id, private=private or None, exist_ok=True)
        repository = api.model_info(repo_id, timeout=_TIMEOUT)
    names = {file.rfilename for file in repository.siblings or ()}
    if "config.json" in names and ADAPTER_CONFIG_FILE not in names:
        raise TsugikiError("{repo} contains a model; choose another repository for the adapter", repo=repo_id)
    if private and not repository.private:
        raise TsugikiError(
            "{repo} exists already and is public; make it private on the hub, or omit --private", repo=repo_id
        )
    with _hub_errors(repo_id):
        kept_card = CARD_FILE in names and not may_replace_card(_read_text(api, repo_id, CARD_FILE, repository.sha))
        sent = [
            CommitOperationAdd(name, content) for name, content in files.items() if name != CARD_FILE or not kept_card
        ]
        own = {*HUB_FILES, *(TOKENIZER_FILES if ADAPTER_FILE in names else ())}
        stale = [CommitOperationDelete(name) for name in sorted(own & names - files.keys())]
        commit = api.create_commit(repo_id, [*sent, *stale], commit_message=message, parent_commit=repository.sha)
    changed: Outcome = "updated" if ADAPTER_FILE in names else "sent"
    return Pushed(str(url), commit.oid, "unchanged" if commit.oid == repository.sha else changed, kept_card)


def pull(repo_id: str, out: Path, revision: str | None = None) -> str:
    """Download the adapter of a repository into a new folder, which appears complete or not at all.

    The folder `out` must not exist, or be empty. `revision` is a branch, a tag or a commit, by default the newest
    commit; the result is the hash of the commit.
    """
    check_repo_id(repo_id)
    api = _api()
    with new_folder(out) as temporary:
        with _hub_errors(repo_id, revision):
            repository = api.model_info(repo_id, revision=revision, timeout=_TIMEOUT)
            names = {file.rfilename for file in repository.siblings or ()}
            _refuse_no_adapter(repo_id, names)
            for name in (*HUB_FILES, CHAT_TEMPLATE_FILE):
                if name in names:
                    api.hf_hub_download(repo_id, name, revision=repository.sha, local_dir=temporary)
        shutil.rmtree(temporary / ".cache", ignore_errors=True)  # huggingface_hub's metadata of the download
        problems = read_adapter_files(temporary).problems
        if problems:
            raise TsugikiError(
                "the adapter in {repo} is not complete: {problems}", repo=repo_id, problems=summarise_list(problems)
            )
        if read_config_fields(temporary).get("trainable_token_indices"):  # the adapter may have its own tokenizer
            with _hub_errors(repo_id, revision):
                for name in names & set(TOKENIZER_FILES) - {CHAT_TEMPLATE_FILE}:
                    api.hf_hub_download(repo_id, name, revision=repository.sha, local_dir=temporary)
            shutil.rmtree(temporary / ".cache", ignore_errors=True)
    return str(repository.sha)


def refuse_unknown_base(base: str) -> None:
    """Check that the hub has a model of this name."""
    from huggingface_hub.errors import RepositoryNotFoundError

    with _hub_errors(base):
        try:
            _api().model_info(base, timeout=_TIMEOUT)
        except RepositoryNotFoundError as error:
            raise TsugikiError(
                "the base {base} is not on the hub; pass its name there as --base, or --base none", base=base
            ) from error


def is_repo_id(text: str) -> bool:
    """Return whether `text` is a valid repository name: USER/NAME, or NAME alone as in some old repositories."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True


def check_repo_id(repo_id: str) -> None:
    """Check that `repo_id` is a valid repository name of the form USER/NAME."""
    if not is_repo_id(repo_id) or "/" not in repo_id:
        raise TsugikiError(
            "{repo!r} is not a repository; pass USER/NAME, such as me/soseki, of letters, digits, -, _ and .",
            repo=repo_id,
        )


def _refuse_no_adapter(repo_id: str, names: set[str]) -> None:
    if ADAPTER_CONFIG_FILE not in names:
        kind = (
            _("it contains a model; pass it as --model")
            if "config.json" in names
            else _("it has no {file}", file=ADAPTER_CONFIG_FILE)
        )
        raise TsugikiError("no adapter in {repo}: {reason}", repo=repo_id, reason=kind)
    if ADAPTER_FILE not in names:
        pickled = next((name for name in sorted(names) if name.startswith("adapter_model.")), None)
        hint = _("; {name} is not downloaded, because only safetensors are supported", name=pickled) if pickled else ""
        raise TsugikiError("{repo} has no {file}{hint}", repo=repo_id, file=ADAPTER_FILE, hint=hint)


def _read_text(api: "HfApi", repo_id: str, name: str, revision: str | None) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = api.hf_hub_download(repo_id, name, revision=revision, local_dir=folder)
        return Path(path).read_text(encoding="utf-8", errors="replace")


def _api() -> "HfApi":
    """Return a client of the hub that shows errors only, and progress bars only in a terminal."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        disable_progress_bars()
    return HfApi(library_name="tsugiki", library_version=version("tsugiki"))


@contextmanager
def _hub_errors(repo_id: str, revision: str | None = None) -> Iterator[None]:
    """Turn errors of the hub and of the network into a `TsugikiError` of one sentence."""
    import httpx2

    try:
        yield
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError, KeyError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # an error of the local disk
        raise TsugikiError(_message(error, repo_id, revision)) from error


def _message(error: Exception, repo_id: str, revision: str | None) -> str:
    from huggingface_hub import constants

    kinds = [kind.__name__ for kind in type(error).__mro__]
    if "LocalEntryNotFoundError" in kinds and isinstance(error.__cause__, Exception):
        return _message(error.__cause__, repo_id, revision)
    text = error_text(getattr(error, "server_message", None) or error)
    status: int = getattr(getattr(error, "response", None), "status_code", 0)
    message = next((_OF_CLASS[kind] for kind in kinds if kind in _OF_CLASS), None)
    if message is None:
        message = next((known for part, known in _OF_TEXT.items() if part in text), _OTHER)
    return _(
        _OF_STATUS.get(status, message) if message is _OTHER_STATUS else message,
        repo=repo_id,
        revision=revision,
        status=status,
        text=text,
        reason=text.removeprefix("Invalid metadata in README.md. ") or type(error).__name__,
        endpoint=constants.ENDPOINT,
    )


_OF_STATUS = {
    401: marked("the hub does not accept the token for {repo}: log in again (hf auth login), or correct HF_TOKEN"),
    403: marked("the token has no permission to change {repo}: it needs write access ({text})"),
    404: marked("the hub does not have {repo} ({text})"),
    409: marked("another change to {repo} is in progress; try again in a moment"),
    412: marked("{repo} was changed during the push; push again"),
    429: marked("too many requests to the hub; try again in a few minutes"),
}
_OTHER_STATUS = marked("the hub answered {status} about {repo}: {text}; try again later")
_UNREACHABLE = marked("the hub at {endpoint} is unreachable ({reason}); check the network")
_OF_CLASS = {
    "GatedRepoError": marked("access to {repo} is restricted: accept its terms on the hub and log in (hf auth login)"),
    "RevisionNotFoundError": marked("{repo} has no revision {revision!r}"),
    "RepositoryNotFoundError": marked(
        "{repo} does not exist on the hub, or is private: check the name, or log in (hf auth login)"
    ),
    "HfHubHTTPError": _OTHER_STATUS,
    "OfflineModeIsEnabled": marked("the hub cannot be used because HF_HUB_OFFLINE is set"),
    "HTTPError": _UNREACHABLE,
    "InvalidURL": _UNREACHABLE,
    "UnicodeEncodeError": marked(
        "the token contains invalid characters: correct HF_TOKEN, or log in again (hf auth login)"
    ),
}
"""Class of an error of huggingface_hub or httpx2, or a class that it derives from -> the message."""
_OF_TEXT = {
    "Consistency check failed": marked("the download of {repo} was incomplete; pull it again"),
    "Invalid metadata": marked("the hub rejects the model card: {reason}"),
}
_OTHER = marked("the server at {endpoint} did not answer like the Hugging Face Hub: {reason}")
