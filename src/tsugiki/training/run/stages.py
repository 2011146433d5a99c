"""One run: from settings, data and a base model to a folder that holds the trained adapter or model.

Each stage takes what it needs of the results of the stages before it, and returns its own. No result changes later. The
weights of the model do, and the record gets what is measured.

    started               settings                         -> Start     processes, display, record, checkpoint
    find_facts            start                            -> Facts     dtype of the base, memory, recomputed blocks
    read_texts            start                            -> Texts     tokenizer, training and held-out text
    load_base             start, facts, texts              -> Base      model, packed rows
    prepare               start, facts, base               -> Ready     all of the following; a preview ends here
      choose_layers         model, what the base predicts    -> Layers    the output head, too, if the text needs it
      make_model_trainable  start, facts, base, layers                    grafts the adapter
      choose_loss           start, base, layers              -> StepLoss  of texts, or of pairs
      choose_numbers        start, facts, base, loss         -> Choices   rows of a step, learning rate, steps
    add_reference         start, facts, base, ready        -> Ready     of pairs: log-probabilities now
    describe              start, base, ready                            machine, base and data in the record
    train_steps           start, facts, base, ready                     evaluates, samples and writes `run.json`
    write_result          start, base                                   the files of the adapter or of the model
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tsugiki.annotations import PreTrainedModel
from tsugiki.base.loading import load_model
from tsugiki.errors import TsugikiError
from tsugiki.fast.recomputation import recompute_blocks
from tsugiki.language import _, ngettext
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.hold import is_grafted
from tsugiki.lowbit.quantized_layer import decide
from tsugiki.training.choose.base_predictions import BasePredictions, predict_sample
from tsugiki.training.choose.choices import Choices, choices_for, rows_in_time, with_new_length
from tsugiki.training.choose.output_head import head_factor, head_notes
from tsugiki.training.choose.softmax import SAMPLED, sampled_tokens, samples_vocabulary
from tsugiki.training.data.packing import pack_data
from tsugiki.training.data.read import read_data
from tsugiki.training.measure.facts import Facts, fact_notes, given_facts, measured_facts
from tsugiki.training.model.notes import model_notes
from tsugiki.training.model.output_head import leaves_layers_open, with_output_head
from tsugiki.training.model.sharding import whole_model
from tsugiki.training.model.trainable import load_run_tokenizer, make_trainable, save_trained, trained_tokens
from tsugiki.training.record.progress import RunProgress
from tsugiki.training.record.run_record import RunRecord
from tsugiki.training.run.preference import add_reference, answer_loss, preference_notes
from tsugiki.training.run.resume import describe_run
from tsugiki.training.run.stage_results import Base, Layers, Prepared, Ready, Texts, loop_of
from tsugiki.training.run.start import Start, started, unwritten
from tsugiki.training.run.train_steps import advice_to_resume, train_steps
from tsugiki.training.settings.config import AUTO, RunConfig
from tsugiki.training.step.sampled_loss import SampledTextLoss, sampling_note
from tsugiki.training.step.setup import seconds_per_step
from tsugiki.training.step.text_loss import StepLoss, TextLoss
from tsugiki.training.tools.memory import return_freed_memory
from tsugiki.training.tools.processes import check_agreement, main_first, on_main


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
    with started(config, config.to_record(), resume, progress, overwrite) as start:
        facts = find_facts(start)
        train_on(start, facts, load_base(start, facts, read_texts(start)))
    return start.record


def prepared(config: RunConfig) -> Prepared:
    """Return a run that is ready for its first step, and that writes nothing but the cache."""
    start = unwritten(config)
    facts = find_facts(start)
    base = load_base(start, facts, read_texts(start))
    return Prepared(start, base, prepare(start, facts, base))


def train_on(start: Start, facts: Facts, base: Base) -> None:
    """Train on a base that is loaded, and write the result. Runs of a comparison share texts and base."""
    ready = add_reference(start, facts, base, prepare(start, facts, base))
    describe(start, base, ready)
    train_steps(start, facts, base, ready)
    write_result(start, base)


def prepare(start: Start, facts: Facts, base: Base) -> Ready:
    """Choose what the settings leave open, and make the model trainable. A preview ends here."""
    with_head = _with_open_head(start, base.model)
    samples = _samples_vocabulary(start, base)
    predictions = None
    if samples or (with_head is not None and "target_modules" not in start.before):
        predictions = on_main(start.accelerator, lambda: predict_sample(base.model, base.data.blocks))
    layers = choose_layers(start.before, base.model, start.config.adapter_config, with_head, predictions)
    resolved, notes = make_model_trainable(start, facts, base, layers)
    loss = choose_loss(start, base, layers, predictions if samples else None)
    if isinstance(loss, SampledTextLoss):
        resolved["softmax"] = SAMPLED
        notes = [*notes, sampling_note(loss)]
    choices = choose_numbers(start, facts, base, layers, loss)
    notes = [*preference_notes(start.config), *layers.notes, *notes]
    return Ready(choices, loss, resolved | choices.resolved(), notes)


def find_facts(start: Start) -> Facts:
    """Find the shapes of the model, the dtype of its base and the memory, by measuring where this is possible.

    Processes that share a run would not agree on what they measure.
    """
    record = start.record
    facts = given_facts(start.config, record, start.device)
    if start.device.type == "cpu" and start.accelerator.num_processes == 1:
        facts = measured_facts(start.config, facts, is_resumed="base_dtype" in start.before)
    record.base_dtype_seconds = facts.dtype_seconds
    if facts.memory is not None:
        record.planned_memory = facts.memory.peak
    for line in fact_notes(facts):
        start.display.print(line)
    return facts


def read_texts(start: Start) -> Texts:
    """Load the tokenizer, and read the data. The main process tokenises them; the others find the tokens in the cache.

    The data are read before the model is loaded, so that errors in them appear at once.
    """
    config = start.config

    def read() -> Texts:
        tokenizer, new = load_run_tokenizer(config), None
        if config.add_tokens is not None:
            from tsugiki.base.new_words import add_words, read_words

            new = add_words(tokenizer, read_words(Path(config.add_tokens)))
        return Texts(tokenizer, new, read_data(config, tokenizer, start.display))

    return main_first(start.accelerator, read)


def load_base(start: Start, facts: Facts, texts: Texts) -> Base:
    """Load the base model, and pack the data into rows for it. New words are added to its vocabulary."""
    model = load_run_model(start, facts, texts)
    data = pack_data(start.config, texts.split, model, texts.tokenizer)
    return Base(model, texts.tokenizer, data, facts.dtype)


def load_run_model(start: Start, facts: Facts, texts: Texts) -> PreTrainedModel:
    """Load the base model, and add the run's new words to its vocabulary.

    It is moved to the accelerator's device, but not if its weights will be split over the processes.
    """
    config = start.config
    start.display.announce(_("loading {model}").format(model=config.model))
    load = partial(load_model, config.model, facts.dtype, trust_remote_code=config.trust_remote_code)
    model = main_first(start.accelerator, load)
    return_freed_memory()  # loading stacks the weights of experts, and frees the unstacked copies
    if texts.new_words is not None:
        from tsugiki.base.new_words import add_rows

        add_rows(model, texts.new_words)
    if not start.in_shards:  # `shard` moves a part of the weights only
        model.to(start.device)
    if config.recompute == AUTO:
        recompute_blocks(model, facts.recomputed_blocks)
    return model


def _with_open_head(start: Start, model: PreTrainedModel) -> LoraConfig | None:
    """Return settings of the adapter with the output head; None: the run does not choose whether the head trains.

    It does not where processes split the weights, and new words train their own rows of the head.
    """
    config = start.config
    if config.start_from is not None or config.add_tokens is not None or start.in_shards:
        return None
    adapter_config = config.adapter_config
    return with_output_head(model, adapter_config) if leaves_layers_open(adapter_config) else None


def _samples_vocabulary(start: Start, base: Base) -> bool:
    is_on_processor = start.device.type == "cpu" and not start.in_shards
    return samples_vocabulary(start.config, start.before, base.model, base.data.blocks, is_on_processor)


def choose_layers(
    before: Mapping[str, Any],
    model: PreTrainedModel,
    default: Any,
    with_head: LoraConfig | None,
    predictions: BasePredictions | None,
) -> Layers:
    """Decide which layers the adapter changes: those of the settings, or the defaults, with the head if it is needed.

    A resumed run has the same layers as before.
    """
    if with_head is None:
        return Layers(default)
    if "target_modules" in before:
        with_head_before = {name.rpartition(".")[2] for name in with_head.target_modules or ()}
        if set(before["target_modules"]) != with_head_before:
            return Layers(default)
        return Layers(with_head, before.get("head_factor", 1.0))
    assert predictions is not None
    share = predictions.unlikely_share
    factor = head_factor(share, len(predictions.mean_probabilities))
    return Layers(default) if factor is None else Layers(with_head, factor, head_notes(share, model))


def make_model_trainable(start: Start, facts: Facts, base: Base, layers: Layers) -> tuple[dict[str, Any], list[str]]:
    """Graft the adapter, or make all weights trainable. Return what was decided for it, for the record, and notes."""
    config, model, before = start.config, base.model, start.before
    if "product_dtype" in before:  # of a resumed run
        decide(model.dtype, before["product_dtype"] == "int8")
    tokens = trained_tokens(config, base.tokenizer)
    resolved = make_trainable(model, config, start.device, tokens, layers.adapter_config)
    notes = model_notes(config.model, model) if start.accelerator.is_main_process else []
    if is_grafted(model):
        resolved["base_dtype"] = facts.dtype
    if config.start_from is not None:
        from tsugiki.adapters.library import adapter_folder
        from tsugiki.adapters.metadata import source_adapter
        from tsugiki.adapters.start import start_from

        start_from(model, config.start_from)
        start.record.started_from = source_adapter(adapter_folder(config.start_from))
    return resolved, notes


def choose_loss(start: Start, base: Base, layers: Layers, predictions: BasePredictions | None) -> StepLoss:
    """Return what a step minimises: the loss of pairs, or that of texts, by sampled softmax if there are `predictions`.

    The model was made trainable.
    """
    if base.data.answers is not None:
        return answer_loss(start.config, base.data.answers)
    if predictions is None:
        return TextLoss()
    probabilities = predictions.mean_probabilities
    tokens = sampled_tokens(
        start.config, layers.adapter_config, base.model, base.data.blocks, probabilities, start.in_shards
    )
    if tokens is None:
        return TextLoss()
    return SampledTextLoss(tokens.kept.to(start.device), tokens.vocabulary, tokens.drawn, start.config.seed)


def choose_numbers(start: Start, facts: Facts, base: Base, layers: Layers, loss: StepLoss) -> Choices:
    """Choose the rows of a step, the learning rate and the number of steps, for a model that was made trainable."""
    config, blocks, processes = start.config, base.data.blocks, start.accelerator.num_processes

    def rows_in_the_time() -> int:
        return _rows_in_time(start, facts, base, loss)

    choices = choices_for(config, base.model, len(blocks), blocks.block_size, start.before, rows_in_the_time, processes)
    choices = replace(choices, micro_batch_size=facts.micro_batch_size, head_factor=layers.head_factor)
    on_main(start.accelerator, lambda: _check_rows(processes, min(choices.batch_size, len(blocks))))
    if start.in_shards and not is_grafted(base.model):  # weights in shards are not read back from a checkpoint
        choices = replace(choices, keep="last")
    if (done := start.steps_before) is None:
        return choices
    choices = with_new_length(choices, config, done)
    message = _(
        "continued from step {done} to {steps}; the learning rate follows the schedule of a run of {steps} steps"
    )
    start.display.print(message.format(done=done, steps=choices.steps))
    return choices


def describe(start: Start, base: Base, ready: Ready) -> None:
    """Write the machine, the base, the data and what was chosen into the record, and check that all processes agree."""
    record, config = start.record, start.config
    describe_run(start.accelerator, record, config, base.model, base.data, dict(ready.resolved))
    check_agreement(
        start.accelerator,
        {
            **record.config.to_dict(),
            "shard": config.shard,
            "data": record.data,
            _("base model"): record.base,
            _("settings that depend on the machine"): ready.resolved,
        },
    )


def write_result(start: Start, base: Base) -> None:
    """Write the files of what was trained, and the record of the finished run."""
    record, out = start.record, start.out
    record.status = "finished"
    trained = whole_model(base.model, keep=start.accelerator.is_main_process)
    has_chats = base.data.summary.learns_conversations

    def write() -> None:
        save_trained(trained, base.tokenizer, out, start.config.save_dtype, with_template=has_chats)
        record.write(out)

    with advice_to_resume(out):
        on_main(start.accelerator, write)


def _rows_in_time(start: Start, facts: Facts, base: Base, loss: StepLoss) -> int:
    """Measure how many rows fit into the time limit of the run; all processes use the main process's value."""
    config = start.config
    assert config.minutes is not None
    rows = len(base.data.blocks)
    threads = torch.get_num_threads() if start.device.type == "cpu" else 1
    at_once = min(threads * start.accelerator.num_processes, rows)
    few = Choices(at_once, learning_rate=1.0, steps=1, micro_batch_size=facts.micro_batch_size)
    per_row = seconds_per_step(loop_of(start, base, loss, few)) / at_once
    left = config.minutes * 60 - (time.monotonic() - start.display.started)
    return on_main(
        start.accelerator, lambda: rows_in_time(left, per_row, base.data.summary, config.held_out_characters)
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
