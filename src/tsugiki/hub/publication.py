"""What is sent to the hub of an adapter, and what is not.

    adapter_model.safetensors   as it is
    adapter_config.json         with the base's name on the hub, or none
    tsugiki.json                the same; which base, by its fingerprint, and how the adapter was made
    run.json                    settings, versions, the machine's processor, counts and fingerprints of the data, every
                                figure, and the samples that the model wrote
    README.md                   the card, written from these

Paths of this machine become their last parts, the names of the data's records stay here, and so do checkpoints, the
report and whatever else lies in the folder. Nothing of the data's text is in any of these but what the adapter's
weights and samples give away.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from tsugiki.adapters.format import read_base, read_config_fields, read_weights
from tsugiki.adapters.metadata import Metadata, read_metadata
from tsugiki.adapters.verify import check_adapter
from tsugiki.base.loading import EMBEDDED
from tsugiki.errors import TsugikiError
from tsugiki.hub.card import CardData, model_card
from tsugiki.hub.client import CARD_FILE, is_repo_id
from tsugiki.io.file_names import ADAPTER_CONFIG_FILE, ADAPTER_FILE, METADATA_FILE, RECORD_FILE
from tsugiki.io.json import to_json_text
from tsugiki.train.record import RunRecord, read_record

NO_BASE = "none"
"""In place of a base's name: it is not on the hub."""
_PATH = re.compile(r"[/~\\]|\.\.?[/\\]|[A-Za-z]:[/\\]|.*[/\\].*\.(txt|jsonl|csv|parquet)$")
_TEXTS = frozenset({"prompts", "prompt_tuning_init_text"})  # of the settings: what looks like a path is none


@dataclass(frozen=True)
class Publication:
    """An adapter as others will see it."""

    files: Mapping[str, bytes | Path]
    card: str
    notes: Sequence[str]
    """What the person who sends it should know, a sentence each."""

    def sizes(self) -> list[tuple[str, int]]:
        """Names and bytes."""
        return [
            (name, content.stat().st_size if isinstance(content, Path) else len(content))
            for name, content in self.files.items()
        ]


def published_base(folder: Path, given: str | None) -> str | None:
    """The name under which others find an adapter's base: of a hub, or `embedded`; None where there is none.

    Args:
        folder: of the adapter.
        given: what the person says; None leaves it to the adapter's own files, `NO_BASE` says that there is none.

    Raises:
        TsugikiError: no adapter there, or what is given can be no name of the hub.
    """
    if given == NO_BASE:
        return None
    if given is not None:
        if not is_repo_id(given):
            raise TsugikiError(f"--base {given}: name it as the hub does, such as openai-community/gpt2, or say none")
        return given
    name = read_base(folder).name
    if name is None or name == EMBEDDED:
        return name
    return None if _PATH.match(name) or os.path.exists(name) or not is_repo_id(name) else name


def publication(
    folder: Path, repo_id: str, base: str | None, license_id: str | None = None, languages: Sequence[str] = ()
) -> Publication:
    """What to send of the adapter in a folder.

    Args:
        folder: of the adapter.
        repo_id: where it will be, for the card.
        base: as `published_base` has it.
        license_id: by its name on the hub; none is made up.
        languages: of the text, by their codes.

    Raises:
        TsugikiError: no adapter there, or one that is broken.
    """
    config = check_adapter(folder)
    fields = _public({**read_config_fields(folder), "base_model_name_or_path": base})
    metadata = _public_metadata(read_metadata(folder), base)
    record = _public_record(read_record(folder), base) if (folder / RECORD_FILE).is_file() else None
    card = model_card(
        CardData(
            repo_id=repo_id,
            config=config,
            fields=fields,
            base=metadata.base,
            provenance=metadata.provenance,
            record=record,
            parameters=sum(tensor.numel() for tensor in read_weights(folder).values()),
            size=(folder / ADAPTER_FILE).stat().st_size,
            license_id=license_id,
            languages=languages,
        )
    )
    files: dict[str, bytes | Path] = {ADAPTER_FILE: folder / ADAPTER_FILE, ADAPTER_CONFIG_FILE: _json(fields)}
    if (folder / METADATA_FILE).is_file():
        files[METADATA_FILE] = _json(metadata.to_json())
    if record is not None:
        files[RECORD_FILE] = _json(record.to_json())
    files[CARD_FILE] = card.encode()
    return Publication(files, card, _notes(folder, base, license_id, record))


def _notes(folder: Path, base: str | None, license_id: str | None, record: RunRecord | None) -> list[str]:
    notes = []
    if base is None:
        name = read_base(folder).name
        notes.append(
            f"the base, {name}, is not sent by name: others do not have that folder; --base names it as the hub does"
            if name
            else "the card names no base; --base names it as the hub does"
        )
    if license_id is None:
        notes.append("no licence was given, and the card says so; --license gives one, such as apache-2.0")
    if record is None:
        notes.append(f"{folder} has no {RECORD_FILE}: the card has no figures and no samples")
    return notes


def _public_metadata(metadata: Metadata, base: str | None) -> Metadata:
    """The same, with paths of this machine as their last parts, and the base's public name."""
    fields = _public(metadata.model_dump())
    return Metadata(**fields | {"base": {"name": base, "fingerprint": metadata.base.fingerprint}})


def _public_record(record: RunRecord, base: str | None) -> RunRecord:
    """Return the record without the paths of this machine and without the names of the data's records."""
    public = record.to_json()
    public["config"] = _public(_without(public["config"], "model", "out") | ({"model": base} if base else {}))
    if public["base"]:
        public["base"]["name"] = base
    if public["data"]:
        public["data"]["near_duplicates"]["first"] = []
    return RunRecord.model_validate(public)


def _without(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def _public(value: Any) -> Any:
    """The same, with paths of this machine as their last parts."""
    if isinstance(value, dict):
        return {name: one if name in _TEXTS else _public(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_public(one) for one in value]
    if isinstance(value, str) and (_PATH.match(value) or os.path.exists(value)):
        return PureWindowsPath(value).name
    return value


def _json(content: Mapping[str, Any]) -> bytes:
    return to_json_text(content).encode("utf-8", errors="replace")
