"""The stages of a run before its first step: choose what is open, make the model trainable, and describe the run."""

import time
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from tsugiki.annotations import PreTrainedModel
from tsugiki.base.checks import code_digest
from tsugiki.base.identity import identity_of, why_different
from tsugiki.base.resolve import settings_folder
from tsugiki.data.read.files import describe_data
from tsugiki.errors import TsugikiError, summarise_list, warn_caller
from tsugiki.io.measurements import decide
from tsugiki.io.progress import Detail
from tsugiki.language import _, ngettext
from tsugiki.lora.adapter import LoraAdapter
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.hold import active_adapter, is_grafted
from tsugiki.lowbit.quantization import count_parameters
from tsugiki.lowbit.quantized_layer import key_of
from tsugiki.model.products import LIBRARIES
from tsugiki.model.ungrafted import base_modules, vocabulary_layers
from tsugiki.training.choose.choices import Choices, choices_for, length_note, rows_in_time, with_new_length
from tsugiki.training.choose.output_head import (
    SAMPLED,
    BasePredictions,
    head_factor,
    head_notes,
    leaves_layers_open,
    predict_sample,
    sampled_tokens,
    samples_vocabulary,
    vocabulary_of,
    with_output_head,
)
from tsugiki.training.measure.dtype_speed import rows_at_once
from tsugiki.training.measure.facts import Facts
from tsugiki.training.model.trainable import make_trainable, trained_tokens
from tsugiki.training.record.run_record import (
    Parameters,
    RecordedBase,
    RunRecord,
    describe_machine,
    library_versions,
)
from tsugiki.training.run.load import kept_of_base
from tsugiki.training.run.preference import answer_loss, preference_notes
from tsugiki.training.run.start import Base, Layers, Ready, Start, loop_of
from tsugiki.training.step.setup import seconds_per_step
from tsugiki.training.step.text_loss import SampledTextLoss, StepLoss, TextLoss, sampling_note
from tsugiki.training.tools.processes import check_agreement, on_main


def prepare(start: Start, facts: Facts, base: Base) -> Ready:
    """Choose what the settings leave open, and make the model trainable. A preview ends here."""
    with_head = _with_open_head(start, base.model)
    samples = _samples_vocabulary(start, base)
    predictions = None
    if samples or (with_head is not None and "target_modules" not in start.before):
        predictions = on_main(start.accelerator, lambda: _predictions(start, base))
    layers = choose_layers(start.before, base.model, start.config.adapter_config, with_head, predictions)
    resolved, more = make_model_trainable(start, base, layers)
    notes = [*map(Detail, layers.notes), *more]
    if start.in_shards and leaves_layers_open(start.config.adapter_config):
        message = _(
            "the output head gets no LoRA factors, because {flag:shard fsdp} does not measure on split weights whether "
            "they help; {flag:target_modules} can name it"
        )
        notes.append(message)
    loss = choose_loss(start, base, layers, predictions if samples else None)
    if isinstance(loss, SampledTextLoss):
        resolved["softmax"] = SAMPLED
        notes.append(Detail(sampling_note(loss)))
    choices = choose_numbers(start, facts, base, layers, loss)
    if start.config.preference is not None:
        notes = [*preference_notes(start.config.preference, start.config.loss_settings()), *notes]
    if not start.config.has_length or start.config.minutes is not None:
        notes.append(length_note(choices))
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
    kept, drawn = tokens
    return SampledTextLoss(kept.to(start.device), vocabulary_of(base.model), drawn, start.config.seed)


def choose_numbers(start: Start, facts: Facts, base: Base, layers: Layers, loss: StepLoss) -> Choices:
    """Choose the rows of a step and of a micro-batch, the learning rate and the number of steps, for a model that was
    made trainable.
    """
    config, blocks, processes = start.config, base.data.blocks, start.accelerator.num_processes
    choices = choices_for(
        config,
        base.model,
        len(blocks),
        blocks.block_size,
        start.before,
        partial(_rows_in_time, start, facts.micro_batch_size, base, loss),
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
        "continued from step {done} to {steps}; the learning rate follows the schedule of a run of {steps} steps",
        done=done,
        steps=choices.steps,
    )
    start.display.print(message)
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
            processes=processes,
            rows=rows,
        )
        raise TsugikiError(message)


