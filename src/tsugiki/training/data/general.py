"""Plain questions that come with Tsugiki, so that a chat model forgets less while it learns a user's answers.

Before the first step the base answers some of `LANGUAGE.jsonl`, and the run learns these answers beside the user's
rows. It then keeps to what it says outside the subject of these rows. The questions of `LANGUAGE-known.jsonl` are not
learned: they are asked before and after, and have expected answers.
"""

import json
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from tsugiki.annotations import PreTrainedTokenizerBase
from tsugiki.data.blocks import Integers
from tsugiki.data.chat import DEFAULT_TEMPLATE
from tsugiki.data.records import Completion, question
from tsugiki.data.store import TokenStore, text_key
from tsugiki.language import ENGLISH, JAPANESE, _
from tsugiki.training.settings.config import AUTO, RunConfig

_ROWS_FOR_ONE, _FEWEST = 3, 24
"""The user's rows for each question, and the fewest questions: fewer are learned by heart, and keep little else."""
_LOOKED_AT = 64
"""The rows whose language is looked at."""
_KANA = re.compile(r"[\u3041-\u30fe]")


@dataclass(frozen=True)
class GeneralQuestions:
    """The general questions of a run, whose base answers conversations."""

    language: str
    """That of the user's rows."""
    learned: tuple[str, ...]
    """The questions whose answers by the base are learned; empty: none."""

    @property
    def note(self) -> str:
        """A note that says how many general questions will be mixed in. It is shown before the base answers them."""
        return _(
            "so that less is forgotten, the base's own answers to general questions ({count:,}) are learned as well; "
            "{flag:mix none} leaves them out",
            count=len(self.learned),
        )

    @property
    def known(self) -> Path:
        """The file of the questions that are asked before and after."""
        return _file(f"{self.language}-known")


def general_questions(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, store: TokenStore, train: Integers
) -> GeneralQuestions | None:
    """Return the general questions for a run that learns the conversations `train` of a store.

    The result is None if the base has no chat template of its own: it cannot answer. Questions that the user's rows
    answer are left out.
    """
    template = tokenizer.chat_template
    if not template or template == DEFAULT_TEMPLATE or config.chat_template not in (None, AUTO):
        return None
    language = JAPANESE if _is_japanese(tokenizer, store, train) else ENGLISH
    if config.mix != AUTO:
        return GeneralQuestions(language, ())
    rows = map(json.loads, _file(language).read_text("utf-8").splitlines())
    asked = set(store.index.questions.tolist())
    free = [row["prompt"] for row in rows if text_key(question(Completion(row["prompt"], "", ""))) not in asked]
    return GeneralQuestions(language, tuple(free[: max(_FEWEST, -(-len(train) // _ROWS_FOR_ONE))]))


def _is_japanese(tokenizer: PreTrainedTokenizerBase, store: TokenStore, train: Integers) -> bool:
    """Return whether most of the first rows have kana."""
    some = train[:_LOOKED_AT]
    texts = [tokenizer.decode(store.ids[store.offsets[row] : store.offsets[row + 1]]) for row in some]
    return 2 * sum(_KANA.search(text) is not None for text in texts) > len(some)


def _file(name: str) -> Path:
    return Path(str(files("tsugiki") / "assets" / "general" / f"{name}.jsonl"))
