"""The quickstart: the embedded base learns the embedded corpus's historical orthography."""

from importlib.resources import files
from pathlib import Path

from tsugiki.base.loading import EMBEDDED
from tsugiki.lora.config import LoraConfig
from tsugiki.train.config import RunConfig
from tsugiki.train.record import RunRecord
from tsugiki.train.run import train

PROMPTS = ("吾輩は猫である。名前はまだ無い。", "明治時代の", "先生は言った。「")
"""The chapter's."""

# The head too: the base never wrote the old characters, and no other layer can make them likely.
_TARGETS = ("c_attn", "c_proj", "c_fc", "lm_head")


def quickstart(out: Path | None = None) -> RunRecord:
    """Run it into `out`, or into the first free `tsugiki-quickstart`, `tsugiki-quickstart-2`, …

    Raises:
        TsugikiError: `out` holds a run already.
    """
    corpus = str(files("tsugiki") / "assets" / "quickstart")
    return train(
        RunConfig(
            model=EMBEDDED,
            data=corpus,
            out=str(out or _free_folder("tsugiki-quickstart")),
            lora=LoraConfig(r=32, lora_alpha=64, lora_dropout=0.1, target_modules=_TARGETS),
            epochs=4,
            batch_size=8,
            grad_accum=1,
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
