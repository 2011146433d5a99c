"""Prompt tuning: embeddings of tokens that do not exist, in front of every text (Lester et al. 2021, arXiv:2104.08691).

    P [virtual tokens, width] ──┐
                                ├── frozen layers ── logits of the text
    embedded text ──────────────┘

Only P trains: virtual tokens · width numbers, the fewest of all methods. The trade-off: it costs context and the
attention to it, and of small bases it makes little: the paper finds it level with full fine-tuning from some ten
billion parameters on. Where P begins matters there: at rows of the vocabulary, or best at the embedded words of a text
that says what is to be done; drawn from the normal distribution it begins far from any word. It wants a higher learning
rate than weights do.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from tsugiki.errors import TsugikiError
from tsugiki.methods.method import AdapterFormat
from tsugiki.methods.soft_prompt import (
    SoftPrompt,
    SoftPromptAdapter,
    cache_shape,
    check_length,
    embedding_of,
    embedding_width,
    from_json,
    prompt_of_embeddings,
    random_rows,
    sampled_rows,
    tensors,
    to_json,
)

Start = Literal["TEXT", "SAMPLE_VOCAB", "RANDOM"]


@dataclass(frozen=True)
class PromptTuningConfig:
    """Settings of prompt tuning, named as in PEFT's `PromptTuningConfig`.

    Args:
        num_virtual_tokens: length of the prompt.
        prompt_tuning_init: where it begins: "TEXT", at the embedded tokens of `prompt_tuning_init_text`;
            "SAMPLE_VOCAB", at those of random tokens; "RANDOM", drawn from the standard normal distribution.
        prompt_tuning_init_text: of TEXT; cut off or repeated to the prompt's length.
        tokenizer_name_or_path: of TEXT; the base's own tokenizer where nothing is said.

    Raises:
        TsugikiError: a value that cannot be meant.
    """

    num_virtual_tokens: int = 20
    prompt_tuning_init: Start = "RANDOM"
    prompt_tuning_init_text: str | None = None
    tokenizer_name_or_path: str | None = None

    def __post_init__(self) -> None:
        check_length(self.num_virtual_tokens)
        if self.prompt_tuning_init not in get_args(Start):
            raise TsugikiError(
                f"prompt_tuning_init is {self.prompt_tuning_init!r}; choose one of {', '.join(get_args(Start))}"
            )
        if (self.prompt_tuning_init == "TEXT") != bool(self.prompt_tuning_init_text):
            raise TsugikiError("prompt_tuning_init TEXT goes with prompt_tuning_init_text, and it with TEXT")

    def new_adapter(self, model: nn.Module) -> SoftPromptAdapter:
        """A fresh prompt for `model`, which stays as it is.

        Raises:
            TsugikiError: a model without a KV cache, a prompt too long for its context, or a text that has no tokens.
        """
        adapter = _unwritten(model, self)
        with torch.no_grad():
            adapter.prompt.embedding.copy_(_start(model, self))
        return adapter


def _unwritten(model: nn.Module, config: PromptTuningConfig, stored: Collection[str] = ()) -> SoftPromptAdapter:
    shape = cache_shape(model, config.num_virtual_tokens)
    rows = random_rows(model, config.num_virtual_tokens, embedding_width(model))
    return prompt_of_embeddings(config, SoftPrompt(rows), shape)


def _start(model: Any, config: PromptTuningConfig) -> Tensor:
    """Where the prompt begins, [virtual tokens, width]."""
    length = config.num_virtual_tokens
    match config.prompt_tuning_init:
        case "RANDOM":
            return random_rows(model, length, embedding_width(model))
        case "SAMPLE_VOCAB":
            return sampled_rows(model, length)
        case "TEXT":
            return _embedded_text(model, config)


def _embedded_text(model: Any, config: PromptTuningConfig) -> Tensor:
    tokens = _tokens(config, getattr(model, "name_or_path", None))
    ids = torch.tensor((tokens * config.num_virtual_tokens)[: config.num_virtual_tokens])
    embedding = embedding_of(model)
    if int(ids.max()) >= len(embedding.weight):  # type: ignore[arg-type]
        raise TsugikiError(f"{config.tokenizer_name_or_path} has tokens that the model does not know")
    embedded: Tensor = embedding(ids.to(model.device))
    return embedded


def _tokens(config: PromptTuningConfig, base: str | None) -> list[int]:
    """The text's tokens, with those that the tokenizer adds itself."""
    from tsugiki.base.loading import load_tokenizer

    name = config.tokenizer_name_or_path or base
    if not name:
        raise TsugikiError("the model does not say where its tokenizer is; name it by tokenizer_name_or_path")
    tokens: list[int] = load_tokenizer(name)(config.prompt_tuning_init_text)["input_ids"]
    if not tokens:
        raise TsugikiError(f"prompt_tuning_init_text {config.prompt_tuning_init_text!r} has no tokens")
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
    config: PromptTuningConfig = from_json(PromptTuningConfig, used, harmless=["tokenizer_kwargs"])
    return config


PROMPT_TUNING = AdapterFormat("PROMPT_TUNING", PromptTuningConfig, tensors, _to_json, _from_json, build_for=_unwritten)
