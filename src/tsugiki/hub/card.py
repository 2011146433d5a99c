"""The card of an adapter on the hub: `README.md`, of metadata in YAML and a page in Markdown.

Whatever was not written here stands in a code span or a fenced block, where Markdown and HTML mean nothing. The last
line carries a digest of the rest: a card that a person wrote or changed can be told from one that nobody touched.
"""

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from tsugiki.adapters.metadata import BaseReference, Provenance
from tsugiki.base.loading import EMBEDDED
from tsugiki.export.compatibility import (
    can_merge,
    is_plain_lora,
    peft_reads,
    rank_for_vllm,
    vllm_incompatibilities,
)
from tsugiki.hub.markdown import code_span, fenced
from tsugiki.io.digests import sha256
from tsugiki.io.formatting import format_duration, format_gigabytes, format_size
from tsugiki.lora.config import LoraConfig
from tsugiki.methods.table import METHODS, format_of
from tsugiki.report.formatting import describe_change, format_with_interval
from tsugiki.report.run import data_lines
from tsugiki.train.evaluation.interval import Interval
from tsugiki.train.evaluation.result import Evaluation, change_of_bits
from tsugiki.train.record import RunRecord

_SEAL = re.compile(
    r"\n<!-- tsugiki push wrote this card, and writes it anew while nobody edits it: ([0-9a-f]{64}) -->\s*$"
)


@dataclass(frozen=True)
class CardData:
    """What a card tells."""

    repo_id: str
    config: Any
    """Settings of the adapter, of the class that its form has."""
    fields: Mapping[str, Any]
    """Of `adapter_config.json`, as sent."""
    base: BaseReference
    """Its name on the hub, or `embedded`; None where others cannot find it."""
    provenance: Provenance | None
    """How it was derived from others; None if it was trained."""
    record: RunRecord | None
    """Of the run, if it was trained here."""
    parameters: int
    size: int
    """Bytes of the weights."""
    license_id: str | None
    languages: Sequence[str]


def model_card(adapter: CardData) -> str:
    """The text of `README.md`."""
    form, refused = format_of(adapter.config), vllm_incompatibilities(adapter.config)
    page = (
        _environment()
        .get_template("card.md")
        .render(
            adapter=adapter,
            name=adapter.repo_id.partition("/")[2],
            base_in_words=_base_in_words(adapter.base.name),
            method=_method(adapter),
            figures=_figures(adapter.record),
            samples=_samples(adapter.record),
            made=adapter.provenance.lines() if adapter.provenance else [],
            data=_data(adapter.record),
            cost=_cost(adapter.record),
            peft=peft_reads(form),
            loads=_loading(adapter.base.name),
            base_argument=shlex.quote(adapter.base.name or "BASE"),
            prompt=shlex.quote(_first_prompt(adapter.record)),
            refused_by_vllm=refused,
            rank_for_vllm=None if refused else rank_for_vllm(adapter.config),
            llama_cpp=is_plain_lora(adapter.config),
            merges=can_merge(form),
        )
    )
    return _sealed(f"---\n{_metadata(adapter).to_yaml()}\n---\n\n{page}")


def is_own_card(text: str) -> bool:
    """Whether a card was written here, and nobody has changed it since."""
    text = text.replace("\r\n", "\n")
    seal = _SEAL.search(text)
    return seal is not None and seal[1] == _digest(text[: seal.start()])


def _sealed(text: str) -> str:
    text = text.rstrip()
    seal = f"<!-- tsugiki push wrote this card, and writes it anew while nobody edits it: {_digest(text)} -->"
    return f"{text}\n\n{seal}\n"


def _digest(text: str) -> str:
    return sha256([text.strip().encode("utf-8", errors="replace")]).removeprefix("sha256:")


def _metadata(adapter: CardData) -> ModelCardData:
    form = format_of(adapter.config)
    base = None if adapter.base.name == EMBEDDED else adapter.base.name
    results = _results(adapter.record)
    return ModelCardData(
        base_model=base,
        base_model_relation="adapter" if base else None,
        language=list(adapter.languages) or None,
        license=adapter.license_id,
        library_name="peft" if peft_reads(form) else "tsugiki",
        pipeline_tag="text-generation" if adapter.fields.get("task_type") == "CAUSAL_LM" else None,
        tags=[*(["lora"] if isinstance(adapter.config, LoraConfig) else []), "tsugiki"],
        model_name=adapter.repo_id.partition("/")[2] if results else None,
        eval_results=results or None,
    )


def _results(record: RunRecord | None) -> list[EvalResult]:
    """The figures after training, on the run's own held-out text."""
    if record is None or not record.evaluations:
        return []
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type="held-out",
            dataset_name="held-out text of the run",
            metric_type=name,
            metric_name=label,
            metric_value=float(f"{value:.6g}"),
        )
        for name, label, value, _ in _figures_of(record.evaluations[-1])
        if math.isfinite(value)
    ]


