"""The view Train: choose texts, preview and plan a run, and start it.

A request gives texts, a base, a name, and settings of a fixed list. Texts are below the server's folder of texts, or
were sent by the page (`uploads`), where the works of Aozora Bunko are as well. The base is one of a list (`bases`). The
run is `tsugiki train runs/NAME/settings.yaml`, a process of its own.
"""

import asyncio
import itertools
import os
import re
import shlex
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, StringConstraints, create_model
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tsugiki.adapters.library import check_name
from tsugiki.data.read.aozora import Kana
from tsugiki.errors import TsugikiError, error_text
from tsugiki.io.atomic import write_text
from tsugiki.io.file_names import DATA_SUFFIXES
from tsugiki.io.formatting import format_size
from tsugiki.io.json import write_json
from tsugiki.io.locks import OWNER_FILE
from tsugiki.language import _
from tsugiki.lora.config import LoraConfig
from tsugiki.methods.method import Method
from tsugiki.methods.table import METHODS
from tsugiki.preference.losses import LOSSES
from tsugiki.preference.rewards import parse_rule
from tsugiki.serve.bases import bases_here
from tsugiki.serve.errors import ApiError, invalid
from tsugiki.serve.folders import entries, inside, is_allowed, with_home
from tsugiki.serve.jobs import Jobs
from tsugiki.serve.protocol import Fields, NameRequest, read
from tsugiki.serve.routes import get_route, post_route
from tsugiki.serve.runs_view import (
    JOB_FILE,
    LOG_FILE,
    RUNS_FOLDER,
    SETTINGS_FILE,
    RunFolder,
    Runs,
    settings_given,
)
from tsugiki.serve.security import PAGE_API
from tsugiki.serve.uploads import LARGEST, Uploads
from tsugiki.serve.votes import ALL_TRAIN, holds_few_votes
from tsugiki.training.run.resume import without_defaults
from tsugiki.training.settings.config import RunConfig
from tsugiki.training.settings.files import validated
from tsugiki.training.settings.setting import DATA_KINDS, Setting, settings_of

_LEFT_BY_A_FAILED_START = frozenset({SETTINGS_FILE, JOB_FILE, LOG_FILE, ".lock", OWNER_FILE})
_MOST_ENTRIES = 1000  # entries of a folder that are listed
_MOST_FILES = 20_000  # files in a folder that is trained on
_JOB_SECONDS, _SEARCH_SECONDS, _FETCH_SECONDS = 180, 60, 900


_Text: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=10_000)]


class DataRequest(Fields):
    """What a run learns from."""

    texts: Annotated[list[str], Field(max_length=64, default_factory=list)]
    """Files and folders below the folder of texts."""
    uploads: Annotated[list[str], Field(max_length=64, default_factory=list)]
    """Texts that the page has sent."""
    columns: Annotated[dict[_Text, _Text], Field(default_factory=dict)]
    """Names of columns that differ from the fields that are learned."""
    again: Annotated[str | None, StringConstraints(max_length=1000)] = None
    """An earlier run that is started again. What the request leaves out is as the run's own files have it, also what no
    request can set, such as a rule that scores answers."""


class RunFields(DataRequest):
    """What a run learns from, its base and its name."""

    name: str
    base: Annotated[str | None, StringConstraints(min_length=1, max_length=1000)] = None
    """One of the bases that are listed; None: the server's."""


_SETTINGS = settings_of(RunConfig, exclude=("model", "data", "columns", "out"))
OFFERED = {setting.path[-1]: setting for setting in _SETTINGS if setting.about.page}
"""Name in a request -> setting that the page offers. Requests with others are refused."""


def _methods() -> dict[str, Method]:
    """Return the methods that train an adapter, those of LoRA first."""
    by_kind = sorted(METHODS.items(), key=lambda one: one[1].config is not LoraConfig)
    return {name: method for name, method in by_kind if method.trains_adapter}


def _choices(setting: Setting) -> list[tuple[str, str]]:
    """Return the values to choose from, and their texts; none for numbers and texts."""
    if setting.path == ("method",):
        return [(name, f"{name} · {_(method.summary)}") for name, method in _methods().items()]
    named = {name: name for name in get_args(setting.types[0])} if get_origin(setting.types[0]) is Literal else {}
    return [*(named | {name: _(text) for name, text in setting.about.choices.items()}).items()]


def _kind(setting: Setting) -> str:
    """Return how the page asks for a setting."""
    if setting.types == (bool,):
        return "flag"
    if setting.types == (dict[str, float],):
        return "numbers"
    if setting.types == (tuple[str, ...],):
        return "texts"
    return "number" if _number(setting) else "choice" if _choices(setting) else "text"


