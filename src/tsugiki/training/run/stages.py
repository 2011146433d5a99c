"""One run: from settings, data and a base model to a folder that holds the trained adapter or model.

A run is a list of stages (`STAGES`, below), each of which adds to a `Run`. The settings of a run never change: what it
chooses is in `Run.choices`, and in the record.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from accelerate import Accelerator

from tsugiki.annotations import PreTrainedModel, PreTrainedTokenizerBase
from tsugiki.base.loading import load_model
from tsugiki.errors import TsugikiError
from tsugiki.fast.recomputation import recompute_blocks
from tsugiki.io.atomic import check_writable, remove_leftovers
from tsugiki.io.locks import OWNER_FILE, sole_use
from tsugiki.io.run_folder import CHECKPOINTS, checkpoint_step
from tsugiki.language import _, ngettext
from tsugiki.lora.hold import is_grafted
from tsugiki.lowbit.quantized_layer import decide
from tsugiki.training.choose.base_predictions import BasePredictions, predict_sample
from tsugiki.training.choose.choices import Choices, choices_for, rows_in_time, with_new_length
from tsugiki.training.choose.output_head import head_factor, head_notes
from tsugiki.training.choose.softmax import SAMPLED, sampled_tokens, samples_vocabulary
from tsugiki.training.data.packing import PackedDataset, pack_data
from tsugiki.training.data.read import read_data
from tsugiki.training.data.split import DatasetSplit
from tsugiki.training.measure.facts import Facts, fact_notes, given_facts, measured_facts
from tsugiki.training.model.notes import model_notes
from tsugiki.training.model.output_head import leaves_layers_open, with_output_head
from tsugiki.training.model.sharding import whole_model
from tsugiki.training.model.trainable import load_run_tokenizer, make_trainable, save_trained, trained_tokens
from tsugiki.training.record.progress import RunProgress
from tsugiki.training.record.run_record import RunRecord, new_record
from tsugiki.training.run.evaluation_callback import BaseResults
from tsugiki.training.run.preference_task import PreferenceTask, compute_reference, preference_task
from tsugiki.training.run.resume import describe_run, start_or_resume
from tsugiki.training.run.train_steps import advice_to_resume, loop_of, train_steps
from tsugiki.training.settings.config import AUTO, RunConfig
from tsugiki.training.step.sampled_loss import SampledTextLoss, sampling_note
from tsugiki.training.step.setup import seconds_per_step
from tsugiki.training.step.text_loss import TextLoss
from tsugiki.training.tools.memory import return_freed_memory
from tsugiki.training.tools.processes import (
    check_agreement,
    check_shared,
    errors_of_others,
    main_first,
    on_main,
    start_accelerator,
)

if TYPE_CHECKING:
    from tsugiki.base.new_words import NewWords

LOGS = "logs"
"""The folder in a run's folder into which trackers write."""


@dataclass(frozen=True)
class Texts:
    """The tokenizer and the data of a run, which depend only on the tokenizer of its model."""

    tokenizer: PreTrainedTokenizerBase
    new_words: "NewWords | None"
    split: DatasetSplit


@dataclass
class Run:
    """A run, and what its stages have found so far."""

    config: RunConfig
    """The settings, which never change."""
    settings: dict[str, Any]
    """The settings as the record has them."""
    accelerator: Accelerator
    """The device, and the processes that share the work."""
    display: RunProgress
    record: RunRecord
    checkpoint: Path | None = None
    """The checkpoint to continue from."""
    overwrite: bool = False
    """Remove the run that the folder holds, before the first step."""
    base_results: BaseResults | None = None
    """Results of the base, which runs with the same base and data share; None: they are not shared."""

    facts: Facts = field(init=False)
    texts: Texts = field(init=False)
    model: PreTrainedModel = field(init=False)
    data: PackedDataset = field(init=False)
    predictions: BasePredictions | None = None
    """What the base predicts on a sample of the text; None: no choice depends on it."""
    notes: list[str] = field(default_factory=list)
    """Notes on this run, one sentence each; runs that share data have `data.notes` in common."""
    adapter_config: Any = field(init=False)
    """The settings of the method, with the layers that were chosen."""
    head_factor: float = 1.0
    """Learning rate of the output head's B relative to that of the run."""
    text_loss: TextLoss = field(default_factory=TextLoss)
    """The cross-entropy of texts, over the whole vocabulary or by sampled softmax."""
    choices: Choices = field(init=False)
    resolved: dict[str, Any] = field(init=False)
    """What was chosen, for the record."""
    preference: PreferenceTask | None = None
    """Of a run that learns preferences."""
    is_longer: bool = False
    """Whether a run that is continued has another length than before."""

    def __post_init__(self) -> None:
        """Begin with the facts that the settings and the record give."""
        self.facts = given_facts(self.config, self.record, self.device)

    @property
    def device(self) -> torch.device:
        """The device on which this process computes."""
        device: torch.device = self.accelerator.device
        return device

    @property
    def out(self) -> Path:
        """The folder of the run."""
        return Path(self.config.out)

    @property
    def in_shards(self) -> bool:
        """Whether the weights are split over the processes; a single process does not split them."""
        return self.config.shard == "fsdp" and self.accelerator.num_processes > 1


