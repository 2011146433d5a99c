"""The settings of a run (`training.settings.files` reads them from a YAML file and from flags).

The text under a field is its help text on the command line (see `cli.flags`). Settings that are `auto` are chosen when
a run starts (see `training.choose.choices`). This module is imported for `tsugiki train --help`, so it imports torch
and the table of methods only inside functions.
"""

import math
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    model_validator,
)

from tsugiki.data.read.schemas import parse_columns
from tsugiki.data.records import NONE, AssistantTurns
from tsugiki.dtypes import BaseDtype, ComputeDtype, SaveDtype
from tsugiki.errors import TsugikiError, error_text, summarise_list
from tsugiki.io.validation import near_setting
from tsugiki.language import LABELS, _, marked
from tsugiki.lora.config import LoraConfig
from tsugiki.training.settings.setting import About, DataKind, settings_of

if TYPE_CHECKING:
    from tsugiki.methods.method import Method

DEFAULT_LORA: Mapping[str, Any] = {"r": 16, "lora_alpha": 32}
"""The defaults of the section `lora` that are not those of `LoraConfig`."""

CHAPTER: Mapping[str, Any] = {
    "learning_rate": 1e-4,
    "batch_size": 16,
    "epochs": 3,
    "validation": "none",
    "softmax": "full",
    "lora": {"r": 8, "lora_alpha": 32, "lora_dropout": 0.1, "target_modules": ["c_attn", "c_proj"]},
}
"""The settings of the textbook chapter on LoRA that the project implements."""


def _with_defaults(settings: Any) -> Any:
    if not isinstance(settings, dict):
        return settings
    known = {field.name for field in fields(LoraConfig)}
    unknown = [str(name) for name in settings if name not in known]
    if unknown:
        if near := near_setting(unknown[0], known):
            raise ValueError(f"{error_text(unknown[0], 100)}: {_('unknown setting')}{near}")
        message = _("{unknown}: no such setting; known are {known}")
        raise ValueError(message.format(unknown=summarise_list(unknown), known=", ".join(sorted(known))))
    return {**DEFAULT_LORA, **settings}


DeviceName: TypeAlias = Literal["auto", "cpu", "cuda", "mps", "xpu"]
"""Where a run computes, by torch's names."""

Auto: TypeAlias = Literal["auto"]
AUTO: Auto = "auto"


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _is_text(value: Any) -> bool:
    """Return whether a setting with names and values is still the text, or the texts, of its flag."""
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(part, str) for part in value))


def _as_columns(value: Any) -> Any:
    return parse_columns(value) if _is_text(value) else value


def _as_settings(value: Any) -> Any:
    """Return name -> text from name=value, given once or several times, as for columns."""
    if not _is_text(value):
        return value
    try:
        return parse_columns(value)
    except ValueError as error:
        message = _("{text}: write each setting once as name=value, such as beta=0.2,likelihood=0.5")
        text = value if isinstance(value, str) else ",".join(value)
        raise ValueError(message.format(text=error_text(text, 100))) from error


Text: TypeAlias = Annotated[str, Field(min_length=1)]
Count: TypeAlias = Annotated[int, Field(ge=1)]
Positive: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Passes: TypeAlias = Annotated[float, Field(gt=0, le=10_000)]

PreferenceName: TypeAlias = Literal["dpo", "dpo_norm", "ipo", "orpo", "simpo", "kto", "apo_zero"]
"""The losses of `preference.losses.LOSSES`."""

DataSetting: TypeAlias = Annotated[
    tuple[Text, ...],
    Field(min_length=1),
    BeforeValidator(_as_tuple),
    PlainSerializer(lambda data: data[0] if len(data) == 1 else list(data)),
]
"""Texts to read: one, or several in a list."""


LORA_PLUS = "lora+"
UNRECORDED_IF_UNSET = (
    "columns", "drop_duplicates", "trust_remote_code", "minutes", "add_tokens", "start_from", "mix", "chat_template",
    "system", "allow_overlap", "softmax", "learning_rate_factor", "preference", "preference_settings", "reward",
    "reward_settings",
)  # fmt: skip


