"""The whole life of an adapter with default targets on a tiny model of one type, as a list of checks."""

import copy
import math
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D

import tsugiki
from tests.tiny import by_definition, relative_error, seeded
from tests.tiny_types import VOCABULARY, inputs_for, lively_model
from tsugiki import (
    LoraConfig,
    active_adapter,
    disable_adapter,
    graft,
    load_adapter,
    merge,
    save_adapter,
    trainable_parameters,
    ungraft,
    use_fast_paths,
    use_plain_paths,
)
from tsugiki.fast import attends_to_later_tokens, detect_document_masking, mask_documents
from tsugiki.lora import base_alone
from tsugiki.model import ARCHITECTURES, Architecture, matches

STEPS = 6
_TOKENS = 24
_DOCUMENTS = (19, 21)
"""Tokens of two documents in a packed row: more than the windows of the tiny models."""


@dataclass
class Life:
    """What the checks found for one type."""

    model_type: str
    task: str
    layers: list[str] = field(default_factory=list)
    """The names of the grafted layers, with `*` for every index."""
    experts: list[str] = field(default_factory=list)
    """The names of the parameters that hold experts, with `*` for every index."""
    masking: str = ""
    """How documents in one row are kept apart; empty for an encoder-decoder model."""
    failed: dict[str, str] = field(default_factory=dict)
    """Check -> why it failed."""


def live(model_type: str, task: str) -> Life:
    """Run every check; none stops the others."""
    life = Life(model_type, task)
    try:
        make = partial(lively_model, model_type, task)
        model = make()
        assert sum(parameter.numel() for parameter in model.parameters()) < 1e8, "the model is not small"
        inputs = tokens_for(model)
        logits_of(model, inputs)
    except Exception as error:
        life.failed["build"] = _reason(error)
        return life
    try:
        base = logits_of(model, inputs)
        torch.manual_seed(0)
        adapter = active_adapter(graft(model, LoraConfig(r=2)))
    except Exception as error:
        life.failed["graft"] = _reason(error)
        return life
    life.layers = kinds_of(adapter.pairs)
    check = _Checks(life)
    with check("targets"):
        row = ARCHITECTURES.get(model.config.model_type, Architecture()).target_modules
        targets = {name for name in reference_targets(make(), inputs) if row is None or matches(name, row)}
        expected = {f"{name}.lora.{factor}" for name in targets for factor in "AB"}
        trained = set(trainable_parameters(model))
        assert trained == expected, f"also {kinds_of(trained - expected)}, not {kinds_of(expected - trained)}"
    with check("start"):
        assert torch.equal(logits_of(model, inputs), base)
    with check("learns"):
        losses = train(model, inputs)
        assert losses[-1] < losses[0] - 1e-3, f"{losses[0]:.4f} to {losses[-1]:.4f}"
    with check("every pair"):
        moved = {_any_expert(name) for name, p in trainable_parameters(model).items() if p.any()}
        dead = [
            name
            for name in trainable_parameters(model)
            if name.endswith("B") and _any_expert(name) not in moved  # some experts get no token
        ]
        assert not dead, f"{len(dead)} of {len(adapter.pairs)} do not train: {kinds_of(dead)}"
    shake(model)
    check_trained(make, model, base, inputs, check)
    with check("experts"):
        names = stacks_of(make(), inputs)
        life.experts = kinds_of(names)
        if names:
            check_experts(make, names, inputs)
    if task == "causal":
        with check("train"):
            train_by_command(make())
        with check("isolation"):
            with base_alone(model):
                assert not attends_to_later_tokens(model), "attends to later tokens"
                life.masking = detect_document_masking(model)
            error = leak(model, life.masking)
            assert error < 1e-4, (
                f"gradients of the second document change by {error:.2g} with the first ({life.masking})"
            )
    with check("fast"):
        error = difference_of_fast_paths(model, inputs)
        assert error < 1e-3, f"loss or gradients differ by {error:.2g}"
    return life


