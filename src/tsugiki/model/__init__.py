"""What is known about any model, without LoRA: layers, names, and how a part is replaced and put back."""

from tsugiki.lazy import lazy_names

__getattr__, __dir__ = lazy_names(__name__)
