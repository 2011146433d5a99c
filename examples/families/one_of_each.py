"""Several adapters of different families on one model, and switching between them.

Each adapter is trained on the same few texts for some steps; the embedded model, a small Japanese GPT-2, holds all of
them at once. With adapters disabled, its output is bit-identical to that of the base model.

    python examples/families/one_of_each.py
"""

from importlib.resources import files
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from tsugiki import disable_adapter, graft, set_adapter, trainable_parameters
from tsugiki.base.loading import load_model, load_tokenizer
from tsugiki.methods.table import METHODS

STEPS, BATCH, LENGTH = 30, 8, 64
PROMPT = "庭の木は"

# Method, settings, learning rate. Methods with few trainable parameters need high learning rates.
CHOSEN: dict[str, tuple[dict[str, Any], float]] = {
    "prefix-tuning": ({"num_virtual_tokens": 8, "init_weights": "SAMPLE_VOCAB"}, 1e-2),
    "houlsby": ({}, 3e-3),
    "lora": ({"r": 8, "lora_alpha": 32}, 2e-3),
    "bitfit": ({}, 1e-2),
    "norms": ({}, 1e-2),
}


def windows() -> Tensor:
    """Return the token ids of the quickstart's twenty texts as windows [number, LENGTH]."""
    folder = files("tsugiki") / "assets" / "quickstart"
    paths = sorted((path for path in folder.iterdir() if path.name.endswith(".txt")), key=lambda path: path.name)
    text = "".join(path.read_text(encoding="utf-8") for path in paths)
    ids = torch.tensor(load_tokenizer("embedded")(text, verbose=False).input_ids)
    return ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)


def loss_of(model: PreTrainedModel, rows: Tensor) -> Tensor:
    """Compute the mean negative log-likelihood per token, in nats, over windows [batch, LENGTH]."""
    logits = model(input_ids=rows).logits  # [batch, LENGTH, vocabulary]; position i predicts token i + 1
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten())


def train(model: PreTrainedModel, rows: Tensor, rate: float) -> None:
    """Train the active adapter, whatever its method, in a plain loop."""
    model.train()
    optimizer = torch.optim.AdamW(trainable_parameters(model).values(), lr=rate)
    for _ in range(STEPS):
        batch = rows[torch.randint(len(rows), (BATCH,))]
        loss_of(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


@torch.no_grad()
def show(name: str, model: PreTrainedModel, tokenizer: Any, held_out: Tensor) -> float:
    """Print and return the loss of the held-out windows; print the model's continuation of `PROMPT`."""
    loss = float(loss_of(model, held_out))
    prompt = tokenizer(PROMPT, return_tensors="pt")
    written = model.generate(**prompt, max_new_tokens=16, do_sample=False)[0]  # type: ignore[operator]
    print(f"{name:14} loss {loss:.3f}  {tokenizer.decode(written)}")
    return loss


def main() -> None:
    """Add, train, switch and disable adapters."""
    torch.manual_seed(0)
    model, tokenizer, rows = load_model("embedded"), load_tokenizer("embedded"), windows()
    rows = rows[torch.randperm(len(rows))]
    held_out, rows = rows[:20], rows[20:]
    before = show("base", model, tokenizer, held_out)

    for name, (settings, rate) in CHOSEN.items():
        graft(model, METHODS[name].configure(settings), name)
        count = sum(p.numel() for p in trainable_parameters(model).values())
        print(f"{name} ({METHODS[name].family}): {count:,} trainable parameters")
        train(model, rows, rate)

    for name in CHOSEN:
        set_adapter(model, name)
        show(name, model, tokenizer, held_out)
    with disable_adapter(model):
        after = show("base again", model, tokenizer, held_out)
    print("identical to the base model:", before == after)


if __name__ == "__main__":
    main()
