"""The chunked loss against the plain one, and the heads of many architectures."""

import copy
import weakref
from itertools import cycle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.fast.definition import assert_no_less_exact
from tests.tiny import CONFIGS, ids, in_pairs, logits, relative_error, seeded, tiny_model
from tests.tiny_types import tiny_of
from tsugiki import LoraConfig, graft
from tsugiki.fast import Head, chunked_loss, find_head, keep_mask, plain_loss, token_losses
from tsugiki.fast import loss as loss_module
from tsugiki.lora import LoraLinear, new_pair
from tsugiki.model import IGNORE_INDEX

# The error against float64 may be twice that of the plain path plus this.
FLOOR = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 8e-3}
WIDTH, VOCABULARY = 16, 50
SCALES_AND_CAPS = {"plain": (1.0, None), "scaled": (0.25, None), "capped": (1.0, 3.0), "scaled and capped": (2.0, 3.0)}


LAYERS = ("frozen", "trained", "frozen with bias", "trained with bias", "trained bias", "grafted", "grafted with bias")


def head_of(kind: str, form: str = "plain", dtype: torch.dtype = torch.float64, vocabulary: int = VOCABULARY) -> Head:
    torch.manual_seed(0)
    layer: Any = nn.Linear(WIDTH, vocabulary, bias="bias" in kind).to(dtype).requires_grad_(kind.startswith("trained"))
    layer.weight.requires_grad_(layer.weight.requires_grad and kind != "trained bias")
    if kind.startswith("grafted"):
        base, layer = layer, LoraLinear(layer).train()
        layer.lora = new_pair(base, 3, 0.7, 0.0, False)
        layer.lora.A.requires_grad_("without A" not in kind)
        layer.lora.B.requires_grad_("without B" not in kind)
    return Head(layer, *SCALES_AND_CAPS[form])


def exactly(head: Head) -> Head:
    """The head in float64."""
    return Head(copy.deepcopy(head.layer).double(), head.scale, head.softcap)


def batch(dtype: torch.dtype = torch.float64, rows: int = 3, vocabulary: int = VOCABULARY) -> tuple[Tensor, Tensor]:
    """Return hidden states [rows, 7, width], a view of a longer tensor, and labels, of which some are ignored."""
    generator = seeded(1)
    hidden = torch.randn(rows, 8, WIDTH, generator=generator).to(dtype)[:, :-1].requires_grad_()
    labels = torch.randint(0, vocabulary, (rows, 7), generator=generator)
    labels[0, 2:4] = IGNORE_INDEX
    return hidden, labels


def results(loss: Any, hidden: Tensor, head: Head, labels: Tensor, factor: float = 1.0) -> dict[str, Tensor]:
    """Return the loss, and the gradients of `factor` times the loss."""
    parameters = dict(head.layer.named_parameters())
    hidden = hidden.detach().requires_grad_()
    for parameter in parameters.values():
        parameter.grad = None
    value = loss(hidden, head, labels)
    if value.requires_grad:
        (factor * value).backward()
    named = {"hidden": hidden} | parameters
    return {"loss": value.detach()} | {name: t.grad for name, t in named.items() if t.grad is not None}


def exact(hidden: Tensor, head: Head, labels: Tensor, factor: float = 1.0) -> dict[str, Tensor]:
    """Return `results` computed in float64 from whole logits."""
    return results(plain_loss, hidden.detach().double(), exactly(head), labels, factor)


def assert_exact(hidden: Tensor, head: Head, labels: Tensor) -> dict[str, Tensor]:
    """Compare the chunked loss and its gradients with those in float64."""
    found, true = results(chunked_loss, hidden, head, labels), exact(hidden, head, labels)
    torch.testing.assert_close(found, true)
    return found


@pytest.fixture
def no_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the definition fail, so that the test shows that the chunks are used."""

    def refuse(*_: Any) -> Tensor:
        raise AssertionError("the definition was asked")

    monkeypatch.setattr(loss_module, "plain_loss", refuse)


CHUNKS = (1, 5, 64)
"""One row, a number that does not divide the rows, and more than all."""


@pytest.fixture
def chunk(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of this number of rows, and tiles of 16 words."""
    monkeypatch.setattr(loss_module, "_TILE", 16)
    monkeypatch.setattr(loss_module, "_ROWS", (1, rows))


