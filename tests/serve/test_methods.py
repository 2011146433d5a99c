"""Adapters of all methods are served: those that can be in a batch with others, and those that have turns."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.generation.test_engine import Client, prompts, serving
from tests.tiny import save_grafted, save_tiny
from tsugiki import disable_adapter, mixed_batch, set_adapter
from tsugiki.base import load_model
from tsugiki.errors import TsugikiError
from tsugiki.methods import METHODS

pytest.importorskip("starlette")
from tsugiki.serve import load_served

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

MIXED = {"lora", "rslora", "dora", "lora+", "pissa", "orthogonal", "lora-fa"}
SETTINGS: dict[str, dict[str, Any]] = {
    "prompt-tuning": {"num_virtual_tokens": 3},
    "prefix-tuning": {"num_virtual_tokens": 3},
    "p-tuning": {"num_virtual_tokens": 3},
    "select": {"target_parameters": ["mlp.c_fc.weight", "up_proj.weight"]},
}
NEW = 5


@torch.no_grad()
def by_generate(model: Any, method: str | None, batch_mode: str, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    fields = {"do_sample": False, "max_new_tokens": NEW, "eos_token_id": None, "pad_token_id": 0}
    active: Any = disable_adapter(model) if method is None else mixed_batch(model, [method])
    if method is not None and batch_mode == "same":
        set_adapter(model, method)
        active = nullcontext()
    with active:
        tokens: list[int] = model.generate(ids, **fields)[0, len(prompt) :].tolist()
    return tokens


@pytest.mark.parametrize("kind", ["gpt2", pytest.param("gemma3_text", marks=pytest.mark.slow)])
def test_every_method_answers_as_alone(kind: str, tmp_path: Path):
    base = save_tiny(tmp_path / "base", kind, vocab_size=257)
    methods = [name for name, method in METHODS.items() if method.trains_adapter]
    if kind != "gpt2":
        methods.remove("bitfit")  # the model has no biases
    model, companies = load_model(base), {}
    for method in methods:
        config = METHODS[method].configure(SETTINGS.get(method, {}))
        save_grafted(tmp_path / method, load_model(base), config)
        companies[method] = load_served(model, [tmp_path / method], [], method)
    assert {method for method, batch_mode in companies.items() if batch_mode == "mixed"} == MIXED
    assert set(companies.values()) == {"mixed", "same"}

    def mode_of(method: str | None) -> str:
        return companies[method] if method else "mixed"

    given = [(method, prompt) for method in [None, *methods] for prompt in prompts([4, 17, 9])]
    expected = [by_generate(model, method, mode_of(method), prompt) for method, prompt in given]
    with serving(model, rows=2) as engine:  # so that rows join and leave a batch of their adapter
        clients = [Client(prompt, one, NEW, batch_mode=mode_of(one), content=one or "") for one, prompt in given]
        engine.submit([client.request for client in clients])
        found = [client.tokens() for client in clients]
        for method in SETTINGS:  # a soft prompt takes part of the context
            room = 64 - SETTINGS[method].get("num_virtual_tokens", 0)
            full = Client([5] * (room - 2), method, 2, batch_mode="same")
            engine.submit([full.request])
            assert len(full.tokens()) == 2
            with pytest.raises(TsugikiError, match="1 too many"):
                engine.submit([Client([5] * (room - 1), method, 2, batch_mode="same").request])
    wrong = {method for (method, _), tokens, wanted in zip(given, found, expected, strict=True) if tokens != wanted}
    assert wrong == set()
    assert len({tuple(tokens) for tokens in expected}) > len(expected) // 3
