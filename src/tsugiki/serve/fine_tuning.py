"""OpenAI's interface for files and fine-tuning. Each run below the working directory is a job, whoever has started it.

What a job is, and what it has done, is read from the files of its run. Beside them, a file keeps what only this
interface knows: metadata, the method, the ids of its files, and whether a run was stopped for a while or for good.
"""

import csv
import io
import json
import math
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, StringConstraints
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tsugiki.errors import TsugikiError
from tsugiki.io.json import write_json
from tsugiki.io.run_folder import CHECKPOINTS, checkpoint_step, checkpoints
from tsugiki.language import _
from tsugiki.preference.rewards import parse_rule
from tsugiki.report.record_text import run_notes
from tsugiki.report.run import decision_table
from tsugiki.report.sections import Note
from tsugiki.serve.errors import ApiError, invalid
from tsugiki.serve.folders import base_name, with_home
from tsugiki.serve.jobs import Jobs
from tsugiki.serve.protocol import Fields, OpenFields, validated
from tsugiki.serve.routes import json_route, page_of, post_route
from tsugiki.serve.runs_view import (
    CHECKPOINT_MARK,
    JOB_FILE,
    RunFolder,
    RunProcesses,
    Runs,
    job_id,
    noted_of,
    run_routes,
    seconds_left,
    settings_given,
)
from tsugiki.serve.security import FILES
from tsugiki.serve.served_adapters import ServedAdapters
from tsugiki.serve.train_view import RunRequest, Training, Workspace, training_routes
from tsugiki.serve.uploads import FOLDER, MOST_FILES, PURPOSE, Uploads, clean_stem, file_id, file_object, short_id
from tsugiki.training.record.run_record import RunRecord

JOBS = "/v1/fine_tuning/jobs"
_STATUSES = {
    "starting": "validating_files", "stopping": "cancelled", "stopped": "cancelled", "finished": "succeeded",
    "unreadable": "failed",
}  # fmt: skip
"""State of a run -> status of its job, where they differ."""
_ENDING = 20  # seconds that the process of a finished run may take to end
_NEED_DATA = ("queued", "starting", "running", "stopping")
"""States of runs that may still read their data."""
_FIGURES = {
    "train_loss": "training loss",
    "train_accuracy": "training accuracy",
    "valid_loss": "validation loss",
    "full_valid_loss": "full validation loss",
    "valid_reward": "validation reward",
}
"""Figures of a step by their names -> what OpenAI's events call them."""


def _unless_auto(value: Any) -> Any:
    return None if value == "auto" else value


_Auto = BeforeValidator(_unless_auto)
_Text: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=64)]
_Metadata: TypeAlias = Annotated[dict[_Text, Annotated[str, Field(max_length=512)]], Field(max_length=16)]


class Hyperparameters(Fields):
    """What OpenAI's clients set of a run; None: what `tsugiki train` chooses."""

    n_epochs: Annotated[int | None, Field(ge=1, le=1000), _Auto] = None
    batch_size: Annotated[int | None, Field(ge=1, le=1024), _Auto] = None
    learning_rate_multiplier: Annotated[float | None, Field(gt=0, le=1000), _Auto] = None
    """Relative to the learning rate that `tsugiki train` chooses."""
    beta: Annotated[float | None, Field(gt=0, le=100), _Auto] = None
    """Of `dpo`."""
    compute_multiplier: Any = None
    eval_interval: Any = None
    eval_samples: Any = None
    reasoning_effort: Any = None
    """Of `reinforcement`, without effect, as the three above."""


class MethodFields(Fields):
    """The settings of a method."""

    hyperparameters: Hyperparameters = Hyperparameters()
    grader: dict[str, Any] | None = None
    """Of `reinforcement`: what scores answers (`preference.graders`)."""


class Method(Fields):
    """A method, and its settings in the field of its name."""

    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: MethodFields = MethodFields()
    dpo: MethodFields = MethodFields()
    reinforcement: MethodFields = MethodFields()


