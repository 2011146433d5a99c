"""One run: from a config, data and a base model to a folder that holds the trained adapter or model.

train
  start_accelerator       device and processes
  sole_run                lock the folder of the run
  start_or_resume         the record, and the checkpoint to continue from
  load                    tokenizer -> data -> model -> packed data
  run
    prepare_model         graft the adapter (see `train.model`)
    shard_model           split the weights over the processes, if the settings say so
    prepare_loop          gradients, optimiser, schedule
    TrainingLoop.run      the loop; `EvaluationCallback` evaluates, samples and writes `run.json`
    save_trained          the adapter's or the model's files
"""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from torch.optim.lr_scheduler import LambdaLR

from tsugiki.adapters.library import adapter_folder
from tsugiki.adapters.metadata import source_adapter
from tsugiki.adapters.start import start_from
from tsugiki.base.loading import load_model
from tsugiki.base.new_words import NewWords, add_rows, add_words, read_words
from tsugiki.base.resolve import local_folder
from tsugiki.data.seen_texts import Fingerprints, learned_by, write_fingerprints
from tsugiki.errors import TsugikiError
from tsugiki.fast.recomputation import recompute_blocks, recomputed_blocks
from tsugiki.io.atomic import WriteError, check_writable, new_folder, remove_leftovers
from tsugiki.io.file_names import MANIFEST_FILE
from tsugiki.io.locks import OWNER_FILE, sole_use
from tsugiki.io.manifest import read_manifest
from tsugiki.io.progress import ProgressDisplay
from tsugiki.io.run_folder import CHECKPOINTS, checkpoint_step, remove_run
from tsugiki.language import _, counts
from tsugiki.lora.hold import is_grafted
from tsugiki.lowbit.product_dtype import decide
from tsugiki.methods.table import METHODS
from tsugiki.native import is_compiled
from tsugiki.training.automatic import ResolvedConfig, with_values
from tsugiki.training.checkpoint import (
    keep_newest,
    load_training_state,
    save_training_state,
)
from tsugiki.training.config import AUTO, PROBE, RunConfig
from tsugiki.training.divergence import (
    LOWER,
    MOST_RESTARTS,
    DivergedError,
    DivergenceCheck,
    restore_values,
    trained_values,
)
from tsugiki.training.evaluation_callback import BaseResults, EvaluationCallback
from tsugiki.training.loop import TrainingLoop
from tsugiki.training.model import (
    load_dtype,
    load_run_tokenizer,
    load_trained,
    prepare_model,
    save_trained,
    shard_model,
    trained_tokens,
)
from tsugiki.training.packing import PackedDataset, pack_data
from tsugiki.training.planning.base_dtype import base_dtype_notes, with_base_dtype
from tsugiki.training.planning.fit import memory_notes, plan_memory
from tsugiki.training.preparation import DatasetSplit, read_data
from tsugiki.training.prepare_loop import choices, measure_rate, prepare_loop, resolved_config
from tsugiki.training.processes import (
    check_agreement,
    check_shared,
    errors_of_others,
    main_first,
    on_main,
    start_accelerator,
)
from tsugiki.training.progress import RunProgress
from tsugiki.training.record import (
    LossPoint,
    Parameters,
    Restart,
    RunRecord,
)
from tsugiki.training.resume import flat_settings, start_or_resume
from tsugiki.training.run_description import describe_run
from tsugiki.training.sharding import split_optimizer_state, whole_model, whole_optimizer_state
from tsugiki.training.state import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LOGS = "logs"
"""The folder in a run's folder into which trackers write."""
_KEPT_CHECKPOINTS = 2


