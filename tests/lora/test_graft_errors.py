"""An error in the middle of a change of the model: what was changed is undone, or it is done."""

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.lora.test_graft_undo import attributes
from tests.tiny import ids, logits, shake, tiny_model
from tsugiki import LoraConfig, disable_adapter, graft, merge, mixed_batch, set_adapter, ungraft, unmerge
from tsugiki.lora import active_names, is_grafted, is_merged, remove_adapter
from tsugiki.methods import BottleneckConfig, IA3Config, PromptTuningConfig, SelectiveConfig

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
SOURCES = tuple(str(Path(sys.modules["tsugiki"].__file__ or "").parent / part) for part in ("lora", "methods"))  # type: ignore[arg-type]


class Interruption:
    """Raises KeyboardInterrupt before the given line that runs in the packages `lora` and `methods`, as Ctrl-C can."""

    def __init__(self, line: int) -> None:
        self.left = line

    def __enter__(self) -> None:
        sys.settrace(self._trace)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: Any, event: str, argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(SOURCES):
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self._trace


CONFIGS: dict[str, Any] = {
    "lora": LoraConfig(r=2, target_modules=["c_attn", "c_fc"], bias="lora_only", modules_to_save=["ln_f"]),
    "plain": LoraConfig(r=3, target_modules=["c_attn"]),
    "ia3": IA3Config(),
    "select": SelectiveConfig(["c_proj.bias"]),
    "houlsby": BottleneckConfig(),
    "prompt": PromptTuningConfig(num_virtual_tokens=2),
}


@pytest.fixture(scope="module")
def grafted() -> tuple[Any, dict[str | None, torch.Tensor]]:
    """A model in 16 bits with an adapter of each kind, `plain` active, and its logits by the active adapter."""
    model = tiny_model().bfloat16()
    for seed, (name, config) in enumerate(CONFIGS.items()):
        torch.manual_seed(seed)
        graft(model, config, name)
        shake(model, seed)
    expected: dict[str | None, torch.Tensor] = {}
    for name in CONFIGS:
        set_adapter(model, name)
        expected[name] = logits(model)
    with disable_adapter(model):
        expected[None] = logits(model)
    set_adapter(model, "plain")
    return model, expected


def lines_of(action: Callable[[Any], object], model: Any) -> range:
    """Some of the lines that run in an action, by number, after it has filled its caches."""
    action(copy.deepcopy(model))
    counter, twin = Interruption(10**9), copy.deepcopy(model)
    with counter:
        action(twin)
    lines = 10**9 - counter.left
    return range(1, lines + 1, lines // 7)


def assert_consistent(model: Any, expected: dict[str | None, torch.Tensor]) -> None:
    """Assert that the model computes what it says, and that all of it can still be used."""
    assert torch.equal(logits(model), expected[next(iter(active_names(model)), None)])
    for name in ("lora", "plain"):
        set_adapter(model, name)
        assert torch.equal(logits(model), expected[name])
    with mixed_batch(model, ["plain", None]):
        assert torch.equal(logits(model, ids(2))[1], expected[None][1])
    assert torch.equal(logits(ungraft(model)), expected[None])


def mixed(model: Any) -> None:
    with mixed_batch(model, ["plain", None]), disable_adapter(model):
        pass


ACTIONS: dict[str, Callable[[Any], object]] = {
    **{f"set {name}": lambda model, name=name: set_adapter(model, name) for name in CONFIGS if name != "plain"},
    "graft": lambda model: graft(model, LoraConfig(r=2, target_modules=["c_proj"]), "new"),
    "remove": lambda model: remove_adapter(model, "ia3"),
    "remove active": lambda model: remove_adapter(model, "plain"),
    "mixed batch": mixed,
    "merge": merge,
}


@pytest.mark.parametrize("action", ACTIONS)
def test_an_interruption_at_any_line(action: str, grafted: tuple[Any, dict[str | None, torch.Tensor]]):
    whole, expected = grafted
    for line in lines_of(ACTIONS[action], whole):
        model = copy.deepcopy(whole)
        with pytest.raises(KeyboardInterrupt), Interruption(line):
            ACTIONS[action](model)
        if is_merged(model):
            unmerge(model)
        if active_names(model) == ["new"]:  # at the very end
            remove_adapter(model, "new")
        model._tsugiki.adapters.setdefault("plain", whole._tsugiki.adapters["plain"])
        assert_consistent(model, expected)


@pytest.mark.parametrize("config", CONFIGS)
def test_an_interrupted_first_graft_leaves_the_plain_model(config: str):
    model = tiny_model()
    before = attributes(model)
    for line in lines_of(lambda twin: graft(twin, CONFIGS[config]), model):
        with pytest.raises(KeyboardInterrupt), Interruption(line):
            graft(model, CONFIGS[config])
        if is_grafted(model):  # at the very end
            ungraft(model)
        assert attributes(model) == before, line