def _number(setting: Setting) -> type | None:
    """Return the type of number that a setting can be; None if it is none."""
    return next((kind for kind in setting.types if kind in (int, float)), None)


def _allowed(setting: Setting) -> Any:
    """Return the type of a setting in a request: a number, some texts, or one of some names; a text may be a path."""
    match _kind(setting):
        case "number":
            return Annotated[_number(setting), Field(le=setting.about.most)]
        case "texts":
            return Annotated[list[Annotated[str, StringConstraints(min_length=1, max_length=300)]], Field(max_length=4)]
        case "choice":
            return Literal[tuple(name for name, _text in _choices(setting))]
        case "text":
            return _Text
    return setting.types[0]


_fields: dict[str, Any] = {name: (_allowed(setting) | None, None) for name, setting in OFFERED.items()}
RunRequest = create_model("RunRequest", __base__=RunFields, **_fields)
"""The fields of the form for a run. A setting that is left out has its default."""


class WorksRequest(Fields):
    """A search among the works of Aozora Bunko."""

    author: Annotated[str | None, StringConstraints(min_length=1, max_length=100)] = None
    title: Annotated[str | None, StringConstraints(min_length=1, max_length=100)] = None
    kana: Kana | None = None

    def query(self) -> dict[str, Any]:
        """Return the fields of a `Query`."""
        if self.author is None and self.title is None:
            raise invalid(_("give an author or a part of a title"))
        return {"author": self.author, "title": self.title, "kana": self.kana}


class FetchRequest(WorksRequest):
    """The works that are written beside the uploaded texts, and the name of their file there, without its suffix."""

    name: str


@dataclass(frozen=True)
class Workspace:
    """Where the page finds runs and texts, and starts runs."""

    model: str
    """The server's base, as `--model` names it."""
    directory: Path
    """The working directory; new runs are in its folder `runs`."""
    texts: Path
    """The folder whose texts can be trained on."""
    aozora: str
    """The source of works of Aozora Bunko: the URL of a site, or a mirror folder."""


@dataclass(frozen=True)
class Prepared:
    """A run that can be started."""

    name: str
    given: dict[str, Any]
    """The settings of the request and those of an earlier run; all others have their defaults."""

    @property
    def settings_file(self) -> str:
        """The path of the settings, relative to the working directory."""
        return f"{RUNS_FOLDER}/{self.name}/{SETTINGS_FILE}"

    @property
    def text(self) -> str:
        """The settings in YAML."""
        return yaml.safe_dump(self.given, allow_unicode=True, sort_keys=False, width=100_000)

    def shown(self) -> dict[str, str]:
        """Return the settings and the command, which the form shows."""
        return {
            "yaml": self.text,
            "file": self.settings_file,
            "command": shlex.join(["tsugiki", "train", self.settings_file]),
        }


