"""The length of the text that a model can process at once, in tokens, and the label of tokens that are not learned."""

import re
from typing import Any

from torch import nn

from tsugiki.annotations import PretrainedConfig, PreTrainedModel

PROMPT_ATTRIBUTE = "tsugiki_prompt_tokens"
"""The attribute of a decoder that holds the number of virtual tokens of the soft prompt that is attached to it."""
_DEFAULT_CONTEXT = 2048
_POSITIONS = ("max_position_embeddings", "max_target_positions", "max_decoder_position_embeddings", "max_seq_len")
"""The settings that say how many positions a model has: of most models, of Whisper, of LED, of MPT."""
_WINDOWS = re.compile(r".*(window|chunk|topk|radius|block_size|local_attention).*")


def text_config(model: nn.Module) -> PretrainedConfig:
    """Return the config of the language model, which for a multimodal model is a part of the model's config."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def decoder_of(model: nn.Module) -> PreTrainedModel | None:
    """Return the module with the embedding and the layers, which both `model(…)` and `model.base_model(…)` call.

    Returns None for a model that is not a decoder.
    """
    decoder: PreTrainedModel | None = model.get_decoder() if hasattr(model, "get_decoder") else None  # type: ignore[operator]
    return decoder


def max_positions(model: nn.Module) -> int | None:
    """Return the largest number of tokens that the model has positions for, or None if its config names none."""
    settings = (getattr(text_config(model), name, None) for name in _POSITIONS)
    length = next((length for length in settings if length and length > 0), None)  # XLNet's is -1
    return length and length - _rows_before_positions(model)


def _rows_before_positions(model: nn.Module) -> int:
    """Return how many rows of a table of positions belong to none: up to that of padding, as in RoBERTa.

    ProphetNet also reads the row after that of the last token, because it predicts one token more.
    """
    tables = (module for name, module in model.named_modules() if name.endswith("position_embeddings"))
    padding = [table.padding_idx for table in tables if getattr(table, "padding_idx", None) is not None]
    return padding[0] + 1 + hasattr(text_config(model), "ngram") if padding else 0


def possible_windows(model: nn.Module) -> list[int]:
    """Return the values of a model's settings that may limit how many tokens a token attends to."""
    settings = text_config(model).to_dict()
    return [value for name, value in settings.items() if type(value) is int and value > 0 and _WINDOWS.fullmatch(name)]


def rope_depends_on_length(model: nn.Module) -> bool:
    """Return whether the model's rotary frequencies depend on the longest sequence of a batch.

    transformers then writes the frequencies for this length into the model (RoPE types longrope and dynamic), so two
    threads must not call the model at once, and a sequence has other logits beside a longer one.
    """
    rope = getattr(text_config(model), "rope_parameters", None) or {}
    by_kind = [rope] if "rope_type" in rope else [value for value in rope.values() if isinstance(value, dict)]
    for settings in by_kind:
        kind = settings.get("rope_type", "default")
        # The longrope settings of a GGUF file have the same factors for every length.
        if "dynamic" in kind or (kind == "longrope" and settings["short_factor"] != settings["long_factor"]):
            return True
    return False


def virtual_tokens(model: nn.Module) -> int:
    """Return the length of the soft prompt that is attached to the model; 0 if there is none."""
    return int(getattr(decoder_of(model), PROMPT_ATTRIBUTE, 0))


def context_length(model: nn.Module) -> int:
    """Return how many tokens of text the model can process at once, after the soft prompt if one is attached.

    A model whose config names no limit (such as BLOOM) counts as one with 2,048 positions.
    """
    return (max_positions(model) or _DEFAULT_CONTEXT) - virtual_tokens(model)


IGNORE_INDEX = -100
"""Label of a token that is excluded from the loss; the value that torch and transformers use by default."""
