"""Text from a model, for samples, `generate`, `chat` and `serve`: one engine, one way of sampling.

`generate_text` and `generate_texts` compute in the calling thread; `Engine` does the same for requests of many threads.
Both step a `Scheduler`, which batches rows, and each row has a `Chooser` of tokens and a `TextStream`.
"""

from tsugiki.lazy import lazy_names

__getattr__, __dir__ = lazy_names(__name__)
