"""Tsugiki: LoRA fine-tuning that can be read, whose files work everywhere, fast on the machine you have.

from tsugiki import LoraConfig, graft, save_adapter
model = graft(model, LoraConfig(r=8, lora_alpha=32))
...                                             # train as usual
save_adapter(model, "my-adapter")               # a folder that Hugging Face PEFT loads
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any
from warnings import filterwarnings

if TYPE_CHECKING:
    from tsugiki.adapters.format import save_adapter
    from tsugiki.adapters.pretrained import graft, load_adapter, print_trainable_parameters, reference_model
    from tsugiki.errors import TsugikiError
    from tsugiki.fast.mixed_batch import mixed_batch
    from tsugiki.fast.paths import use_fast_paths, use_plain_paths
    from tsugiki.functions import evaluate, generate, pairs, preview, train
    from tsugiki.lora.config import LoraConfig
    from tsugiki.lora.graft import remove_adapter, trainable_parameters, ungraft
    from tsugiki.lora.hold import active_adapter, disable_adapter, set_adapter
    from tsugiki.lora.merge import merge, unmerge

__all__ = [
    "LoraConfig",
    "TsugikiError",
    "active_adapter",
    "disable_adapter",
    "evaluate",
    "generate",
    "graft",
    "load_adapter",
    "merge",
    "mixed_batch",
    "pairs",
    "preview",
    "print_trainable_parameters",
    "reference_model",
    "remove_adapter",
    "save_adapter",
    "set_adapter",
    "train",
    "trainable_parameters",
    "ungraft",
    "unmerge",
    "use_fast_paths",
    "use_plain_paths",
]

filterwarnings("ignore", "IProgress not found")  # of tqdm, which transformers imports, in a notebook without ipywidgets

_MODULE_OF = {
    "LoraConfig": "tsugiki.lora.config",
    "TsugikiError": "tsugiki.errors",
    "active_adapter": "tsugiki.lora.hold",
    "disable_adapter": "tsugiki.lora.hold",
    "load_adapter": "tsugiki.adapters.pretrained",
    "save_adapter": "tsugiki.adapters.format",
    "merge": "tsugiki.lora.merge",
    "mixed_batch": "tsugiki.fast.mixed_batch",
    "evaluate": "tsugiki.functions",
    "generate": "tsugiki.functions",
    "pairs": "tsugiki.functions",
    "preview": "tsugiki.functions",
    "print_trainable_parameters": "tsugiki.adapters.pretrained",
    "graft": "tsugiki.adapters.pretrained",
    "reference_model": "tsugiki.adapters.pretrained",
    "set_adapter": "tsugiki.lora.hold",
    "train": "tsugiki.functions",
    "unmerge": "tsugiki.lora.merge",
    "use_fast_paths": "tsugiki.fast.paths",
    "use_plain_paths": "tsugiki.fast.paths",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import tsugiki` alone does not load torch."""
    if name == "__version__":
        from importlib.metadata import version

        return version("tsugiki")
    if name not in __all__ and name not in _MODULE_OF:
        raise AttributeError(f"module 'tsugiki' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF.get(name, "tsugiki.lora.graft")), name)


def __dir__() -> list[str]:
    """Return the public names, for completion in notebooks, without this module's own imports."""
    return sorted([*__all__, "__version__"])
