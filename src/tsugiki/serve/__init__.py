"""Serve one base with many adapters, by the HTTP interface of OpenAI: `tsugiki serve`."""

from tsugiki.lazy import lazy_names

__getattr__, __dir__ = lazy_names(__name__)
