"""`run.json`: the settings, the data and the results of a run. It is rewritten during the run.

All losses are in nats per token, times in seconds, sizes in bytes.
"""

import math
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tsugiki.adapters.metadata import Source
from tsugiki.base.identity import BaseIdentity
from tsugiki.data.read.files import describe_data
from tsugiki.errors import TsugikiError, error_text
from tsugiki.fast.document_masks import DocumentMasking
from tsugiki.io.file_names import RECORD_FILE
from tsugiki.io.json import read_json, to_json_text, write_json
from tsugiki.io.measurements import processor_name
from tsugiki.language import _
from tsugiki.native import is_compiled
from tsugiki.training.record.result import RewardRound, StepAnswers, StepEvaluation, StepPairs

FORMAT = 2
"""Version of the format of `run.json`."""
_MAX_CONFIG = 300_000  # characters; settings in YAML have at most 200,000
_LIBRARIES = ("tsugiki", "torch", "transformers", "accelerate", "tokenizers", "safetensors")


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries on which the result depends."""
    return {name: version(name) for name in _LIBRARIES}


class Machine(BaseModel):
    """The machine that a run was trained on."""

    processor: str
    cores: int | None
    threads: int
    accelerator: str | None
    """Name of the GPU that computes; None: the processor does."""
    processes: int = 1
    system: str
    python: str
    c_functions: bool | None = None
    """Whether `native.c` is compiled; None: the record is of an earlier version."""


def describe_machine(device: torch.device, processes: int = 1) -> Machine:
    """Return processor, cores, threads and accelerator of this machine; `processes` share the work."""
    name = None if device.type == "cpu" else device.type
    if device.type in ("cuda", "xpu"):
        name = torch.get_device_module(device).get_device_name(device)
    return Machine(
        processor=processor_name(),
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        accelerator=name,
        processes=processes,
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        c_functions=is_compiled(),
    )


class RecordedLora(BaseModel):
    """The settings of a LoRA adapter that reports show; the others are kept as well."""

    model_config = ConfigDict(extra="allow")

    r: int
    lora_alpha: float
    lora_dropout: float


class RecordedConfig(BaseModel):
    """The settings of a run, from `RunConfig`, or of pretraining by an earlier version.

    Settings that reports show are declared here; the others are kept as well. A record that was pushed to the hub has
    no `out`, and no `model` if the hub does not have it.
    """

    model_config = ConfigDict(extra="allow")

    method: str
    data: str | list[str]
    model: str | dict[str, Any] | None = None
    out: Annotated[str, Field(pattern=r"^[^\x00]*$")] | None = None
    learning_rate: float | Literal["auto", "probe"]  # "probe": measured, by earlier versions
    lr_scheduler_type: str
    epochs: float | Literal["auto"]
    max_steps: int | None
    batch_size: int | Literal["auto"]
    seed: int
    prompts: list[str]
    lora: RecordedLora | None = None
    preference: str | None = None

    @property
    def data_text(self) -> str:
        """The names of the data in one line."""
        return describe_data(self.data)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as they are in `run.json`."""
        return self.model_dump(mode="json", exclude_unset=True)


class RecordedBase(BaseIdentity):
    """The base model of a run."""

    name: str | None = None
    """None in a record that was pushed to the hub, if the hub does not have the base."""
    dtype: str
    code: str | None = None
    """Digest of the Python code that the base brought and that was run; None if it brought none."""


class RecordCounts(BaseModel):
    """Counts of some of the data's records."""

    documents: int
    """Number of records."""
    characters: int
    fingerprint: str
    """Digest of their texts."""


class HeldOutCounts(RecordCounts):
    """Counts of the held-out records."""

    measured_characters: int
    """Characters in the windows that are scored."""
    known_facts: int = 0
    """Number of questions among them whose answer is trained on with another question."""
    same_text: bool = False
    """Whether they are the end of the one document whose beginning is trained on."""
    names: list[str] = Field(default_factory=list)
    """Names of the first records, whose places are the numbers of their groups in the evaluations; empty in a record
    that was pushed to the hub."""


class ValidationCounts(RecordCounts):
    """Counts of the validation records, whose loss decides which step is kept."""

    from_held_out: bool
    """Whether they are windows of the held-out records, of which the others are scored for the report."""