_HELD_OUT_CHARACTERS = 20_000
_ABOVE_0 = math.ulp(0.0)
_PREFERENCE_LIMITS = {"beta": (_ABOVE_0, math.inf), "tau": (_ABOVE_0, math.inf), "label_smoothing": (0.0, 0.5)}
"""The lowest value of a setting, and the one below which all are, where it is not any number from 0."""


def validate_method(name: str) -> str:
    """Return `name` if it is the name of a method; otherwise raise a ValueError that suggests a similar name."""
    from tsugiki.methods.table import METHODS

    if name in METHODS:
        return name
    near = get_close_matches(name, METHODS, n=1, cutoff=0.5)
    if near:
        raise ValueError(_("no such method; did you mean {near}? (`tsugiki methods` lists them)").format(near=near[0]))
    raise ValueError(_("no such method (`tsugiki methods` lists them)"))


_NOT_PAIRS: tuple[DataKind, ...] = ("texts", "questions", "conversations")
_NOT_TEXTS: tuple[DataKind, ...] = ("questions", "conversations", "pairs")
NOT_PAIRS = About(data=_NOT_PAIRS)
TEMPLATE = About(
    data=_NOT_TEXTS,
    page=marked("Chat template"),
    simple=True,
    choices={
        AUTO: marked("that of the base, or a plain one"),
        "default": marked("a plain one"),
        NONE: marked("none: question and answer are one text"),
    },
    page_default=AUTO,
)
OF_TURNS = About(
    data=("conversations",),
    page=marked("Answers that count"),
    choices={"all": marked("all"), "last": marked("the last one only")},
)
LOSS = About(
    data=("pairs",),
    page=marked("Preference loss"),
    simple=True,
    choices={
        "dpo": marked("dpo · the usual one"),
        "dpo_norm": marked("dpo_norm · the same per token, for answers of different lengths"),
        "ipo": marked("ipo · per token, with a fixed distance"),
        "orpo": marked("orpo · without a reference"),
        "simpo": marked("simpo · without a reference, per token"),
        "kto": marked("kto · also for single answers that are marked good or bad"),
        "apo_zero": marked("apo_zero · for answers better than the model's"),
    },
    page_default="dpo",
)
OF_LORA = About(
    parts={
        "r": About(first=True, page=marked("rank r"), most=1024),
        "lora_alpha": About(first=True, page=marked("lora_alpha"), most=10_000),
        "lora_dropout": About(page=marked("lora_dropout"), most=1),
        "target_modules": About(
            first=True, page=marked("Layers"), choices={"all-linear": marked("all but the output head")}
        ),
    }
)


