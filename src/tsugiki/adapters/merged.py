"""An adapter folded into its base and written as a plain Transformers model."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from tsugiki.adapters.files import load_adapter
from tsugiki.adapters.probe import logit_shift, probe_logits
from tsugiki.errors import TsugikiError
from tsugiki.lora.graft import ungraft
from tsugiki.lora.merge import merge
from tsugiki.models import load_model, load_tokenizer


@dataclass(frozen=True)
class MergeReport:
    """What a probe of the logits showed: `shift` from base to adapted, `error` from adapted to merged."""

    shift: float
    error: float


def write_merged(model_name: str, adapter: Path, out: Path, *, allow_other_base: bool = False) -> MergeReport:
    """Write base plus adapter to the new folder `out`, in float32, with the base's tokenizer.

    Raises:
        TsugikiError: the adapter does not fit, `out` exists and is not empty, or it cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise TsugikiError(f"{out} is there already; choose another --out, or remove it first")
    model = load_model(model_name)
    load_adapter(model, adapter, allow_other_base=allow_other_base)
    shift, adapted = logit_shift(model), probe_logits(model)
    ungraft(merge(model))
    merged = probe_logits(model)
    assert shift is not None
    assert adapted is not None
    assert merged is not None
    part = out.with_name(f".{out.name}.part")
    try:
        model.save_pretrained(part)
        load_tokenizer(model_name).save_pretrained(part)
        if out.is_dir():
            out.rmdir()
        part.rename(out)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise TsugikiError(f"cannot write {out}: {error.strerror or error}") from error
    return MergeReport(shift, float((merged - adapted).abs().max()))
