"""Step 5: a plain training loop that updates A and B only.

The embedded model, a small Japanese GPT-2, learns the old orthography of the quickstart's texts, in katakana.

    python examples/from_scratch/train_tiny.py
"""

from importlib.resources import files

import torch
from gpt2 import apply_lora_to_gpt2, count_parameters
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from tsugiki.base.loading import load_model, load_tokenizer

STEPS, BATCH, LENGTH = 100, 8, 64
RANK, ALPHA, LEARNING_RATE = 8, 32, 1e-3
TARGETS = ("c_attn", "c_proj")


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


@torch.no_grad()
def report(step: int, model: PreTrainedModel, held_out: Tensor) -> None:
    """Print the loss of the held-out windows."""
    print(f"step {step:3}  held-out loss {loss_of(model, held_out):.2f}")


def main() -> None:
    """Train, then check which weights changed."""
    torch.manual_seed(0)
    rows = windows()
    rows = rows[torch.randperm(len(rows))]
    held_out, rows = rows[:20], rows[20:]

    model = load_model("embedded")
    before = {name: p.clone() for name, p in model.named_parameters()}
    apply_lora_to_gpt2(model, RANK, ALPHA, TARGETS)
    trainable, total = count_parameters(model)
    print(f"{trainable:,} of {total:,} parameters are trainable")

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)
    for step in range(STEPS):
        if step % 25 == 0:
            report(step, model, held_out)
        batch = rows[torch.randint(len(rows), (BATCH,))]
        loss_of(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    report(STEPS, model, held_out)

    after = {name.replace(".linear.", "."): p for name, p in model.named_parameters() if ".lora." not in name}
    print("frozen weights are bit-identical:", all(torch.equal(after[name], p) for name, p in before.items()))
    moved = [bool(p.any()) for name, p in model.named_parameters() if name.endswith(".lora.B")]
    print("every B has changed from zero:", all(moved))


if __name__ == "__main__":
    main()
