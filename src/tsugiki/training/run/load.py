"""The first stages of a run: find the facts of its model, read its texts, load the base, and ask it general questions.

What the base alone computes is kept in the cache (`kept_of_base`).
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tsugiki.annotations import PreTrainedModel, PreTrainedTokenizerBase
from tsugiki.base.identity import identity_of
from tsugiki.base.loading import load_meta_model, load_model, load_tokenizer
from tsugiki.data.chat import use_template
from tsugiki.data.encoding import encode
from tsugiki.data.mixing import mix
from tsugiki.data.read.files import record_kinds
from tsugiki.data.records import Completion, Document
from tsugiki.data.store import open_store
from tsugiki.dtypes import BaseDtype
from tsugiki.errors import TsugikiError
from tsugiki.fast.paths import use_even_rows
from tsugiki.fast.recomputation import recompute_blocks
from tsugiki.io.cache import cache_folder, code_state, kept
from tsugiki.io.digests import sha256
from tsugiki.io.measurements import processor_name
from tsugiki.io.progress import ProgressDisplay
from tsugiki.language import _
from tsugiki.lora.hold import is_grafted
from tsugiki.lowbit.nf4 import product_dtype
from tsugiki.model.products import onednn_is_faster
from tsugiki.training.data.divide import Division, read_data, with_mixed
from tsugiki.training.data.packing import count_rows, pack_data
from tsugiki.training.measure.facts import Facts, fact_notes, given_facts, measured_facts
from tsugiki.training.measure.shapes import tokens_of_row
from tsugiki.training.record.run_record import library_versions
from tsugiki.training.run.start import Base, Start, Texts
from tsugiki.training.score.questions import Question, answer_questions
from tsugiki.training.settings.config import AUTO, RunConfig
from tsugiki.training.tools.memory import return_freed_memory
from tsugiki.training.tools.processes import main_first, on_main

if TYPE_CHECKING:
    from tsugiki.base.new_words import NewWords


def find_facts(start: Start) -> Facts:
    """Find the shapes of the model, the dtype of its base and the memory, by measuring where this is possible.

    Processes that share a run would not agree on what they measure.
    """
    record = start.record
    facts = given_facts(start.config, record, start.device)
    if start.device.type == "cpu" and start.accelerator.num_processes == 1:
        facts = measured_facts(start.config, facts, is_resumed="base_dtype" in start.before)
    record.base_dtype_seconds = facts.dtype_seconds
    if facts.memory is not None:
        record.planned_memory = facts.memory.peak
    for line in fact_notes(facts):
        start.display.print(line)
    return facts


def read_texts(start: Start) -> Texts:
    """Load the tokenizer, and read the data. The main process tokenises them; the others find the tokens in the cache.

    The data are read before the model is loaded, so that errors in them appear at once.
    """
    config = start.config

    def read() -> Texts:
        tokenizer, new = load_run_tokenizer(config), None
        if config.add_tokens is not None:
            from tsugiki.base.new_words import add_words, read_words

            new = add_words(tokenizer, read_words(Path(config.add_tokens)))
        return Texts(tokenizer, new, read_data(config, tokenizer, start.display))

    return main_first(start.accelerator, read)


def load_run_tokenizer(config: RunConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the run's base model, with the chat template of its settings."""
    tokenizer = load_tokenizer(config.model, trust_remote_code=config.trust_remote_code)
    use_template(tokenizer, config.chat_template or (AUTO if _learns_answers(config) else None))
    return tokenizer


def _learns_answers(config: RunConfig) -> bool:
    """Return whether a run learns questions or conversations, for which a base without a chat template gets one."""
    if config.preference is not None or config.reward:
        return False
    return record_kinds(config.data, config.columns) != {Document}


def rows_of_data(config: RunConfig, progress: ProgressDisplay) -> tuple[int, bool, bool]:
    """Return the number of rows of a run before its model is loaded, and what its length depends on as well: whether it
    learns answers, and whether it has a validation text. The tokens stay in the cache for the run.
    """
    model, tokenizer = load_meta_model(config.model), load_run_tokenizer(config)
    division = read_data(config, tokenizer, progress)
    if division.general is not None and division.general.learned:
        progress.print(division.general.note)
    rows = count_rows(division, model, tokenizer, config.block_size, config.virtual_tokens)
    return rows, division.summary.learns_answers, bool(division.validation_windows)


def load_base(start: Start, facts: Facts, texts: Texts) -> Base:
    """Load the base model, and pack the data into rows for it. New words are added to its vocabulary."""
    model = load_run_model(start, facts, texts.new_words)
    return base_with_texts(start, model, facts.dtype, texts)


def base_with_texts(start: Start, model: PreTrainedModel, dtype: BaseDtype, texts: Texts) -> Base:
    """Return a loaded base with the texts, and what it answers to general questions, in rows for it."""
    division = with_general_answers(start, model, dtype, texts)
    data = pack_data(division, model, texts.tokenizer, start.config.block_size, start.config.virtual_tokens)
    return Base(model, texts.tokenizer, data, dtype)


def load_run_model(start: Start, facts: Facts, new_words: "NewWords | None" = None) -> PreTrainedModel:
    """Load the base model of a run, and add the run's new words to its vocabulary.

    It is moved to the accelerator's device, but not if its weights will be split over the processes.
    """
    config = start.config
    start.display.announce(_("loading {model}", model=Path(config.model).resolve().name))
    load = partial(load_model, config.model, facts.dtype, trust_remote_code=config.trust_remote_code)
    model = main_first(start.accelerator, load)
    return_freed_memory()  # loading stacks the weights of experts, and frees the unstacked copies
    if new_words is not None:
        from tsugiki.base.new_words import add_rows

        add_rows(model, new_words)
    if not start.in_shards:  # `shard` moves a part of the weights only
        model.to(start.device)
    use_even_rows(model, [])  # before the first pass, whose kernels stay in memory
    if config.recompute == AUTO:
        recompute_blocks(model, facts.recomputed_blocks)
    return model


def kept_of_base(
    start: Start, model: PreTrainedModel, base_dtype: BaseDtype, facts: object, compute: Callable[[], Any]
) -> Any:
    """Return the JSON value that `compute` gives, from the cache if nothing that it depends on has changed.

    Kept for the next run with the same base and text are the base's predictions on a sample, its losses, its samples
    and the references of pairs: a third of the processor time until the first step of a small model.
    `base_dtype` is the dtype in which the model was loaded, and `facts` is what the value depends on besides the base,
    the machine and the program; its `repr` must tell all of it. Nothing is kept of a base whose files may not tell what
    it computes, and of several processes, which compute together.
    """
    config = start.config
    identity = identity_of(model)
    is_unknown = identity.fingerprint is None or config.trust_remote_code or config.add_tokens is not None
    if is_unknown or start.accelerator.num_processes > 1:
        return compute()
    on_processor, dtype = start.device.type == "cpu", model.dtype
    library = on_processor and dtype == torch.float32 and onednn_is_faster()
    numbers = str(dtype), base_dtype, on_processor and product_dtype(model), library
    paths = is_grafted(model), model.config.get_text_config()._attn_implementation
    program = library_versions(), code_state()
    key = repr((identity.model_dump(), numbers, paths, str(start.device), processor_name(), program, facts))
    return kept("base", sha256([key.encode("utf-8", "surrogatepass")]), compute)  # the key may hold whole texts


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
