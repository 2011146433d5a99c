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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from tsugiki.base.loading import load_tokenizer
from tsugiki.errors import TsugikiError
from tsugiki.language import _
from tsugiki.methods.method import AdapterFormat
from tsugiki.methods.soft_prompt import (
    CacheShape,
    SoftPrompt,
    SoftPromptAdapter,
    adapter_from_embeddings,
    cache_shape,
    check_heads,
    check_size,
    embedding_of,
    embedding_width,
    random_rows,
    sampled_rows,
)
from tsugiki.methods.soft_prompt_file import check_file, from_json, tensors, to_json, with_saved_modules
from tsugiki.model.names import check_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Initialisation: TypeAlias = Literal["TEXT", "SAMPLE_VOCAB", "RANDOM"]


@dataclass(frozen=True)
class PromptTuningConfig:
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

    num_virtual_tokens: int = 20
    prompt_tuning_init: Initialisation = "RANDOM"
    prompt_tuning_init_text: str | None = None
    tokenizer_name_or_path: str | None = None
    modules_to_save: Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_names("modules_to_save", self.modules_to_save)
        check_size("num_virtual_tokens", self.num_virtual_tokens)
        if self.prompt_tuning_init not in get_args(Initialisation):
            raise TsugikiError(
                _("prompt_tuning_init is {prompt_tuning_init!r}; choose one of {known}").format(
                    prompt_tuning_init=self.prompt_tuning_init, known=", ".join(get_args(Initialisation))
                )
            )
        if (self.prompt_tuning_init == "TEXT") != bool(self.prompt_tuning_init_text):
            raise TsugikiError(
                _("prompt_tuning_init TEXT requires prompt_tuning_init_text; other values do not allow it")
            )

    def new_adapter(self, model: nn.Module) -> "SoftPromptAdapter[PromptTuningConfig]":
        """Build a new prompt for `model`, which is not changed.

        Raises:
            TsugikiError: the model has no KV cache, the prompt is too long for its context, or the text has no tokens.
        """
        check_heads(model, self)
        adapter = _build(model, self, cache_shape(model, self.num_virtual_tokens))
        with torch.no_grad():
            adapter.prompt.embedding.copy_(_initial_prompt(model, self))
        return adapter


def _build_for(
    model: "PreTrainedModel", config: PromptTuningConfig, file_tensors: Mapping[str, Tensor]
) -> SoftPromptAdapter[PromptTuningConfig]:
    """Build an adapter for a file, whose prompt will replace the initial one."""
    config = with_saved_modules(model, config, file_tensors)
    shape, width = cache_shape(model, config.num_virtual_tokens), embedding_width(model)
    check_file(file_tensors, (config.num_virtual_tokens, width), width, nn.Identity)
    return _build(model, config, shape)


def _build(
    model: "PreTrainedModel", config: PromptTuningConfig, shape: CacheShape
) -> SoftPromptAdapter[PromptTuningConfig]:
    """Build an adapter whose prompt is random; the caller sets its initial value."""
    rows = random_rows(model, config.num_virtual_tokens, embedding_width(model))
    return adapter_from_embeddings(model, config, SoftPrompt(rows), shape)


def _initial_prompt(model: "PreTrainedModel", config: PromptTuningConfig) -> Tensor:
    """Return the initial value of the prompt, [virtual tokens, width]."""
    length = config.num_virtual_tokens
    match config.prompt_tuning_init:
        case "RANDOM":
            return random_rows(model, length, embedding_width(model))
        case "SAMPLE_VOCAB":
            return sampled_rows(model, length)
        case "TEXT":
            return _embedded_text(model, config)


def _embedded_text(model: "PreTrainedModel", config: PromptTuningConfig) -> Tensor:
    tokens = _tokens(config, getattr(model, "name_or_path", None))
    ids = torch.tensor((tokens * config.num_virtual_tokens)[: config.num_virtual_tokens])
    embedding = embedding_of(model)
    if int(ids.max()) >= len(embedding.weight):  # type: ignore[arg-type]
        raise TsugikiError(
            _(
                "the tokenizer {path} has tokens that are not in the model's vocabulary; set "
                "tokenizer_name_or_path to the model's own tokenizer"
            ).format(path=config.tokenizer_name_or_path)
        )
    embedded: Tensor = embedding(ids.to(model.device))
    return embedded


def _tokens(config: PromptTuningConfig, base: str | None) -> list[int]:
    """Tokenise the initial text, with the special tokens that the tokenizer adds."""
    name = config.tokenizer_name_or_path or base
    if not name:
        raise TsugikiError(_("the model does not name its tokenizer; set tokenizer_name_or_path"))
    tokens: list[int] = load_tokenizer(name)(config.prompt_tuning_init_text)["input_ids"]
    if not tokens:
        raise TsugikiError(
            _("prompt_tuning_init_text {text!r} has no tokens").format(text=config.prompt_tuning_init_text)
        )
    return tokens


def _to_json(model: nn.Module, adapter: SoftPromptAdapter[PromptTuningConfig]) -> dict[str, Any]:
    fields = to_json(model, adapter)
    if adapter.config.prompt_tuning_init == "TEXT":
        fields["tokenizer_name_or_path"] = adapter.config.tokenizer_name_or_path or getattr(model, "name_or_path", None)
    return fields


def _from_json(fields: Mapping[str, Any]) -> PromptTuningConfig:
    used = {**fields, "prompt_tuning_init": fields.get("prompt_tuning_init") or "RANDOM"}
    if used["prompt_tuning_init"] != "TEXT":
        used["prompt_tuning_init_text"] = None
    return from_json(PromptTuningConfig, used, harmless=["tokenizer_kwargs"])


PROMPT_TUNING = AdapterFormat("PROMPT_TUNING", PromptTuningConfig, tensors, _to_json, _from_json, build_for=_build_for)