def train(
    config: RunConfig, resume: bool = False, progress: RunProgress | None = None, overwrite: bool = False
) -> RunRecord:
    """Train as `config` describes. The folder `config.out` then holds the adapter or model, and `run.json`.

    Args:
        config: the settings.
        resume: continue from the newest checkpoint in `config.out`. Only the length of the run, its prompts and some
            intervals may change (see `train.resume`); with a larger length, a finished run continues.
        progress: where to show the progress; None: a new display on standard error.
        overwrite: remove the run that `config.out` holds, before the first step.

    Returns:
        The record of the finished run.

    Raises:
        TsugikiError: an error that the user can correct. Files that were in the folder before are unchanged.
    """
    accelerator, out = accelerator_of(config), Path(config.out)
    with (
        errors_of_others(accelerator),
        progress or RunProgress(shown=accelerator.is_main_process) as display,
        sole_run(accelerator, out),
    ):
        record, checkpoint = start_or_resume(accelerator, config.to_record(), out, resume, overwrite)
        if config.micro_batch_size is None and record.micro_batch_size is not None:
            config = config.model_copy(update={"micro_batch_size": record.micro_batch_size})
        blocks = record.recomputed_blocks or 0
        is_alone = accelerator.device.type == "cpu" and accelerator.num_processes == 1
        config = with_base_dtype(config, record, measures=is_alone)
        for line in base_dtype_notes(config, record):
            display.print(line)
        planned = plan_memory(config, blocks) if is_alone else None
        for line in memory_notes(planned, config) if planned is not None else ():
            display.print(line)
        model, tokenizer, data = load(accelerator, config, display)
        if planned is not None:
            record.planned_memory, blocks = planned.peak, planned.recomputed_blocks
        if config.recompute == AUTO:
            recompute_blocks(model, blocks)
        run(accelerator, config, model, tokenizer, data, record, checkpoint, display, overwrite)
    return record


def accelerator_of(config: RunConfig) -> Accelerator:
    """Return the accelerator for a run; errors are those of `start_accelerator`."""
    return start_accelerator(config.device, config.report_to, str(Path(config.out) / LOGS))


@contextmanager
def sole_run(accelerator: Accelerator, out: Path) -> Iterator[None]:
    """Lock the folder of a run within the block, and remove temporary files of a killed process from it.

    Raises:
        TsugikiError: another process uses the folder, it cannot be written, or the processes of the run do not share
            it.
    """

    def enter() -> None:
        check_writable(out)
        stack.enter_context(sole_use(out))
        remove_leftovers(out)
        remove_leftovers(out / CHECKPOINTS)

    with ExitStack() as stack:
        on_main(accelerator, enter)
        check_shared(accelerator, out / OWNER_FILE)
        yield


@dataclass(frozen=True)
class RunData:
    """The data of a run, which depend only on the tokenizer of its model."""

    tokenizer: "PreTrainedTokenizerBase"
    new_words: NewWords | None
    split: DatasetSplit


def load(
    accelerator: Accelerator, config: RunConfig, display: ProgressDisplay
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase, PackedDataset]":
    """Load the tokenizer, the data and the base model, and pack the data into rows for the model.

    The data are read before the model is loaded, so that errors in them appear at once.

    Raises:
        TsugikiError: data or a model that cannot be read, or rows that are too long for the model.
    """
    data = load_data(accelerator, config, display)
    display.announce(_("loading {model}").format(model=config.model))
    model = load_base(accelerator, config, data)
    return model, data.tokenizer, pack_data(config, data.split, model, data.tokenizer)


def load_data(accelerator: Accelerator, config: RunConfig, display: ProgressDisplay) -> RunData:
    """Load the tokenizer, and read the data. The main process tokenises them; the others find the tokens in the cache.

    Raises:
        TsugikiError: data or a tokenizer that cannot be read.
    """

    def read() -> RunData:
        tokenizer = load_run_tokenizer(config)
        new = None if config.add_tokens is None else add_words(tokenizer, read_words(Path(config.add_tokens)))
        return RunData(tokenizer, new, read_data(config, tokenizer, display))

    return main_first(accelerator, read)


