"""The quickstart: train the embedded model on the embedded corpus, which has historical spelling."""

from importlib.resources import files
from pathlib import Path

from tsugiki.base.resolve import EMBEDDED
from tsugiki.lora.config import LoraConfig
from tsugiki.training.config import RunConfig
from tsugiki.training.record import RunRecord
from tsugiki.training.run import train

PROMPTS = ("吾輩は猫である。名前はまだ無い。", "明治時代の", "先生は言った。「")
"""The prompts of the chapter."""

# The output head is adapted as well: the base gives the old characters a very low probability, and no other layer can
# raise it enough.
_TARGETS = ("c_attn", "c_proj", "c_fc", "lm_head")


def quickstart(out: Path | None = None) -> RunRecord:
    """Train into `out`, or into the first of `tsugiki-quickstart`, `tsugiki-quickstart-2`, … that does not exist."""
    corpus = str(files("tsugiki") / "assets" / "quickstart")
    return train(
        RunConfig(
            model=EMBEDDED,
            data=(corpus,),
            out=str(out or _free_folder("tsugiki-quickstart")),
            lora=LoraConfig(r=32, lora_alpha=64, lora_dropout=0.1, target_modules=_TARGETS),
            epochs=4,
            batch_size=8,
            learning_rate=1.5e-3,
            block_size=128,
            prompts=PROMPTS,
            sample_tokens=60,
        )
    )


def _free_folder(name: str) -> Path:
    folder, number = Path(name), 1
    while folder.exists():
        number += 1
        folder = Path(f"{name}-{number}")
    return folder