class MixedCounts(RecordCounts):
    """Counts of the records that were mixed into the training data: another text, or answers of the base."""

    tokens: int
    """Their tokens in the loss."""
    share: float
    """Their share of all tokens in the loss."""
    general_answers: dict[str, str] = Field(default_factory=dict)
    """General questions and the base's own answers to them; empty: another text was mixed in."""


class NearDuplicates(BaseModel):
    """Groups of records that are nearly the same. A group is never split between training and held-out data."""

    groups: int
    records: int
    first: list[list[str]] = Field(default_factory=list)
    """Names of the records in the first groups; empty in a record that was pushed to the hub."""


class LeftOutCounts(RecordCounts):
    """Counts of the records that are not trained on, because they repeat held-out or validation text."""

    first: list[str] = Field(default_factory=list)
    """Names of the first records; empty in a record that was pushed to the hub."""


class SplitSummary(BaseModel):
    """The data of a run, before they are packed."""

    digest: str | None = None
    """Digest of the content of all data files, and of how they are tokenised."""
    train: RecordCounts
    held_out: HeldOutCounts
    validation: ValidationCounts | None = None
    learns_answers: bool = False
    """Whether there are questions or conversations among the training records, not texts alone."""
    learns_conversations: bool = False
    """Whether there are conversations among the training records; prompts are then turns of the user."""
    mixed: MixedCounts | None = None
    """Counts of mixed-in records, which `train` counts as well."""
    near_duplicates: NearDuplicates
    left_out: LeftOutCounts | None = None


class DataSummary(SplitSummary):
    """The data of a run."""

    blocks: int = Field(ge=1)
    """Number of rows."""
    block_size: int = Field(ge=1)
    """Tokens per row."""
    blocks_fingerprint: str
    document_masking: DocumentMasking
    target_tokens_per_epoch: int
    """Tokens in the loss."""
    tokens_per_epoch: int = Field(ge=1)
    """All tokens but padding."""
    padding: int
    """Padding tokens."""
    split_records: int
    """Documents that continue in another row."""
    cut_records: int
    """Examples that are longer than a row; their ends are cut off."""
    cut_tokens: int
    """Tokens that are cut off."""
    unknown_share: float = 0.0
    """Share of unknown tokens in the text (see `tsugiki.data.tokenizer_coverage`)."""
    piece_share: float = 0.0
    """Share of tokens that are parts of characters."""
    letter_share: float = 0.0
    """Share of tokens that are one letter of the Latin alphabet."""


class Parameters(BaseModel):
    """Numbers of parameters."""

    trainable: int
    total: int
    share: float
    """trainable / total"""


class Sample(BaseModel):
    """A text that the model generated during the run."""

    step: int
    prompt: str
    text: str
    """The continuation, without the prompt. In a conversation it begins with a line feed."""


class TrainingFigures(BaseModel):
    """The results of the steps so far."""

    steps: int
    loss: float
    """Mean training loss over all steps."""
    tokens: int
    """Tokens in the loss."""
    seconds: float
    """Time in steps, without evaluating, sampling and saving."""
    tokens_per_second: float
    peak_memory: int
    """Peak memory of the process; 0 if the system does not report it."""


class LossPoint(BaseModel):
    """A point of the training loss curve."""

    step: int
    loss: float
    learning_rate: float


class PreferencePoint(BaseModel):
    """Answers of the training data at a point of the loss curve, with the model before each step."""

    step: int
    chosen: float
    """Mean log-probability of a chosen (or good) answer, summed over its tokens, in nats."""
    rejected: float
    """The same of a rejected (or bad) answer."""
    margin: float
    """Mean difference of their scores: of log-ratios to the reference, in nats; of some losses per token."""
    accuracy: float
    """Share of the pairs (or single answers) that are right."""
    chosen_tokens: float
    """Mean number of tokens of a chosen answer."""
    rejected_tokens: float

    @classmethod
    def from_sums(cls, step: int, sums: list[float]) -> "PreferencePoint":
        """Return the means for the figures of `preference_loss.AnswerLoss`, summed over steps."""
        chosen, chosen_tokens, rejected, rejected_tokens, score, other_score, good, bad, right, judged = sums
        good, bad = max(good, 1.0), max(bad, 1.0)
        return cls(
            step=step,
            chosen=chosen / good,
            rejected=rejected / bad,
            margin=score / good - other_score / bad,
            accuracy=right / max(judged, 1.0),
            chosen_tokens=chosen_tokens / good,
            rejected_tokens=rejected_tokens / bad,
        )


