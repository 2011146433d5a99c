"""Models whose files hold quantised weights: transformers undoes FP8 and MXFP4 while it loads a model."""

from typing import Any

from tsugiki.errors import TsugikiError, error_text
from tsugiki.language import _

DEQUANTIZED = ("fp8", "mxfp4")
"""Quantisations that transformers undoes while it loads a model, without another library."""


def quantization_settings(config: object) -> dict[str, Any]:
    """Return the settings by which the weights in a model's files are quantised; empty if they are not."""
    found = getattr(config, "quantization_config", None) or {}
    settings: dict[str, Any] = found if isinstance(found, dict) else found.to_dict()
    return settings


def check_format(name: str, config: object) -> None:
    """Check that the weights of a model are not quantised, or that their quantisation can be undone."""
    method = error_text(quantization_settings(config).get("quant_method", ""), 40)
    if method and method not in DEQUANTIZED:
        message = _(
            "{name} is quantised ({method}), and this format cannot be read; load the model that it was made from, "
            "in int8 or nf4 if memory is short"
        )
        raise TsugikiError(message.format(name=name, method=method))
