"""Pack the training records of a run into rows for its model."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tsugiki.data.blocks import Blocks, pack
from tsugiki.data.encoding import document_end
from tsugiki.data.seen_texts import Fingerprints, fingerprints
from tsugiki.errors import TsugikiError
from tsugiki.fast.document_masks import DocumentMasking, attends_to_later_tokens, detect_document_masking
from tsugiki.fast.layers import graft
from tsugiki.language import _, counts
from tsugiki.lora.graft import ungraft
from tsugiki.methods.prompt_tuning import PromptTuningConfig
from tsugiki.model.context import context_length
from tsugiki.model.inference import seeded
from tsugiki.training.config import RunConfig
from tsugiki.training.evaluation.evaluate import Window
from tsugiki.training.preparation import DatasetSplit
from tsugiki.training.record import DataSummary
from tsugiki.training.writing import LITTLE_TEXT, writing_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_BLOCK_SIZE = 512


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
    learned: Fingerprints
    """Fingerprints of the training records."""


def pack_data(
    config: RunConfig, split: DatasetSplit, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase"
) -> PackedDataset:
    """Pack the training records into rows for this model.

    Raises:
        TsugikiError: `block_size` exceeds the model's context, or a prompt fills a whole row.
    """
    size = tokens_of_row(config, model)
    masking = _document_masking(config, model)
    blocks = pack(split.store, split.train, size, document_end(tokenizer), share_rows=masking != "separate_rows")
    notes = [*split.notes]
    if masking == "separate_rows":
        notes.append(
            _(
                "{model} cannot mask documents in the same row from each other: each document has separate rows, which "
                "are padded"
            ).format(model=config.model)
        )
    if blocks.cut_records:
        notes.append(
            _("longer than a row of {size} tokens: {examples}; {tokens} at their ends are cut off").format(
                size=size, examples=counts.examples(blocks.cut_records), tokens=counts.tokens(blocks.cut_tokens)
            )
        )
    writing = writing_of(tokenizer, split.store)
    notes += writing.notes()
    if split.summary.train.characters < LITTLE_TEXT:
        notes.append(
            _("the training text is short ({characters}): it is soon learned by heart").format(
                characters=counts.characters(split.summary.train.characters)
            )
        )
    summary = DataSummary(
        **dict(split.summary),
        unknown_share=writing.unknown,
        piece_share=writing.pieces,
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
    learned = fingerprints(split.store.index, split.train)
    return PackedDataset(
        blocks, split.windows, split.validation_windows, split.retention_windows, masking, summary, notes, learned
    )


def tokens_of_row(config: RunConfig, model: "PreTrainedModel") -> int:
    """Return the number of tokens of a row.

    Raises:
        TsugikiError: `block_size` exceeds the model's context.
    """
    prompt = virtual_tokens(config)
    available = context_length(model) - prompt
    if config.block_size and config.block_size > available:
        message = _("block_size is {size}, but the model's context is {context} tokens")
        if prompt:
            message = _(
                "block_size is {size}, but the model's context is {context} tokens, {prompt} of which the soft prompt "
                "takes: {available} are left"
            )
        raise TsugikiError(
            message.format(size=config.block_size, context=available + prompt, prompt=prompt, available=available)
        )
    return config.block_size or min(_BLOCK_SIZE, available)


def _document_masking(config: RunConfig, model: "PreTrainedModel") -> DocumentMasking:
    """Return how this model can mask documents in a row from each other, given the soft prompt of the run, if any.

    The soft prompt comes before every document, so the model is probed with one of the same length.
    """
    if attends_to_later_tokens(model):
        raise TsugikiError(
            _(
                "{name} attends to later tokens, so predicting them teaches it nothing; if its config.json has "
                "is_decoder, set it to true"
            ).format(name=type(model).__name__)
        )
    length, row_length = virtual_tokens(config), tokens_of_row(config, model)
    if not length:
        return detect_document_masking(model, row_length)
    # The probe's prompt consists of embeddings of real tokens. A normally distributed prompt causes so much rounding
    # error in bfloat16 that the probe could not tell the documents apart.
    with seeded(0):  # a resumed run must get the same answer
        graft(model, PromptTuningConfig(length, prompt_tuning_init="SAMPLE_VOCAB"))
    try:
        return detect_document_masking(model, row_length)
    finally:
        ungraft(model)


def virtual_tokens(config: RunConfig) -> int:
    """Return the length of the soft prompt that the run trains; 0 if it trains none."""
    return getattr(config.adapter_config, "num_virtual_tokens", 0)