def check_trained(make: Callable[[], Any], model: Any, base: Tensor, inputs: dict[str, Tensor], check: Any) -> None:
    """The adapter has an effect, is disabled, stored and loaded here and in PEFT, and merged."""
    adapted = logits_of(model, inputs)
    with check("disable"):
        assert relative_error(adapted, base) > 1e-4, "the adapter has no effect"
        with disable_adapter(model):
            assert torch.equal(logits_of(model, inputs), base)
        assert torch.equal(logits_of(model, inputs), adapted)
    with tempfile.TemporaryDirectory() as folder:
        with check("load"):
            save_adapter(model, folder)
            assert torch.equal(logits_of(load_adapter(make(), folder), inputs), adapted)
        with check("PEFT"):
            theirs = peft.PeftModel.from_pretrained(make(), folder)
            error = relative_error(logits_of(theirs.base_model.model, inputs), adapted)
            assert error < 1e-4, f"logits differ by {error:.2g}"
    with check("merge"):
        merged = ungraft(merge(copy.deepcopy(model)))
        assert relative_error(logits_of(merged, inputs), adapted) < 1e-4


def stacks_of(model: Any, inputs: dict[str, Tensor]) -> list[str]:
    """The parameters that are stacks of matrices, on which the logits depend: experts, but no state-space mixers."""
    loss_of(model.train(), inputs).backward()
    return [
        f"{path}.{name}"
        for path, module in model.named_modules()
        if not isinstance(module, nn.modules.conv._ConvNd) and "A_log" not in module._parameters
        for name, one in module.named_parameters(recurse=False)
        if one.dim() == 3 and min(one.shape) > 1 and one.grad is not None and one.grad.any()
    ]


def check_experts(make: Callable[[], Any], names: list[str], inputs: dict[str, Tensor]) -> None:
    """The life of an adapter on experts alone; the first check that fails ends it."""
    model = make()
    base = logits_of(model, inputs)
    torch.manual_seed(0)
    adapter = active_adapter(graft(model, LoraConfig(r=2, target_modules=[], target_parameters=names)))
    assert set(adapter.parameter_pairs) == set(names)
    assert torch.equal(logits_of(model, inputs), base)
    losses = train(model, inputs)
    assert losses[-1] < losses[0], f"{losses[0]:.4f} to {losses[-1]:.4f}"
    shake(model)
    check_trained(make, model, base, inputs, nullcontext)
    found = gradients(model, loss_of(model.eval(), inputs))
    by_definition(model)
    error = relative_error(found, gradients(model, loss_of(model, inputs)))
    assert error < 1e-4, f"gradients by product differ by {error:.2g} from the definition"


class _Checks:
    def __init__(self, life: Life) -> None:
        self.life = life

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except Exception as error:
            self.life.failed[name] = _reason(error)


def _reason(error: Exception) -> str:
    text = str(error).partition("\n")[0][:200]
    return text if isinstance(error, AssertionError) else f"{type(error).__name__}: {text}"


def tokens_for(model: Any) -> dict[str, Tensor]:
    """Arguments for a forward pass."""
    inputs = inputs_for(model)
    generator = seeded(2)
    for name in ("input_ids", "decoder_input_ids"):
        if name in inputs:
            inputs[name] = torch.randint(20, VOCABULARY, (2, _TOKENS), generator=generator)
    for name in ("input_features", "input_values"):
        if name in inputs:
            inputs[name] = torch.randn(2, *inputs[name].shape[1:], generator=generator)
    return inputs


