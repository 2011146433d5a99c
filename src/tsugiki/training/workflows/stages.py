"""A run in stages, such as a general style first and then one author: each stage trains the adapter of the one before.

    model: embedded
    out: runs/kyoka
    stages:
      - data: meiji.jsonl
        epochs: 1
      - data: kyoka.jsonl

Each stage is a run of its own, in `out/1`, `out/2` and so on, with the settings of the file and its own. A later stage
begins with the adapter that the one before has kept. The held-out text of all earlier stages is its retention text, so
its record shows how much of them it has forgotten.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tsugiki.adapters.metadata import source_adapter
from tsugiki.errors import TsugikiError
from tsugiki.io.atomic import check_writable
from tsugiki.io.locks import sole_use
from tsugiki.language import _
from tsugiki.lora.graft import ungraft
from tsugiki.training.config import STAGES, RunConfig
from tsugiki.training.config_files import validated
from tsugiki.training.evaluation.evaluate import Window
from tsugiki.training.processes import require_one_process
from tsugiki.training.progress import RunProgress
from tsugiki.training.record import RunRecord
from tsugiki.training.resume import earlier_run, start_or_resume
from tsugiki.training.run import accelerator_of, load, run, sole_run

_COMMON = ("model", "out", "start_from", STAGES)
"""Settings that a stage cannot have."""
_FROM_ADAPTER = ("method", "lora", "method_config", "add_tokens")
"""Settings that later stages take from the adapter of the stage before."""


def run_stages(settings: Mapping[str, Any], path: Path, progress: RunProgress | None = None) -> list[RunRecord]:
    """Run the stages that have not finished yet.

    Args:
        settings: the settings, with a list of those of each stage as `stages`.
        path: the file that they are from, for errors.
        progress: where to show the progress; None: a new display on standard error.

    Returns:
        The record of each stage.

    Raises:
        TsugikiError: invalid settings, a folder that holds another run, an error in a stage, or several processes.
    """
    require_one_process(_("a run in stages"))
    stages = _stages(settings, path)
    for number in range(len(stages)):  # errors in the settings of the last stage appear before the first one trains
        _config(settings, stages, number, path, starts=False)
    out = Path(str(settings["out"]))
    check_writable(out)
    records: list[RunRecord] = []
    earlier: list[Window] = []
    with sole_use(out):
        for number, stage in enumerate(stages):
            with progress or RunProgress() as display:
                display.print(
                    _("stage {number} of {count}: {data}").format(
                        number=number + 1, count=len(stages), data=stage.get("data", settings.get("data"))
                    )
                )
                config = _config(settings, stages, number, path, starts=number > 0)
                record, held_out = _run_stage(config, earlier, display)
            records.append(record)
            earlier = _joined(earlier, held_out)
    return records


def _run_stage(config: RunConfig, earlier: list[Window], display: RunProgress) -> tuple[RunRecord, list[Window]]:
    """Run a stage, unless it has finished before; return its record and its held-out text."""
    accelerator, out = accelerator_of(config), Path(config.out)
    done = earlier_run(out.name, config)
    with sole_run(accelerator, out):
        model, tokenizer, data = load(accelerator, config, display)
        if done is not None and done.status == "finished":
            _check_start(config, done)
            return done, data.windows
        record, checkpoint = start_or_resume(accelerator, config.to_record(), out, resume=done is not None)
        data = replace(data, retention_windows=_joined(data.retention_windows, earlier))
        run(accelerator, config, model, tokenizer, data, record, checkpoint, display)
        ungraft(model)
    return record, data.windows


def _stages(settings: Mapping[str, Any], path: Path) -> Sequence[Mapping[str, Any]]:
    """Return the settings of each stage.

    Raises:
        TsugikiError: they are not a list of settings, or one has a setting that is common to all.
    """
    stages = settings[STAGES]
    if not isinstance(stages, list) or not stages or not all(isinstance(stage, dict) for stage in stages):
        raise TsugikiError(
            _("{path}: stages must be a list with the settings of each, such as '- data: kyoka.jsonl'").format(
                path=path
            )
        )
    common = sorted({name for stage in stages for name in stage if name in _COMMON})
    if common:
        raise TsugikiError(
            _("{path}: {names} cannot differ between stages; set them beside stages").format(
                path=path, names=", ".join(common)
            )
        )
    if not settings.get("out"):
        raise TsugikiError(_("{path}: out is missing; it is the folder of all stages").format(path=path))
    return stages


def _config(
    settings: Mapping[str, Any], stages: Sequence[Mapping[str, Any]], number: int, path: Path, starts: bool
) -> RunConfig:
    """Return the settings of a stage; `starts`: it begins with the adapter of the stage before, which has finished."""
    out = Path(str(settings["out"]))
    later = _FROM_ADAPTER if number else ()
    common = {name: value for name, value in settings.items() if name not in (STAGES, *later)}
    own: dict[str, Any] = {**common, **stages[number], "out": str(out / str(number + 1))}
    if number:
        own.pop("start_from", None)
    if starts:
        own["start_from"] = str(out / str(number))
    return validated(RunConfig, own, path)


def _check_start(config: RunConfig, record: RunRecord) -> None:
    """Check that a finished stage began with the adapter that the stage before has now.

    Raises:
        TsugikiError: it began with another adapter.
    """
    if config.start_from is None or record.started_from is None:
        return
    if record.started_from.weights != source_adapter(Path(config.start_from)).weights:
        raise TsugikiError(
            _("{out} began with another adapter than {start} holds now; delete it, and it is trained again").format(
                out=config.out, start=config.start_from
            )
        )


def _joined(first: list[Window], second: list[Window]) -> list[Window]:
    """Return the windows of two texts, with consecutive numbers of documents."""
    documents = 1 + max((window.document for window in first), default=-1)
    return [*first, *(replace(window, document=window.document + documents) for window in second)]
