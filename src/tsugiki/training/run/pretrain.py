"""Pretraining: train a tokenizer, initialise a model at random, then train it with method `full`.

The tokenizer and the initial weights are saved as an ordinary model folder, `checkpoints/start` in the folder of the
run. Everything after that (packing, checkpoints, resuming, evaluating, the record) is done by `training.run.stages`.
"""

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from tsugiki.annotations import PreTrainedModel, PreTrainedTokenizerBase
from tsugiki.base.loading import load_tokenizer
from tsugiki.data.duplicates import near_duplicates
from tsugiki.data.read.files import Data, read_records
from tsugiki.data.read.schemas import NO_COLUMNS, Columns
from tsugiki.data.splits import FieldCondition, matching, parse_held_out, share_of, split_document, split_records
from tsugiki.data.store import Array, read_index
from tsugiki.data.train_tokenizer import train_vocabulary
from tsugiki.errors import TsugikiError, error_text
from tsugiki.io.atomic import new_folder
from tsugiki.io.run_folder import CHECKPOINTS
from tsugiki.language import _
from tsugiki.methods.full import save_model
from tsugiki.model.context import context_length
from tsugiki.training.data.split import single_document
from tsugiki.training.measure.facts import given_facts
from tsugiki.training.record.progress import RunProgress
from tsugiki.training.record.run_record import RunRecord
from tsugiki.training.run.load import load_base, read_texts
from tsugiki.training.run.stages import train_on
from tsugiki.training.run.start import started
from tsugiki.training.settings.several_runs import PretrainConfig, TokenizerSettings
from tsugiki.training.tools.processes import on_main

Texts: TypeAlias = Callable[[], Iterator[str]]
"""A function that returns an iterator over texts, the same texts at each call."""

START = "start"
_FROM_TOKENIZER = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")


def pretrain(config: PretrainConfig, resume: bool = False, progress: RunProgress | None = None) -> RunRecord:
    """Train a model from scratch as `config` describes. `config.out` is then a model folder with `run.json`.

    Args:
        config: the settings.
        resume: continue from the newest checkpoint in `config.out`.
        progress: where to show the progress; None: a new display on standard error.

    Returns:
        The record of the finished run.

    Raises:
        TsugikiError: an error that the user can correct. Files that were in the folder before are unchanged.
    """
    out = Path(config.out)
    start = out / CHECKPOINTS / START
    settings = config.as_run(start)
    with started(settings, config.to_record(), resume, progress) as run:
        if not (resume and start.is_dir()):
            on_main(run.accelerator, lambda: _write_start(config, start, run.display))
        facts = given_facts(settings, run.record, run.device)
        train_on(run, facts, load_base(run, facts, read_texts(run)))
    return run.record


def build_model(settings: dict[str, Any], tokenizer: PreTrainedTokenizerBase | int, seed: int) -> PreTrainedModel:
    """Build a model with random weights; the same seed gives the same weights.

    `settings` has `model_type`, and fields of that model's config. `tokenizer` may be only the size of its vocabulary.
    """
    from accelerate.utils import set_seed
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    kind = settings.get("model_type")
    if kind not in CAUSAL or kind not in CONFIG_MAPPING_NAMES:
        given = _("is {kind!r}").format(kind=kind) if kind else _("is missing")
        message = _("model: model_type {given}; name a causal language model of transformers, such as gpt2")
        raise TsugikiError(message.format(given=given))
    ours = [name for name in _FROM_TOKENIZER if name in settings]
    if ours:
        raise TsugikiError(_("model: {ours} comes from the tokenizer; leave it out").format(ours=", ".join(ours)))
    fields = {name: value for name, value in settings.items() if name != "model_type"}
    known = AutoConfig.for_model(kind)
    unknown = [name for name in fields if not hasattr(known, name)]
    if unknown:
        names = ", ".join(unknown)
        message = _("model: {names}: a {kind} has no such setting; {name} lists them")
        raise TsugikiError(message.format(names=names, kind=kind, name=type(known).__name__))
    fields["vocab_size"] = tokenizer if isinstance(tokenizer, int) else len(tokenizer)
    end = 0 if isinstance(tokenizer, int) else tokenizer.eos_token_id
    fields |= {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    set_seed(seed)
    try:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **fields), dtype=torch.float32)
        with torch.no_grad():
            model.eval()(input_ids=torch.ones(1, 4, dtype=torch.int64))
    except Exception as error:  # models raise errors of many types
        message = _("model: no {kind} can be built with these settings: {error}")
        raise TsugikiError(message.format(kind=kind, error=error_text(error))) from error
    return model