class Restart(BaseModel):
    """A run that began again with a lower learning rate."""

    step: int
    """The step at which this was decided."""
    learning_rate: float
    """The rate that was too high."""


class RunRecord(BaseModel):
    """The record of one run. A part is None until it is known."""

    format: int = FORMAT
    config: RecordedConfig
    status: Literal["running", "finished"] = "running"
    versions: dict[str, str] = Field(default_factory=library_versions)
    """Library -> version."""
    working_directory: str | None = None
    """Where the run was started; relative paths in the settings are relative to it. None in a record that was pushed to
    the hub."""
    earlier_versions: list[dict[str, str]] = Field(default_factory=list)
    """The versions with which the run was started and resumed before, if they differ."""
    machine: Machine | None = None
    base: RecordedBase | None = None
    data: DataSummary | None = None
    parameters: Parameters | None = None
    resolved_settings: dict[str, Any] = Field(default_factory=dict)
    """Settings that depend on the model or the machine, such as the target modules."""
    evaluations: list[StepEvaluation] = Field(default_factory=list)
    """Evaluations on the held-out text. With a validation text, only of the base and of the kept step."""
    validations: list[StepEvaluation] = Field(default_factory=list)
    """Evaluations on the validation text, whose loss decides which step is kept."""
    half_validations: list[StepEvaluation] = Field(default_factory=list)
    """Evaluations on the validation text with half of the adapter's update; empty if the strength is not chosen."""
    ended_by: Literal["validation", "bound", "length"] | None = None
    """What ended the run: its validation text, which got no better; the largest number of steps that it chose; or the
    length that the settings give. None: unknown."""
    kept_step: int | None = None
    """The step whose adapter or model the run ended with."""
    strength: float = 1.0
    """The part of the kept step's update that the adapter has (see `training.choose.decisions`)."""
    strength_losses: dict[float, float] = Field(default_factory=dict)
    """Strength -> loss on the validation text with this part of the kept step's update, as it was measured."""
    retention_evaluations: list[StepEvaluation] = Field(default_factory=list)
    """Evaluations on the text of `retention_data`, before and after training."""
    samples: list[Sample] = Field(default_factory=list)
    answers: list[StepAnswers] = Field(default_factory=list)
    """Of a run on questions: the answers to held-out ones before the first step and with the kept step."""
    general_answers: list[StepAnswers] = Field(default_factory=list)
    """Of a chat base that learns conversations: its answers to general questions before the first step and with the
    kept step."""
    training: TrainingFigures | None = None
    loss_curve: list[LossPoint] = Field(default_factory=list)
    preference_curve: list[PreferencePoint] = Field(default_factory=list)
    """Of preference tuning: the answers at the points of the loss curve."""
    pair_evaluations: list[StepPairs] = Field(default_factory=list)
    """Of preference tuning: the held-out pairs before the first step and with the kept step."""
    pair_validations: list[StepPairs] = Field(default_factory=list)
    """Of preference tuning: the pairs that, with the validation text, decide which step is kept."""
    planned_memory: int | None = None
    """Peak memory in bytes that was planned before the run started; None for a small model, or if it was not planned.
    `training.peak_memory` is the measured one."""
    recomputed_blocks: int | None = None
    """Number of blocks whose activations are computed again in the backward pass. A resumed run uses the same number,
    unless `recompute` is set."""
    base_dtype_seconds: dict[str, float] | None = None
    """Dtype of the base -> CPU seconds of some tokens, if the dtype was chosen by measuring (see
    `training.measure.dtype_speed`)."""
    micro_batch_size: int | None = None
    """Rows that are computed at once, if this was set, for example by `--fit`. A resumed run uses the same number,
    unless it is set again."""
    started_from: Source | None = None
    """The adapter that training began with; None: new values."""
    restarts: list[Restart] = Field(default_factory=list)
    """Restarts of the run with a lower learning rate, because the loss had risen."""
    rounds: list[RewardRound] = Field(default_factory=list)
    """Of a run that learns by a reward: its rounds. Each has a record of its own in `rounds`, and `samples` have the
    number of the round as their step."""
    weakened: list[RewardRound] = Field(default_factory=list)
    """Of a run that learns by a reward: rounds with parts of their updates, which were judged to be kept, too."""
    kept_round: int | None = None
    """The round whose adapter the run ended with, with the part `strength` of its update."""

    def __repr__(self) -> str:
        steps = f", {self.training.steps:,} steps" if self.training else ""
        bits = [f"{evaluation.bits_per_char:.3f}" for evaluation in self.evaluations]
        held_out = f", held-out bits per character {' → '.join(dict.fromkeys([bits[0], bits[-1]]))}" if bits else ""
        return f"<run {self.config.out}: {self.status}{steps}{held_out}>"

    def all_tokens_per_second(self) -> float:
        """Return the tokens per second, including those that are not in the loss, as other tools report them."""
        if self.training is None or self.data is None or not self.data.target_tokens_per_epoch:
            return 0.0
        return self.training.tokens_per_second * self.data.tokens_per_epoch / self.data.target_tokens_per_epoch

    def chosen(self, setting: str) -> Any:
        """Return the value of a setting; for `auto`, the chosen value, once the run has started."""
        return self.resolved_settings.get(setting, getattr(self.config, setting))

    def any_step_is_better(self) -> bool:
        """Return whether the validation text had a lower loss after some step than with the base; True if unknown.

        The loss with half of the update counts as well.
        """
        base = next((entry.loss for entry in self.validations if entry.step == 0), math.inf)
        losses = [entry.loss for entry in (*self.validations, *self.half_validations) if entry.step]
        return not losses or min(losses) < base

    @property
    def kept_reward(self) -> RewardRound | None:
        """Of a run that learns by a reward: the figures of what it ended with."""
        kept = self.kept_round, self.strength
        return next((one for one in (*self.weakened, *self.rounds) if (one.round, one.strength) == kept), None)

    def folder(self) -> Path:
        """Return the folder of the run. A record that was pushed to the hub does not name it."""
        if self.config.out is None:
            raise TsugikiError("this {record_file} does not name the folder of its run", record_file=RECORD_FILE)
        return Path(self.config.out)

    def write(self, folder: Path) -> None:
        """Write `run.json` atomically."""
        write_json(folder / RECORD_FILE, self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Return the content of `run.json`."""
        return {**self.model_dump(mode="json", exclude={"config"}), "config": self.config.to_dict()}

    def forget_after(self, step: int) -> None:
        """Remove the evaluations and samples after a step, when the run resumes from an earlier checkpoint."""
        evaluations = (
            "evaluations",
            "validations",
            "half_validations",
            "retention_evaluations",
            "pair_evaluations",
            "pair_validations",
        )
        for name in (*evaluations, "samples", "answers", "general_answers"):
            setattr(self, name, [entry for entry in getattr(self, name) if entry.step <= step])
        self.strength = 1.0


def finished(record: RunRecord) -> tuple[TrainingFigures, Parameters]:
    """Return the results of a run, which must have finished."""
    if record.status != "finished" or record.training is None or record.parameters is None:
        raise TsugikiError("the run in {out} has not finished", out=record.config.out)
    return record.training, record.parameters


def samples_by_prompt(record: RunRecord) -> dict[str, list[Sample]]:
    """Return the samples of each prompt, in the order of the steps."""
    found: dict[str, list[Sample]] = {}
    for sample in record.samples:
        found.setdefault(sample.prompt, []).append(sample)
    return found


def read_record(folder: Path) -> RunRecord:
    """Read the record of the run in a folder."""
    path = folder / RECORD_FILE
    return parse_record(
        read_json(path, missing=_("{folder} holds no run: it has no {file}", folder=folder, file=RECORD_FILE)), path
    )


def parse_record(fields: dict[str, Any], path: Path) -> RunRecord:
    """Return the record with the fields of a `run.json`, which are from the file `path`."""
    number = fields.get("format")
    if number != FORMAT:
        shown = error_text(repr(number), 100)
        raise TsugikiError(
            "{path} has format {shown}; this version of Tsugiki reads format {format}",
            path=path,
            shown=shown,
            format=FORMAT,
        )
    if len(to_json_text({"config": fields.get("config")})) > _MAX_CONFIG:
        raise TsugikiError(
            "{path} is not the record of a run: config has more than {max_config:,} characters",
            path=path,
            max_config=_MAX_CONFIG,
        )
    try:
        return RunRecord.model_validate(fields)
    except ValidationError as error:
        problem = error.errors()[0]
        where = error_text(".".join(map(str, problem["loc"])), 100)
        what = error_text(problem["msg"].removeprefix("Value error, ").lower())
        raise TsugikiError(
            "{path} is not the record of a run: {where}: {what}", path=path, where=where, what=what
        ) from error
