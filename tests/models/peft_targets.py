"""Default targets beside those of PEFT, for every model type that PEFT has defaults for."""

from dataclasses import dataclass

from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_TARGETS

from tests.tiny_types import TASKS, tiny_of
from tsugiki import LoraConfig
from tsugiki.lora import find_targets
from tsugiki.model import is_linear, matches

EXPLAINED = {("bart", "causal"): "the cross-attention, which a decoder without an encoder never calls"}
"""Model type and task -> which layers Tsugiki leaves out that PEFT adapts, and why."""


@dataclass(frozen=True)
class Comparison:
    """The last components of the names of layers that are adapted by default."""

    both: list[str]
    ours_alone: list[str]
    peft_alone: list[str]


def comparable() -> list[tuple[str, str]]:
    """The model types in PEFT's table that transformers has, each with the tasks that Tsugiki has targets for.

    The others are encoders (DeBERTa), models of images (BLIP-2), or code on the Hub (ChatGLM).
    """
    return [(model_type, task) for model_type in PEFT_TARGETS for task in TASKS if model_type in TASKS[task][1]]


def compare(model_type: str, task: str) -> Comparison:
    """Compare the layers of a tiny model of this type."""
    model = tiny_of(model_type, task)
    wanted = PEFT_TARGETS[model_type]
    theirs = {name for name, layer in model.named_modules() if matches(name, wanted) and is_linear(layer)}
    ours = set(find_targets(model, LoraConfig()))
    return Comparison(_last(ours & theirs), _last(ours - theirs), _last(theirs - ours))


def _last(names: set[str]) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in names})