def _write_start(config: PretrainConfig, start: Path, progress: RunProgress) -> None:
    """Write the tokenizer and the initial weights to the folder `start`, atomically."""
    given = config.tokenizer if isinstance(config.tokenizer, str) else None
    tokenizer = load_tokenizer(given) if given else None
    size = config.tokenizer.vocab_size if isinstance(config.tokenizer, TokenizerSettings) else len(tokenizer or ())
    context = context_length(build_model(config.model, size, config.seed))  # errors appear before the tokenizer trains
    if config.block_size and config.block_size > context:
        message = _("block_size is {block_size}, but the model's context is {context} tokens")
        raise TsugikiError(message.format(block_size=config.block_size, context=context))
    if isinstance(config.tokenizer, TokenizerSettings):
        progress.print(_("training a tokenizer of {size:,} tokens").format(size=size))
        tokenizer = _train_tokenizer(config, config.tokenizer)
    assert tokenizer is not None
    tokenizer.model_max_length = context
    model = build_model(config.model, tokenizer, config.seed)
    with new_folder(start, replace=True) as temporary:  # a run that stopped before step 1 may have left one
        save_model(model, tokenizer, temporary)


def _train_tokenizer(config: PretrainConfig, settings: TokenizerSettings) -> PreTrainedTokenizerBase:
    """Train the tokenizer on the training texts and on `settings.data`, but not on held-out text."""
    training, held_out_signatures = _split(config)
    more: Texts = lambda: iter(())  # noqa: E731
    if settings.data:
        more = _without_held_out(settings.data, held_out_signatures, parse_held_out(config.held_out))
    return train_vocabulary(
        lambda: chain(training(), more()),
        settings.vocab_size,
        settings.common_characters,
        settings.alphabet,
        settings.max_piece,
    )


def _split(config: PretrainConfig) -> tuple[Texts, Array]:
    """Return the training texts of the run, and the signatures of its held-out texts (see `data.duplicates`)."""
    held_out = parse_held_out(config.held_out)
    share = share_of(held_out)
    single = None if share is None else single_document(config.data, config.columns)
    if single and share is not None:
        beginning, end = split_document(single, share)
        return lambda: iter([beginning.text]), read_index([end]).signatures
    index = read_index(read_records(config.data, config.columns))
    if held_out is None or isinstance(held_out, Path):
        signatures = index.signatures[:0]
        if held_out is not None:
            signatures = read_index(read_records(held_out, config.columns)).signatures
        return lambda: (record.text for record in read_records(config.data, config.columns)), signatures
    measured = split_records(index, held_out, config.seed, near_duplicates(index.signatures))
    excluded = set(measured.tolist())
    return lambda: _texts_without(config.data, config.columns, excluded), index.signatures[measured]


def _without_held_out(data: str, signatures: Array, held_out: object) -> Texts:
    """Return the texts of other data, except those that are nearly the same as a held-out text or meet the condition.

    `signatures` are those of the held-out texts, and `held_out` is how the run selects its held-out records.
    """
    index = read_index(read_records(data))
    groups = near_duplicates(np.concatenate([index.signatures, signatures]))
    excluded = {number for group in groups if max(group) >= len(index) for number in group}
    if isinstance(held_out, FieldCondition):
        excluded |= set(matching(index, held_out).tolist())
    return lambda: _texts_without(data, NO_COLUMNS, excluded)


def _texts_without(data: Data, columns: Columns, excluded: set[int]) -> Iterator[str]:
    return (record.text for number, record in enumerate(read_records(data, columns)) if number not in excluded)
