"""Build the loop of a run: the optimiser, the schedule, and the saving interval; and measure its speed.

The optimiser is AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101), without weight decay of biases and norms, or
LoRA+ (`loraplus`).
"""

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from tsugiki.annotations import PreTrainedModel
from tsugiki.data.blocks import Blocks, Collator, StepBatches
from tsugiki.dtypes import torch_dtype
from tsugiki.errors import TsugikiError, error_text
from tsugiki.fast.document_masks import DocumentMasking
from tsugiki.fast.paths import use_fast_paths
from tsugiki.fast.recomputation import recompute_blocks
from tsugiki.lora.hold import is_grafted
from tsugiki.lora.layer import LoraEmbedding, grafted_layers
from tsugiki.lora.pair import LowRank
from tsugiki.model.inference import decoder_blocks
from tsugiki.model.meta import replica_in
from tsugiki.training.choose.choices import Choices, decay_start
from tsugiki.training.choose.output_head import head_weights
from tsugiki.training.measure.shapes import rows_of_micro_batch
from tsugiki.training.model.sharding import is_sharded
from tsugiki.training.model.trainable import full_compute_dtype
from tsugiki.training.settings.config import AUTO, LORA_PLUS, RunConfig
from tsugiki.training.step.gradients import Gradients
from tsugiki.training.step.loop import OpenSchedule, TrainingLoop
from tsugiki.training.step.text_loss import StepLoss
from tsugiki.training.tools.memory import keep_freed_memory

_SHORT_ROWS_TOKENS = 256  # of rows with one document each; with more, other threads would be idle

_CHECKPOINTS_PER_RUN = 10
_LOSS_CURVE_POINTS = 500


def build_loop(
    accelerator: Accelerator,
    config: RunConfig,
    choices: Choices,
    model: PreTrainedModel,
    blocks: Blocks,
    document_masking: DocumentMasking,
    loss: StepLoss | None = None,
) -> TrainingLoop:
    """Return the loop of a prepared model, which is on the accelerator's device. It writes no checkpoints yet.

    `loss`: what a step minimises; None: the cross-entropy of texts.
    """
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    collate = Collator(document_masking, next(model.parameters()).dtype)
    batches = StepBatches(blocks, collate, choices.batch_size, config.seed)
    optimizer, steps = _optimizer(model, config, choices), choices.steps
    warmup = math.ceil(config.warmup_ratio * steps)
    schedule = OpenSchedule(warmup, steps, decay_start(steps)) if choices.is_open else None
    return TrainingLoop(
        accelerator=accelerator,
        model=model,
        gradients=make_gradients(model, config, batches, accelerator, choices.micro_batch_size, loss),
        optimizer=optimizer,
        schedule=LambdaLR(optimizer, schedule) if schedule else _schedule(optimizer, config, steps, warmup),
        steps=steps,
        open_schedule=schedule,
        max_grad_norm=config.max_grad_norm,
        log_steps=max(1, steps // _LOSS_CURVE_POINTS),
        save_steps=config.save_steps or max(1, steps // _CHECKPOINTS_PER_RUN),
    )


def seconds_per_step(loop: TrainingLoop, advance: Callable[[int], None] = lambda done: None) -> float:
    """Return the seconds of the first step's gradients, which are computed twice; the second time is measured.

    The run is not changed: nothing is updated, and dropout masks follow from the number of the step. All processes must
    call this together.
    """
    seconds = 0.0
    for _round in range(2):
        started = time.perf_counter()
        loop.gradients.step(0).tolist()
        seconds = time.perf_counter() - started
        advance(1)
    return seconds


def _optimizer(model: PreTrainedModel, config: RunConfig, choices: Choices) -> torch.optim.Optimizer:
    """Return the optimiser of the trained parameters."""
    rate = choices.learning_rate
    if config.method == LORA_PLUS:
        return loraplus(model, config, rate)
    return adamw(model, config, rate, choices.head_factor)


def _schedule(optimizer: torch.optim.Optimizer, config: RunConfig, steps: int, warmup: int) -> LRScheduler:
    """Return the learning rate schedule of the settings, in which the rate rises over `warmup` of the steps.

    It must be one of transformers' that depends on nothing but the number of the step.
    """
    kind = config.lr_scheduler_type
    if kind == "linear":  # the default, without the imports of transformers' schedules
        return LambdaLR(optimizer, partial(linear_share, warmup=warmup, steps=steps))
    from transformers import get_scheduler  # imports PEFT and bitsandbytes where they are installed: seconds

    decay = math.ceil((config.decay_ratio or 0) * steps)
    options = {"num_decay_steps": decay, "decay_type": "linear"} if decay else None
    try:
        schedule = get_scheduler(kind, optimizer, warmup, steps, options)
    except (ValueError, TypeError) as error:
        raise TsugikiError(f"lr_scheduler_type: {error_text(error)}") from error
    if not isinstance(schedule, LambdaLR):
        raise TsugikiError(
            "lr_scheduler_type {lr_scheduler_type} depends on evaluations; choose another one", lr_scheduler_type=kind
        )
    return schedule


def linear_share(step: int, *, warmup: int, steps: int) -> float:
    """Return the learning rate at a step (from 0), relative to its peak, in transformers' schedule "linear"."""
    if step < warmup:
        return step / max(1, warmup)
    return max(0.0, (steps - step) / max(1, steps - warmup))


def adamw(model: PreTrainedModel, config: RunConfig, rate: float, head_factor: float = 1.0) -> torch.optim.AdamW:
    """Return the optimiser for all trained parameters, with one group for those with weight decay and one without.

    If `head_factor` is not 1, B of the output head has a group of its own, with the rate multiplied by it.
    """
    slow = head_weights(model) if head_factor != 1.0 else []
    trained = [p for p in model.parameters() if p.requires_grad and all(p is not other for other in slow)]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    if slow:
        groups.append({"params": slow, "lr": rate * head_factor, "weight_decay": config.weight_decay})
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, config.adam_beta2), fused=True)


