"""The first stages of a run: find the facts of its model, read its texts, and load the base with the texts in rows."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tsugiki.annotations import PreTrainedModel, PreTrainedTokenizerBase
from tsugiki.base.loading import load_meta_model, load_model, load_tokenizer
from tsugiki.data.chat import use_template
from tsugiki.data.read.files import record_kinds
from tsugiki.data.records import Document
from tsugiki.dtypes import BaseDtype
from tsugiki.fast.experts import use_even_rows
from tsugiki.fast.recomputation import recompute_blocks
from tsugiki.io.progress import ProgressDisplay
from tsugiki.language import _
from tsugiki.training.data.divide import read_data
from tsugiki.training.data.packing import count_rows, pack_data
from tsugiki.training.measure.facts import Facts, fact_notes, given_facts, measured_facts
from tsugiki.training.run.general import with_general_answers
from tsugiki.training.run.stage_results import Base, Texts
from tsugiki.training.run.start import Start
from tsugiki.training.settings.config import AUTO, RunConfig
from tsugiki.training.tools.memory import return_freed_memory
from tsugiki.training.tools.processes import main_first

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
    start.display.announce(_("loading {model}").format(model=config.model))
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