Stage: TypeAlias = Callable[[Run], None]


def train(
    config: RunConfig, resume: bool = False, progress: RunProgress | None = None, overwrite: bool = False
) -> RunRecord:
    """Train as `config` describes. The folder `config.out` then holds the adapter or model, and `run.json`.

    Returns the record of the finished run.

    Args:
        resume: continue from the newest checkpoint in `config.out`. Only the length of the run, its prompts and some
            intervals may change (see `training.run.resume`); with a larger length, a finished run continues.
        progress: where to show the progress; None: a new display on standard error.
        overwrite: remove the run that `config.out` holds, before the first step.

    Raises:
        TsugikiError: an error that the user can correct. Files that were in the folder before are unchanged.
    """
    with started(config, resume, progress, overwrite) as run:
        for stage in STAGES:
            stage(run)
    return run.record


@contextmanager
def started(
    config: RunConfig, resume: bool = False, progress: RunProgress | None = None, overwrite: bool = False
) -> Iterator[Run]:
    """Start the processes of a run, lock its folder within the block, and find out where the run begins.

    The arguments are as for `train`.
    """
    accelerator, settings, out = _accelerator_of(config), config.to_record(), Path(config.out)

    def lock() -> None:
        check_writable(out)
        stack.enter_context(sole_use(out))
        remove_leftovers(out)  # of a process that was killed
        remove_leftovers(out / CHECKPOINTS)

    with errors_of_others(accelerator), ExitStack() as stack:
        display = stack.enter_context(progress or RunProgress(shown=accelerator.is_main_process))
        on_main(accelerator, lock)
        check_shared(accelerator, out / OWNER_FILE)
        record, checkpoint = start_or_resume(accelerator, settings, out, resume, overwrite)
        yield Run(config, settings, accelerator, display, record, checkpoint, overwrite)


def prepared(config: RunConfig) -> Run:
    """Return a run that is ready for its first step, and that writes nothing but the cache."""
    settings = config.to_record()
    run = Run(config, settings, _accelerator_of(config), RunProgress(), new_record(settings))
    for stage in STAGES[: STAGES.index(choose_numbers) + 1]:
        stage(run)
    return run


def _accelerator_of(config: RunConfig) -> Accelerator:
    return start_accelerator(config.device, config.report_to, str(Path(config.out) / LOGS))


def find_facts(run: Run) -> None:
    """Find the shapes of the model, the dtype of its base and the memory, by measuring where this is possible.

    Processes that share a run would not agree on what they measure.
    """
    if run.device.type == "cpu" and run.accelerator.num_processes == 1:
        run.facts = measured_facts(run.config, run.facts, is_resumed="base_dtype" in run.record.resolved_settings)
    run.record.base_dtype_seconds = run.facts.dtype_seconds
    if run.facts.memory is not None:
        run.record.planned_memory = run.facts.memory.peak
    for line in fact_notes(run.facts):
        run.display.print(line)


def read_texts(run: Run) -> None:
    """Load the tokenizer, and read the data. The main process tokenises them; the others find the tokens in the cache.

    The data are read before the model is loaded, so that errors in them appear at once.
    """
    config = run.config

    def read() -> Texts:
        tokenizer, new = load_run_tokenizer(config), None
        if config.add_tokens is not None:
            from tsugiki.base.new_words import add_words, read_words

            new = add_words(tokenizer, read_words(Path(config.add_tokens)))
        return Texts(tokenizer, new, read_data(config, tokenizer, run.display))

    run.texts = main_first(run.accelerator, read)