def make_gradients(
    model: PreTrainedModel,
    config: RunConfig,
    batches: StepBatches,
    accelerator: Accelerator,
    micro_batch_size: int | None = None,
    loss: StepLoss | None = None,
) -> Gradients:
    """Return the object that computes the gradients of the prepared model, which is on the accelerator's device.

    If `micro_batch_size` is None, `rows_of_micro_batch` gives the rows that are computed at once. `loss` is what a step
    minimises; None: the cross-entropy of texts.
    """
    computing = model
    if not is_grafted(model) and not is_sharded(model):
        dtype = torch_dtype(full_compute_dtype(config, model.device))
        computing = model if dtype == torch.float32 else replica_in(dtype, model)
        use_fast_paths(computing)
    elif not is_sharded(model) and model.device.type != "cpu":
        use_fast_paths(model, modules=False, loss=False)  # flash attention can be tried on the device only
    if config.recompute != AUTO:  # otherwise it was decided when the memory was planned
        recompute_blocks(computing, len(decoder_blocks(computing)) if config.recompute == "blocks" else 0)
    rows, tokens = micro_batch_size, 0
    if rows is None:
        device = accelerator.device.type
        rows = rows_of_micro_batch(batches.blocks.block_size, adapter=is_grafted(model), device=device)
        is_short = batches.collate.masking == "separate_rows" and loss is None  # the two answers of a pair are longer
        tokens = _SHORT_ROWS_TOKENS if is_short else 0
    return Gradients(model, computing, batches, accelerator, rows, config.base_dropout, tokens, loss)


def loraplus(model: PreTrainedModel, config: RunConfig, rate: float) -> torch.optim.AdamW:
    """Return LoRA+: AdamW with a higher learning rate for B than for A (Hayou et al. 2024, arXiv:2402.12354).

    A [r, in] is initialised at random and B [out, r] with zeros, and the sizes of the updates that they need depend on
    the width of the layer in different ways. With one learning rate for both, wide layers learn too slowly or become
    unstable. The paper recommends a ratio of about 16. The factors and the file are LoRA's. The trade-off: there is one
    more hyperparameter, and B's learning rate is soon too high; start with half the usual `learning_rate`.

    As in PEFT, parameters with one axis (biases, DoRA's magnitudes) have B's learning rate. The factors of an
    embedding, whose A is initialised with zeros, have the learning rate of the run (in PEFT, a fixed 1e-6). `rate` is
    the learning rate of A.
    """
    decay = config.weight_decay
    slow_embeddings = {
        layer.lora for layer in grafted_layers(model).values() if isinstance(layer, LoraEmbedding) and layer.lora
    }
    fast = {id(pair.B) for pair in model.modules() if isinstance(pair, LowRank) and pair not in slow_embeddings}
    slow: list[Tensor] = []
    matrices: list[Tensor] = []
    vectors: list[Tensor] = []
    for p in model.parameters():
        if p.requires_grad:
            (vectors if p.ndim == 1 else matrices if id(p) in fast else slow).append(p)
    groups = [
        {"params": slow, "lr": rate, "weight_decay": decay},
        {"params": matrices, "lr": rate * config.loraplus_lr_ratio, "weight_decay": decay},
        {"params": vectors, "lr": rate * config.loraplus_lr_ratio, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], betas=(0.9, config.adam_beta2))