class Training:
    """Prepares and starts runs."""

    def __init__(self, workspace: Workspace, runs: Runs, uploads: Uploads) -> None:
        self.model, self.texts, self.aozora = workspace.model, workspace.texts.resolve(), workspace.aozora
        self.runs, self.uploads = runs, uploads

    def options(self) -> dict[str, Any]:
        """Return what the form offers: texts, bases and settings, with their labels and defaults."""
        return {
            "bases": self.bases(),
            "texts": with_home(self.texts),
            "aozora": self.aozora,
            "sent": {"suffixes": " ".join(DATA_SUFFIXES), "largest": LARGEST, "size": f"{LARGEST // 10**6} MB"},
            "lora_methods": [name for name, method in _methods().items() if method.config is LoraConfig],
            "losses": {name: {**loss.defaults, "likelihood": loss.likelihood} for name, loss in LOSSES.items()},
            "settings": [self._shown(name, setting) for name, setting in OFFERED.items()],
        }

    def _shown(self, name: str, setting: Setting) -> dict[str, Any]:
        """Return what the form needs of a setting."""
        about = setting.about
        return {
            "name": name,
            "label": _(about.page),
            "help": _(setting.description),
            "kind": _kind(setting),
            "choices": _choices(setting),
            "default": setting.default if about.page_default is None else about.page_default,
            "sends": about.page_default is not None,
            "section": setting.path[0] if len(setting.path) > 1 else None,
            "data": None if about.data == DATA_KINDS else about.data,
            "simple": about.simple,
        }

    def bases(self) -> list[str]:
        """Return the bases that a run can have, the server's first."""
        return bases_here(self.model, self.runs.root)

    def listing(self, folder: str) -> dict[str, Any]:
        """Return the folders and texts in a subfolder of the folder of texts; "": in the folder of texts itself."""
        path = inside(self.texts, folder) if folder else self.texts
        if not path.is_dir():
            raise ApiError(404, _("{name!r} is no folder", name=folder[:100]), code="not_found")
        listed = []
        for entry in sorted(entries(path), key=lambda entry: entry.is_file(follow_symlinks=False)):
            is_folder = entry.is_dir(follow_symlinks=False)
            if is_folder or Path(entry.name).suffix.lower() in DATA_SUFFIXES:
                size = "" if is_folder else format_size(entry.stat(follow_symlinks=False).st_size)
                listed.append({"name": entry.name, "folder": is_folder, "size": size})
        shown = {"entries": listed[:_MOST_ENTRIES], "more": len(listed) > _MOST_ENTRIES}
        return {"folder": folder, "suffixes": " ".join(DATA_SUFFIXES), **shown}

    def prepare(self, parsed: RunFields, more: Mapping[str, Any] = {}) -> Prepared:
        """Return the run that a request describes; `more` are settings that no request of the page can have."""
        name = check_name(parsed.name)
        if not is_allowed(name):
            raise ApiError(400, _("a run cannot be called {name!r}", name=name[:100]), param="name")
        earlier = self._earlier(parsed.again)
        base = parsed.base or self.model
        if base not in (*self.bases(), earlier.get("model")):  # a name is looked up in a list and is no path
            message = _("{name!r} is no base that the page lists", name=base[:100])
            raise invalid(message, "base")
        given: dict[str, Any] = {
            "model": base,
            **self.data(parsed),
            "out": f"{RUNS_FOLDER}/{name}",
        }
        if not parsed.texts and all(holds_few_votes(self.uploads.path(name)) for name in parsed.uploads):
            given |= ALL_TRAIN
        asked = parsed.model_dump(include=parsed.model_fields_set & OFFERED.keys())
        values = _by_name(earlier) | asked | {name: value for name, value in more.items() if value is not None}
        for setting in _SETTINGS:
            if (value := values[setting.path[-1]]) is not None:
                setting.put(given, value)
        validated(RunConfig, given, None)
        return Prepared(name, given)

    def data(self, parsed: DataRequest) -> dict[str, Any]:
        """Return the settings that say what is learned from."""
        known = self._earlier(parsed.again)["data"]
        data = [text if text in known else self._data(text) for text in parsed.texts]
        data += [with_home(self.uploads.path(text)) for text in parsed.uploads]
        if not data:
            raise invalid(_("choose a text"), "texts")
        columns = {"columns": dict(parsed.columns)} if parsed.columns else {}
        return {"data": data[0] if len(data) == 1 else data, **columns}

    def again(self, name: str) -> dict[str, Any]:
        """Return what the form for a run had, so that it can be started again, and what else the run was given.

        Data that are not below the folder of texts have the names that the run has for them.
        """
        earlier = self._earlier(name)
        paths = {self.runs.root / Path(one).expanduser(): one for one in earlier["data"]}
        sent = [path for path in paths if path.parent == self.uploads.folder]
        values = _by_name(earlier)
        return {
            "again": name,
            "name": self._free_name(Path(name).name),
            "base": earlier.get("model", self.model),
            "columns": earlier.get("columns", {}),
            "length": next((one for one in ("minutes", "max_steps") if values[one]), "epochs"),
            "values": {one: _filled_in(values[one]) for one in OFFERED},
            "kept": {one: value for one, value in values.items() if value is not None and one not in OFFERED},
            "uploads": [path.name for path in sent],
            "texts": [
                path.relative_to(self.texts).as_posix() if self.texts in path.parents and path.exists() else one
                for path, one in paths.items()
                if path not in sent
            ],
        }

    def _earlier(self, name: str | None) -> dict[str, Any]:
        """Return the settings of a run that differ from the defaults, as its own files have them; none without one.

        The data are a list.
        """
        given = settings_given(self.runs.find(name).folder) if name else {}
        if given.get("trust_remote_code") or any(parse_rule(rule).is_program for rule in given.get("reward", [])):
            message = _(
                "the run in {name} runs code, of its model or as a rule, which the page does not start; start it again "
                "in a terminal: tsugiki train with the settings under config in {name}/run.json",
                name=name,
            )
            raise ApiError(409, message, code="runs_code")
        data = given.get("data", [])
        return without_defaults(given) | {"data": [data] if isinstance(data, str) else data}

    def _free_name(self, name: str) -> str:
        """Return a name for a new run: a given one, with the first number that makes it free."""
        stem = re.sub(r"-\d+$", "", name)
        names = itertools.chain([name], (f"{stem}-{number}" for number in itertools.count(2)))
        return next(one for one in names if not (self.runs.root / RUNS_FOLDER / one).exists())

    def start(self, prepared: Prepared, noted: Mapping[str, Any] = {}) -> RunFolder:
        """Start a run in a process of its own, or put it into the queue; `noted` is kept with its job."""
        if (self.runs.root / RUNS_FOLDER).is_symlink():
            raise ApiError(409, _("{name} is a link; runs are not written there", name=RUNS_FOLDER))
        with self.runs.beginning():
            folder = self._new_folder(prepared.name)
            write_text(folder / SETTINGS_FILE, prepared.text)
            write_json(folder / JOB_FILE, noted)
            write_text(folder / LOG_FILE, "")  # it is a run from now on
            run = self.runs.find(f"{RUNS_FOLDER}/{prepared.name}")
            self.runs.begin(run)
            return run

    def _data(self, text: str) -> str:
        """Return the path of a text for the setting `data`, relative to the working directory if it is below it."""
        path = inside(self.texts, text)
        if path.is_dir():
            _refuse_links(path, text)
        root = self.runs.root
        return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)

    def _new_folder(self, name: str) -> Path:
        """Create the folder of a run, or reuse a folder with only the files of a failed start."""
        folder, called = self.runs.root / RUNS_FOLDER / name, f"{RUNS_FOLDER}/{name}"
        try:
            folder.mkdir(exist_ok=True)
            is_free = set(os.listdir(folder)) <= _LEFT_BY_A_FAILED_START and self.runs.is_at_rest(folder)
            if stat.S_ISLNK(folder.lstat().st_mode) or not is_free:
                message = _("{folder} exists already; choose another name", folder=called)
                raise ApiError(409, message, param="name", code="exists")
            (folder / LOG_FILE).unlink(missing_ok=True)
        except OSError as error:
            reason = error.strerror or error_text(error)
            raise TsugikiError("cannot write {folder}: {reason}", folder=called, reason=reason) from error
        return folder