class Settings(BaseModel):
    """A group of settings, in the order in which they are listed."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    group: ClassVar[str]
    """Its title in the help and in files."""


class DataSettings(Settings):
    """What a run learns from."""

    group: ClassVar[str] = "Data"

    model: Annotated[str, About(first=True)] = Field(min_length=1)
    """Base model: 'embedded', a model folder, a GGUF file, or the id of a model on the hub."""
    trust_remote_code: bool = False
    """Run Python code that the base model brings, with all your rights. By default such a model is refused."""
    data: Annotated[DataSetting, About(first=True)]
    """Training data: a file of a text, a book or rows (`tsugiki` alone lists the kinds), a folder, a pattern in quotes
    ('texts/*.txt'), or the id of a dataset on the hub; can be repeated. Works of Aozora Bunko are read without their
    notation."""
    columns: Annotated[dict[str, str], BeforeValidator(_as_columns), About(first=True)] = {}
    """Names of columns or fields that differ from those of Tsugiki: prompt=title,completion=body; can be repeated."""
    drop_duplicates: Annotated[bool, About(data=_NOT_PAIRS, page=marked("Drop near-duplicates"))] = False
    """Of texts that are nearly the same, such as several editions of a work, use the longest one only; of questions and
    answers, one of each that are equal in both."""
    held_out: Annotated[float | Text, About(first=True, page=marked("Held-out share"), most=1)] = AUTO
    """Held-out text, which is evaluated and not trained on: a share of the data (0.1 or 10%), a condition on the
    records (author=NAME), a file, or none: nothing is measured then on text that the run has not seen. auto: a tenth,
    or up to a quarter if six documents need so much."""
    validation: float | Text = AUTO
    """Text that chooses the step whose adapter is kept. It is neither trained on nor held out: a share of the data, a
    condition on the records, a file, or none. auto: eight of the shorter documents; if fewer than five can be spared,
    every second window of the held-out text."""
    allow_overlap: bool = False
    """Train on records that repeat held-out or validation text, too: on near-duplicates of it, and on records that
    contain such a text, are contained in one or ask the same question. Otherwise they are left out."""
    mix: Annotated[Text, NOT_PAIRS] = AUTO
    """Other text to train on as well, so that less is forgotten, and its share of the tokens in the loss: PATH:SHARE,
    such as other.txt:0.1; or none. auto: where a chat model learns questions or conversations, its own answers to
    general questions that come with Tsugiki; otherwise none."""
    assistant_turns: Annotated[AssistantTurns, OF_TURNS] = "all"
    """Which answers of a conversation count in the loss: all, or the last one only."""
    chat_template: Annotated[Text | None, TEMPLATE] = None
    """Chat template for conversations, and for prompts with completions: a Jinja file; default, a plain one for a base
    that has none; auto, that of the base, or the plain one if it has none; or none, for prompts and completions that
    are joined as plain text. The adapter is saved with it. Default: auto for questions and conversations."""
    system: Annotated[Text | None, About(data=_NOT_TEXTS, page=marked("System message"))] = None
    """System message of the prompts, which are the user's turns if the run learns conversations."""
    block_size: Annotated[int | None, About(page=marked("Tokens per row"), most=8192)] = Field(default=None, ge=2)
    """Tokens per row. Default: 512, or the model's context if it is shorter."""
    add_tokens: Text | None = None
    """File of words, one in each line, such as names or old characters. Each becomes a token whose vectors train with
    a LoRA method; the tokenizer is saved with the adapter."""


class RewardSettings(BaseModel):
    """The settings of a run with a reward; `MethodSettings.reward_settings` describes them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rounds: Count = 6
    prompts: Count = 64
    samples: Annotated[int, Field(ge=2)] = 6
    tokens: Count = 96
    temperature: Positive = 0.8
    seconds: Positive = 10
    forgetting: Positive = 0.1


class MethodSettings(Settings):
    """What a run trains, on what base."""

    group: ClassVar[str] = "Method"

    method: Annotated[str, AfterValidator(validate_method), About(first=True, page=marked("Method"), simple=True)] = (
        "lora"
    )
    """Fine-tuning method (`tsugiki methods` lists them)."""
    preference: Annotated[PreferenceName | None, LOSS] = None
    """Learn which of two answers is better, from data with prompt, chosen and rejected, by one of these losses. kto
    also learns from answers that are marked good or bad (prompt, completion, label)."""
    preference_settings: Annotated[
        dict[str, float],
        BeforeValidator(_as_settings),
        About(data=("pairs",), page=marked("Settings of the loss"), simple=True),
    ] = {}
    """Settings of the preference loss, such as beta=0.2,likelihood=0.5; can be repeated. likelihood is the weight of
    the chosen answer's own likelihood, 1 by default; orpo has it in its formula."""
    reward: Annotated[tuple[Text, ...], BeforeValidator(_as_tuple), About(first=True)] = ()
    """Learn by a rule that scores the model's own answers to the prompts in data: regex:PATTERN, schema:FILE.json,
    field:NAME, grader:JSON, a Python file with a function reward, or command:PROGRAM; with a weight: 0.5*regex:PATTERN.
    Can be repeated. The loss is that of preference, simpo by default."""
    reward_settings: Annotated[RewardSettings | None, BeforeValidator(_as_settings)] = None
    """Settings of a run with a reward, such as rounds=3,samples=8: rounds (at most 6), in which the model is asked and
    learns; prompts of a round (64); samples, answers to each (6); tokens of an answer (96); temperature (0.8); seconds
    that a program may take for an answer (10); forgetting, the share by which the loss on the retention text may rise
    (0.1)."""
    start_from: Annotated[Text | None, About(other_flag="--from")] = None
    """Adapter that training begins with, a folder or a name in the library, instead of new values. Its method and
    settings are taken as well; only r can be set, to a larger rank."""
    base_dtype: Annotated[BaseDtype | None, About(first=True, page=marked("Dtype of the base"))] = None
    """Dtype of the frozen base while an adapter trains; the adapter is float32. int8 and nf4 (4 bits) save memory;
    nf4-int8 is nf4 with the output head in 8 instead of 16 bits. Default: bf16 if the processor or accelerator
    multiplies it natively, otherwise fp16 on CUDA and XPU, and fp32; but int8 if LoRA trains on a processor and is at
    least 1.1 times as fast with it, which is measured."""
    compute_dtype: ComputeDtype | None = None
    """Dtype of the matrix products in full fine-tuning; weights and optimiser are float32. Default:
    bf16 if the processor or accelerator multiplies it natively, otherwise fp16 on CUDA and XPU, and fp32."""
    base_dropout: Annotated[bool, NOT_PAIRS] = False
    """Keep the dropout layers of the model active during training."""
    softmax: Annotated[Literal["full", "sampled"] | None, NOT_PAIRS] = None
    """Tokens of the vocabulary whose logits a step computes. full: all. sampled: those of the training data, those that
    the base finds likely, and a sample that stands for the others; evaluations always use all. Default: sampled if LoRA
    trains on a processor and the vocabulary is large."""
    loraplus_lr_ratio: Positive = 16
    """Method lora+: learning rate of B / learning rate of A."""
    method_config: dict[str, Any] = {}
    """Settings of any other method (`tsugiki methods NAME` lists them)."""
    lora: Annotated[LoraConfig, BeforeValidator(_with_defaults), OF_LORA] = LoraConfig(**DEFAULT_LORA)
    """Settings of the LoRA methods."""