def load_base(accelerator: Accelerator, config: RunConfig, data: RunData) -> "PreTrainedModel":
    """Load the base model, and add the run's new words to its vocabulary.

    It is moved to the accelerator's device, but not if its weights will be split over the processes.

    Raises:
        TsugikiError: a model that cannot be read.
    """
    dtype = load_dtype(config, accelerator.device)
    model = main_first(accelerator, lambda: load_model(config.model, dtype, trust_remote_code=config.trust_remote_code))
    if data.new_words is not None:
        add_rows(model, data.new_words)
    if not _in_shards(accelerator, config):  # `shard` moves a part of the weights only
        model.to(accelerator.device)
    return model


def run(
    accelerator: Accelerator,
    config: RunConfig,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    data: PackedDataset,
    record: RunRecord,
    checkpoint: Path | None,
    display: RunProgress,
    overwrite: bool = False,
    base_results: BaseResults | None = None,
) -> None:
    """Train a loaded model in place, and write the result and the record to `config.out`.

    Args:
        accelerator: the device, and the processes that share the work.
        config: the settings.
        model: the base model, from `load`.
        tokenizer: its tokenizer.
        data: the packed data.
        record: the record of the run, from `start_or_resume`; it is completed here.
        checkpoint: the checkpoint to continue from.
        display: where to show the progress.
        overwrite: remove the run that `config.out` holds.
        base_results: results of the base, which runs with the same base and data share (see
            `train.evaluation_callback`); None: they are not shared.

    Raises:
        TsugikiError: an error that the user can correct.
    """
    out, given = Path(config.out), config.to_record()
    if "product_dtype" in record.resolved_settings:  # of a resumed run
        decide(model.dtype, record.resolved_settings["product_dtype"] == "int8")
    prepared = prepare_model(model, config, accelerator.device, trained_tokens(config, tokenizer))
    if config.start_from is not None:
        start_from(model, config.start_from)
        record.started_from = source_adapter(adapter_folder(config.start_from))
    before = record.resolved_settings
    config, chosen = resolved_config(accelerator, config, model, data, before, display.started)
    if given["learning_rate"] == PROBE and "learning_rate" not in before:
        measured = measure_rate(accelerator, config, model, data, display)
        config = with_values(config, learning_rate=measured.learning_rate)
        chosen["learning_rate"], record.rate_probe = measured.learning_rate, measured.points
    if checkpoint is not None and "steps" not in before:
        config, chosen = _with_new_length(config, chosen, checkpoint_step(checkpoint), display)
    resolved = prepared | chosen
    parameters = describe_run(accelerator, record, config, model, data, resolved)
    check_agreement(
        accelerator,
        {
            **given,
            "shard": config.shard,
            "data": record.data,
            _("base model"): record.base,
            _("settings that depend on the machine"): resolved,
        },
    )
    can_restart = isinstance(given["learning_rate"], str) and is_grafted(model)
    initial = trained_values(model) if is_grafted(model) else {}  # a copy of a whole model takes too much memory
    if checkpoint is not None:
        load_trained(model, checkpoint)
    if _in_shards(accelerator, config):
        shard_model(model, config, accelerator.device)
        if not is_grafted(model):
            config = with_values(config, keep="last")  # weights in shards are not read back from a checkpoint
    _print_header(config.model, parameters, data, display)
    if accelerator.device.type == "cpu" and resolved.get("compute_dtype") == "fp16":  # of a base, `graft` warns
        display.print(_("processors are slow in fp16; bf16 or fp32 is faster here"))
    dtype = load_dtype(config, accelerator.device)
    if accelerator.device.type == "cpu" and dtype not in ("bf16", "fp16", "fp32") and not is_compiled():
        display.print(
            _(
                "Tsugiki was installed without a C compiler, so a base in {dtype} is slower than it could be; install "
                "a compiler, then Tsugiki again"
            ).format(dtype=dtype)
        )
    if overwrite:
        on_main(accelerator, lambda: remove_run(out))
    accelerator.init_trackers("tsugiki", config=flat_settings(record.config.to_dict()))
    restore = partial(_restore, accelerator, model, out / CHECKPOINTS)
    try:
        while True:
            for line in choices(record.resolved_settings, given, bool(record.rate_probe)):
                display.print(line)
            loop = prepare_loop(accelerator, config, model, data.blocks, data.document_masking)
            record.recomputed_blocks = recomputed_blocks(loop.gradients.computing)
            record.micro_batch_size = config.micro_batch_size
            loop.save = partial(
                _save_checkpoint, tokenizer=tokenizer, record=record, folder=out / CHECKPOINTS, display=display
            )
            loop.callbacks.append(
                EvaluationCallback(model, tokenizer, data, config, record, display, restore, initial, base_results)
            )
            if can_restart and len(record.restarts) < MOST_RESTARTS:
                loop.callbacks.append(DivergenceCheck(config.batch_size))
            if checkpoint is not None:
                _load_training_state(loop, checkpoint, is_longer="steps" not in before)
            if accelerator.is_main_process:
                record.write(out)
                write_fingerprints([data.learned, *_learned_before(config)], out)
            try:
                loop.run()
                break
            except DivergedError as error:
                config, checkpoint = _with_lower_rate(config, error, record, display), None
                restore_values(model, initial)
                on_main(accelerator, lambda: keep_newest(out / CHECKPOINTS, 0))
        for tracker in accelerator.trackers:
            tracker.finish()
        record.status = "finished"
        trained = whole_model(model, keep=accelerator.is_main_process)

        def write() -> None:
            save_trained(trained, tokenizer, out, config.save_dtype, with_template=data.summary.learns_conversations)
            record.write(out)

        on_main(accelerator, write)
    except WriteError as error:
        raise WriteError(_("{error}; finished steps are kept: continue with --resume").format(error=error)) from error