def load_base(run: Run) -> None:
    """Load the base model, add the run's new words to its vocabulary, and pack the data into rows for it.

    It is moved to the accelerator's device, but not if its weights will be split over the processes.
    """
    config, texts = run.config, run.texts
    run.display.announce(_("loading {model}").format(model=config.model))
    load = partial(load_model, config.model, run.facts.dtype, trust_remote_code=config.trust_remote_code)
    run.model = main_first(run.accelerator, load)
    return_freed_memory()  # loading stacks the weights of experts, and frees the unstacked copies
    if texts.new_words is not None:
        from tsugiki.base.new_words import add_rows

        add_rows(run.model, texts.new_words)
    if not run.in_shards:  # `shard` moves a part of the weights only
        run.model.to(run.device)
    if config.recompute == AUTO:
        recompute_blocks(run.model, run.facts.recomputed_blocks)
    run.data = pack_data(config, texts.split, run.model, texts.tokenizer)
    run.preference = preference_task(run)


def predict_text(run: Run) -> None:
    """Compute what the base predicts on a sample of the text, if a choice depends on it."""
    chooses_head = _chooses_layers(run) and "target_modules" not in run.record.resolved_settings
    if chooses_head or _samples_vocabulary(run):
        run.predictions = on_main(run.accelerator, lambda: predict_sample(run.model, run.data.blocks))


def choose_layers(run: Run) -> None:
    """Decide which layers the adapter changes: those of the settings, or the defaults, with the head if it is needed.

    A resumed run has the same layers as before. The head is left out where processes split the weights.
    """
    run.adapter_config = run.config.adapter_config
    if not _chooses_layers(run):
        return
    with_head = with_output_head(run.model, run.adapter_config)
    if with_head is None:
        return
    before = run.record.resolved_settings
    if "target_modules" in before:
        if set(before["target_modules"]) == {name.rpartition(".")[2] for name in with_head.target_modules or ()}:
            run.adapter_config, run.head_factor = with_head, before.get("head_factor", 1.0)
        return
    assert run.predictions is not None
    share = run.predictions.unlikely_share
    factor = head_factor(share, len(run.predictions.mean_probabilities))
    if factor is not None:
        run.adapter_config, run.head_factor = with_head, factor
        run.notes.extend(head_notes(share, run.model))


def _chooses_layers(run: Run) -> bool:
    config = run.config
    if config.start_from is not None or config.add_tokens is not None:  # new words train their own rows of the head
        return False
    return leaves_layers_open(config.adapter_config) and not run.in_shards


def _samples_vocabulary(run: Run) -> bool:
    is_on_processor = run.device.type == "cpu" and not run.in_shards
    return samples_vocabulary(run.config, run.record.resolved_settings, run.model, run.data.blocks, is_on_processor)


def _text_loss(run: Run) -> TextLoss:
    """Return the loss of a run that learns texts, after its model was made trainable."""
    if run.predictions is None or not _samples_vocabulary(run):
        return TextLoss()
    probabilities = run.predictions.mean_probabilities
    tokens = sampled_tokens(run.config, run.adapter_config, run.model, run.data.blocks, probabilities, run.in_shards)
    if tokens is None:
        return TextLoss()
    return SampledTextLoss(tokens.kept.to(run.device), tokens.vocabulary, tokens.drawn, run.config.seed)


