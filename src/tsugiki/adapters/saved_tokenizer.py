"""The tokenizer in an adapter's folder: its chat template, and its new words with the rows that a base needs for them.

An adapter that learned conversations has the template that it was trained with, in `chat_template.jinja`, as
transformers names it. A template is a program that comes with an adapter, so nothing here runs it: `data.chat` renders
templates in Jinja's sandbox.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tsugiki.adapters.files import read_adapter_config, read_base
from tsugiki.annotations import PreTrainedModel, PreTrainedTokenizerBase
from tsugiki.base.new_words import fit_vocabulary, has_tokenizer, load_saved_tokenizer
from tsugiki.data.chat import read_template_file
from tsugiki.io.file_names import CHAT_TEMPLATE_FILE, TOKENIZER_FILES
from tsugiki.lora.config import LoraConfig


def saved_chat_template(folder: Path) -> str | None:
    """Return the chat template in an adapter's folder; None if the adapter was not trained on conversations."""
    path = folder / CHAT_TEMPLATE_FILE
    return read_template_file(path) if path.exists() else None


def with_chat_template(tokenizer: PreTrainedTokenizerBase, folder: Path) -> PreTrainedTokenizerBase:
    """Return a copy of the tokenizer with the chat template of the adapter in a folder, if the adapter has one."""
    changed, template = copy.copy(tokenizer), saved_chat_template(folder)
    if template is not None:
        changed.chat_template = template
    return changed


def with_new_words(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> PreTrainedTokenizerBase:
    """Prepare a base for an adapter that trains vectors of tokens; for other adapters, nothing changes.

    The base gets rows for new words, in place. The result is the tokenizer that was saved with the adapter, or else
    `tokenizer`.
    """
    words = words_for(model, folder)
    if words is None:
        return tokenizer
    fit_vocabulary(model, words)
    if not has_tokenizer(folder):
        return tokenizer
    saved = load_saved_tokenizer(folder)
    if saved.chat_template is None:  # an adapter that was not trained on conversations is saved without a template
        saved.chat_template = tokenizer.chat_template
    return saved


def words_for(model: PreTrainedModel, folder: Path) -> int | None:
    """Return the size of the vocabulary with which an adapter trains vectors of tokens; None if it trains none."""
    config = read_adapter_config(folder)
    wanted = config.trainable_token_indices if isinstance(config, LoraConfig) else None
    if not wanted:
        return None
    lists: Iterable[Sequence[int]] = wanted.values() if isinstance(wanted, Mapping) else [wanted]
    tokens = {token for indices in lists for token in indices}
    rows = len(model.get_input_embeddings().weight)
    recorded = read_base(folder).config.get("vocab_size")
    words: int = recorded if isinstance(recorded, int) else max(tokens) + 1
    # If words that do not train are missing in the base, their vectors are unknown, and the base is refused later.
    return words if rows < words and set(range(rows, words)) <= tokens else rows


def tokenizer_files(folder: Path) -> list[str]:
    """Return the names of an adapter's tokenizer files: all if it has new words, otherwise only its chat template."""
    config = read_adapter_config(folder)
    has_words = isinstance(config, LoraConfig) and config.trainable_token_indices
    return [name for name in (TOKENIZER_FILES if has_words else [CHAT_TEMPLATE_FILE]) if (folder / name).is_file()]
