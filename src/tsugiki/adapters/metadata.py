"""`tsugiki.json`: facts about an adapter or a merged model for which PEFT's config has no field."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from tsugiki.base.identity import BaseIdentity
from tsugiki.errors import TsugikiError, error_text
from tsugiki.io.digests import file_sha256, sha256
from tsugiki.io.file_names import ADAPTER_FILE, METADATA_FILE
from tsugiki.io.json import read_json, value_text, write_json
from tsugiki.language import marked

_VERSION = 2
"""Version of the file's format."""
_SHOWN_DIGITS = len("sha256:") + 12


def _replace_surrogates(value: Any) -> Any:
    return value.encode("utf-8", errors="replace").decode() if isinstance(value, str) else value


Text: TypeAlias = Annotated[str, BeforeValidator(_replace_surrogates)]
"""A string in which lone surrogates, which paths can contain but JSON files cannot, become question marks."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BaseReference(BaseIdentity):
    """The base that an adapter was trained on, as far as its files tell."""

    name: Text | None = None
    """A name that `load_model` takes."""


class Digests(_Model):
    """What the files of an adapter were when they were saved."""

    weights: str
    """The SHA-256 of the file of weights."""
    settings: str
    """The SHA-256 of all settings on which the result depends (`settings_digest`)."""


class Source(_Model):
    """An adapter or a model that another one was derived from."""

    name: Text
    weights: str | None = None
    """The SHA-256 of an adapter's weights; None for a model."""
    peft_type: str | None = None
    weight: float | None = None
    """The factor on its update, in a combination or a merge."""

    def described(self) -> str:
        """Return the source's name with its weight and the first digits of its digest."""
        facts = [] if self.weight is None else [f"weight {self.weight:g}"]
        facts += [] if self.weights is None else [f"{self.weights[:_SHOWN_DIGITS]}…"]
        return f"{self.name} ({', '.join(facts)})" if facts else self.name


class Provenance(_Model):
    """How an adapter or a merged model was derived from others."""

    operation: str
    """combine, import, merge, scale or truncate."""
    sources: tuple[Source, ...] = ()
    settings: Mapping[str, Any] = Field(default_factory=dict)
    """The settings of the operation, and what it measured."""

    def lines(self) -> list[tuple[str, str]]:
        """Return labels and texts to show to users, without settings that are not set."""
        chosen = {name: value for name, value in self.settings.items() if value is not None}
        settings = [(name.replace("_", " "), value_text(value)) for name, value in chosen.items()]
        sources = ", ".join(source.described() for source in self.sources)
        return [(marked("operation"), self.operation), *settings, (marked("derived from"), sources or "–")]


class Metadata(_Model):
    """The content of `tsugiki.json`."""

    base: BaseReference = BaseReference()
    method_config: Mapping[str, Any] = Field(default_factory=dict)
    """Settings of the adapter's method that PEFT has no field for."""
    provenance: Provenance | None = None
    """None if the adapter was trained, not derived from others."""
    figures: Mapping[str, Any] = Field(default_factory=dict)
    """What was measured when a merged model was verified."""
    digests: Digests | None = None
    """None for a merged model, and for adapters of earlier versions."""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object, without empty fields."""
        fields = {name: value for name, value in self.model_dump(mode="json").items() if value}
        return {"format": _VERSION} | fields


def read_metadata(folder: Path) -> Metadata:
    """Read the `tsugiki.json` of a folder; a folder without one has empty metadata."""
    path = folder / METADATA_FILE
    if not path.is_file():
        return Metadata()
    fields = read_json(path)
    version = fields.pop("format", None)
    if version != _VERSION:
        raise TsugikiError(
            "{path} has format {version}, which this version of Tsugiki cannot read; upgrade it",
            path=path,
            version=error_text(repr(version), 40),
        )
    try:
        return Metadata(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise TsugikiError(f"{path}: {key}: {first['msg']}") from error


def write_metadata(folder: Path, metadata: Metadata) -> None:
    """Write the `tsugiki.json` of a folder."""
    write_json(folder / METADATA_FILE, metadata.to_json())


def settings_digest(fields: Mapping[str, Any], metadata: Metadata) -> str:
    """Return the SHA-256 of the settings of an adapter: fields of its config, `method_config`, and the base's digest.

    It depends on the values only, not on their order or on white space in the files.
    """
    settings = [fields, metadata.method_config, metadata.base.fingerprint]
    return sha256([json.dumps(settings, sort_keys=True, default=list).encode()])


def source_adapter(folder: Path, weight: float | None = None, peft_type: str | None = None) -> Source:
    """Return the adapter in a folder as a source, with the folder's name and the digest of its weights."""
    name = folder.resolve().name
    file = folder / ADAPTER_FILE  # the weights of a large adapter may be in several files
    digest = file_sha256(file) if file.is_file() else None
    return Source(name=name, weights=digest, peft_type=peft_type, weight=weight)