_LEAST_REACHED = 0.5  # share of the weights below which the user is told that an adapter leaves out the others


def reach_notes(model: nn.Module) -> list[str]:
    """Return a note if a LoRA adapter leaves out most of the weights between embedding and head."""
    adapter = active_adapter(model) if is_grafted(model) else None
    if not isinstance(adapter, LoraAdapter):
        return []
    ends = {id(layer) for layer in vocabulary_layers(model).values()}
    inside = [(path, layer) for path, layer in base_modules(model) if id(layer) not in ends]
    sizes = {
        f"{path}.{name}": parameter.numel()
        for path, layer in inside
        for name, parameter in layer._parameters.items()
        if parameter is not None and parameter.dim() > 1 and not isinstance(layer, nn.Embedding)
    }
    reached = sum(size for name, size in sizes.items() if _is_reached(adapter, name))
    total = sum(sizes.values())
    if not total or reached / total >= _LEAST_REACHED:
        return []
    message = _(
        "the adapter is on layers with {share:.0%} of the weights between embedding and head; `tsugiki methods "
        "targets` lists the others",
        share=reached / total,
    )
    return [message]


def _is_reached(adapter: LoraAdapter, name: str) -> bool:
    path = name.rpartition(".")[0]
    whole = any(path == saved or path.startswith(f"{saved}.") for saved in adapter.modules)
    return path in adapter.pairs or name in adapter.parameter_pairs or whole


def describe(start: Start, base: Base, ready: Ready) -> None:
    """Write the machine, the base, the data and what was chosen into the record, and check that all processes agree.

    A resumed run must have the same base, data and choices as before.
    """
    record, config, model, accelerator = start.record, start.config, base.model, start.accelerator
    _describe_versions(record)
    record.machine = describe_machine(start.device, accelerator.num_processes)
    base_before, data_before = record.base, record.data
    code = code_digest(settings_folder(config.model, trust_remote_code=True)) if config.trust_remote_code else None
    identity = identity_of(model)  # of the base, whose weights the adapter does not change
    record.base = RecordedBase(name=config.model, dtype=str(model.dtype), code=code, **dict(identity))
    record.data = base.data.summary
    if base_before is not None and (_is_other_base(base_before, record.base) or data_before != record.data):
        raise TsugikiError(
            "{data} or {model} has changed since the run in {out} was started; restore it, or start a new run with "
            "another {flag:out}",
            data=describe_data(config.data),
            model=config.model,
            out=config.out,
        )
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = count_parameters(model)
    record.parameters = Parameters(trainable=trainable, total=total, share=trainable / total)
    record.resolved_settings = dict(ready.resolved)
    for name, value in start.before.items():
        now = ready.resolved.get(name)
        if value != now:
            raise TsugikiError(
                "the run in {out} was started on another machine or with another base: {name} was {value} and "
                "would be {now} here",
                out=config.out,
                name=name,
                value=value,
                now=now,
            )
    check_agreement(
        accelerator,
        {
            **record.config.to_dict(),
            "shard": config.shard,
            "data": record.data,
            _("base model"): record.base,
            _("settings that depend on the machine"): ready.resolved,
        },
    )


def _describe_versions(record: RunRecord) -> None:
    """Record and warn that a library has another version than before the run was resumed."""
    before, now = record.versions, library_versions()
    changed = [
        _("{name} was {before} and is {now}", name=name, before=before.get(name), now=now[name])
        for name in now
        if before.get(name) != now[name]
    ]
    if changed:
        message = _(
            "the run was started with other versions: {changed}; its result may differ from that of an "
            "uninterrupted run",
            changed=summarise_list(changed),
        )
        warn_caller(message)
        record.earlier_versions.append(before)
        record.versions = now


def _is_other_base(before: RecordedBase, now: RecordedBase) -> bool:
    return bool(why_different(before, now)) or (before.dtype, before.code) != (now.dtype, now.code)