def _figures(record: RunRecord | None) -> dict[str, Any]:
    """A table before and after, and how sure the change is; nothing where it was not measured twice."""
    if record is None or len(record.evaluations) < 2:
        return {}
    before, after = record.evaluations[0], record.evaluations[-1]
    rows = [
        [
            label,
            *(format_with_interval(value, interval).replace("\n", " ") for value, interval in ((was, of), (now, at))),
        ]
        for (_, label, was, of), (_, _, now, at) in zip(_figures_of(before), _figures_of(after), strict=True)
    ]
    change = change_of_bits(before, after)
    described = describe_change(change)
    if not math.isnan(change.relative):
        described = f"{change.relative:+.1%} ({described})"
    return {"rows": rows, "change": described, "warning": after.warning, "characters": after.characters}


def _figures_of(result: Evaluation) -> list[tuple[str, str, float, Interval | None]]:
    """Return name, label, value and 95 % interval of every figure."""
    return [
        ("perplexity", "perplexity", result.perplexity, result.perplexity_interval),
        ("bits_per_char", "bits per character", result.bits_per_char, result.bits_per_char_interval),
        ("loss", "loss, nats a token", result.loss, result.loss_interval),
    ]


def _samples(record: RunRecord | None) -> list[tuple[str, list[tuple[str, str]]]]:
    """Of each prompt what was written first and last."""
    samples = record.samples if record is not None else []
    found = []
    for prompt in dict.fromkeys(sample.prompt for sample in samples):
        written = [sample for sample in samples if sample.prompt == prompt]
        first_and_last = [written[0], *written[1:][-1:]]
        texts = [
            (
                "before training" if one.step == 0 else f"after step {one.step:,}",
                one.text.strip("\n"),
            )
            for one in first_and_last
        ]
        found.append((prompt, texts))
    return found


def _method(adapter: CardData) -> list[tuple[str, str]]:
    """What was trained, and how, label and value."""
    lines: list[tuple[str, str]] = []
    config, record = adapter.config, adapter.record
    if record is not None and record.config.method in METHODS:
        method = record.config.method
        lines.append(("method", f"{method}: {METHODS[method].summary}"))
    else:
        lines.append(("method", str(adapter.fields.get("peft_type"))))
    if isinstance(config, LoraConfig):
        lines.append(("rank, alpha", f"{config.r}, {config.lora_alpha:g}"))
        lines.append(("layers", _listed(config.target_modules)))
    if record is not None:
        lines += _training(record)
    return lines


def _training(record: RunRecord) -> list[tuple[str, str]]:
    lines = []
    if record.parameters:
        counts = record.parameters
        lines.append(("trained", f"{counts.trainable:,} of {counts.total:,} parameters, {counts.share:.2%}"))
    if record.config.lora:
        lines.append(("dropout", f"{record.config.lora.lora_dropout:g}"))
    lines.append(("learning rate", f"{record.config.learning_rate:g}, {record.config.lr_scheduler_type}"))
    lines.append(("an optimiser step", f"{record.config.grad_accum} × {record.config.batch_size} rows"))
    if record.training:
        lines.append(("steps", f"{record.training.steps:,}"))
    lines.append(("seed", str(record.config.seed)))
    return lines


def _data(record: RunRecord | None) -> list[tuple[str, str]]:
    """Return labels and values of the data, and their fingerprints."""
    if record is None:
        return []
    lines = [("read from", record.config.data)]
    if record.data:
        lines += data_lines(record.data)
        lines.append(("fingerprint of the training texts", record.data.train.fingerprint))
        lines.append(("fingerprint of the held-out texts", record.data.held_out.fingerprint))
        lines.append(("fingerprint of the rows", record.data.blocks_fingerprint))
    return lines


def _cost(record: RunRecord | None) -> list[tuple[str, str]]:
    """Return labels and values of the machine, the time and the memory."""
    if record is None:
        return []
    lines = []
    if record.machine:
        lines.append(("machine", f"{record.machine.processor}, {record.machine.cores} cores"))
        if record.machine.accelerator:
            lines.append(("accelerator", record.machine.accelerator))
    if record.training:
        training = record.training
        speed = f"{training.tokens_per_second:,.0f} tokens/s"
        lines.append(("time in steps", f"{format_duration(training.seconds)}, {speed}"))
        if training.peak_memory:
            lines.append(("peak memory", format_gigabytes(training.peak_memory)))
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    return [*lines, *([("versions", versions)] if versions else [])]


def _base_in_words(name: str | None) -> str:
    if name is None:
        return "a base that is not on the hub"
    if name == EMBEDDED:
        return "the small Japanese GPT-2 that comes with Tsugiki, `embedded`"
    return f"[{name}](https://huggingface.co/{name})"


def _loading(name: str | None) -> str:
    """Python that loads the base."""
    if name == EMBEDDED:
        return f'from tsugiki.base.loading import load_model\n\nmodel = load_model("{EMBEDDED}")'
    return (
        "from transformers import AutoModelForCausalLM\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{name or "BASE"}")'
    )


def _first_prompt(record: RunRecord | None) -> str:
    prompts = [sample.prompt for sample in record.samples] if record is not None else []
    return next((prompt for prompt in prompts if prompt), "…")


def _listed(names: Sequence[str] | str | None) -> str:
    return names if isinstance(names, str) else ", ".join(names or ("by architecture",))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("tsugiki", "hub"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(code=code_span, fenced=fenced, size=format_size)
    return environment