class JobRequest(OpenFields):
    """A job as OpenAI's clients create it."""

    model: str | None = None
    """The base of the server, or an adapter or a job's model to go on from."""
    training_file: str = ""
    validation_file: str | None = None
    hyperparameters: Hyperparameters = Hyperparameters()
    """As clients sent them before there was `method`."""
    method: Method | None = None
    suffix: _Text | None = None
    seed: Annotated[int | None, Field(ge=0, lt=2**32)] = None
    metadata: _Metadata | None = None
    integrations: Annotated[list[Any] | None, Field(max_length=0)] = None
    settings: Annotated[dict[str, Any], Field(default_factory=dict)]
    """Of Tsugiki: those of a `RunRequest`, which are all that the page sends."""


class FineTuning:
    """The jobs, and the files that they learn from and give."""

    def __init__(self, training: Training, adapters: ServedAdapters) -> None:
        self.training, self.runs, self.uploads, self.adapters = training, training.runs, training.uploads, adapters

    def find(self, request: Request) -> RunFolder:
        """Return the run of the job that a request names."""
        given = request.path_params["job"]
        for run in self.runs.all():
            if job_id(run.name) == given:
                return run
        message = _("there is no job {name!r}", name=given[:100])
        raise ApiError(404, message, "fine_tuning_job_id", "not_found")

    def create(self, asked: JobRequest) -> dict[str, Any]:
        """Start a run, or put it into the queue, and return its job."""
        method, kind = asked.method, asked.method.type if asked.method else "supervised"
        given: Any = getattr(method, kind, asked)
        chosen: Hyperparameters = given.hyperparameters
        values: dict[str, Any] = {
            "epochs": chosen.n_epochs,
            "batch_size": chosen.batch_size,
            "learning_rate_factor": chosen.learning_rate_multiplier,
            "seed": asked.seed,
            "chat_template": None if kind == "supervised" else "auto",
        }
        fields, stem = dict(asked.settings), asked.suffix or ""
        if kind == "dpo":
            values |= {"preference": "dpo", "preference_settings": {"beta": chosen.beta} if chosen.beta else None}
        elif kind == "reinforcement":
            rule = f"grader:{json.dumps(given.grader, ensure_ascii=False)}"
            try:
                parse_rule(rule)
            except TsugikiError as error:
                raise invalid(str(error), "method.reinforcement.grader") from error
            rounds = {"rounds": chosen.n_epochs} if chosen.n_epochs else None
            values |= {"reward": [rule], "reward_settings": rounds, "epochs": None}
            fields["columns"] = {"prompt": "messages"}
        if asked.training_file or not fields:
            name = self.uploads.find(asked.training_file, "training_file", 400)["filename"]
            fields["uploads"], stem = [name], stem or Path(name).stem
        if asked.validation_file is not None:
            name = self.uploads.find(asked.validation_file, "validation_file", 400)["filename"]
            values["held_out"] = with_home(self.uploads.path(name))
        if asked.model is not None and (name := self.adapters.find(asked.model)) != self.adapters.base.name:
            values["start_from"] = str(self.adapters.folder(name))
        noted = asked.model_dump(include={"metadata", "validation_file"}, exclude_none=True)
        if method is not None:
            noted["method"] = method.model_dump(include={"type", method.type}, exclude_none=True)
        name = f"{clean_stem(stem)}-{secrets.token_hex(3)}"  # jobs can have the same suffix
        run = validated(RunRequest, {"name": name, **fields})
        noted["training_file"] = file_id(run.uploads[0]) if run.uploads else ""
        return self.job(self.training.start(self.training.prepare(run, values), noted))

    def job(self, run: RunFolder) -> dict[str, Any]:
        """Return the job of a run as OpenAI's interface describes it; `run` is what the page shows of it."""
        summary, given, noted = self.runs.summary(run), settings_given(run.folder), noted_of(run.folder)
        record, state = self.runs.readable(run), summary["state"]
        is_paused = state in ("stopping", "stopped") and noted.get("asked") == "pause"
        status = "queued" if is_paused else _STATUSES.get(state, state)  # the specification has no word for a pause
        left = seconds_left(record) if record and status == "running" else None
        has_ended = status in ("succeeded", "failed", "cancelled")
        return {
            "id": job_id(run.name),
            "object": "fine_tuning.job",
            "created_at": int(run.created),
            "finished_at": int(run.changed) if has_ended else None,
            "estimated_finish": None if left is None else int(time.time() + left),
            "status": status,
            "error": _error(summary, given) if status == "failed" else None,
            "model": summary.get("model") or base_name(given.get("model", self.adapters.base.name)),
            "fine_tuned_model": run.name if status == "succeeded" and summary["talks"] else None,
            "organization_id": "tsugiki",
            "training_file": noted.get("training_file", ""),
            "validation_file": noted.get("validation_file"),
            "result_files": [_results_id(run)] if status == "succeeded" else [],
            "trained_tokens": record.training.tokens if record and record.training and has_ended else None,
            "seed": given.get("seed", 42),
            "hyperparameters": {
                "n_epochs": _epochs(given, record),
                "batch_size": record.chosen("batch_size") if record else given.get("batch_size", "auto"),
                "learning_rate_multiplier": given.get("learning_rate_factor", 1.0 if record else "auto"),
            },
            "method": noted.get("method"),
            "integrations": [],
            "metadata": noted.get("metadata"),
            "run": summary,
        }

    def act(self, asked: str, request: Request) -> dict[str, Any]:
        """Stop a job after its step, for good (`cancel`) or for a while (`pause`), or let it go on (`resume`)."""
        run = self.find(request)
        noted, state = noted_of(run.folder), self.runs.summary(run)["state"]
        file = run.folder / JOB_FILE
        write_json(file, {**noted, "asked": asked})  # before it: who looks meanwhile must not see it cancelled
        try:
            if asked == "resume":
                self.runs.begin(run)
            elif (asked, state, noted.get("asked")) != ("cancel", "stopped", "pause"):
                self.runs.stop(run)
        except BaseException:
            write_json(file, noted)
            raise
        return self.job(run)

    def events(self, request: Request) -> dict[str, Any]:
        """Return a page of what has happened in a job, the last first. The times of its steps are spread evenly."""
        run = self.find(request)
        said = [*_said(self.job(run), self.runs.readable(run))]
        events = [
            {
                "object": "fine_tuning.job.event",
                "id": short_id("ftevent", f"{run.name} {message}"),
                "created_at": int(run.created + (run.changed - run.created) * place / len(said)),
                "level": level,
                "message": message,
                "type": "metrics" if figures else "message",
                "data": figures,
            }
            for place, (level, message, figures) in enumerate(said, 1)
        ]
        return page_of(events[::-1], request)

    def checkpoints(self, request: Request) -> dict[str, Any]:
        """Return a page of the checkpoints of a job that are there, the last first; each is a model that answers."""
        run = self.find(request)
        record, saved = self.runs.readable(run), checkpoints(run.folder / CHECKPOINTS)
        figures = step_figures(record) if record else {}
        shown = []
        for step, folder in zip(map(checkpoint_step, saved), saved, strict=True):
            with suppress(FileNotFoundError):  # the run removes old ones meanwhile
                one = {
                    "object": "fine_tuning.job.checkpoint",
                    "id": short_id("ftckpt", f"{run.name} {step}"),
                    "created_at": int(folder.stat().st_mtime),
                    "fine_tuned_model_checkpoint": f"{run.name}{CHECKPOINT_MARK}{step}",
                    "fine_tuning_job_id": job_id(run.name),
                    "step_number": step,
                    "metrics": figures.get(step, {}),
                }
                shown.append(one)
        return page_of(shown[::-1], request)

    def file(self, request: Request) -> tuple[dict[str, Any], bytes]:
        """Return the file that a request names, and its content: one that was sent, or the figures of a job's steps."""
        given = request.path_params["file"]
        for run in self.runs.all():
            if _results_id(run) == given and (record := self.runs.readable(run)):
                content = _table(record)
                name, changed = f"{run.name}.csv", int(run.changed)
                return file_object(given, name, len(content), changed, "fine-tune-results"), content
        found = self.uploads.find(given)
        return found, self.uploads.path(found["filename"]).read_bytes()

    def remove(self, request: Request) -> dict[str, Any]:
        """Remove a file that was sent."""
        file = self.uploads.find(request.path_params["file"])
        path = with_home(self.uploads.path(file["filename"]))
        for run in self.runs.all():  # another file with its name would have its id, and a waiting run would learn it
            if path in _data_of(settings_given(run.folder)) and self.runs.summary(run)["state"] in _NEED_DATA:
                message = _("{name} learns from the file; stop it first", name=run.name)
                raise ApiError(400, message, "file_id", "busy")
        self.uploads.remove(file["filename"])
        return {"id": file["id"], "object": "file", "deleted": True}

    def remove_model(self, request: Request) -> dict[str, Any]:
        """Remove the model of a job with all that its run has written."""
        run, end = self.runs.find(request.path_params["name"]), time.monotonic() + _ENDING
        while time.monotonic() < end and not self.runs.is_at_rest(run.folder):
            if self.runs.summary(run)["state"] != "finished":
                break
            time.sleep(0.1)  # its process is still ending
        self.runs.remove(run)
        return {"id": run.name, "object": "model", "deleted": True}

    def jobs(self, request: Request) -> dict[str, Any]:
        """Return a page of the jobs, or of those with some metadata, the newest first."""
        newest = sorted(self.runs.all(), key=lambda run: -run.created)
        asked = request.query_params
        wanted = {name[9:-1]: value for name, value in asked.items() if name.startswith("metadata[")}
        if wanted:
            newest = [run for run in newest if wanted.items() <= (noted_of(run.folder).get("metadata") or {}).items()]
        page = page_of([{"id": job_id(run.name), "run": run} for run in newest], request)
        return {**page, "data": [self.job(one["run"]) for one in page["data"]]}


