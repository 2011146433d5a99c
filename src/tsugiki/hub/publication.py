"""Prepare the files of an adapter for the hub.

    adapter_model.safetensors   unchanged
    adapter_config.json         with the base's name on the hub, or without a name
    tsugiki.json                the base's name on the hub and its fingerprint, and the adapter's provenance
    run.json                    settings, versions, processor, counts and fingerprints of the data, all results, samples
    README.md                   the model card, generated from the other files

Private information is removed: paths of this machine are reduced to their last components, and the names of the data's
records, and the held-out questions with their answers, are left out. Checkpoints, reports and other files in the folder
are not sent. The training text is not in any of the files, but the weights and the samples can reveal parts of it.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from tsugiki.adapters.files import map_weights, read_base, read_config_fields, with_digests
from tsugiki.adapters.metadata import Metadata, read_metadata
from tsugiki.adapters.saved_tokenizer import tokenizer_files
from tsugiki.adapters.verify import check_adapter
from tsugiki.base.resolve import EMBEDDED
from tsugiki.errors import TsugikiError
from tsugiki.hub.card import CardData, model_card
from tsugiki.hub.client import CARD_FILE, is_repo_id
from tsugiki.io.file_names import ADAPTER_CONFIG_FILE, ADAPTER_FILE, METADATA_FILE, RECORD_FILE
from tsugiki.io.json import to_json_text
from tsugiki.language import ENGLISH, _
from tsugiki.training.record.run_record import RunRecord, read_record

NO_BASE = "none"
"""The value of --base for a base that is not on the hub."""

_PATH = re.compile(r"[/~\\]|\.\.?[/\\]|[A-Za-z]:[/\\]|.*[/\\].*\.(txt|jsonl|csv|parquet)$")
_TEXTS = frozenset({"prompts", "prompt_tuning_init_text"})  # settings that are text, even if it looks like a path


@dataclass(frozen=True)
class Publication:
    """The files of an adapter that are sent to the hub."""

    files: Mapping[str, bytes | Path]
    """Name in the repository -> content, or the local file with the content."""
    card: str
    notes: Sequence[str]
    """Notes to show to the user before sending, a sentence each."""

    def sizes(self) -> list[tuple[str, int]]:
        """Return the name and the size in bytes of each file."""
        return [
            (name, content.stat().st_size if isinstance(content, Path) else len(content))
            for name, content in self.files.items()
        ]


def published_base(folder: Path, given: str | None) -> str | None:
    """Return the name by which other users can find an adapter's base, on the hub or `embedded`; None if there is none.

    `given` is the name from the user, or `NO_BASE`; without it, the name is that in the adapter's files.
    """
    if given == NO_BASE:
        return None
    if given is not None:
        if not is_repo_id(given):
            raise TsugikiError(
                "--base {name} is not a hub name; pass one such as openai-community/gpt2, or none", name=given
            )
        return given
    name = read_base(folder).name
    if name is None or name == EMBEDDED:
        return name
    return None if _PATH.match(name) or os.path.exists(name) or not is_repo_id(name) else name


def publication(
    folder: Path,
    repo_id: str,
    base: str | None,
    license_id: str | None = None,
    languages: Sequence[str] = (),
    card_language: str = ENGLISH,
) -> Publication:
    """Prepare the adapter in a folder for the hub. Nothing is sent.

    `base` is the result of `published_base`. The licence is given by its name on the hub, without a default; the
    languages of the text, and that of the card, are given by their codes.
    """
    config = check_adapter(folder)
    fields = _public({**read_config_fields(folder), "base_model_name_or_path": base})
    metadata = with_digests(_public_metadata(read_metadata(folder), base), folder / ADAPTER_FILE, fields)
    record = _public_record(read_record(folder), base) if (folder / RECORD_FILE).is_file() else None
    card = model_card(
        CardData(
            repo_id=repo_id,
            config=config,
            fields=fields,
            base=metadata.base,
            provenance=metadata.provenance,
            record=record,
            parameters=sum(tensor.numel() for tensor in map_weights(folder).values()),
            size=(folder / ADAPTER_FILE).stat().st_size,
            license_id=license_id,
            languages=languages,
        ),
        card_language,
    )
    files: dict[str, bytes | Path] = {ADAPTER_FILE: folder / ADAPTER_FILE, ADAPTER_CONFIG_FILE: _json(fields)}
    if (folder / METADATA_FILE).is_file():
        files[METADATA_FILE] = _json(metadata.to_json())
    if record is not None:
        files[RECORD_FILE] = _json(record.to_json())
    files |= {name: folder / name for name in tokenizer_files(folder)}
    files[CARD_FILE] = card.encode()
    return Publication(files, card, _notes(folder, base, license_id, record))


def _notes(folder: Path, base: str | None, license_id: str | None, record: RunRecord | None) -> list[str]:
    notes = []
    if base is None:
        name = read_base(folder).name
        notes.append(
            _(
                "the name of the base, {name}, is not sent, because it is not on the hub; pass its name there as "
                "--base",
                name=name,
            )
            if name
            else _("the card names no base; pass its name on the hub as --base")
        )
    if license_id is None:
        notes.append(_("the card names no licence; pass one as --license, such as apache-2.0"))
    if record is None:
        notes.append(
            _("{folder} has no {file}, so the card has no results and no samples", folder=folder, file=RECORD_FILE)
        )
    return notes


def _public_metadata(metadata: Metadata, base: str | None) -> Metadata:
    """Return the metadata without paths of this machine, and with the base's public name."""
    fields = _public(metadata.model_dump())
    return Metadata(**fields | {"base": metadata.base.model_copy(update={"name": base})})


def _public_record(record: RunRecord, base: str | None) -> RunRecord:
    """Return the record without paths of this machine and without the names of the data's records."""
    public = record.to_json() | {"working_directory": None}
    config = {name: value for name, value in public["config"].items() if name not in ("model", "out")}
    public["config"] = _public(config | ({"model": base} if base else {}))
    if public["base"]:
        public["base"]["name"] = base
    if public["data"]:
        for named in (public["data"]["near_duplicates"], public["data"]["left_out"] or {}):
            named["first"] = []
        public["data"]["held_out"]["names"] = []
    for one in (*public["rounds"], *public["weakened"]):  # prompts of the user's data; a rule may name files
        one["samples"], public["samples"], public["resolved_settings"]["rules"] = [], [], []
        public["config"].pop("reward", None)
    for answers in public["answers"]:  # questions and answers of the user's data
        answers["answers"] = [{"source": "", "answer": "", "correct": one["correct"]} for one in answers["answers"]]
    return RunRecord.model_validate(public)


def _public(value: Any) -> Any:
    """Return a JSON value in which each path of this machine is reduced to its last component."""
    if isinstance(value, dict):
        return {name: item if name in _TEXTS else _public(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_public(item) for item in value]
    if isinstance(value, str) and (_PATH.match(value) or os.path.exists(value)):
        return PureWindowsPath(value).name
    return value


def _json(content: Mapping[str, Any]) -> bytes:
    return to_json_text(content).encode("utf-8", errors="replace")