class ScheduleSettings(Settings):
    """How long a run trains, at what rate, and which step is kept."""

    group: ClassVar[str] = "Schedule"

    minutes: Annotated[Positive | None, About(first=True, page=marked("minutes"), simple=True, most=10_000)] = None
    """Length of the run in minutes, with evaluations and samples, instead of epochs or max_steps. The speed of this
    machine is measured first, and gives the number of steps."""
    epochs: Annotated[Passes | Auto, About(first=True, page=marked("epochs"), simple=True, most=1000)] = AUTO
    """Passes over the training data. auto: three over texts; questions and conversations are learned until the
    validation text stops getting better, in at most 240 steps and 40 passes, or three passes if these are more."""
    max_steps: Annotated[Count | None, About(page=marked("steps"), simple=True, most=10_000_000)] = None
    """Number of optimiser steps. Overrides epochs."""
    batch_size: Annotated[Count | Auto, About(first=True, page=marked("Rows per step"), most=1024)] = AUTO
    """Rows per optimiser step, over all processes. auto: so many that three passes are about 100 steps, but at least 2
    and at most 16."""
    learning_rate: Annotated[Positive | Auto, About(first=True, page=marked("Learning rate"), most=10)] = AUTO
    """Peak learning rate. auto: by the width and weights of the model, the method, lora_alpha and the steps."""
    learning_rate_factor: Positive = 1
    """Factor on the learning rate that auto chooses."""
    lr_scheduler_type: str = "linear"
    """Learning rate schedule of transformers, such as linear, cosine or warmup_stable_decay."""
    warmup_ratio: float = Field(default=0, ge=0, lt=1)
    """Share of all steps over which the learning rate rises to its peak."""
    decay_ratio: float | None = Field(default=None, gt=0, lt=1)
    """Share of all steps over which the learning rate falls to 0 at the end. Requires warmup_stable_decay."""
    adam_beta2: float = Field(default=0.999, gt=0, lt=1)
    """AdamW's beta 2."""
    weight_decay: float = Field(default=0, ge=0, allow_inf_nan=False)
    """Weight decay of matrices. Biases and norms have none."""
    max_grad_norm: float = Field(default=1, ge=0, allow_inf_nan=False)
    """Largest norm of the gradients; larger gradients are scaled down. 0: no limit."""
    seed: Annotated[int, About(page=marked("Seed"), most=2**32 - 1)] = Field(default=42, ge=0)
    """Seed of the split, the initial values and the order of the rows."""
    keep: Literal["best", "last"] = "best"
    """What a run ends with: the adapter (or model) of the step with the lowest loss on the validation text, and of a
    LoRA adapter the part of its update that is best there; or that of the last step. If nothing is better than the
    start, an adapter stays as it was at the start (step 0)."""
    patience: Annotated[int, About(page=marked("Patience"), most=1000)] = Field(default=2, ge=0)
    """Evaluations in a row with a loss on the validation text that is certainly above the lowest one, after which a run
    ends. 0: it never ends early."""

    @model_validator(mode="after")
    def _check_schedule(self) -> Self:
        if (self.decay_ratio is not None) != (self.lr_scheduler_type == "warmup_stable_decay"):
            raise ValueError(_("lr_scheduler_type warmup_stable_decay requires decay_ratio; other schedules have none"))
        if self.learning_rate != AUTO and self.learning_rate_factor != 1:
            raise ValueError(_("learning_rate_factor is a factor on the automatic rate: leave learning_rate out"))
        return self


