"""The `with` block of a mixed batch: what is allowed before, within and after it."""

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from itertools import cycle

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from tests.errors import refused
from tests.fast.test_mixed_batch import assert_as_each_alone, with_adapters
from tests.tiny import ids, logits, tiny_model
from tsugiki import (
    LoraConfig,
    disable_adapter,
    graft,
    load_adapter,
    merge,
    mixed_batch,
    save_adapter,
    set_adapter,
    trainable_parameters,
    ungraft,
)
from tsugiki.fast import row_products
from tsugiki.lora import remove_adapter
from tsugiki.methods import PromptTuningConfig

TWO = ["a", None]


def mixed_logits(model, names=TWO):
    with mixed_batch(model, names):
        return logits(model)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "x"], "'x'.*'a', 'b', 'c'"),
        (["a", ""], "no adapter is called ''"),
        ("ab", "adapter_names is 'ab'"),
        ([], r"adapter_names is \[\]"),
        (["a", 1], r"adapter_names is \['a', 1\]"),
        (["prompt", "a"], "'prompt' .*PromptTuningConfig"),
        (["whole", "a"], "'whole' .*transformer.ln_f .*1 such"),
        (["biased", "a"], "'biased' .*transformer.h.0.attn.c_attn.bias .*2 such"),
    ],
)
def test_invalid_names_are_refused_and_nothing_changes(names, message: str):
    model = with_adapters()
    graft(model, PromptTuningConfig(num_virtual_tokens=3), "prompt")
    graft(model, LoraConfig(r=2, modules_to_save=["ln_f"]), "whole")
    graft(model, LoraConfig(r=2, target_modules=["c_attn"], bias="lora_only"), "biased")
    set_adapter(model, "b")
    before = logits(model)
    with refused(message), mixed_batch(model, names):
        pass
    assert torch.equal(logits(model), before)


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])


def _xlnet() -> nn.Module:
    config = transformers.XLNetConfig(vocab_size=96, d_model=32, n_layer=2, n_head=4, d_inner=48)
    return transformers.XLNetLMHeadModel(config).eval()


@pytest.mark.parametrize(
    ("make", "targets", "message"),
    [
        (Experts, ["0"], "experts.0 .*experts"),
        (_xlnet, ["layer_1"], "layer.0.ff.layer_1 gets the tokens before the rows"),
        (lambda: merge(graft(tiny_model(), LoraConfig(), "a")), None, "'a' .*unmerge"),
        (tiny_model, None, "nothing is grafted"),
    ],
    ids=["experts", "tokens before rows", "merged", "plain"],
)
def test_models_that_are_refused(make, targets, message: str):
    model = make()
    if targets:
        graft(model, LoraConfig(r=2, target_modules=targets), "a")
    with refused(message), mixed_batch(model.eval(), ["a", None]):
        pass


def test_the_name_of_the_base_is_reserved():
    with refused("'__base__'"):
        graft(tiny_model(), LoraConfig(r=2), "__base__")


def test_a_batch_of_another_size_is_refused_and_the_block_goes_on():
    model = with_adapters()
    with mixed_batch(model, ["a", "b", None]):
        with refused(r"GPT2LMHeadModel .*2 rows.* 3 adapter names"):
            logits(model)
        assert logits(model, ids(3)).shape[0] == 3
    with mixed_batch(model, ["__base__", None, None]):
        for given in ({"input_ids": ids(4)}, {"inputs_embeds": torch.zeros(4, 3, 32)}):
            with refused(r"GPT2LMHeadModel .*4 rows.* 3 adapter names"):
                model(**given)
    assert logits(model, ids(4)).shape[0] == 4


def test_a_model_in_training_mode_is_refused():
    model = with_adapters().train()
    with mixed_batch(model, TWO), refused("training mode.*model.eval"):
        model(input_ids=ids())