def _with_new_length(
    config: ResolvedConfig, chosen: dict[str, Any], done: int, display: RunProgress
) -> tuple[ResolvedConfig, dict[str, Any]]:
    """Return the settings and the chosen values of a run that is continued with another length.

    Args:
        config: the settings; with `minutes`, their steps are those that can still be done.
        chosen: the chosen values, with the number of steps.
        done: steps that were done before.
        display: prints the new length.

    Raises:
        TsugikiError: no step is left.
    """
    steps = chosen["steps"] + (done if config.minutes is not None else 0)
    if steps <= done:
        raise TsugikiError(
            _("the run in {out} has done {done} steps, and its new length is {steps}: give a larger one").format(
                out=config.out, done=done, steps=steps
            )
        )
    display.print(
        _(
            "continued from step {done} to {steps}; the learning rate follows the schedule of a run of {steps} steps"
        ).format(done=done, steps=steps)
    )
    return with_values(config, max_steps=steps), {**chosen, "steps": steps}


def _with_lower_rate(
    config: ResolvedConfig, error: DivergedError, record: RunRecord, display: RunProgress
) -> ResolvedConfig:
    """Return the settings with a lower learning rate, and add the restart to the record."""
    rate = float(f"{config.learning_rate * LOWER:.2g}")
    record.restarts.append(Restart(step=error.step, learning_rate=config.learning_rate))
    record.resolved_settings["learning_rate"] = rate
    record.forget_after(-1)
    record.loss_curve.clear()
    display.print(_("{error}, so the run begins again with a third of the learning rate").format(error=error))
    return with_values(config, learning_rate=rate)


def _learned_before(config: RunConfig) -> list[Fingerprints]:
    """Return the fingerprints of the texts that the result of a run has learned before the run."""
    folders: list[Path | None] = [] if config.start_from is None else [adapter_folder(config.start_from)]
    if not METHODS[config.method].trains_adapter:  # the result contains the weights of the base
        folders.append(local_folder(config.model))
    return learned_by(folders)


def _in_shards(accelerator: Accelerator, config: RunConfig) -> bool:
    """Return whether the weights are split over the processes; a single process does not split them."""
    return config.shard == "fsdp" and accelerator.num_processes > 1


