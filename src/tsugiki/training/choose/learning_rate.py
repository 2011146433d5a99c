"""The learning rate of a run: the rule for `auto`, and the check for a loss that rises.

    auto    5e-4 (2000 / width)^0.781 · 32 / alpha, and 1.5 times that in a run of fewer than 150 steps;
            in both, with LoRA, (2000 / width)^0.781 is at most gain^2.5, which is at least 0.4;
            in steps of fewer than 2048 tokens, times sqrt(tokens / 2048), but at least half of it;
            a tenth for IPO, and for preference losses without the likelihood of the chosen answers

The rule has the form of tinker-cookbook's `get_lr` (Thinking Machines, 2026), with one power for all families of models
and the factor for short runs that "LoRA Without Regret" (Schulman, 2025) reports. Scaling the rate with the square root
of the batch is a rule of tinker-cookbook as well; that it holds for small steps was measured here. The rate does not
depend on the rank, because an update of LoRA is scaled by alpha / r. Methods without low-rank factors have a fixed
learning rate, and full fine-tuning has a tenth of LoRA's (see `methods.table`), or a third in a narrow model.
docs/training-evidence.md compares the rule with sweeps.

`gain` is the factor by which the layers of the base multiply the root mean square of a random input. The update that
LoRA adds depends on the learning rate and not on the base's weights, so it changes layers with small weights more. Of
the three bases that were measured, Gemma 3 270M has a gain of 0.96 and needs a lower rate than its width gives; the
embedded model (2.0) and SmolLM2 (4.7) do not.

A run whose training loss rises is divergent: its rate is too high for this model and text. A run with `auto` then
starts again with a third of the rate. Only losses decide, so a run that is resumed decides the same. On text that the
base knows, a rate that is too high for it makes an adapter too strong, which its strength mends
(`training.choose.decisions`).
"""

import math

import torch
from torch import nn

from tsugiki.data.windows import evenly_spread
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.layer import LoraLinear
from tsugiki.methods.table import METHODS
from tsugiki.model.linear import device_of, features, frozen_product, has_product
from tsugiki.preference.losses import LOSSES
from tsugiki.training.model.trainable import NARROW
from tsugiki.training.settings.config import RunConfig

_SHORT_RUN, _SHORT_RUN_FACTOR = 150, 1.5
_SMALL_STEP, _SMALLEST_FACTOR = 2048, 0.5  # tokens, and the least that the learning rate is multiplied by
_HIGHEST_RATE = 1e-2

_LEAST_OF_GAIN = 0.4
_GAIN_LAYERS, _GAIN_ROWS = 24, 16  # that are measured

_STEEP_FACTOR = 0.1  # for preference losses that would ruin the text at the learning rate of training on texts

_FULL_FACTOR_IF_NARROW = 1 / 3


def automatic_learning_rate(config: RunConfig, width: int, steps: int, tokens: int, gain: float | None = None) -> float:
    """Return the learning rate for a run whose settings say `auto`, rounded to two significant digits.

    `width` is that of the base's hidden states, `steps` are those of the run, `tokens` those of an optimiser step, and
    `gain` is that of the base's layers (`weight_gain`); None: unknown, or the method adds no low-rank factors.
    """
    method = METHODS[config.method]
    if method.learning_rate is not None:
        return method.learning_rate
    is_narrow_full = not method.trains_adapter and width < NARROW
    most = math.inf if gain is None else max(gain**2.5, _LEAST_OF_GAIN)
    rate = 5e-4 * min((2000 / width) ** 0.781, most)
    rate *= _FULL_FACTOR_IF_NARROW if is_narrow_full else method.learning_rate_factor
    if steps < _SHORT_RUN and config.start_from is None:  # B is 0 at first only in a new adapter
        rate *= _SHORT_RUN_FACTOR
    rate *= min(1.0, max(_SMALLEST_FACTOR, math.sqrt(tokens / _SMALL_STEP)))
    adapter = config.adapter_config
    if isinstance(adapter, LoraConfig):
        rate *= 32 / (adapter.lora_alpha * (math.sqrt(adapter.r) if adapter.use_rslora else 1))
    return float(f"{min(rate * _preference_factor(config), _HIGHEST_RATE):.2g}")


@torch.no_grad()
def weight_gain(model: nn.Module) -> float | None:
    """Return the factor by which layers multiply the root mean square of a random input, in the geometric mean.

    It is that of some of the layers under LoRA factors, without their factors and biases, rounded to two significant
    digits, so that it does not depend on the dtype. None: no layer has such factors.
    """
    layers = [layer.base_layer for layer in model.modules() if isinstance(layer, LoraLinear)]
    layers = [layer for layer in layers if has_product(layer) and device_of(layer).type != "meta"]
    logarithms = []
    for layer in evenly_spread(layers, _GAIN_LAYERS):
        generator = torch.Generator().manual_seed(0)
        device, dtype = device_of(layer), getattr(layer, "dtype", None) or layer.weight.dtype
        x = torch.randn(_GAIN_ROWS, features(layer)[0], generator=generator).to(device, dtype)
        y = (frozen_product(layer, x).float() - frozen_product(layer, -x).float()) / 2
        logarithms.append(float(y.square().mean().log() - x.float().square().mean().log()) / 2)
    mean = sum(logarithms) / len(logarithms) if logarithms else math.nan
    return float(f"{math.exp(mean):.2g}") if math.isfinite(mean) else None


def _preference_factor(config: RunConfig) -> float:
    """Return the factor for a preference loss: losses that keep the text have the learning rate of texts."""
    if config.preference is None:
        return 1.0
    loss = LOSSES[config.preference]
    keeps_text = loss.contains_likelihood or config.loss_settings()["likelihood"] > 0
    return 1.0 if keeps_text and not loss.steep else _STEEP_FACTOR
