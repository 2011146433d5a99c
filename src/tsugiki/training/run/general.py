"""The base's own answers to general questions, which a run learns beside the user's rows (`training.data.general`)."""

import re
from collections.abc import Sequence

import numpy as np
import torch

from tsugiki.annotations import PreTrainedModel, PreTrainedTokenizerBase
from tsugiki.data.encoding import encode
from tsugiki.data.mixing import mix
from tsugiki.data.records import Completion
from tsugiki.data.store import open_store
from tsugiki.dtypes import BaseDtype
from tsugiki.errors import TsugikiError
from tsugiki.io.cache import cache_folder
from tsugiki.language import _
from tsugiki.training.data.divide import Division, with_mixed
from tsugiki.training.model.rows import tokens_of_row
from tsugiki.training.run.base_results import kept_of_base
from tsugiki.training.run.stage_results import Texts
from tsugiki.training.run.start import Start
from tsugiki.training.score.questions import Question, answer_questions
from tsugiki.training.tools.processes import main_first, on_main

_ANSWER = 60
"""Tokens of an answer. A longer one is cut at the end of its last whole sentence."""
_WHOLE = _ANSWER - 5
"""Tokens of an answer that is surely whole. Text that is encoded again can have a few tokens less than before."""
_END_OF_SENTENCE = re.compile(r"(?<!\d)[.!?](?=\s|$)|[。！？]|\n")


def with_general_answers(start: Start, model: PreTrainedModel, dtype: BaseDtype, texts: Texts) -> Division:
    """Return the texts of a run, with the answers of its loaded base to their general questions mixed in.

    A run that is continued has the answers of its record, so that another machine cannot change them.
    """
    division, tokenizer, before = texts.division, texts.tokenizer, start.record.data
    asked = () if division.general is None else division.general.learned

    def answer() -> dict[str, str]:
        with start.display.stage(_("asking the base general questions"), None):
            return answers_of(model, tokenizer, asked)

    if before is not None:
        answers = before.mixed.general_answers if before.mixed else {}
    elif asked:
        facts = "general answers", asked, tokenizer.chat_template, torch.get_num_threads()
        answers = on_main(start.accelerator, lambda: kept_of_base(start, model, dtype, facts, answer))
    if not asked or not answers:
        return division
    records = [Completion(question, text, f"general: {question}") for question, text in answers.items()]
    key, folder, turns = f"general answers {answers!r}", cache_folder("tokens"), start.config.assistant_turns
    other = main_first(start.accelerator, lambda: open_store(records, key, tokenizer, turns, folder))
    row = tokens_of_row(model, start.config.block_size, start.config.virtual_tokens)
    fitting = np.flatnonzero(np.diff(other.offsets) <= row)
    mixed = mix(division.store, division.train, other, fitting, None, start.config.seed, tokenizer)
    return with_mixed(division, mixed, answers)


def answers_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[str]) -> dict[str, str]:
    """Return the most probable answers of a model to questions, without those that it does not answer.

    There is none if a question does not fit into the model's context, or its chat template cannot render it.
    """
    asked = [Question(question, question, "exact", ("",)) for question in questions]
    try:
        texts = [given.answer.strip() for given in answer_questions(model, tokenizer, asked, _ANSWER).answers]
    except TsugikiError:
        return {}
    tokens = map(len, encode(tokenizer, texts))
    answers = [_whole_sentences(text) if count > _WHOLE else text for text, count in zip(texts, tokens, strict=True)]
    return {question: text for question, text in zip(questions, answers, strict=True) if text}


def _whole_sentences(text: str) -> str:
    """Return a text without what follows the end of its last whole sentence."""
    ends = [found.end() for found in _END_OF_SENTENCE.finditer(text)]
    return text[: ends[-1]].strip() if ends else ""
