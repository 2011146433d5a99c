"""Whether a base in 8-bit integers or in bfloat16, and two rows at once or one, train faster on this processor.

Some processors multiply 8-bit integers twice as fast as bfloat16, others hardly faster, and rounding the activations
takes time, so the faster dtype of a frozen base depends on the processor and on the sizes of the layers. Both are timed
by one thread, in turns, and the times are kept in the cache. On held-out text, runs on a base in 8 bits were not worse
than runs in bfloat16 (docs/training-evidence.md). A processor without bfloat16 computes in float32.

Two rows at once arrange each weight for the processor once instead of twice, and share what each operation costs. They
take more memory, and on some processors they are not faster.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch

from tsugiki.annotations import PreTrainedModel
from tsugiki.dtypes import BaseDtype, preferred_compute_dtype
from tsugiki.errors import is_ordinary
from tsugiki.io.digests import combined_digest
from tsugiki.io.measurements import kept_seconds, shortest_seconds
from tsugiki.lora.config import LoraConfig
from tsugiki.lowbit.integer_products import exact_integers
from tsugiki.methods.table import METHODS
from tsugiki.model.inference import decoder_blocks
from tsugiki.training.measure.cost import (
    backward,
    forward,
    hidden_states,
    prepare_sample,
    run_head,
    sample_model,
)
from tsugiki.training.measure.memory_plan import surely_fits
from tsugiki.training.measure.shapes import SMALL_MODEL, Shapes, rows_of_micro_batch
from tsugiki.training.settings.config import RunConfig

_DTYPES: tuple[BaseDtype, ...] = ("bf16", "int8")
_GAIN = 1.1
"""Integers must be at least this many times as fast as bfloat16."""
_MOST_TOKENS, _LEAST_TOKENS = 256, 32
_MULTIPLICATIONS = 8_000_000_000
"""Of one forward pass through a block: large blocks are measured with fewer tokens."""
_TURNS, _MOST_SECONDS = 5, 0.5
_AT_ONCE, _GAIN_AT_ONCE = 2, 1.04
"""Rows at once, and how many times as fast as one by one they must be."""


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


def seconds_of_dtypes(config: RunConfig, shapes: Shapes) -> dict[str, float] | None:
    """Return base dtype -> CPU seconds of the forward and backward pass of some tokens, on a processor.

    The times are read from the cache if they are in it. Returns None for small models, for models that are not stored
    as floats, and for those that cannot be measured; errors in an adapter are reported by the run itself.
    """
    if shapes.parameters < SMALL_MODEL or getattr(shapes.config, "quantization_config", None) is not None:
        return None
    return _kept("training", config, shapes, partial(_measure_dtypes, config, shapes))


def rows_at_once(config: RunConfig, shapes: Shapes, dtype: BaseDtype, batch_size: int) -> int | None:
    """Return 2 if two rows of a step at once are clearly faster than one by one; None: the usual number is computed.

    They must have the usual length, share the threads as evenly as single rows do, and surely fit in the memory.
    """
    tokens, threads = shapes.row_tokens, torch.get_num_threads()
    learns_texts = METHODS[config.method].trains_adapter and config.preference is None
    if shapes.parameters < SMALL_MODEL or not learns_texts:
        return None
    in_turn = math.ceil(math.ceil(batch_size / _AT_ONCE) / threads) * _AT_ONCE
    if in_turn > math.ceil(batch_size / threads) or rows_of_micro_batch(tokens, adapter=True) > 1:
        return None
    if _block_size(shapes) * tokens > _MULTIPLICATIONS or not surely_fits(config, shapes, _AT_ONCE):
        return None
    seconds = _kept(f"rows in {dtype}", config, shapes, partial(_measure_rows, config, shapes, dtype))
    return _AT_ONCE if seconds and seconds["one by one"] >= _GAIN_AT_ONCE * seconds["at once"] else None


def _kept(
    what: str, config: RunConfig, shapes: Shapes, measure: Callable[[], dict[str, float]]
) -> dict[str, float] | None:
    """Return the times of a sample from the cache, or measure them; None if the model cannot be measured."""
    try:
        key = combined_digest(
            {
                "shapes": shapes.config.to_json_string(),
                "adapter": repr(config.adapter_config),
                "tokens": f"{config.block_size}",
            }
        )
        return kept_seconds(f"{what}, {key}", measure)
    except BaseException as error:  # transformers' models raise errors of all kinds
        if not is_ordinary(error):
            raise
        return None


def faster_dtype(seconds: Mapping[str, float]) -> BaseDtype:
    """Return the dtype for a base: `int8` if it is clearly faster than `bf16`."""
    return "int8" if seconds["bf16"] >= _GAIN * seconds["int8"] else "bf16"


def _measure_dtypes(config: RunConfig, shapes: Shapes) -> dict[str, float]:
    samples = {dtype: _sample(config, shapes, dtype) for dtype in _DTYPES}
    whole, sample = shapes.model, samples["bf16"]
    tokens = max(_LEAST_TOKENS, min(_MOST_TOKENS, _MULTIPLICATIONS // _block_size(shapes)))
    row = min(tokens, shapes.row_tokens)
    blocks, losses = (
        shortest_seconds(
            {dtype: partial(compute, sample, tokens // row, row) for dtype, sample in samples.items()},
            _TURNS,
            _MOST_SECONDS,
        )
        for compute in (_blocks, _loss)
    )
    words, of_sample = (len(model.get_input_embeddings().weight) for model in (whole, sample))
    return {dtype: len(decoder_blocks(whole)) * blocks[dtype] + losses[dtype] * words / of_sample for dtype in _DTYPES}


def _measure_rows(config: RunConfig, shapes: Shapes, dtype: BaseDtype) -> dict[str, float]:
    sample, tokens = _sample(config, shapes, dtype), shapes.row_tokens

    def one_by_one() -> None:
        for _ in range(_AT_ONCE):
            _blocks(sample, 1, tokens)

    calls: dict[str, Callable[[], object]] = {
        "one by one": one_by_one,
        "at once": partial(_blocks, sample, _AT_ONCE, tokens),
    }
    return shortest_seconds(calls, _TURNS, _MOST_SECONDS)


def _block_size(shapes: Shapes) -> int:
    """Return the number of parameters of a block."""
    return sum(parameter.numel() for parameter in decoder_blocks(shapes.model)[0].parameters())


def _sample(config: RunConfig, shapes: Shapes, dtype: BaseDtype) -> PreTrainedModel:
    sample = sample_model(shapes.config, 1, dtype)
    prepare_sample(sample, config, processor := torch.device("cpu"), processor)
    return sample


def _blocks(sample: PreTrainedModel, rows: int, tokens: int) -> None:
    backward(sample, *forward(sample, rows, tokens))


def _loss(sample: PreTrainedModel, rows: int, tokens: int) -> None:
    run_head(sample, hidden_states(sample, rows, tokens))
