"""The chat template that an adapter was trained with: `chat_template.jinja` in its folder, as transformers names it.

Only adapters that learned conversations have one. A template is a program that comes with an adapter, so nothing here
runs it: `data.chat` renders templates in Jinja's sandbox.
"""

import copy
from pathlib import Path
from typing import TYPE_CHECKING

from tsugiki.data.chat import read_template_file
from tsugiki.io.file_names import CHAT_TEMPLATE_FILE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def saved_chat_template(folder: Path) -> str | None:
    """Return the chat template in an adapter's folder; None if the adapter was not trained on conversations."""
    path = folder / CHAT_TEMPLATE_FILE
    return read_template_file(path) if path.exists() else None


def with_chat_template(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> "PreTrainedTokenizerBase":
    """Return a copy of the tokenizer with the chat template of the adapter in a folder, if the adapter has one."""
    changed, template = copy.copy(tokenizer), saved_chat_template(folder)
    if template is not None:
        changed.chat_template = template
    return changed