def training_routes(training: Training, jobs: Jobs) -> list[Route]:
    """Return the routes of the view Train. Previews, plans, searches and downloads are jobs."""

    def job_route(
        address: str, kind: type[BaseModel], function: str, seconds: int, arguments: Callable[[Any], dict[str, Any]]
    ) -> Route:
        """Return a route that answers with the result of a job; its arguments are of the body, parsed as `kind`."""

        async def respond(request: Request) -> Response:
            given = await asyncio.to_thread(arguments, await read(kind, request))
            return JSONResponse(await jobs.run(request, function, seconds, **given))

        return Route(f"{PAGE_API}{address}", respond, methods=["POST"])

    def settings_of_run(asked: NameRequest) -> dict[str, Any]:
        return {"settings": settings_given(training.runs.find(asked.name).folder) | {"trust_remote_code": False}}

    def works(asked: WorksRequest) -> dict[str, Any]:
        return {"source": training.aozora, "query": asked.query()}

    def new_file(asked: FetchRequest) -> dict[str, Any]:
        return {"out": str(training.uploads.new_path(f"{asked.name}.jsonl"))}

    def settings(asked: RunFields) -> dict[str, Any]:
        return {"settings": training.prepare(asked).given}

    return [
        get_route("train/options", training.options),
        get_route("train/texts", training.listing, "folder"),
        get_route("train/again", training.again, "name"),
        post_route("train/settings", RunRequest, lambda asked: training.prepare(asked).shown()),
        *(job_route(f"train/{name}", RunRequest, name, _JOB_SECONDS, settings) for name in ("preview", "plan")),
        job_route("train/look", DataRequest, "look", _SEARCH_SECONDS, training.data),
        job_route("runs/plan", NameRequest, "plan", _JOB_SECONDS, settings_of_run),
        job_route("train/works", WorksRequest, "works", _SEARCH_SECONDS, works),
        job_route("train/fetch", FetchRequest, "fetch", _FETCH_SECONDS, lambda asked: works(asked) | new_file(asked)),
    ]


def _by_name(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of all settings in settings that are nested as in a YAML file, None where there is none."""
    return {setting.path[-1]: setting.find(given) for setting in _SETTINGS}


def _filled_in(value: Any) -> Any:
    """Return a setting as the form has it: texts, apart from yes and no."""
    if isinstance(value, Mapping):
        return {name: str(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return "\n".join(value)
    return value if value is None or isinstance(value, bool) else str(value)


def _refuse_links(folder: Path, name: str) -> None:
    """Check that a folder contains no links, which could lead out of it."""
    seen = 0
    for parent, folders, files in os.walk(folder):
        for entry in (*folders, *files):
            seen += 1
            if os.path.islink(os.path.join(parent, entry)):
                raise ApiError(
                    400,
                    _("{name!r} contains a link, {link!r}; choose files instead", name=name[:100], link=entry[:100]),
                    code="invalid_path",
                )
        if seen > _MOST_FILES:
            message = _("{name!r} contains more than {count:,} files", name=name[:100], count=_MOST_FILES)
            raise ApiError(400, message, code="invalid_path")
