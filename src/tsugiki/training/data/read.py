"""Read the data of a run with their tokens: texts, questions and conversations, or answers of preference tuning."""

from collections.abc import Iterable
from functools import partial
from importlib.resources import files
from itertools import islice
from pathlib import Path

from tsugiki.annotations import PreTrainedTokenizerBase
from tsugiki.base.resolve import EMBEDDED
from tsugiki.data.corpus import Corpus, Part, whole
from tsugiki.data.mixing import parse_mix
from tsugiki.data.read.files import Data, content_key, read_records
from tsugiki.data.records import NONE, Document, Reading, Record
from tsugiki.data.splits import near_duplicate_records, parse_held_out, split_document
from tsugiki.data.store import TokenStore, open_store, store_key
from tsugiki.errors import TsugikiError
from tsugiki.io.cache import cache_folder
from tsugiki.io.digests import combined_digest
from tsugiki.io.progress import ProgressDisplay
from tsugiki.language import _
from tsugiki.preference.pairs import Preferences, open_preferences
from tsugiki.training.settings.config import AUTO, RunConfig


def read_texts(
    config: RunConfig, key: str, tokenizer: PreTrainedTokenizerBase, progress: ProgressDisplay, end: float | None
) -> tuple[Corpus, TokenStore, bool]:
    """Return the texts of a run, their tokens, and whether they are one document that was divided.

    `key` is the `content_key` of the data. If they are a single document, its last part, the share `end`, is a row of
    its own; None: it is one row.
    """
    reading = Reading()
    first = [] if end is None else list(islice(read_records(config.data, config.columns, reading), 2))
    if end is not None and len(first) == 1 and isinstance(first[0], Document):
        parts = split_document(first[0], end)
        store = _tokenise(config, parts, f"{key}\0{end}", tokenizer, progress, reading)
        return Corpus(store.index, lambda: parts, []), store, True
    store = read_store(config, config.data, key, tokenizer, progress)
    with progress.stage(_("looking for near-duplicates"), None):
        near = near_duplicate_records(store.index)
    return Corpus(store.index, partial(read_records, config.data, config.columns), near), store, False


def read_store(
    config: RunConfig, data: Data, key: str, tokenizer: PreTrainedTokenizerBase, progress: ProgressDisplay
) -> TokenStore:
    """Return the tokens of texts, whose `content_key` is `key`."""
    reading = Reading()
    return _tokenise(config, read_records(data, config.columns, reading), key, tokenizer, progress, reading)


def _tokenise(
    config: RunConfig,
    records: Iterable[Record],
    key: str,
    tokenizer: PreTrainedTokenizerBase,
    progress: ProgressDisplay,
    reading: Reading,
) -> TokenStore:
    """Return the tokens of records, from the cache if it has them under `key`."""
    with progress.stage(_("tokenising"), None) as advance:
        return open_store(records, key, tokenizer, config.assistant_turns, cache_folder("tokens"), advance, reading)


def read_answers_of(
    config: RunConfig, data: Data, tokenizer: PreTrainedTokenizerBase, progress: ProgressDisplay
) -> Preferences:
    """Return the answers of preference tuning, which must be such that the loss can learn from them."""
    with progress.stage(_("tokenising"), None):
        preferences = open_preferences(data, tokenizer, cache_folder("tokens"), config.columns)
    if preferences.size == 1 and config.preference != "kto":
        raise TsugikiError(
            "the data have single answers with a label, and the loss {name} needs pairs, which have chosen and "
            "rejected; {flag:preference kto} takes single answers",
            name=config.preference,
        )
    return preferences


def read_file(config: RunConfig, path: Data) -> Part:
    """Return the rows of a text that is scored, whose tokens are not needed."""
    return whole(read_records(path, config.columns))


def retention_source(config: RunConfig) -> str | None:
    """Return the text that comes with Tsugiki, or the user's, as `retention_data` says; None: there is none."""
    return (
        str(files("tsugiki") / "assets" / "retention") if config.retention_data == EMBEDDED else config.retention_data
    )


def data_digest(config: RunConfig, tokenizer: PreTrainedTokenizerBase, key: str) -> str:
    """Return a digest of all texts that a run reads, and of the tokenizer; `key` is the `content_key` of the data."""
    digests = {"data": store_key(key, tokenizer, config.assistant_turns)}
    validation = None if config.validation == AUTO else parse_held_out(config.validation, "validation")
    sources = {
        "held_out": parse_held_out(config.held_out),
        "validation": validation,
        "mix": None if config.mix in (AUTO, NONE) else parse_mix(config.mix)[0],
        "retention_data": retention_source(config),
    }
    for name, source in sources.items():
        if isinstance(source, Path | str):
            digests[name] = content_key(source, config.columns)
    return combined_digest(digests)
