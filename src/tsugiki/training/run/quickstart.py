"""The quickstart: train the embedded model on the embedded corpus, in the orthography of old laws and telegrams."""

from importlib.resources import files
from pathlib import Path

from tsugiki.base.resolve import EMBEDDED
from tsugiki.training.record.run_record import RunRecord
from tsugiki.training.run.stages import train
from tsugiki.training.settings.config import RunConfig

PROMPTS = ("吾輩は猫である。名前はまだ無い。", "明治時代の", "先生は言った。「")
"""The prompts of the chapter."""


def quickstart(out: Path | None = None) -> RunRecord:
    """Train into `out`, or into the first of `tsugiki-quickstart`, `tsugiki-quickstart-2`, … that does not exist."""
    corpus = str(files("tsugiki") / "assets" / "quickstart")
    return train(
        RunConfig(
            model=EMBEDDED,
            data=(corpus,),
            out=str(out or _free_folder("tsugiki-quickstart")),
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
