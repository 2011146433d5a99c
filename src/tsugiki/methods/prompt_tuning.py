"""Prompt tuning: trained embeddings of virtual tokens before every text (Lester et al. 2021, arXiv:2104.08691).

    P [virtual tokens, width] ──┐
                                ├── frozen layers ── logits of the text
    embedded text ──────────────┘

Only P trains: virtual tokens · width parameters, the fewest of all methods. The trade-off: the prompt takes up context,
and every token's attention to it costs time. With small bases the method achieves little: the paper finds that it
reaches full fine-tuning only from about ten billion parameters. For small bases the initial value of P matters. Good
ones are embeddings of random tokens of the vocabulary, or better, of a text that describes the task. Values drawn from
the normal distribution are far from every token's embedding. P needs a higher learning rate than weights do.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from tsugiki.annotations import PreTrainedModel
from tsugiki.base.loading import load_tokenizer
from tsugiki.errors import TsugikiError
from tsugiki.methods.method import AdapterFormat
from tsugiki.methods.soft_prompt import (
    SoftPrompt,
    SoftPromptAdapter,
    embedding_of,
    embedding_width,
    random_rows,
    sampled_rows,
)
from tsugiki.methods.soft_prompt_base import SoftPromptConfig, build_for, from_json, tensors, to_json

Initialisation: TypeAlias = Literal["TEXT", "SAMPLE_VOCAB", "RANDOM"]


@dataclass(frozen=True)
class PromptTuningConfig(SoftPromptConfig):
    """Settings of prompt tuning, named as in PEFT's `PromptTuningConfig`.

    Args:
        num_virtual_tokens: length of the prompt.
        prompt_tuning_init: the initial value of the prompt. "TEXT": the embeddings of `prompt_tuning_init_text`.
            "SAMPLE_VOCAB": the embeddings of random tokens. "RANDOM": drawn from the standard normal distribution.
        prompt_tuning_init_text: for TEXT; it is cut or repeated to the length of the prompt.
        tokenizer_name_or_path: for TEXT; None: the tokenizer of the base.
        modules_to_save: modules trained in full, on a copy, and stored in the adapter (names or endings). None: the
            output layers of a classifier, if the model is one.
    """

    prompt_tuning_init: Initialisation = "RANDOM"
    prompt_tuning_init_text: str | None = None
    tokenizer_name_or_path: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.prompt_tuning_init == "TEXT") != bool(self.prompt_tuning_init_text):
            raise TsugikiError("prompt_tuning_init TEXT requires prompt_tuning_init_text; other values do not allow it")

    def initialise(self, model: PreTrainedModel, prompt: SoftPrompt) -> None:
        """Set the prompt to its initial value."""
        prompt.embedding.copy_(_initial_prompt(model, self))


def _initial_prompt(model: PreTrainedModel, config: PromptTuningConfig) -> Tensor:
    """Return the initial value of the prompt, [virtual tokens, width]."""
    length = config.num_virtual_tokens
    match config.prompt_tuning_init:
        case "RANDOM":
            return random_rows(model, length, embedding_width(model))
        case "SAMPLE_VOCAB":
            return sampled_rows(model, length)
        case "TEXT":
            return _embedded_text(model, config)


def _embedded_text(model: PreTrainedModel, config: PromptTuningConfig) -> Tensor:
    tokens = _tokens(config, getattr(model, "name_or_path", None))
    ids = torch.tensor((tokens * config.num_virtual_tokens)[: config.num_virtual_tokens])
    embedding = embedding_of(model)
    if int(ids.max()) >= len(embedding.weight):  # type: ignore[arg-type]
        raise TsugikiError(
            "the tokenizer {path} has tokens that are not in the model's vocabulary; set "
            "tokenizer_name_or_path to the model's own tokenizer",
            path=config.tokenizer_name_or_path,
        )
    embedded: Tensor = embedding(ids.to(model.device))
    return embedded


def _tokens(config: PromptTuningConfig, base: str | None) -> list[int]:
    """Tokenise the initial text, with the special tokens that the tokenizer adds."""
    name = config.tokenizer_name_or_path or base
    if not name:
        raise TsugikiError("the model does not name its tokenizer; set tokenizer_name_or_path")
    tokens: list[int] = load_tokenizer(name)(config.prompt_tuning_init_text)["input_ids"]
    if not tokens:
        raise TsugikiError("prompt_tuning_init_text {text!r} has no tokens", text=config.prompt_tuning_init_text)
    return tokens


def _to_json(model: nn.Module, adapter: SoftPromptAdapter) -> dict[str, Any]:
    fields = to_json(model, adapter)
    if adapter.config.prompt_tuning_init == "TEXT":
        fields["tokenizer_name_or_path"] = adapter.config.tokenizer_name_or_path or getattr(model, "name_or_path", None)
    return fields


def _from_json(fields: Mapping[str, Any]) -> PromptTuningConfig:
    used = {**fields, "prompt_tuning_init": fields.get("prompt_tuning_init") or "RANDOM"}
    if used["prompt_tuning_init"] != "TEXT":
        used["prompt_tuning_init_text"] = None
    return from_json(PromptTuningConfig, used, harmless=["tokenizer_kwargs"])


PROMPT_TUNING = AdapterFormat("PROMPT_TUNING", PromptTuningConfig, tensors, _to_json, _from_json, build_for=build_for)