def choose_numbers(run: Run) -> None:
    """Make the model trainable, and choose the rows of a step, the learning rate and the number of steps."""
    config, model, before = run.config, run.model, run.record.resolved_settings
    if "product_dtype" in before:  # of a resumed run
        decide(model.dtype, before["product_dtype"] == "int8")
    tokens = trained_tokens(config, run.texts.tokenizer)
    prepared = make_trainable(model, config, run.device, tokens, run.adapter_config)
    if run.accelerator.is_main_process:
        run.notes.extend(model_notes(config.model, model))
    if is_grafted(model):
        prepared["base_dtype"] = run.facts.dtype
    if config.start_from is not None:
        from tsugiki.adapters.library import adapter_folder
        from tsugiki.adapters.metadata import source_adapter
        from tsugiki.adapters.start import start_from

        start_from(model, config.start_from)
        run.record.started_from = source_adapter(adapter_folder(config.start_from))
    run.text_loss = _text_loss(run)
    if isinstance(run.text_loss, SampledTextLoss):
        prepared["softmax"] = SAMPLED
        run.notes.append(sampling_note(run.text_loss))
    blocks = run.data.blocks
    processes = run.accelerator.num_processes
    choices = choices_for(config, model, len(blocks), blocks.block_size, before, lambda: _rows_in_time(run), processes)
    choices = replace(choices, micro_batch_size=run.facts.micro_batch_size, head_factor=run.head_factor)
    on_main(run.accelerator, lambda: _check_rows(processes, min(choices.batch_size, len(blocks))))
    run.is_longer = run.checkpoint is not None and "steps" not in before
    if run.checkpoint is not None and run.is_longer:
        done = checkpoint_step(run.checkpoint)
        choices = with_new_length(choices, config, done)
        message = _(
            "continued from step {done} to {steps}; the learning rate follows the schedule of a run of {steps} steps"
        )
        run.display.print(message.format(done=done, steps=choices.steps))
    run.choices, run.resolved = choices, prepared | choices.resolved()


def describe(run: Run) -> None:
    """Write the machine, the base, the data and what was chosen into the record, and check that all processes agree."""
    describe_run(run.accelerator, run.record, run.config, run.model, run.data, run.resolved)
    check_agreement(
        run.accelerator,
        {
            **run.settings,
            "shard": run.config.shard,
            "data": run.record.data,
            _("base model"): run.record.base,
            _("settings that depend on the machine"): run.resolved,
        },
    )


def write_result(run: Run) -> None:
    """Write the files of what was trained, and the record of the finished run."""
    run.record.status = "finished"
    trained = whole_model(run.model, keep=run.accelerator.is_main_process)
    has_chats = run.data.summary.learns_conversations

    def write() -> None:
        save_trained(trained, run.texts.tokenizer, run.out, run.config.save_dtype, with_template=has_chats)
        run.record.write(run.out)

    with advice_to_resume(run.out):
        on_main(run.accelerator, write)


STAGES: tuple[Stage, ...] = (
    find_facts,  # shapes, the dtype of the base, and the memory, before the weights are loaded
    read_texts,  # tokenizer -> data, split into training and held-out text
    load_base,  # model -> packed rows
    predict_text,  # what the base predicts on a sample of the text
    choose_layers,  # the layers that get factors: the output head, too, if the text needs it
    choose_numbers,  # graft the adapter; rows of a step, learning rate, steps
    compute_reference,  # of preference tuning: log-probabilities of the answers before the first step
    describe,  # machine, base and data in the record; a resumed run must have the same
    train_steps,  # the loop, in which `EvaluationCallback` evaluates, samples and writes `run.json`
    write_result,  # the files of the adapter or of the model
)
"""A whole run, as of `tsugiki train`. A preview ends after `choose_numbers`; the runs of a comparison share texts
and base."""


def _rows_in_time(run: Run) -> int:
    """Measure how many rows fit into the time limit of the run; all processes use the main process's value."""
    assert run.config.minutes is not None
    rows = len(run.data.blocks)
    threads = torch.get_num_threads() if run.device.type == "cpu" else 1
    at_once = min(threads * run.accelerator.num_processes, rows)
    loop = loop_of(run, Choices(at_once, learning_rate=1.0, steps=1, micro_batch_size=run.facts.micro_batch_size))
    per_row = seconds_per_step(loop) / at_once
    left = run.config.minutes * 60 - (time.monotonic() - run.display.started)
    return on_main(
        run.accelerator, lambda: rows_in_time(left, per_row, run.data.summary, run.config.held_out_characters)
    )


def _check_rows(processes: int, rows: int) -> None:
    """Check that each process has at least one row of a step."""
    if processes > rows:
        message = ngettext(
            "{processes} processes cannot share an optimiser step of {rows} row: start fewer processes, or use a "
            "larger --batch-size or more data",
            "{processes} processes cannot share an optimiser step of {rows} rows: start fewer processes, or use a "
            "larger --batch-size or more data",
            rows,
        )
        raise TsugikiError(message.format(processes=processes, rows=rows))