HEADS_AND_FORMS = [
    (kind, form) for kind in LAYERS for form in SCALES_AND_CAPS if not ("bias" in kind and "scaled" in form)
]
HEADS_AND_FORMS += [("grafted without A", "plain"), ("grafted without B", "capped")]


@pytest.mark.usefixtures("no_plain", "chunk")
@in_pairs(case=HEADS_AND_FORMS, dtype=FLOOR, rows=CHUNKS, factor=[1.0, -0.3])
def test_loss_and_gradients_equal_the_definition(case: tuple[str, str], dtype: torch.dtype, factor: float):
    head, (hidden, labels) = head_of(*case, dtype), batch(dtype)
    found, plain = (results(loss, hidden, head, labels, factor) for loss in (chunked_loss, plain_loss))
    assert_no_less_exact(found, plain, exact(hidden, head, labels, factor), FLOOR[dtype])
    assert found["loss"].dtype == torch.promote_types(dtype, torch.float32)
    nothing = results(chunked_loss, hidden, head, torch.full_like(labels, IGNORE_INDEX))
    assert nothing.keys() == found.keys()
    assert not any(value.any() for value in nothing.values()), "without targets, the loss is zero"


@pytest.mark.usefixtures("chunk")
@in_pairs(dtype=FLOOR, form=SCALES_AND_CAPS, kind=["frozen", "trained with bias", "grafted with bias"], rows=CHUNKS)
def test_losses_of_tokens_are_those_of_the_definition(
    kind: str, form: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loss_module, "_EXACT_SCRATCH", 3 * VOCABULARY * 8)  # of three rows, or six
    head, (hidden, labels) = head_of(kind, form, dtype), batch(dtype)
    head.layer.eval()
    found = token_losses(hidden, head, labels)
    assert (found.shape, found.dtype) == (labels.shape, torch.promote_types(dtype, torch.float32))
    assert not found.requires_grad

    def expected(some: Head, states: Tensor) -> Tensor:
        logits = some.logits(states).double().transpose(1, 2)
        return F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="none").detach()

    true, plain = expected(exactly(head), hidden.double()), expected(head, hidden)
    assert (found - true).abs().max() <= 2 * (plain - true).abs().max() + FLOOR[dtype]
    assert not token_losses(hidden, head, torch.full_like(labels, IGNORE_INDEX)).any()


def test_the_definition_is_the_summed_negative_log_likelihood():
    head, (hidden, labels) = head_of("frozen with bias", "scaled and capped"), batch()
    layer: Any = head.layer
    z = 3 * torch.tanh(2 * (hidden @ layer.weight.T + layer.bias) / 3)
    wanted = sum(
        -torch.log(torch.exp(row)[token] / torch.exp(row).sum())
        for row, token in zip(z.flatten(0, 1), labels.flatten().tolist(), strict=True)
        if token != IGNORE_INDEX
    )
    torch.testing.assert_close(plain_loss(hidden, head, labels), wanted)


def test_rows_without_a_target_are_not_used_and_a_loss_of_nan_stays_nan():
    head, (hidden, labels) = head_of("trained"), batch()
    spoiled = hidden.detach().clone()
    spoiled[0, 2:4] = torch.nan
    found, wanted = (results(chunked_loss, h, head, labels) for h in (spoiled, hidden))
    assert not found["hidden"][0, 2:4].any()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    spoiled[1, 1] = torch.nan
    assert chunked_loss(spoiled, head, labels).isnan()


