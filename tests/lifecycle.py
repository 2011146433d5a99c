"""One check of everything that an adapter of any method must do, from `graft` to `ungraft`."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor

from tests.errors import refused
from tests.files import json_of
from tests.tiny import ids, relative_error, shake
from tsugiki import (
    disable_adapter,
    graft,
    load_adapter,
    merge,
    save_adapter,
    trainable_parameters,
    ungraft,
    unmerge,
)
from tsugiki.io import ADAPTER_CONFIG_FILE


def text_outputs(model: Any) -> Tensor:
    """The logits of a text, without those of virtual tokens that PEFT puts before it."""
    outputs: Tensor = model(input_ids=ids()).logits[:, -ids().shape[1] :]
    return outputs


def move_and_backward(model: Any, outputs: Callable[[Any], Tensor]) -> None:
    """Add noise to every trainable parameter, and assert that each then has a gradient that is not zero."""
    outputs(shake(model)).float().pow(2).mean().backward()
    dead = [name for name, p in trainable_parameters(model).items() if p.grad is None or not p.grad.any()]
    assert not dead


def assert_lifecycle(
    make: Callable[[], Any],
    config: Any,
    folder: Path,
    outputs: Callable[[Any], Tensor] = text_outputs,
    train: Callable[[Any], None] | None = None,
    start: float = 0,
    mergeable: bool = True,
    readable_by_peft: bool = True,
) -> Any:
    """Graft, train, disable, copy, save, reload, load in PEFT, merge, unmerge and ungraft; assert each result.

    Args:
        make: returns the base model, always with the same weights.
        config: the method's config.
        folder: an empty folder for the adapter.
        outputs: computes what is compared, in the mode that the model is in.
        train: trains the grafted model. By default, noise is added to its parameters and gradients are computed once.
        start: the largest relative error of the outputs before training; 0 requires outputs bit-identical to the
            base's.
        mergeable: False if `merge` must refuse.
        readable_by_peft: False if PEFT must refuse the files.

    Returns:
        The model with the adapter, not merged.
    """

    def evaluated(model: Any, training: bool = False) -> Tensor:
        with torch.no_grad():
            return outputs(model.train(training))

    def parameters(model: Any) -> dict[str, Tensor]:
        return dict(model.named_parameters(remove_duplicate=False))

    model = make()
    base, state = evaluated(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}

    graft(model, config)
    for training in (False, True):
        begun = evaluated(model, training)
        assert relative_error(begun, base) <= start
        assert start or torch.equal(begun, base), "before training it is the base, without dropout"
    trained = trainable_parameters(model)
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in trained.values()}

    if train is None:
        move_and_backward(model.eval(), outputs)
    else:
        train(model)
    adapted = evaluated(model)
    assert relative_error(adapted, base) > 1e-4, "the adapter has no effect"
    with disable_adapter(model):
        assert torch.equal(evaluated(model), base)
        assert not trainable_parameters(model)
    assert torch.equal(evaluated(model), adapted)

    twin = copy.deepcopy(model)
    assert torch.equal(evaluated(twin), adapted)
    assert not torch.equal(evaluated(shake(twin, seed=9)), adapted)
    with disable_adapter(twin):
        assert torch.equal(evaluated(twin), base)
        assert torch.equal(evaluated(model), adapted)
    ungraft(merge(twin) if mergeable else twin)
    assert torch.equal(evaluated(model), adapted), "a deep copy is independent"

    save_adapter(model, folder)
    loaded = make()
    load_adapter(loaded, folder)
    assert torch.equal(evaluated(loaded), adapted)
    again = trainable_parameters(loaded)
    assert again.keys() == trained.keys()
    assert all(torch.equal(p, trained[name]) for name, p in again.items())
    if readable_by_peft:
        theirs = peft.PeftModel.from_pretrained(make(), folder)
        assert relative_error(evaluated(theirs), adapted) < 1e-4
        fields = json_of(folder / ADAPTER_CONFIG_FILE)
        assert fields.keys() <= theirs.peft_config["default"].to_dict().keys()
    else:
        with pytest.raises((KeyError, ValueError), match="TSUGIKI_"):
            peft.PeftModel.from_pretrained(make(), folder)

    if mergeable:
        merged = evaluated(merge(loaded))
        assert relative_error(merged, adapted) < 1e-4
        assert not trainable_parameters(loaded)
        assert torch.equal(evaluated(merge(loaded)), merged), "merging twice equals once"
        with refused("unmerge"), disable_adapter(loaded):
            pass
        assert torch.equal(evaluated(unmerge(loaded)), adapted)
        with disable_adapter(loaded):
            assert torch.equal(evaluated(loaded), base)
        plain = ungraft(merge(loaded))
        assert torch.equal(evaluated(plain), merged)
        assert parameters(plain).keys() == parameters(make()).keys()
        assert all(p.requires_grad for p in plain.parameters())
        assert not [name for name, module in plain.named_modules() if "forward" in vars(module)]
    else:
        with refused("cannot be merged"):
            merge(loaded)
        assert torch.equal(evaluated(loaded), adapted)

    freed = make()
    own = parameters(freed)
    load_adapter(freed, folder)
    ungraft(shake(freed))
    assert torch.equal(evaluated(freed), base)
    assert freed.state_dict().keys() == state.keys()
    for name, tensor in freed.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert all(p is own[name] and p.requires_grad for name, p in parameters(freed).items())
    assert not [
        name
        for name, module in freed.named_modules()
        if "tsugiki" in name or "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks
    ]
    return model
