"""LoRA from scratch: the layer (`layer`), its settings (`config`), grafting (`graft`) and merging (`merge`).

Read `layer.py` first: it holds the whole method. `pair`, `init` and `variants` belong to it; `graft`, `adapter` and
`hold` put adapters into a model and take them out again. Nothing here is there for speed: that is `tsugiki.fast`.
"""

from tsugiki.lazy import lazy_names

__getattr__, __dir__ = lazy_names(__name__)