def workspace_routes(workspace: Workspace, adapters: ServedAdapters) -> list[Route]:
    """Return the routes of fine-tuning and of the views Runs and Train, and let requests name the runs."""
    library = adapters.library.absolute()
    adapters.runs = runs = Runs(workspace.directory, RunProcesses(), workspace.model, library)
    training = Training(workspace, runs, Uploads(library / FOLDER))
    runs.watch()
    jobs = Jobs(workspace.directory, training.uploads.folder)
    tuning = FineTuning(training, adapters)
    return [*fine_tuning_routes(tuning), *run_routes(runs), *training_routes(training, jobs)]


def fine_tuning_routes(tuning: FineTuning) -> list[Route]:
    """Return the routes of the interface."""
    file, job = f"{FILES}/{{file}}", f"{JOBS}/{{job}}"

    async def receive(request: Request) -> Response:
        return JSONResponse(await tuning.uploads.receive(request))

    def content(request: Request) -> Response:
        return Response(tuning.file(request)[1], media_type="application/octet-stream")

    def files(request: Request) -> dict[str, Any]:
        asked = request.query_params
        found = tuning.uploads.objects() if asked.get("purpose", PURPOSE) == PURPOSE else []
        return page_of(found[::-1] if asked.get("order") == "asc" else found, request, MOST_FILES)

    return [
        Route(FILES, receive, methods=["POST"]),
        json_route(FILES, files),
        json_route(file, lambda request: tuning.file(request)[0]),
        json_route(file, tuning.remove, "DELETE"),
        Route(f"{file}/content", content),
        json_route("/v1/models/{name:path}", tuning.remove_model, "DELETE"),
        post_route(JOBS, JobRequest, tuning.create),
        json_route(JOBS, tuning.jobs),
        json_route(job, lambda request: tuning.job(tuning.find(request))),
        *(json_route(f"{job}/{what}", partial(tuning.act, what), "POST") for what in ("cancel", "pause", "resume")),
        json_route(f"{job}/events", tuning.events),
        json_route(f"{job}/checkpoints", tuning.checkpoints),
    ]


