"""Pack the training records of a run into rows for its model."""

from dataclasses import dataclass

import numpy as np

from tsugiki.annotations import PreTrainedModel, PreTrainedTokenizerBase
from tsugiki.data.blocks import Blocks, Integers, pack
from tsugiki.data.encoding import begin_token, document_end
from tsugiki.data.tokenizer_coverage import LITTLE_TEXT, coverage_of
from tsugiki.errors import TsugikiError
from tsugiki.fast.document_masks import (
    DocumentMasking,
    attends_to_later_tokens,
    detect_document_masking,
    shares_prompts,
)
from tsugiki.language import _, counts
from tsugiki.lora.graft import graft, ungraft
from tsugiki.model.context import context_length
from tsugiki.model.inference import seeded
from tsugiki.preference.pairs import AnswerRows, Preferences, pack_preferences
from tsugiki.training.data.general import GeneralQuestions
from tsugiki.training.data.split import DatasetSplit, SplitAnswers
from tsugiki.training.data.windows import Window
from tsugiki.training.model.rows import ROW_TOKENS, tokens_of_row
from tsugiki.training.record.run_record import DataSummary

_SHARE_OF_PAIRS, _BLOCK_STEP = 0.99, 64  # rows are longer, in steps of so many tokens, if fewer pairs fit into one
_TOKENS_OF_GENERAL = 80  # of a general question with its answer, before it is known


@dataclass(frozen=True)
class PackedAnswers:
    """The answers of preference tuning, packed into rows."""

    training: AnswerRows
    held_out: AnswerRows | None
    """None: there are none."""
    validation: AnswerRows | None
    """Pairs that choose the step that is kept; None: there are none."""

    @property
    def parts(self) -> dict[str, AnswerRows]:
        """The parts that there are, by their names."""
        parts = {"training": self.training, "held_out": self.held_out, "validation": self.validation}
        return {name: rows for name, rows in parts.items() if rows is not None}


@dataclass(frozen=True)
class PackedDataset:
    """The data of a run, with the training records packed into rows for a model."""

    blocks: Blocks
    """The training data."""
    windows: list[Window]
    """The held-out text."""
    validation_windows: list[Window]
    """The validation text, whose loss decides which step is kept; empty if there is none."""
    retention_windows: list[Window]
    """The text of `retention_data`."""
    document_masking: DocumentMasking
    """How documents in the same row are masked from each other."""
    summary: DataSummary
    """Counts and fingerprints of the records and of the rows, for the run's record."""
    notes: list[str]
    """Notes on what is unusual about the data, one sentence each."""
    answers: PackedAnswers | None = None
    """The answers of preference tuning; those of training are in `blocks`."""
    general: GeneralQuestions | None = None
    """The general questions, some of which the model is asked before and after training."""


def pack_data(
    split: DatasetSplit,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    block_size: int | None,
    virtual_tokens: int = 0,
) -> PackedDataset:
    """Pack the training records into rows for this model, of `block_size` tokens with a prompt of `virtual_tokens`."""
    size = tokens_of_row(model, block_size or _row_of_answers(split, model), virtual_tokens)
    masking = _document_masking(model, size, virtual_tokens)
    end, more, answers = document_end(tokenizer), list[str](), None
    if split.answers is None:
        share_rows, begin = masking != "separate_rows", begin_token(tokenizer)
        blocks = pack(split.store, split.train, size, end, share_rows, begin)
    else:
        answers, more = _pack_answers(split.answers, size, end, model, masking)
        blocks = answers.training.blocks
    notes = [*split.notes, *more]
    if masking == "separate_rows":
        message = _(
            "{model} cannot mask documents in the same row from each other: each document has separate rows, which "
            "are padded"
        )
        notes.append(message.format(model=model.name_or_path))
    if blocks.cut_records:
        notes.append(
            _("longer than a row of {size} tokens: {examples}; {tokens} at their ends are cut off").format(
                size=size, examples=counts.examples(blocks.cut_records), tokens=counts.tokens(blocks.cut_tokens)
            )
        )
    coverage = coverage_of(tokenizer, split.store)
    notes += coverage.notes()
    has_texts = not split.store.index.questions.all()  # answers are to be learned by heart
    if split.summary.train.characters < LITTLE_TEXT and has_texts:
        message = _("the training text is short ({characters}): it is soon learned by heart")
        notes.append(message.format(characters=counts.characters(split.summary.train.characters)))
    summary = DataSummary(
        **dict(split.summary),
        unknown_share=coverage.unknown,
        piece_share=coverage.pieces,
        blocks=len(blocks),
        block_size=size,
        blocks_fingerprint=blocks.fingerprint(),
        document_masking=masking,
        target_tokens_per_epoch=blocks.target_tokens,
        tokens_per_epoch=blocks.tokens,
        padding=len(blocks) * size - blocks.tokens,
        split_records=blocks.split_records,
        cut_records=blocks.cut_records,
        cut_tokens=blocks.cut_tokens,
    )
    windows = (split.windows, split.validation_windows, split.retention_windows)
    return PackedDataset(blocks, *windows, masking, summary, notes, answers, split.general)