class EvaluationSettings(Settings):
    """What is measured and shown during a run."""

    group: ClassVar[str] = "Evaluation"

    prompts: Annotated[
        tuple[str, ...], About(first=True, page=marked("Prompts that show the progress, one a line"), simple=True)
    ] = ()
    """Prompt that the model continues before training, every sample_steps and at the end; can be repeated. If the run
    learns conversations, it is the user's turn, which the model answers."""
    sample_steps: Count | None = None
    """Steps between samples. Default: half of the run."""
    sample_tokens: Count = 80
    """Length of a sample in tokens."""
    eval_steps: Count | None = None
    """Steps between evaluations during the run. Default: 4 to 8 of them, or 2 or 3 in a very short run."""
    held_out_characters: Count | None = None
    """Approximate number of held-out characters to evaluate, in windows spread evenly over the text. Default: 20,000,
    or fewer in a short run, so that the evaluations before and after it take at most 7 % of the time of its steps."""
    retention_data: Text | None = None
    """Text like the base's own training data, to measure what the model forgets: it is evaluated before and after
    training. Same formats as data. embedded: ten short pieces in modern Japanese that come with Tsugiki, for the model
    of that name."""
    report_to: tuple[str, ...] = ()
    """Tracker of accelerate, such as tensorboard or wandb; can be repeated."""


class OutputSettings(Settings):
    """What a run writes."""

    group: ClassVar[str] = "Output"

    out: Annotated[str, About(first=True)] = Field(min_length=1)
    """Folder of the run. It will contain the trained adapter or model."""
    save_steps: Count | None = None
    """Steps between checkpoints. Default: a tenth of the run."""
    save_dtype: SaveDtype = "fp32"
    """Dtype of the model's file after full fine-tuning; checkpoints are float32."""


class MachineSettings(Settings):
    """How a machine computes a run: settings that change its speed and not its result."""

    group: ClassVar[str] = "Machine"

    device: DeviceName = "auto"
    """Where to compute. auto: on the accelerator of this machine if it has one, otherwise on the processor."""
    micro_batch_size: Count | None = None
    """Rows that a thread or an accelerator computes at once; it changes speed and memory, not the result. Default: 512
    tokens (1,024 if the whole model trains) on a processor, or two rows where they are measured to be faster and surely
    fit; 4,096 tokens on an accelerator (2,048 on a Mac)."""
    recompute: Literal["auto", "none", "blocks"] = AUTO
    """Compute the activations of blocks again in the backward pass instead of keeping them, which saves memory; results
    stay the same. auto: of as many blocks as do not fit in the memory otherwise. blocks: of all."""
    shard: Literal["none", "fsdp"] = "none"
    """What each of several processes keeps of the weights. none: all. fsdp: a part, and the rest of a block while it
    computes (PyTorch's FSDP2); for a model that does not fit on one device."""


