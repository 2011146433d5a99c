"""Adapters on the Hugging Face Hub: client, model card, publication."""

from tsugiki.lazy import lazy_names

__getattr__, __dir__ = lazy_names(__name__)
