"""A model in several threads, whose adapters one of them switches."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from tests.errors import refused
from tests.lora.test_graft_undo import CONFIGS
from tests.tiny import logits, shake, tiny_model
from tsugiki import LoraConfig, disable_adapter, graft, mixed_batch, set_adapter, ungraft
from tsugiki.lora import remove_adapter

BLOCK = "another thread is in a .* block of this model.*threading.Lock"
PASS = "another thread is in a forward pass of this model.*threading.Lock"


@contextmanager
def in_the_middle(model: Any) -> Iterator["Future[torch.Tensor]"]:
    """Within the block, another thread is between two layers of a forward pass, which then goes on."""
    inside, go_on = threading.Event(), threading.Event()

    def wait(*_: object) -> None:
        inside.set()
        assert go_on.wait(60)

    hook = model.get_submodule("transformer.h.1").register_forward_pre_hook(wait)
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(logits, model)
        try:
            assert inside.wait(60)
            yield result
        finally:
            go_on.set()
            hook.remove()


@pytest.mark.filterwarnings("ignore:lm_head shares")
@pytest.mark.parametrize(
    "method", ["dora", "ia3", "prefix-tuning", "houlsby", "norms", "lora with biases and a module"]
)
def test_disabling_is_the_base_in_this_thread_and_an_error_in_others(method: str):
    model = tiny_model()
    base = logits(model)
    graft(model, CONFIGS[method](), "a")
    adapted = logits(shake(model))
    assert not torch.allclose(adapted, base, atol=1e-3)
    with ThreadPoolExecutor(1) as pool:
        with disable_adapter(model):
            assert torch.equal(logits(model), base)
            with disable_adapter(model), refused(BLOCK):
                pool.submit(logits, model).result()
            with refused(BLOCK):
                pool.submit(logits, model).result()
        assert torch.equal(pool.submit(logits, model).result(), adapted)
    with in_the_middle(model) as result:
        with refused(PASS), disable_adapter(model):
            pass
        assert model._tsugiki.thread is None
    assert torch.equal(result.result(), adapted), "it was not disturbed"
    assert not model._forward_pre_hooks or method == "prefix-tuning"


def test_switching_in_the_middle_of_another_threads_pass_is_an_error():
    model = tiny_model()
    for seed, name in enumerate("ab"):
        shake(graft(model, LoraConfig(r=2), name), seed)
    adapted = logits(model)
    switches = [
        lambda: set_adapter(model, "a"),
        lambda: graft(model, LoraConfig(r=2), "c"),
        lambda: ungraft(model),
        lambda: remove_adapter(model, "b"),
        lambda: mixed_batch(model, ["a", "b"]).__enter__(),
    ]
    with in_the_middle(model) as result:
        for switch in switches:
            with refused(PASS):
                switch()
        logits(tiny_model())
    assert torch.equal(result.result(), adapted)
    assert list(model._tsugiki.adapters) == ["a", "b"]
    assert torch.equal(logits(model), adapted)
    set_adapter(model, "a")

    def base_of_block(block: Any, args: tuple[torch.Tensor, ...]) -> None:
        with disable_adapter(model):
            block.attn.c_attn(args[0])

    hook = model.transformer.h[0].register_forward_pre_hook(base_of_block)
    within = logits(model)  # a thread may switch within its own pass
    hook.remove()
    assert torch.equal(logits(model), within)