@pytest.mark.usefixtures("no_plain")
@in_pairs(dtype=[torch.float64, torch.float32, torch.bfloat16], nats=[59.0, 61.0, 500.0])
def test_the_loss_of_very_unlikely_tokens(nats: float, dtype: torch.dtype):
    """The logits are 0 and -nats; from 104 nats on, exp(-nats) is 0 in float32."""
    layer = nn.Linear(1, 3, bias=False).to(dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0], [-1.0], [-1.0]]))
    hidden = torch.tensor([[nats], [nats]]).to(dtype)
    found = results(chunked_loss, hidden, Head(layer), torch.tensor([1, 0]))
    assert float(found["loss"]) == pytest.approx(
        float(hidden[0]), rel=8e-3 if nats < 60 and dtype.itemsize == 2 else 1e-6
    )
    # p is (1, 0, 0) in both rows; the target of the first row is the second word.
    torch.testing.assert_close(found["hidden"], torch.tensor([[1.0], [0.0]], dtype=dtype), atol=1e-9, rtol=0)
    torch.testing.assert_close(found["weight"], torch.tensor([[nats], [-nats], [0]]).to(dtype), rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("no_plain")
@pytest.mark.parametrize("shape", [(1,), (5,), (2, 3, 4), (0,), (2, 0)])
def test_hidden_states_of_any_shape(shape: tuple[int, ...]):
    assert_exact(torch.randn(*shape, WIDTH, dtype=torch.float64), head_of("trained"), torch.randint(VOCABULARY, shape))


@pytest.mark.usefixtures("no_plain")
def test_dropout_of_a_grafted_head_is_drawn_once():
    head, (hidden, labels) = head_of("grafted"), batch()
    layer: Any = head.layer
    layer.lora.dropout.p = 0.5
    torch.manual_seed(5)
    found = results(chunked_loss, hidden, head, labels)
    torch.manual_seed(5)
    learned = labels != IGNORE_INDEX
    kept = (keep_mask(hidden, 0.5) != 0)[learned]
    h, a, b = (t.detach().requires_grad_() for t in (hidden, layer.lora.A, layer.lora.B))
    z = h[learned] @ layer.base_layer.weight.T + 0.7 * (h[learned] * kept / 0.5) @ a.T @ b.T
    loss = F.cross_entropy(z, labels[learned], reduction="sum")
    wanted = [loss.detach(), *torch.autograd.grad(loss, [h, a, b])]
    for ours, theirs in zip((found[n] for n in ("loss", "hidden", "lora.A", "lora.B")), wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", ["trained with bias", "grafted"])
@pytest.mark.parametrize(
    "way",
    [
        torch.autocast("cpu", dtype=torch.bfloat16),
        # Traced and differentiated ahead of time, but without generating code, which takes long.
        lambda loss: torch.compile(loss, backend="aot_eager") if loss is chunked_loss else loss,
    ],
    ids=["autocast", "compiled"],
)
def test_under_autocast_and_compiled_it_uses_the_definition(way: Any, kind: str):
    head, (hidden, labels) = head_of(kind, dtype=torch.float32), batch(torch.float32)
    found, wanted = (results(way(loss), hidden, head, labels) for loss in (chunked_loss, plain_loss))
    torch.testing.assert_close(found, wanted)


def _doubling() -> nn.Module:
    layer = nn.Linear(WIDTH, VOCABULARY).double()
    layer.register_forward_hook(lambda module, given, y: 2 * y)
    return layer


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "head",
    [Head(Doubled(WIDTH, VOCABULARY).double()), Head(_doubling()), head_of("trained with bias", "scaled")],
    ids=["subclass", "hook", "scaled bias"],
)
def test_other_heads_use_the_definition(head: Head):
    assert_exact(batch()[0], head, batch()[1])


class Largest(TorchDispatchMode):
    """Counts the bytes of the largest tensor that an operation makes, and of all large ones at once."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.at_once = 0
        self._large: list[weakref.ref[Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {id(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and id(tensor) not in given and tensor._base is None:
                self.bytes = max(self.bytes, tensor.nbytes)
                if tensor.nbytes > 8 << 20:
                    self._large.append(weakref.ref(tensor))
        alive = [tensor.nbytes for tensor in (ref() for ref in self._large) if tensor is not None]
        self.at_once = max(self.at_once, sum(alive))
        return out


def test_the_logits_never_exist_as_a_whole():
    head = head_of("grafted", "capped", torch.float32, 50_000)
    hidden, labels = batch(torch.float32, 293, 50_000)  # 2,051 rows, of which 2,049 have a target
    with Largest() as largest:
        results(chunked_loss, hidden, head, labels)
    assert 48 << 20 <= largest.bytes <= 128 << 20, "chunks as large as they may be"
    assert largest.at_once <= 128 << 20, "one chunk is gone before the next is made"
    with Largest() as whole:
        results(plain_loss, hidden[:3], head, labels[:3])
    assert whole.bytes >= 21 * 50_000 * 4, "the definition's logits are seen by this measure"


HEADS = dict.fromkeys(CONFIGS, (1.0, None)) | {"gemma2": (1.0, 30.0), "cohere": (0.0625, None)}


@pytest.mark.parametrize(("kind", "training"), zip(CONFIGS, cycle([True, True, False])))
def test_the_head_of_the_architecture_is_found(kind: str, training: bool):
    model = tiny_model(kind).train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    head = find_head(model)
    assert head is not None
    assert (head.scale, head.softcap) == HEADS[kind]
    assert head.layer is model.get_output_embeddings()
    assert model.training == training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    with torch.no_grad():
        hidden = model.eval().base_model(input_ids=ids(), use_cache=False).last_hidden_state
        torch.testing.assert_close(head.logits(hidden), logits(model))


@pytest.mark.parametrize(
    ("kind", "settings", "form"),
    [
        ("granite", {"logits_scaling": 8.0}, (0.125, None)),
        ("cohere", {"logit_scale": 3.0}, (3.0, None)),
        ("gemma2", {"final_logit_softcapping": 0.5}, (1.0, 0.5)),
        ("gemma2", {"final_logit_softcapping": None}, (1.0, None)),
    ],
)
def test_scales_and_caps_of_the_config_are_found(kind: str, settings: dict[str, Any], form: Any):
    head = find_head(tiny_model(kind, **settings).bfloat16())
    assert head is not None
    assert (head.scale, head.softcap) == form


def _without_head() -> Any:
    return tiny_model().transformer


def _hooked() -> Any:
    model = tiny_model()
    model.lm_head.register_forward_hook(lambda module, given, y: y)  # which may do anything
    return model


def _not_linear() -> Any:
    model = tiny_model()
    model.lm_head = nn.Sequential(model.lm_head, nn.Tanh())
    return model


def _with_other_logits() -> Any:
    """A model whose config does not explain its logits."""
    model = tiny_model()
    forward = type(model).forward

    class Other(type(model)):  # type: ignore[misc]
        def forward(self, *given: Any, **named: Any) -> Any:
            out = forward(self, *given, **named)
            out.logits = out.logits * 1.01
            return out

    model.__class__ = Other
    return model


def _with_router_loss() -> Any:
    return tiny_of("mixtral", output_router_logits=True)


@pytest.mark.parametrize("make", [_without_head, _hooked, _not_linear, _with_other_logits, _with_router_loss])
def test_models_without_a_known_head(make: Any):
    assert find_head(make()) is None


def test_a_model_that_raises_an_error_is_left_unchanged():
    model = tiny_model().train()
    model.transformer.forward = lambda **_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        find_head(model)
    assert model.training
    assert not model.lm_head._forward_pre_hooks


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
def test_the_gradient_of_a_near_certain_token_is_precise(dtype: torch.dtype, allowed: float):
    """At 0.0015 nats for a token, p is rounded to 1; the errors of the definition are 0.018 and 0.0023 here."""
    torch.manual_seed(0)
    labels = torch.randint(200, (64,))
    hidden = (0.3 * torch.randn(64, 200) + 12 * F.one_hot(labels, 200)).to(dtype)
    head, exact = (nn.Linear(200, 200, bias=False, dtype=kind).requires_grad_(False) for kind in (dtype, torch.float64))
    head.weight.copy_(torch.eye(200) + 0.02 * torch.randn(200, 200))
    exact.weight.copy_(head.weight)
    ours, theirs = hidden.clone().requires_grad_(), hidden.double().requires_grad_()
    loss, wanted = chunked_loss(ours, Head(head), labels), plain_loss(theirs, Head(exact), labels)
    assert float(wanted.detach()) / 64 < 0.002
    assert relative_error(loss.detach().double(), wanted.detach()) < allowed
    found, expected = torch.autograd.grad(loss, ours)[0].double(), torch.autograd.grad(wanted, theirs)[0]
    assert float((found - expected).norm() / expected.norm()) < allowed


def test_a_hook_on_a_grafted_head_is_called():
    model = tiny_model("gpt2")
    graft(model, LoraConfig(r=2, target_modules=["lm_head"]))
    calls = []
    model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    chunked_loss(torch.randn(5, 32), Head(model.lm_head), torch.arange(5))
    assert calls == [1]
