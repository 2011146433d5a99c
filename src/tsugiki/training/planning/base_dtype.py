"""Choose the dtype of a frozen base if the settings leave it open: 8-bit integers where they clearly beat bfloat16.

    step = blocks · (forward and backward pass of a block) + loss with the whole vocabulary

Some processors multiply 8-bit integers twice as fast as bfloat16, others hardly faster, and rounding the activations
takes time, so the faster dtype depends on the processor and on the sizes of the layers. Both are therefore measured on
one block with random weights (see `planning.sample`), by one thread, and the times are kept in the cache. On held-out
text, a run on a base in 8 bits could not be told from one in bfloat16 for three bases (docs/memory.md). A processor
without bfloat16 computes in float32, from which it could be told.
"""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch

from tsugiki.base.config import load_config, loading_errors
from tsugiki.dtypes import BaseDtype, preferred_compute_dtype
from tsugiki.errors import TsugikiError, is_ordinary
from tsugiki.io.digests import combined_digest
from tsugiki.io.measurements import kept_seconds, shortest_seconds
from tsugiki.language import _
from tsugiki.lora.config import LoraConfig
from tsugiki.lowbit.integer_products import exact_integers
from tsugiki.lowbit.threads import with_one_thread
from tsugiki.model.blocks import decoder_blocks
from tsugiki.model.meta import meta_model
from tsugiki.training.config import RunConfig
from tsugiki.training.packing import tokens_of_row
from tsugiki.training.planning.sample import (
    backward,
    forward,
    hidden_states,
    loss_and_gradient,
    prepare_sample,
    sample_model,
)
from tsugiki.training.record import RunRecord

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

SMALL_MODEL = 50_000_000
"""Models with fewer parameters are not measured before a run, neither their speed nor their memory."""
_DTYPES: tuple[BaseDtype, ...] = ("bf16", "int8")
_GAIN = 1.1
"""Integers must be at least this many times as fast."""
_MOST_TOKENS, _LEAST_TOKENS = 256, 32
_MULTIPLICATIONS = 8_000_000_000
"""Of one forward pass through a block: large blocks are measured with fewer tokens."""
_REPEATS, _MOST_SECONDS = 5, 0.5


def with_base_dtype(config: RunConfig, record: RunRecord, measures: bool) -> RunConfig:
    """Return the settings of a run with the dtype of its base, if they leave it open and it was or can be measured.

    Args:
        config: the settings.
        record: the record of the run. A resumed run keeps its dtype; otherwise the times are written to it.
        measures: whether the dtype of a new run is measured. Processes that share a run would not agree.
    """
    if config.base_dtype is not None:
        return config
    dtype = record.resolved_settings.get("base_dtype")
    if dtype is None and measures and leaves_dtype_open(config):
        record.base_dtype_seconds = _seconds_of_model(config)
        dtype = faster_dtype(record.base_dtype_seconds) if record.base_dtype_seconds else None
    return config if dtype is None else config.model_copy(update={"base_dtype": dtype})


def base_dtype_notes(config: RunConfig, record: RunRecord) -> list[str]:
    """Return a note for the user if the base is in 8 bits because it is faster."""
    seconds = record.base_dtype_seconds
    if seconds is None or config.base_dtype != "int8":
        return []
    return [
        _(
            "base in int8: a sample of it trains {gain:.1f} times as fast here as in bf16 (--base-dtype bf16 turns "
            "this off)"
        ).format(gain=seconds["bf16"] / seconds["int8"])
    ]


def leaves_dtype_open(config: RunConfig) -> bool:
    """Return whether the settings and the processor leave the dtype of the base to a measurement.

    They do for plain LoRA, for which bases in 8 bits and in bfloat16 were compared, if the processor multiplies
    bfloat16, and 8-bit integers exactly.
    """
    adapter = config.adapter_config
    return (
        config.base_dtype is None
        and config.add_tokens is None
        and not config.trust_remote_code
        and not config.trains_base_parameters()
        and isinstance(adapter, LoraConfig)
        and adapter.init_lora_weights is True
        and not adapter.use_dora
        and not adapter.trainable_token_indices
        and preferred_compute_dtype(torch.device("cpu")) == "bf16"
        and exact_integers()
    )


def seconds_of_dtypes(config: RunConfig, shapes: "PretrainedConfig") -> dict[str, float] | None:
    """Return base dtype -> CPU seconds of the forward and backward pass of some tokens, on a processor.

    The times are read from the cache if they are in it. Returns None for small models, for models that are not stored
    as floats, and for those that cannot be measured; errors in a model or an adapter are reported by the run itself.

    Args:
        config: the settings of the run.
        shapes: the config of the model.
    """
    if getattr(shapes, "quantization_config", None) is not None:
        return None
    try:
        with loading_errors(config.model):
            model = meta_model(shapes)
        if sum(parameter.numel() for parameter in model.parameters()) < SMALL_MODEL:
            return None
        key = combined_digest(
            {
                "shapes": shapes.to_json_string(),
                "adapter": repr(config.adapter_config),
                "tokens": f"{config.block_size}",
            }
        )
        return kept_seconds(f"training, {key}", partial(_measure, config, shapes))
    except BaseException as error:  # transformers' models raise errors of all kinds
        if not is_ordinary(error):
            raise
        return None


def faster_dtype(seconds: Mapping[str, float]) -> BaseDtype:
    """Return the dtype for a base: `int8` if it is clearly faster than `bf16`."""
    return "int8" if seconds["bf16"] >= _GAIN * seconds["int8"] else "bf16"


def _seconds_of_model(config: RunConfig) -> dict[str, float] | None:
    try:
        shapes = load_config(config.model)
    except TsugikiError:  # the run itself reports it
        return None
    return seconds_of_dtypes(config, shapes)


@with_one_thread()
def _measure(config: RunConfig, shapes: "PretrainedConfig") -> dict[str, float]:
    samples = {dtype: _sample(config, shapes, dtype) for dtype in _DTYPES}
    whole, sample = meta_model(shapes), samples["bf16"]
    block = sum(parameter.numel() for parameter in decoder_blocks(whole)[0].parameters())
    tokens = max(_LEAST_TOKENS, min(_MOST_TOKENS, _MULTIPLICATIONS // block))
    row = min(tokens, tokens_of_row(config, whole))
    blocks, losses = (
        shortest_seconds(
            {dtype: partial(compute, sample, tokens // row, row) for dtype, sample in samples.items()},
            _REPEATS,
            _MOST_SECONDS,
        )
        for compute in (_blocks, _loss)
    )
    words, of_sample = (len(model.get_input_embeddings().weight) for model in (whole, sample))
    return {dtype: len(decoder_blocks(whole)) * blocks[dtype] + losses[dtype] * words / of_sample for dtype in _DTYPES}


def _sample(config: RunConfig, shapes: "PretrainedConfig", dtype: BaseDtype) -> "PreTrainedModel":
    sample = sample_model(shapes, 1, dtype)
    prepare_sample(sample, config.model_copy(update={"base_dtype": dtype}), torch.device("cpu"))
    return sample


def _blocks(sample: "PreTrainedModel", rows: int, tokens: int) -> None:
    backward(sample, *forward(sample, rows, tokens))


def _loss(sample: "PreTrainedModel", rows: int, tokens: int) -> None:
    loss_and_gradient(sample, hidden_states(sample, rows, tokens))
