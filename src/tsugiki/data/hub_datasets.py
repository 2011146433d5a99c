"""Data sets on the Hugging Face hub, read with `datasets`."""

from collections.abc import Mapping
from typing import Any

from tsugiki.data.rows import EXTRA, KNOWN_COLUMNS, NumberedRows
from tsugiki.data.schemas import KEYS
from tsugiki.errors import TsugikiError, error_text, summarise_list
from tsugiki.language import _


def is_dataset_name(data: str) -> bool:
    """Return whether a text that names no local file has the form of a data set's name on the hub.

    The forms are `owner/name` and `owner/name:split`. A single word is never looked up. It is more likely a misspelt
    folder, and for some words (csv, json, text) `datasets` would read all such files of the working directory.
    """
    parts = data.partition(":")[0].split("/")
    return "\\" not in data and len(parts) == 2 and all(part[:1].isalnum() for part in parts)


def dataset_fingerprint(data: str) -> str:
    """Return the fingerprint that `datasets` computes of a data set's content."""
    return str(_load_dataset(data)._fingerprint)


def dataset_rows(data: str, columns: Mapping[str, str]) -> NumberedRows:
    """Return the number of each row of a data set, and its values; `columns` are as for `rows.csv_rows`.

    Raises:
        TsugikiError: there is no such data set, the hub cannot be reached, or no column can be read.
    """
    dataset = _load_dataset(data)
    known = KNOWN_COLUMNS | set(columns.values())
    names = [name for name, kind in dataset.features.items() if name in known or getattr(kind, "dtype", "") == "string"]
    if not names:
        raise TsugikiError(
            _("{data} has none of the columns {reversed}; it has {names}; choose another data set").format(
                data=data, reversed=", ".join(reversed(KEYS)), names=summarise_list(list(dataset.features))
            )
        )
    return enumerate(dataset.select_columns(names), 1)  # other columns, such as images, are not decoded


def _load_dataset(data: str) -> Any:
    """Load a split of a data set from the hub; `datasets` caches it and, since version 4, executes no code from it."""
    name, _colon, split = data.partition(":")
    missing = _("there is no file or folder {name}").format(name=name)
    try:
        import datasets
    except ImportError as error:
        raise TsugikiError(
            _("{missing}; to read a data set of that name from the hub: {extra}").format(missing=missing, extra=EXTRA)
        ) from error
    try:
        return datasets.load_dataset(name, split=split or "train")
    except datasets.exceptions.DatasetNotFoundError as error:
        raise TsugikiError(
            _("{missing}, and no data set of that name on the hub; check the spelling").format(missing=missing)
        ) from error
    except ConnectionError as error:
        raise TsugikiError(
            _("{missing}, and the hub cannot be reached to look for a data set of that name").format(missing=missing)
        ) from error
    except Exception as error:  # an unknown split, several configurations, a damaged file
        what = error_text(error.__cause__ or error).rstrip(".;")
        raise TsugikiError(
            _("the data set {data} cannot be read: {what}; choose another split or data set").format(
                data=data, what=what
            )
        ) from error
