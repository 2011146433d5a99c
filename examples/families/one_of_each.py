"""One adapter of each family on one loaded model, switched.

The embedded base, a small Japanese GPT-2, holds all of them at once; each learns the same few texts for some steps, and
then they take turns. Disabled, the base is there again, to the last bit.

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

# Method, settings, learning rate: a line for each. What trains least takes the highest rate.
CHOSEN: dict[str, tuple[dict[str, Any], float]] = {
    "prefix-tuning": ({"num_virtual_tokens": 8, "init_weights": "SAMPLE_VOCAB"}, 1e-2),
    "houlsby": ({}, 3e-3),
    "lora": ({"r": 8, "lora_alpha": 32}, 2e-3),
    "bitfit": ({}, 1e-2),
    "norms": ({}, 1e-2),
}


def windows() -> Tensor:
    """The quickstart's twenty texts as token ids, cut into windows [number, LENGTH]."""
    folder = files("tsugiki") / "assets" / "quickstart"
    paths = sorted((path for path in folder.iterdir() if path.name.endswith(".txt")), key=lambda path: path.name)
    text = "".join(path.read_text(encoding="utf-8") for path in paths)
    ids = torch.tensor(load_tokenizer("embedded")(text, verbose=False).input_ids)
    return ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)


def loss_of(model: PreTrainedModel, rows: Tensor) -> Tensor:
    """Mean negative log-likelihood of a token after those before it, in nats, over windows [batch, LENGTH]."""
    logits = model(input_ids=rows).logits  # [batch, LENGTH, vocabulary]; place i tells of token i + 1
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten())


def train(model: PreTrainedModel, rows: Tensor, rate: float) -> None:
    """A plain loop over what trains in the model, whatever the method: the active adapter."""
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
    """Print the loss of held-out windows, and what the model writes; returns the loss."""
    loss = float(loss_of(model, held_out))
    prompt = tokenizer(PROMPT, return_tensors="pt")
    written = model.generate(**prompt, max_new_tokens=16, do_sample=False)[0]  # type: ignore[operator]
    print(f"{name:14} loss {loss:.3f}  {tokenizer.decode(written)}")
    return loss


def main() -> None:
    """Graft, train, switch, and take off."""
    torch.manual_seed(0)
    model, tokenizer, rows = load_model("embedded"), load_tokenizer("embedded"), windows()
    rows = rows[torch.randperm(len(rows))]
    held_out, rows = rows[:20], rows[20:]
    before = show("base", model, tokenizer, held_out)

    for name, (settings, rate) in CHOSEN.items():
        graft(model, METHODS[name].configure(settings), name)
        count = sum(p.numel() for p in trainable_parameters(model).values())
        print(f"{name} ({METHODS[name].family}): {count:,} parameters train")
        train(model, rows, rate)

    for name in CHOSEN:
        set_adapter(model, name)
        show(name, model, tokenizer, held_out)
    with disable_adapter(model):
        after = show("base again", model, tokenizer, held_out)
    print("to the last bit:", before == after)


if __name__ == "__main__":
    main()
