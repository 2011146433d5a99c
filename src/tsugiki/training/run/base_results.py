"""What the base of a run computes before it is trained, kept in the cache for the next run with the same base and text.

These are its predictions on a sample, its losses, its samples and the references of pairs. They are a third of the
processor time until the first step of a small model.
"""

from collections.abc import Callable
from typing import Any

import torch

from tsugiki.annotations import PreTrainedModel
from tsugiki.base.identity import identity_of
from tsugiki.dtypes import BaseDtype
from tsugiki.io.cache import code_state, kept
from tsugiki.io.digests import sha256
from tsugiki.io.measurements import processor_name
from tsugiki.lora.hold import is_grafted
from tsugiki.lowbit.nf4 import product_dtype
from tsugiki.model.products import onednn_is_faster
from tsugiki.training.record.run_record import library_versions
from tsugiki.training.run.start import Start


def kept_of_base(
    start: Start, model: PreTrainedModel, base_dtype: BaseDtype, facts: object, compute: Callable[[], Any]
) -> Any:
    """Return the JSON value that `compute` gives, from the cache if nothing that it depends on has changed.

    `base_dtype` is the dtype in which the model was loaded, and `facts` is what the value depends on besides the base,
    the machine and the program; its `repr` must tell all of it. Nothing is kept of a base whose files may not tell what
    it computes, and of several processes, which compute together.
    """
    config = start.config
    identity = identity_of(model)
    is_unknown = identity.fingerprint is None or config.trust_remote_code or config.add_tokens is not None
    if is_unknown or start.accelerator.num_processes > 1:
        return compute()
    on_processor, dtype = start.device.type == "cpu", model.dtype
    library = on_processor and dtype == torch.float32 and onednn_is_faster()
    numbers = str(dtype), base_dtype, on_processor and product_dtype(model), library
    paths = is_grafted(model), model.config.get_text_config()._attn_implementation
    program = library_versions(), code_state()
    key = repr((identity.model_dump(), numbers, paths, str(start.device), processor_name(), program, facts))
    return kept("base", sha256([key.encode("utf-8", "surrogatepass")]), compute)  # the key may hold whole texts
