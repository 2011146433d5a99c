"""The stages of a run before its first step: choose what the settings leave open, and make the model trainable."""

import time
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from tsugiki.annotations import PreTrainedModel
from tsugiki.errors import TsugikiError
from tsugiki.io.measurements import decide
from tsugiki.language import _, ngettext
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.hold import is_grafted
from tsugiki.lowbit.quantized_layer import key_of
from tsugiki.model.products import LIBRARIES
from tsugiki.training.choose.base_predictions import BasePredictions, predict_sample
from tsugiki.training.choose.choices import Choices, choices_for, length_note, rows_in_time, with_new_length
from tsugiki.training.choose.output_head import head_factor, head_notes, leaves_layers_open, with_output_head
from tsugiki.training.choose.softmax import SAMPLED, sampled_tokens, samples_vocabulary
from tsugiki.training.measure.dtype_speed import rows_at_once
from tsugiki.training.measure.facts import Facts
from tsugiki.training.model.notes import reach_notes
from tsugiki.training.model.trainable import make_trainable, trained_tokens
from tsugiki.training.run.base_results import kept_of_base
from tsugiki.training.run.preference import answer_loss, preference_notes
from tsugiki.training.run.stage_results import Base, Layers, Ready, loop_of
from tsugiki.training.run.start import Start
from tsugiki.training.step.sampled_loss import SampledTextLoss, sampling_note
from tsugiki.training.step.setup import seconds_per_step
from tsugiki.training.step.text_loss import StepLoss, TextLoss
from tsugiki.training.tools.processes import on_main


def prepare(start: Start, facts: Facts, base: Base) -> Ready:
    """Choose what the settings leave open, and make the model trainable. A preview ends here."""
    with_head = _with_open_head(start, base.model)
    samples = _samples_vocabulary(start, base)
    predictions = None
    if samples or (with_head is not None and "target_modules" not in start.before):
        predictions = on_main(start.accelerator, lambda: _predictions(start, base))
    layers = choose_layers(start.before, base.model, start.config.adapter_config, with_head, predictions)
    resolved, more = make_model_trainable(start, base, layers)
    notes = [*layers.notes, *more]
    if start.in_shards and leaves_layers_open(start.config.adapter_config):
        message = _(
            "the output head gets no LoRA factors, because {flag:shard fsdp} does not measure on split weights whether "
            "they help; {flag:target_modules} can name it"
        )
        notes.append(message)
    loss = choose_loss(start, base, layers, predictions if samples else None)
    if isinstance(loss, SampledTextLoss):
        resolved["softmax"] = SAMPLED
        notes = [*notes, sampling_note(loss)]
    choices = choose_numbers(start, facts, base, layers, loss)
    if not start.config.has_length or start.config.minutes is not None:
        notes = [*notes, length_note(choices)]
    if start.config.preference is not None:
        notes = [*preference_notes(start.config.preference, start.config.loss_settings()), *notes]
    return Ready(choices, loss, resolved | choices.resolved(), notes)


def _predictions(start: Start, base: Base) -> BasePredictions:
    def predict() -> tuple[float, str]:
        found = predict_sample(base.model, base.data.blocks)
        return found.unlikely_share, b64encode(found.mean_probabilities.numpy().tobytes()).decode()

    facts = "predictions", base.data.summary.blocks_fingerprint
    share, probabilities = kept_of_base(start, base.model, base.dtype, facts, predict)
    return BasePredictions(share, torch.frombuffer(bytearray(b64decode(probabilities)), dtype=torch.float32))


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


def make_model_trainable(start: Start, base: Base, layers: Layers) -> tuple[dict[str, Any], list[str]]:
    """Graft the adapter, or make all weights trainable. Return what was decided for it, for the record, and notes."""
    config, model, before = start.config, base.model, start.before
    if "product_dtype" in before:  # of a resumed run
        decide(key_of(model.dtype), before["product_dtype"] == "int8")
    if "product_library" in before:
        decide(LIBRARIES, before["product_library"] == "oneDNN")
    tokens = trained_tokens(config, base.tokenizer)
    resolved = make_trainable(model, config, start.device, tokens, layers.adapter_config)
    notes = reach_notes(model)
    if is_grafted(model):
        resolved["base_dtype"] = base.dtype
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
    if base.data.answers:
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
    """Choose the rows of a step and of a micro-batch, the learning rate and the number of steps, for a model that was
    made trainable.
    """
    config, blocks, processes = start.config, base.data.blocks, start.accelerator.num_processes

    def rows_in_the_time() -> int:
        return _rows_in_time(start, facts.micro_batch_size, base, loss)

    choices = choices_for(
        config,
        base.model,
        len(blocks),
        blocks.block_size,
        start.before,
        rows_in_the_time,
        processes,
        learns_answers=base.data.summary.learns_answers,
        has_validation=bool(base.data.validation_windows),
    )
    micro_batch, packed = facts.micro_batch_size, base.data.document_masking != "separate_rows"
    if micro_batch is None and facts.shapes and packed and not start.before:
        micro_batch = rows_at_once(config, facts.shapes, base.dtype, min(choices.batch_size, len(blocks)))
    choices = replace(choices, micro_batch_size=micro_batch, head_factor=layers.head_factor)
    on_main(start.accelerator, lambda: _check_rows(processes, min(choices.batch_size, len(blocks))))
    if start.in_shards and not is_grafted(base.model):  # weights in shards are not read back from a checkpoint
        choices = replace(choices, keep="last", is_open=False)
    if (done := start.steps_before) is None:
        return choices
    choices = with_new_length(choices, config, done)
    message = _(
        "continued from step {done} to {steps}; the learning rate follows the schedule of a run of {steps} steps"
    )
    start.display.print(message.format(done=done, steps=choices.steps))
    return choices


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
    config = start.config
    learns_texts = isinstance(config.adapter_config, LoraConfig) and config.preference is None
    can_choose = learns_texts and start.device.type == "cpu" and not start.in_shards
    return samples_vocabulary(config.softmax, start.before, base.model, base.data.blocks, can_choose)


def _rows_in_time(start: Start, rows_at_once: int | None, base: Base, loss: StepLoss) -> int:
    """Measure how many rows fit into the time limit of the run; all processes use the main process's value."""
    config = start.config
    assert config.minutes is not None
    rows = len(base.data.blocks)
    threads = torch.get_num_threads() if start.device.type == "cpu" else 1
    at_once = min(threads * start.accelerator.num_processes, rows)
    few = Choices(at_once, learning_rate=1.0, steps=1, micro_batch_size=rows_at_once)
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
            "larger {flag:batch_size} or more data",
            "{processes} processes cannot share an optimiser step of {rows} rows: start fewer processes, or use a "
            "larger {flag:batch_size} or more data",
            rows,
        )
        raise TsugikiError(message.format(processes=processes, rows=rows))
