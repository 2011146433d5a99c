"""Read from a model's card its licence, and whether its terms must be accepted on the hub."""

import os
from dataclasses import dataclass
from pathlib import Path

from tsugiki.base.resolve import local_folder, split_revision
from tsugiki.errors import error_text, is_ordinary

_CARD = "README.md"
_LENGTH = 60


@dataclass(frozen=True)
class CardFacts:
    """Facts from a model's card."""

    license: str | None = None
    """The name of the licence; None if it is not known."""
    gated: bool = False
    """Whether terms must be accepted on the hub; False if that is not known."""


def read_card(name: str) -> CardFacts:
    """Read the card of a model from its folder, or else from the hub unless huggingface_hub is in offline mode.

    No error is raised: if a card cannot be read, its facts are unknown.
    """
    folder = local_folder(name)
    try:
        if folder is not None and (folder / _CARD).is_file():
            return _facts_in(folder / _CARD)
        if not Path(name).exists() and not os.environ.get("HF_HUB_OFFLINE"):
            return _facts_on_hub(name)
    except BaseException as error:
        if not is_ordinary(error):
            raise
    return CardFacts()


def _facts_in(path: Path) -> CardFacts:
    from huggingface_hub import ModelCard

    data = vars(ModelCard(path.read_text(encoding="utf-8", errors="replace"), ignore_metadata_errors=True).data)
    gated = any(str(key).startswith("extra_gated") for key in data)
    return CardFacts(_name_of(data.get("license"), data.get("license_name")), gated)


def _facts_on_hub(name: str) -> CardFacts:
    from huggingface_hub import HfApi

    repo_id, revision = split_revision(name)
    info = HfApi().model_info(repo_id, revision=revision, timeout=5)
    data = {} if info.card_data is None else vars(info.card_data)
    return CardFacts(_name_of(data.get("license"), data.get("license_name")), bool(info.gated))


def _name_of(license_id: object, license_name: object) -> str | None:
    """Return the name of the licence; for the hub's id `other` the name that the card gives, if there is one."""
    chosen = license_name if license_id in (None, "other") and license_name else license_id
    return None if chosen is None else error_text(str(chosen), _LENGTH)