def _save_checkpoint(
    loop: TrainingLoop,
    tokenizer: "PreTrainedTokenizerBase",
    record: RunRecord,
    folder: Path,
    display: RunProgress,
) -> None:
    is_main = loop.accelerator.is_main_process
    trained, optimizer = whole_model(loop.model, keep=is_main), whole_optimizer_state(loop.optimizer, keep=is_main)

    def write() -> None:
        with (
            display.stage(_("saving"), None),
            new_folder(folder / f"checkpoint-{loop.progress.step}", replace=True) as temporary,
        ):
            chat = record.data is not None and record.data.learns_conversations
            save_trained(trained, tokenizer, temporary, with_template=chat)
            progress = asdict(loop.progress) | {
                "loss_curve": [point.model_dump() for point in loop.progress.loss_curve],
                "scaler": loop.gradients.scaler.state_dict(),
            }
            save_training_state(temporary, optimizer, loop.schedule.state_dict(), progress, record.to_json())
        keep_newest(folder, _KEPT_CHECKPOINTS, loop.progress.best_step)

    on_main(loop.accelerator, write)


def _restore(accelerator: Accelerator, model: "PreTrainedModel", folder: Path, step: int) -> bool:
    """Restore the trained weights of a step; return False, on all processes, if its checkpoint is damaged."""
    checkpoint = folder / f"checkpoint-{step}"

    def is_intact() -> bool:
        try:
            read_manifest(checkpoint)
        except TsugikiError as error:
            warnings.warn(
                _("{error}; the last step is kept instead of step {step}").format(error=error, step=step), stacklevel=2
            )
            return False
        return True

    if not on_main(accelerator, is_intact):
        return False
    check_shared(accelerator, checkpoint / MANIFEST_FILE)
    load_trained(model, checkpoint)
    return True


def _load_training_state(loop: TrainingLoop, folder: Path, is_longer: bool) -> None:
    """Load the state of the optimiser, the schedule and the progress; `is_longer`: the run has another length now."""
    optimizer, schedule, progress = load_training_state(folder)
    loop.optimizer.load_state_dict(split_optimizer_state(loop.optimizer, optimizer))
    loop.schedule.load_state_dict(schedule)
    if scaler := progress.pop("scaler", {}):
        loop.gradients.scaler.load_state_dict(scaler)
    curve = [LossPoint.model_validate(point) for point in progress.pop("loss_curve")]
    loop.progress = Progress(**progress, loss_curve=curve)
    if loop.progress.step < loop.steps and is_longer:
        loop.progress.stopped, loop.progress.evaluations_since_best = False, 0
        # The state of the optimiser has the rate of the former schedule, which is 0 at its end.
        assert isinstance(loop.schedule, LambdaLR)
        factors = zip(loop.optimizer.param_groups, loop.schedule.base_lrs, loop.schedule.lr_lambdas, strict=True)
        for group, rate, factor in factors:
            group["lr"] = rate * factor(loop.progress.step)


def _print_header(model: str, parameters: Parameters, data: PackedDataset, progress: RunProgress) -> None:
    progress.print(
        _("{model}: {trainable:,} of {total:,} parameters train ({share:.2%})").format(
            model=model, trainable=parameters.trainable, total=parameters.total, share=parameters.share
        )
    )
    train, held_out = data.summary.train, data.summary.held_out
    progress.print(
        _(
            "training data: {documents} ({characters}, {tokens} in the loss, in {rows} of {block_size}); held out: "
            "{held_out} ({held_out_characters})"
        ).format(
            documents=counts.documents(train.documents),
            characters=counts.characters(train.characters),
            tokens=counts.tokens(data.summary.target_tokens_per_epoch),
            rows=counts.rows(data.summary.blocks),
            block_size=data.summary.block_size,
            held_out=counts.documents(held_out.documents),
            held_out_characters=counts.characters(held_out.characters),
        )
    )
    for note in data.notes:
        progress.print(note)
