"""Pack the training records of a run into rows for its model."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from tsugiki.annotations import PreTrainedModel, PreTrainedTokenizerBase
from tsugiki.data.blocks import Blocks, Integers, pack
from tsugiki.data.encoding import begin_token, document_end
from tsugiki.data.tokenizer_coverage import coverage_of
from tsugiki.data.windows import Window
from tsugiki.errors import TsugikiError
from tsugiki.fast.document_masks import (
    DocumentMasking,
    attends_to_later_tokens,
    detect_document_masking,
    shares_prompts,
)
from tsugiki.io.progress import Detail
from tsugiki.lora.graft import graft, ungraft
from tsugiki.model.context import context_length
from tsugiki.model.inference import seeded
from tsugiki.preference.pairs import AnswerRows, Preferences, pack_preferences
from tsugiki.training.data.divide import Division
from tsugiki.training.data.general import GeneralQuestions
from tsugiki.training.data.notes import length_notes, row_notes, unfit_notes
from tsugiki.training.measure.shapes import ROW_TOKENS, tokens_of_row
from tsugiki.training.record.run_record import DataSummary

_SHARE_OF_PAIRS, _BLOCK_STEP = 0.99, 64  # rows are longer, in steps of so many tokens, if fewer pairs fit into one
_TOKENS_OF_GENERAL = 80  # of a general question with its answer, before it is known


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
    answers: Mapping[str, AnswerRows] = field(default_factory=dict)
    """The answers of preference tuning: training, which are in `blocks` as well, held_out and validation, if there are
    such."""
    general: GeneralQuestions | None = None
    """The general questions, some of which the model is asked before and after training."""


def pack_data(
    division: Division,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    block_size: int | None,
    virtual_tokens: int = 0,
) -> PackedDataset:
    """Pack the training records into rows for this model, of `block_size` tokens with a prompt of `virtual_tokens`."""
    size = tokens_of_row(model, block_size or _row_of_answers(division, model), virtual_tokens)
    masking = _document_masking(model, size, virtual_tokens)
    end, answers, unfit = document_end(tokenizer), dict[str, AnswerRows](), dict[str, Integers]()
    if division.answers:
        answers, unfit = _pack_answers(division.answers, size, end, model, masking)
        blocks = answers["training"].blocks
    else:
        share_rows, begin = masking != "separate_rows", begin_token(tokenizer)
        blocks = pack(division.store, division.train, size, end, share_rows, begin)
    coverage = coverage_of(tokenizer, division.store)
    summary = DataSummary(
        **dict(division.summary),
        unknown_share=coverage.unknown,
        piece_share=coverage.pieces,
        letter_share=coverage.letters,
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
    notes = [
        *division.notes,
        *unfit_notes(division.answers, unfit, size),
        *row_notes(summary, model.name_or_path),
        *coverage.notes(),
        *map(Detail, length_notes(summary, division.store.index)),
    ]
    windows = (division.windows, division.validation_windows, division.retention_windows)
    return PackedDataset(blocks, *windows, masking, summary, notes, answers, division.general)


def _row_of_answers(division: Division, model: PreTrainedModel) -> int | None:
    """Return the tokens of a row that holds nearly all pairs; None: the usual number, or no answers are learned."""
    if not division.answers:
        return None
    preferences, rows = division.answers["training"]
    offsets = preferences.store.offsets[:: preferences.size]
    tokens = int(np.quantile(offsets[rows + 1] - offsets[rows], _SHARE_OF_PAIRS))
    rounded = -(-tokens // _BLOCK_STEP) * _BLOCK_STEP
    return None if tokens <= ROW_TOKENS else min(rounded, context_length(model))


def _pack_answers(
    answers: Mapping[str, tuple[Preferences, Integers]],
    size: int,
    pad: int,
    model: PreTrainedModel,
    masking: DocumentMasking,
) -> tuple[dict[str, AnswerRows], dict[str, Integers]]:
    """Pack answers into rows of `size` tokens, with one copy of each prompt if the model can share it.

    Also returns which of them do not fit. Some training answers must fit, and those of another part need not.
    """
    share_prompts = shares_prompts(model, masking, size)
    packed, unfit = dict[str, AnswerRows](), dict[str, Integers]()
    for part, (preferences, rows) in answers.items():
        try:
            blocks, unfit[part] = pack_preferences(preferences, rows, size, pad, share_prompts)
        except TsugikiError:  # none fits, or there are none
            if part == "training":
                raise
            unfit[part] = rows
        else:
            packed[part] = AnswerRows(preferences, blocks, apart=masking == "separate_rows")
    return packed, unfit


def count_rows(
    division: Division,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    block_size: int | None,
    virtual_tokens: int,
) -> int:
    """Return the number of rows of a run, for a model that may be without weights."""
    size = tokens_of_row(model, block_size or _row_of_answers(division, model), virtual_tokens)
    if division.answers:
        return len(pack_preferences(*division.answers["training"], size, document_end(tokenizer))[0])
    blocks = pack(division.store, division.train, size, document_end(tokenizer), share_rows=True)
    return len(blocks) + -(-_TOKENS_OF_GENERAL * len(division.general.learned) // size if division.general else 0)


def _document_masking(model: PreTrainedModel, tokens: int, prompt: int) -> DocumentMasking:
    """Return how this model can mask documents in a row of `tokens` tokens from each other.

    A soft prompt comes before every document, so the model is probed with one of the same length, `prompt`.
    """
    if attends_to_later_tokens(model):
        raise TsugikiError(
            "{name} attends to later tokens, so predicting them teaches it nothing; if its config.json has "
            "is_decoder, set it to true",
            name=type(model).__name__,
        )
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