def step_figures(record: RunRecord) -> dict[int, dict[str, float]]:
    """Return the figures of each step, or each round, of a run that has some, by the names of OpenAI's checkpoints."""
    points = [("valid_reward", one.round, one.reward) for one in record.rounds if one.validation] or [
        *(("train_loss", one.step, one.loss) for one in record.loss_curve),
        *(("train_accuracy", one.step, one.accuracy) for one in record.preference_curve),
        *(("valid_loss", one.step, one.loss) for one in record.validations),
        *(("full_valid_loss", one.step, one.loss) for one in record.evaluations),
    ]
    found: dict[int, dict[str, float]] = {}
    for name, step, value in sorted(points, key=itemgetter(1)):
        if math.isfinite(value):
            found.setdefault(step, {"step": step})[name] = value
    return found


def _table(record: RunRecord) -> bytes:
    """Return the figures of each step as a CSV file."""
    file = io.StringIO()
    table = csv.DictWriter(file, ["step", *_FIGURES], lineterminator="\n")
    table.writeheader()
    table.writerows(step_figures(record).values())
    return file.getvalue().encode()


def _said(job: dict[str, Any], record: RunRecord | None) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield the events of a job: level, message and figures of its steps, then its decisions and notes, and its end."""
    yield "info", f"Created fine-tuning job: {job['id']}", {}
    if record:
        total = record.resolved_settings.get("steps")
        for step, figures in step_figures(record).items():
            text = ", ".join(f"{called}={figures[name]:.4f}" for name, called in _FIGURES.items() if name in figures)
            place = f"Step {step}/{total}" if total else f"Round {step}"
            yield "info", f"{place}: {text}", {**figures, "total_steps": total}
        for row in decision_table(record).rows:
            yield "info", ": ".join(row), {}
        for note in run_notes(record):
            yield "warn" if isinstance(note, Note) else "info", note.text, {}
    if job["error"]:
        yield "error", job["error"]["message"], {}
    if job["fine_tuned_model"]:
        yield "info", f"New fine-tuned model created: {job['fine_tuned_model']}", {}
    if job["status"] == "succeeded":
        yield "info", "The job has successfully completed", {}


def _epochs(given: dict[str, Any], record: RunRecord | None) -> int | str:
    """Return the passes over the data in whole numbers: those that were asked for, or, once they are known, chosen."""
    epochs = given.get("epochs", "auto")
    if epochs == "auto" and record and record.data and (steps := record.resolved_settings.get("steps")):
        epochs = steps * record.chosen("batch_size") / record.data.blocks
    return epochs if isinstance(epochs, str) else max(1, round(epochs))


def _results_id(run: RunFolder) -> str:
    return file_id(f"{run.name}/results")


def _error(summary: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Return why a job has failed. It is because of its data if the message names one of the files."""
    message = summary.get("error") or summary["reason"] or ""
    of_data = any(Path(file).name in message for file in _data_of(given))
    code, param = ("invalid_training_file", "training_file") if of_data else ("job_failed", None)
    return {"code": code, "message": message, "param": param}


def _data_of(given: dict[str, Any]) -> list[str]:
    """Return the files that a run with these settings learns from, and is tested with."""
    data, held_out = given.get("data", []), given.get("held_out")
    return [*([data] if isinstance(data, str) else data), *([held_out] if isinstance(held_out, str) else [])]