def _row_of_answers(split: DatasetSplit, model: PreTrainedModel) -> int | None:
    """Return the tokens of a row that holds nearly all pairs; None: the usual number, or no answers are learned."""
    if split.answers is None:
        return None
    preferences, firsts = split.answers.training
    offsets = preferences.store.offsets
    tokens = int(np.quantile(offsets[firsts + preferences.size] - offsets[firsts], _SHARE_OF_PAIRS))
    rounded = -(-tokens // _BLOCK_STEP) * _BLOCK_STEP
    return None if tokens <= ROW_TOKENS else min(rounded, context_length(model))


def _pack_answers(
    answers: SplitAnswers, size: int, pad: int, model: PreTrainedModel, masking: DocumentMasking
) -> tuple[PackedAnswers, list[str]]:
    """Pack answers into rows of `size` tokens, with one copy of each prompt if the model can share it.

    Also returns notes on what does not fit.
    """
    share_prompts = shares_prompts(model, masking, size)

    def packed(preferences: Preferences, firsts: Integers) -> tuple[AnswerRows, list[str]]:
        blocks, _too_long, notes = pack_preferences(preferences, firsts, size, pad, share_prompts)
        return AnswerRows(preferences, blocks, apart=masking == "separate_rows"), notes

    def scored(part: tuple[Preferences, Integers] | None, name: str) -> AnswerRows | None:
        if part is None or not len(part[1]):
            return None
        try:
            rows, more = packed(*part)
        except TsugikiError:  # all are too long
            message = _("none of the {part} pairs fits into a row of {size:,} tokens, so none is scored")
            notes.append(message.format(part=name, size=size))
            return None
        notes.extend(more)
        return rows

    training, notes = packed(*answers.training)
    held_out = scored(answers.held_out, _("held-out"))
    return PackedAnswers(training, held_out, scored(answers.validation, _("validation"))), notes


def count_rows(
    split: DatasetSplit,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    block_size: int | None,
    virtual_tokens: int,
) -> int:
    """Return the number of rows of a run, for a model that may be without weights."""
    size = tokens_of_row(model, block_size or _row_of_answers(split, model), virtual_tokens)
    if split.answers is not None:
        return len(pack_preferences(*split.answers.training, size, document_end(tokenizer))[0])
    blocks = pack(split.store, split.train, size, document_end(tokenizer), share_rows=True)
    return len(blocks) + -(-_TOKENS_OF_GENERAL * len(split.general.learned) // size if split.general else 0)


def _document_masking(model: PreTrainedModel, tokens: int, prompt: int) -> DocumentMasking:
    """Return how this model can mask documents in a row of `tokens` tokens from each other.

    A soft prompt comes before every document, so the model is probed with one of the same length, `prompt`.
    """
    if attends_to_later_tokens(model):
        message = _(
            "{name} attends to later tokens, so predicting them teaches it nothing; if its config.json has "
            "is_decoder, set it to true"
        )
        raise TsugikiError(message.format(name=type(model).__name__))
    if not prompt:
        return detect_document_masking(model, tokens)
    from tsugiki.methods.prompt_tuning import PromptTuningConfig

    # The probe's prompt consists of embeddings of real tokens. A normally distributed prompt causes so much rounding
    # error in bfloat16 that the probe could not tell the documents apart.
    with seeded(0):  # a resumed run must get the same answer
        graft(model, PromptTuningConfig(prompt, prompt_tuning_init="SAMPLE_VOCAB"))
    try:
        return detect_document_masking(model, tokens)
    finally:
        ungraft(model)