@torch.no_grad()
def logits_of(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    torch.manual_seed(0)  # for hashing attention
    logits: Tensor = model.eval()(**inputs).logits
    assert torch.isfinite(logits).all(), "logits are not finite"
    return logits


def loss_of(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Cross-entropy of each next token."""
    labels = inputs.get("decoder_input_ids", inputs.get("input_ids"))
    torch.manual_seed(0)
    logits = model(**inputs).logits
    logits = logits[:, -labels.shape[1] :] if logits.dim() == 3 else logits.view(len(labels), -1, logits.shape[-1])
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())


def train(model: Any, inputs: dict[str, Tensor]) -> list[float]:
    """Some steps of AdamW in training mode; the losses before each and after the last."""
    optimizer = torch.optim.AdamW(trainable_parameters(model).values(), lr=1e-2)
    losses = []
    for _ in range(STEPS):
        loss = loss_of(model.train(), inputs)
        losses.append(float(loss))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [*losses, float(loss_of(model, inputs))]


def train_by_command(model: Any) -> None:
    """A run of `tsugiki.train` on a text that is longer than the positions of the model."""
    text = "the quick brown fox jumps over the lazy dog and then sleeps under an old oak tree until it is dark again. "
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(f"{folder}/base")
        _tokenizer().save_pretrained(f"{folder}/base")
        Path(folder, "text.txt").write_text("\n\n".join(text[place:] + 5 * text for place in range(0, 90, 9)))
        record = tsugiki.train(
            model=f"{folder}/base",
            data=f"{folder}/text.txt",
            out=f"{folder}/run",
            max_steps=2,
            batch_size=2,
            learning_rate=1e-3,
            held_out=0.2,
            validation="none",
            prompts=["the old "],
            sample_tokens=2,
        )
    losses = [record.training.loss, *(evaluation.loss for evaluation in record.evaluations)]
    assert len(losses) > 2, "the held-out text was not scored"
    assert all(map(math.isfinite, losses)), losses


def _tokenizer() -> Any:
    """A tokenizer of letters, whose ids are those that `tokens_for` draws, but for the end of a text."""
    letters = "ĠĊ.abcdefghijklmnopqrstuvwxyz"
    vocabulary = {f"<{i}>": i for i in range(20)} | {letter: 20 + i for i, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<1>", pad_token="<1>")


def shake(model: Any) -> None:
    """Add noise to the adapter, so that its effect is larger than rounding."""
    generator = seeded(3)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


def gradients(model: Any, loss: Tensor) -> Tensor:
    """The gradients of the adapter, as one vector."""
    parameters = list(trainable_parameters(model).values())
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    pairs = zip(found, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if gradient is None else gradient).flatten() for gradient, p in pairs])


def leak(model: Any, masking: Any) -> float:
    """How much the adapter's gradients from a second document depend on the first, or differ from those alone.

    Documents in rows of their own are padded, and alone there is other padding.
    """
    first, other, second = (
        torch.randint(20, VOCABULARY, (1, n), generator=seeded(seed))
        for seed, n in enumerate((_DOCUMENTS[0], *_DOCUMENTS))
    )
    rows = masking == "separate_rows"
    length, padding = _DOCUMENTS[1] + 7, 7 if rows else 0

    def in_row(document: Tensor, pad: int = 0) -> Tensor:
        return F.pad(document, (0, length - document.shape[1]), value=pad) if rows else document

    def of_second(inputs: dict[str, Tensor]) -> Tensor:
        """The gradients from the second document, which is the last one but for padding."""
        logits = model(**inputs, use_cache=False).logits.flatten(0, 1)[-_DOCUMENTS[1] - padding :]
        return gradients(model, F.cross_entropy(logits[: _DOCUMENTS[1] - 1].float(), second[0, 1:]))

    positions = torch.cat([torch.arange(n) for n in _DOCUMENTS])[None]
    packed = []
    for document in (first, other):
        ids = torch.cat([in_row(document), in_row(second)], 0 if rows else 1)
        batch = {"input_ids": ids, "position_ids": positions}
        packed.append(of_second(mask_documents(batch, masking, model.dtype)))
    alone = of_second({"input_ids": in_row(second, pad=1)})
    return max(relative_error(packed[0], packed[1]), relative_error(packed[0], alone))


def difference_of_fast_paths(model: Any, inputs: dict[str, Tensor]) -> float:
    """The largest relative difference of loss and gradients between fast and plain paths."""
    labelled = {**inputs, "labels": inputs.get("decoder_input_ids", inputs.get("input_ids"))}

    def results() -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        loss = model(**labelled).loss
        return loss.detach(), gradients(model, loss)

    try:
        loss, gradient = results()
    except ValueError:  # GIT counts the tokens of an image that is not there
        return 0.0
    use_fast_paths(model)
    try:
        fast_loss, fast_gradient = results()
    finally:
        use_plain_paths(model)
    return max(relative_error(fast_loss, loss), relative_error(fast_gradient, gradient))


def kinds_of(names: Any) -> list[str]:
    """Names with `*` for every index, each once."""
    return list(
        dict.fromkeys(".".join("*" if part.isdecimal() else part for part in name.split(".")) for name in names)
    )


def reference_targets(model: Any, inputs: dict[str, Tensor]) -> set[str]:
    """The layers that `tsugiki.model.targets_by_rule` names, found with real weights and backward passes.

    Routers are known here by their names and by the numbers of experts in the config, and a weight that is read past
    its layer by its gradient.
    """
    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList | nn.Sequential)]
    blocks = [name for name in lists if any(_holds_linear(item) for item in model.get_submodule(name))]
    outer = [name for name in blocks if not any(name.startswith(f"{other}.") for other in blocks)]
    inside = {
        name: layer
        for name, layer in model.named_modules()
        if any(name.startswith(f"{blocks}.") and name.count(".") > blocks.count(".") + 1 for blocks in outer)
        and isinstance(layer, nn.Linear | Conv1D)
        and _is_linear(layer)
    }
    config = model.config.get_text_config(decoder=True).to_dict()
    experts = {value for name, value in config.items() if "expert" in name and type(value) is int}
    called: list[str] = []
    added: dict[str, Tensor] = {}

    def detached(name: str, layer: nn.Module, args: Any, _: Any) -> Tensor:
        y = _product(layer, args[0])
        called.append(name)
        return y + added.setdefault(name, torch.zeros(y.shape[-1], requires_grad=True))

    for name, layer in inside.items():
        layer.register_forward_hook(partial(detached, name))
    model.requires_grad_(False)
    for layer in inside.values():
        layer.weight.requires_grad_(True)
    past: set[str] = set()
    for training in (True, False):
        torch.manual_seed(0)
        logits = model.train(training)(**inputs).logits
        (logits.float() * torch.linspace(-1, 1, logits.shape[-1])).sum().backward()
        past |= {name for name, layer in inside.items() if layer.weight.grad is not None and layer.weight.grad.any()}
    alive = {_any_expert(name) for name in added if added[name].grad is not None}
    found = set()
    for name, layer in inside.items():
        owner = name.rpartition(".")[0]
        mixer = {"A_log", "D"} <= {own for own, _ in model.get_submodule(owner).named_parameters(recurse=False)}
        width = layer.weight.shape[1 if isinstance(layer, Conv1D) else 0]
        if (
            _any_expert(name) in alive
            and name not in past
            and min(layer.weight.shape) >= 8
            and not (width in experts and re.search(r"router|\.gate$|classifier", name))
            and not (mixer and name != next(one for one in called if one.rpartition(".")[0] == owner))
        ):
            found.add(name)
    return found


def _any_expert(name: str) -> str:
    """The name with `*` for the index of an expert, since some experts get no token."""
    return re.sub(r"(?<=\bexperts\.)(expert_)?\d+", "*", name)


def _holds_linear(item: nn.Module) -> bool:
    return not isinstance(item, nn.Linear | Conv1D) and any(isinstance(m, nn.Linear | Conv1D) for m in item.modules())


@torch.no_grad()
def _is_linear(layer: Any) -> bool:
    x = torch.randn(3, layer.nx if isinstance(layer, Conv1D) else layer.in_features)
    try:
        y = layer(x)
        return isinstance(y, Tensor) and torch.allclose(y, _product(layer, x), rtol=1e-3, atol=1e-4)
    except RuntimeError:
        return False


def _product(layer: Any, x: Tensor) -> Tensor:
    weight = layer.weight.detach()
    return F.linear(x, weight.T if isinstance(layer, Conv1D) else weight, layer.bias)