def test_the_active_adapter_trains_again_after_the_block():
    model = with_adapters()
    with mixed_batch(model, TWO):
        assert not trainable_parameters(model)
        assert not model(input_ids=ids()).logits.requires_grad
    assert model(input_ids=ids()).logits.requires_grad


def test_an_input_that_requires_gradients_is_refused_if_they_are_recorded():
    model, embeddings = with_adapters(), torch.randn(2, 3, 32, requires_grad=True)
    with mixed_batch(model, TWO):
        with refused("gradients"):
            model(inputs_embeds=embeddings)
        with torch.no_grad():
            model(inputs_embeds=embeddings)


def _step(parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(parameters, lr=0.1, fused=True).step()


def _set_data_twice(parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        for _ in range(2):  # the second may get the memory that the first had
            parameter.data = 2 * parameter.data


CHANGES: dict[str, Callable[[list[nn.Parameter]], object]] = {
    "fused": _step,
    "data.copy_": lambda found: [parameter.data.copy_(torch.randn(parameter.shape)) for parameter in found],
    "data =": _set_data_twice,
    "numpy": lambda found: [np.multiply(array := parameter.detach().numpy(), 3, out=array) for parameter in found],
}
"""Changes of an adapter's parameters. Torch counts some of them in `Tensor._version`, but not those of fused
optimisers, through `.data` or NumPy."""


@pytest.mark.parametrize("hooked", [True, False])
def test_dropout_of_an_adapter_that_was_training_is_off(hooked: bool):
    model = with_adapters("llama", lora_dropout=0.9)
    alone = logits(model)
    model.train()
    for name in "bca":  # all stay in training mode
        set_adapter(model, name)
    model.eval()
    if hooked:  # computed by the definition
        model.model.layers[0].self_attn.q_proj.base_layer.register_forward_hook(lambda *_: None)
    torch.testing.assert_close(mixed_logits(model, ["c", "b"])[0], alone[0], rtol=1e-5, atol=1e-5)


def test_nested_blocks_and_an_exception():
    model = with_adapters()
    outer, inner, active = mixed_logits(model), mixed_logits(model, ["b", "c"]), logits(model)
    trained = list(trainable_parameters(model))
    with disable_adapter(model):
        base = logits(model)
        assert torch.equal(mixed_logits(model), outer)
        assert torch.equal(logits(model), base)
    with suppress(KeyError), mixed_batch(model, TWO):
        with mixed_batch(model, ["b", "c"]):
            with disable_adapter(model), disable_adapter(model):
                assert torch.equal(logits(model), base)
            assert torch.equal(logits(model), inner)
        assert torch.equal(logits(model), outer)
        with disable_adapter(model):
            assert torch.equal(mixed_logits(model, ["b", "c"]), inner)
            assert torch.equal(logits(model), base)
        assert torch.equal(logits(model), outer)
        with mixed_batch(model, ["b", "c"]):
            raise KeyError
    assert torch.equal(logits(model), active)
    assert list(trainable_parameters(model)) == trained


def test_adapters_cannot_change_within_the_block(tmp_path):
    model = with_adapters()
    save_adapter(model, tmp_path, "b")
    mixed = mixed_logits(model)
    changes = [
        lambda: set_adapter(model, "b"),
        lambda: graft(model, LoraConfig(), "d"),
        lambda: load_adapter(model, tmp_path, "d"),
        lambda: remove_adapter(model, "b"),
    ]
    with mixed_batch(model, TWO):
        for change in changes:
            with refused("a mixed batch .*`with` block"):
                change()
            with disable_adapter(model), refused("a mixed batch"):
                change()
            assert torch.equal(logits(model), mixed)
        with refused("no adapter is active"):
            merge(model)
        save_adapter(model, tmp_path / "within", "b")
    set_adapter(model, "b")
    assert torch.equal(mixed_logits(model), mixed)


@pytest.mark.parametrize("disabled", [True, False])
def test_ungraft_within_the_block(disabled: bool):
    model = tiny_model()
    base = logits(model)
    with_adapters(base=model)
    with mixed_batch(model, TWO), disable_adapter(model) if disabled else nullcontext():
        ungraft(model)
        assert torch.equal(logits(model), base)
    assert not any("lora" in name for name, _ in model.named_modules())
    graft(model, LoraConfig(), "a")


def test_a_deep_copy_within_the_block_is_independent():
    model = with_adapters()
    with mixed_batch(model, TWO):
        mixed = logits(model)  # the pairs are stacked
        twin = copy.deepcopy(model)
    assert torch.equal(logits(twin), mixed)
    nn.init.zeros_(twin.transformer.h[0].attn.c_attn.base_layer.weight)
    assert not torch.equal(logits(twin), mixed), "it computes with its own layers"
    assert torch.equal(mixed_logits(model), mixed)
    assert logits(ungraft(twin), ids(4)).shape[0] == 4


def test_two_threads_do_not_get_each_others_adapters():
    model = with_adapters()
    expected = mixed_logits(model, ["a", "b"])
    attempts = [
        lambda: mixed_logits(model, ["b", "c"]),
        lambda: disable_adapter(model).__enter__(),
        lambda: set_adapter(model, "b"),
        lambda: remove_adapter(model, "b"),
        lambda: ungraft(model),
        lambda: logits(model),
    ]
    with ThreadPoolExecutor(1) as pool:
        with mixed_batch(model, ["a", "b"]):
            for attempt in attempts:
                with refused("another thread is in a .* block of this model.*threading.Lock"):
                    pool.submit(attempt).result()
            assert torch.equal(logits(model), expected)
        assert pool.submit(lambda: mixed_logits(model, ["b", "c"])).result().shape[0] == 2


@pytest.mark.parametrize(("change", "dora"), zip(CHANGES.values(), cycle([False, True])), ids=CHANGES)
def test_a_changed_adapter_is_seen_in_the_next_pass(
    change: Callable[[list[nn.Parameter]], object], dora: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(row_products, "MOST_WORK", 0)
    model, names = with_adapters(use_dora=dora), ["a", None, "b"]
    parameters = [parameter for pair in model._tsugiki.adapters["a"].pairs.values() for parameter in pair.parameters()]
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    layer, x = model.transformer.h[0].attn.c_attn, torch.randn(3, 1, 32)
    prompts = [ids(3, 1), ids(3, 20)]  # by the C function, and by stacks

    def compute(rows: slice) -> torch.Tensor:
        return torch.cat([logits(model, tokens[rows]) for tokens in prompts], 1)

    first = assert_as_each_alone(model, names, compute)
    change(trained)
    second = assert_as_each_alone(model, names, compute)
    with mixed_batch(model, names):
        compute(slice(None))
        before = layer(x)
        change(trained)
        assert not torch.equal(layer(x)[0], before[0]), "a layer that is called by itself"
        third = compute(slice(None))
    torch.testing.assert_close(assert_as_each_alone(model, names, compute), third)
    assert not torch.allclose(first[0], second[0], atol=1e-2)
    assert not torch.allclose(second[0], third[0], atol=1e-2)


def test_a_scaling_and_a_rank_that_change_within_the_block():
    model = with_adapters()
    pair = model._tsugiki.adapters["b"].pairs["transformer.h.0.attn.c_attn"]
    tokens = ids(2, 1)
    with mixed_batch(model, ["b", None]):
        before = logits(model, tokens)
        pair.scaling *= 2
        scaled = logits(model, tokens)
        pair.A.data, pair.B.data = pair.A.data[:1], pair.B.data[:, :1]  # at the same addresses
        cut = logits(model, tokens)
    assert not torch.allclose(before[0], scaled[0], atol=1e-3)
    assert not torch.allclose(scaled[0], cut[0], atol=1e-3)
    set_adapter(model, "b")
    torch.testing.assert_close(cut[:1], logits(model, tokens[:1]), rtol=1e-5, atol=1e-5)