class RunConfig(
    MachineSettings, OutputSettings, EvaluationSettings, ScheduleSettings, MethodSettings, DataSettings
):  # the fields of the last base come first
    """The settings of `tsugiki train`, named as in transformers' `TrainingArguments` if it has them."""

    @model_validator(mode="before")
    @classmethod
    def _no_dropout_of_preferences(cls, settings: Any) -> Any:
        """Set LoRA's dropout to 0 if preferences continue an adapter: the reference is computed without it as well.

        It is called after the settings of `start_from` were taken.
        """
        if not isinstance(settings, dict) or settings.get("preference") is None or not settings.get("start_from"):
            return settings
        lora = settings.get("lora")
        return {**settings, "lora": {**lora, "lora_dropout": 0.0}} if isinstance(lora, dict) else settings

    @model_validator(mode="before")
    @classmethod
    def _take_settings_of_start(cls, settings: Any) -> Any:
        if not isinstance(settings, dict) or not isinstance(settings.get("start_from"), str):
            return settings
        from tsugiki.adapters.start import settings_to_start_from

        try:
            return settings_to_start_from(settings["start_from"], settings)
        except TsugikiError as error:
            raise ValueError(str(error)) from error

    @model_validator(mode="before")
    @classmethod
    def _choose_loss_of_reward(cls, settings: Any) -> Any:
        is_open = isinstance(settings, dict) and settings.get("reward") and settings.get("preference") is None
        return {**settings, "preference": "simpo"} if is_open else settings

    @model_validator(mode="after")
    def _check_reward(self) -> Self:
        if not self.reward:
            if self.reward_settings:
                raise ValueError(_("reward_settings are those of a reward: set reward, such as field:answer"))
            return self
        given = [name for name in ("minutes", "add_tokens") if getattr(self, name)]
        given += ["preference kto"] if self.preference == "kto" else []
        given += [] if self._method().trains_adapter else [f"method {self.method}"]
        if given:
            message = _("reward cannot be combined with {other}; leave one of the two out")
            raise ValueError(message.format(other=given[0]))
        return self

    @model_validator(mode="after")
    def _check_preference(self) -> Self:
        if self.preference is None:
            if self.preference_settings:
                raise ValueError(_("preference_settings are those of a loss: set preference, such as dpo"))
            return self
        of_texts = [one for one in settings_of(type(self)) if "pairs" not in one.about.data]
        others = {
            **{one.path[0]: getattr(self, one.path[0]) != one.default for one in of_texts},
            "shard fsdp": self.shard != "none",
            f"method {self.method}": self.virtual_tokens,
        }
        given = [name for name, value in others.items() if value]
        if given:
            message = _("preference cannot be combined with {other}; leave one of the two out")
            raise ValueError(message.format(other=given[0]))
        self.loss_settings()
        return self

    @model_validator(mode="after")
    def _check_length(self) -> Self:
        given = [name for name in ("minutes", "max_steps", "epochs") if name in self.model_fields_set]
        if self.minutes is not None and len(given) > 1:
            message = _("minutes cannot be combined with {given}: each is the length of the run")
            raise ValueError(message.format(given=_(" and ").join(given[1:])))
        return self

    @model_validator(mode="after")
    def _check_validation(self) -> Self:
        if self.validation == NONE and self.keep == "best" and "keep" in self.model_fields_set:
            raise ValueError(_("keep best needs a validation text that chooses the step: leave validation out"))
        return self

    @model_validator(mode="after")
    def _check_method(self) -> Self:
        # A setting that the method does not have would be ignored.
        given = [name for name in self._inapplicable_fields() if name in self.model_fields_set and getattr(self, name)]
        if given:
            message = _("{given}: no setting of method {method}; leave it out")
            raise ValueError(message.format(given=", ".join(given), method=self.method))
        if self.add_tokens and self.base_dtype in ("int8", "nf4-int8"):
            raise ValueError(_("add_tokens needs rows in the embedding, which int8 quantises; set base_dtype to bf16"))
        if self.add_tokens and self.lora.trainable_token_indices:
            raise ValueError(_("add_tokens sets trainable_token_indices; leave one of the two out"))
        if self.recompute == "blocks" and self.virtual_tokens:
            raise ValueError(
                _("recompute blocks cannot be combined with a soft prompt, whose cache a second pass would change")
            )
        trains_base = self.trains_base_parameters()  # also validates the method's settings
        if self.base_dtype not in (None, "fp32") and trains_base:
            message = _(
                "base_dtype {base_dtype} requires that no parameter of the base trains; with these settings some "
                "do, in float32: set base_dtype to fp32 or leave it out"
            )
            raise ValueError(message.format(base_dtype=self.base_dtype))
        return self

    @cached_property
    def adapter_config(self) -> Any:
        """The config of the adapter that the method trains, such as a `LoraConfig`; a ValueError if it is invalid."""
        method = self._method()
        if method.config is LoraConfig and not method.fixed_settings:
            return self.lora  # it was checked when it was built
        try:
            return method.configure(_non_defaults(self.lora) if method.config is LoraConfig else self.method_config)
        except TsugikiError as error:
            raise ValueError(str(error)) from error

    @property
    def most_held_out_characters(self) -> int:
        """The largest number of held-out characters that are evaluated."""
        return self.held_out_characters or _HELD_OUT_CHARACTERS

    @property
    def has_length(self) -> bool:
        """Whether the length of the run is set; otherwise it is chosen."""
        return self.minutes is not None or self.max_steps is not None or self.epochs != AUTO

    def loss_settings(self) -> dict[str, float]:
        """Return each setting of the preference loss, the given value or the default, with `likelihood` among them.

        A setting that the loss does not have is a ValueError.
        """
        from tsugiki.preference.losses import LOSSES

        assert self.preference is not None
        loss = LOSSES[self.preference]
        known = {**loss.defaults, "likelihood": loss.likelihood}
        for name, value in self.preference_settings.items():
            low, high = _PREFERENCE_LIMITS.get(name, (0.0, math.inf))
            if name not in known or not low <= value < high:
                message = _(
                    "preference_settings {name}={value:g}: {preference} has {known}; none is below 0, beta and tau are "
                    "above it, and label_smoothing is below 0.5"
                )
                shown = ", ".join(f"{each}={default:g}" for each, default in known.items())
                raise ValueError(
                    message.format(name=error_text(name, 60), value=value, preference=self.preference, known=shown)
                )
        return {**known, **self.preference_settings}

    @property
    def virtual_tokens(self) -> int:
        """The length of the soft prompt that the run trains; 0 if it trains none."""
        return getattr(self.adapter_config, "num_virtual_tokens", None) or 0

    def trains_base_parameters(self) -> bool:
        """Return whether parameters of the base (or copies of them) train, and not only parameters that are added."""
        config = self.adapter_config
        return (
            self._method().trains_base_weights
            or bool(getattr(config, "modules_to_save", None))
            or getattr(config, "bias", "none") != "none"
        )

    def to_record(self) -> dict[str, Any]:
        """Return the settings for `run.json`: those that have an effect, and the folder."""
        off = {name for name in UNRECORDED_IF_UNSET if getattr(self, name) == RunConfig.model_fields[name].default}
        unused = ("keep", "patience") if self.validation == NONE else ()
        ignored = {*self._inapplicable_fields(), *unused, *MachineSettings.model_fields, *off}
        return self.model_dump(mode="json", exclude=ignored)

    def _method(self) -> "Method":
        from tsugiki.methods.table import METHODS

        return METHODS[self.method]

    def _inapplicable_fields(self) -> tuple[str, ...]:
        """Return the names of settings that have no effect with this method."""
        method = self._method()
        ratio = () if self.method == LORA_PLUS else ("loraplus_lr_ratio",)
        if not method.trains_adapter:
            return ("lora", "method_config", "base_dtype", "add_tokens", *ratio)
        sections = ("method_config",) if method.config is LoraConfig else ("lora", "add_tokens")
        return ("compute_dtype", "save_dtype", *sections, *ratio)


def _non_defaults(lora: LoraConfig) -> dict[str, Any]:
    """Return the settings that differ from the defaults; a method may fix other values for the rest."""
    defaults = LoraConfig()
    values = {field.name: getattr(lora, field.name) for field in fields(lora)}
    return {name: value for name, value in values.items() if value != getattr(defaults, name)}


LABELS.update({setting.path[-1]: setting.about.page for setting in settings_of(RunConfig) if setting.about.page})
LABELS["columns"] = marked("Columns")
LABELS["resume"] = marked("Resume")
