"""Train the small Japanese GPT-2 that Tsugiki ships, from nothing, on a mirror of Aozora Bunko.

    python examples/embedded_base/train.py --mirror ../shared/aozora --out src/tsugiki/assets/base --minutes 40

From top to bottom: corpus, tokenizer, model, one step, the run, the held-out figures. The schedule follows the
clock, not the steps, so a run ends on time with its learning rate at zero whatever the machine does; the price is
that two runs from one seed agree only as far as their speeds agree.
"""

import argparse
import copy
import hashlib
import json
import math
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, trainers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from transformers.utils import logging

from tsugiki.data.aozora_source import iter_works

END = "<|endoftext|>"  # id 0: begins every block, ends every document, pads
SEED = 0
POSITIONS, TOKENS_PER_STEP, TOKENS_PER_TASK = 512, 4096, 1024
MUON_LR, ADAMW_LR, DECAY = 0.02, 0.003, 0.1
KYOKA, HELD_OUT_AUTHOR = "000050", "000040"  # 泉鏡花 and 織田作之助, by Aozora Bunko's person ids
PROMPTS = ("春の朝、", "明治時代の", "先生は言った。「")

# Corpus --------------------------------------------------------------------------------------------------


def read_corpus(mirror: Path) -> dict[str, list[str]]:
    """The texts of each split; works of the training authors are held out by a hash of person and title."""
    splits: dict[str, list[str]] = {"train": [], "held-out works": [], "held-out author": [], "old kana": []}
    for work in iter_works(str(mirror)):
        digest = int(hashlib.sha256(f"{work.person_id}/{work.title}".encode()).hexdigest(), 16)
        if work.person_id == KYOKA:
            if work.kana == "old":
                splits["old kana"].append(work.text)
        elif work.kana == "modern" and work.person_id == HELD_OUT_AUTHOR:
            splits["held-out author"].append(work.text)
        elif work.kana == "modern":
            splits["held-out works" if digest % 100 == 0 else "train"].append(work.text)
    return splits


# Tokenizer -----------------------------------------------------------------------------------------------


def train_tokenizer(texts: list[str], size: int = 8192, characters: int = 2600, sample: int = 8_000_000) -> Tokenizer:
    """Byte-pair encoding inside sentences; a character outside the commonest `characters` is written as its bytes.

    No normaliser and no pre-tokenizer: decoding gives back every text exactly.
    """
    counts = Counter(character for text in texts for character in text)
    alphabet = {chr(code) for code in range(32, 127)} | {"\n", "\t", "　"}
    alphabet |= {character for character, _ in counts.most_common(characters)}
    rare = re.compile("[^" + re.escape("".join(sorted(alphabet))) + "]+")
    sentences = [sentence for text in texts for sentence in re.findall(r"[^。\n]+。?", text)]
    random.Random(SEED).shuffle(sentences)

    def pieces() -> Iterator[str]:
        left = sample
        for sentence in sentences:
            left -= len(sentence)
            if left < 0:
                return
            yield from filter(None, rare.split(sentence))

    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END, *(f"<0x{byte:02X}>" for byte in range(256))], max_token_length=8,
        initial_alphabet=sorted(alphabet), limit_alphabet=len(alphabet), show_progress=False,
    )  # fmt: skip
    draft = Tokenizer(models.BPE())
    draft.train_from_iterator(pieces(), trainer)
    # Built anew, because the byte pieces must not stay special: those are looked for in texts and left out by decode.
    learnt = json.loads(draft.to_str())["model"]
    tokenizer = Tokenizer(models.BPE(learnt["vocab"], [tuple(pair) for pair in learnt["merges"]], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    return tokenizer


# Model and one step --------------------------------------------------------------------------------------


def build_model(vocabulary: int) -> GPT2LMHeadModel:
    """GPT-2 of 6 layers, width 256, 4 heads; the last product of each residual branch starts at zero."""
    torch.manual_seed(SEED)
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=POSITIONS, n_embd=256, n_layer=6, n_head=4,
        activation_function="gelu_pytorch_tanh", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=0, eos_token_id=0, pad_token_id=0, tie_word_embeddings=True, attn_implementation="eager",
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    for block in model.transformer.h:
        nn.init.zeros_(block.attn.c_proj.weight)
        nn.init.zeros_(block.mlp.c_proj.weight)
    return model


def gradients(model: GPT2LMHeadModel, blocks: Tensor) -> tuple[float, list[Tensor]]:
    """Summed loss of these blocks in nats per token of the step, and its gradients in the order of the parameters.

    The logits exist 128 rows at a time: d loss / d logits = softmax - one-hot goes at once into the gradients of
    the hidden states and of the tied embedding, and the trunk is differentiated from the former.
    """
    inputs = torch.cat([torch.zeros_like(blocks[:, :1]), blocks[:, :-1]], dim=1)
    hidden = model.transformer(inputs, use_cache=False).last_hidden_state
    embedding, loss = model.lm_head.weight, 0.0
    with torch.no_grad():
        d_hidden = torch.empty_like(hidden)
        d_embedding = torch.zeros(embedding.shape)
        chunks = (hidden.flatten(0, 1), d_hidden.flatten(0, 1), blocks.flatten()[:, None])
        for rows, d_rows, targets in zip(*(chunk.split(128) for chunk in chunks), strict=True):
            probabilities = torch.softmax(rows @ embedding.T, dim=-1, dtype=torch.float32)
            chosen = probabilities.gather(1, targets)
            loss -= chosen.clamp_min(1e-30).log().sum().item() / TOKENS_PER_STEP
            probabilities.scatter_(1, targets, chosen - 1)
            d_logits = probabilities.div_(TOKENS_PER_STEP).to(rows.dtype)
            torch.mm(d_logits, embedding, out=d_rows)
            d_embedding += d_logits.T @ rows
    grads = list(torch.autograd.grad(hidden, list(model.parameters()), d_hidden))
    grads[0] = grads[0] + d_embedding  # GPT-2's first parameter is the embedding
    return loss, grads


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly, by the Newton-Schulz iteration of Muon (Jordan et al. 2024)."""
    wide = matrices.shape[1] <= matrices.shape[2]
    x: Tensor = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    x = (x if wide else x.mT).bfloat16()
    for _ in range(steps):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return (x if wide else x.mT).float()


@torch.no_grad()
def muon_step(weights: list[Tensor], grads: list[Tensor], momentum: Tensor, lr: float) -> None:
    """Muon for matrices of one shape [in, out]; `momentum` [matrices, in, out] is updated in place."""
    stacked = torch.stack(grads)
    momentum.lerp_(stacked, 0.05)
    updates = orthogonal(stacked.lerp(momentum, 0.95)) * math.sqrt(max(1.0, stacked.shape[2] / stacked.shape[1]))
    for weight, update in zip(weights, updates, strict=True):
        weight.mul_(1 - lr * DECAY).sub_(update, alpha=lr)


# The run -------------------------------------------------------------------------------------------------


def schedule(progress: float) -> float:
    """Factor of the peak learning rates after this fraction of the time: 2 % up, level to 30 %, linear to zero."""
    return min(1.0, progress / 0.02, (1 - progress) / 0.7)


def block_length(progress: float) -> int:
    """Short blocks, which train a fifth faster, until 70 % of the time; then all positions."""
    return POSITIONS // 2 if progress < 0.7 else POSITIONS


def hidden_matrices(tensors: dict[str, Tensor]) -> dict[torch.Size, list[Tensor]]:
    """The matrices inside the layers by shape, as views; query, key and value each on its own."""
    found: dict[torch.Size, list[Tensor]] = {}
    for name, tensor in tensors.items():
        if ".h." in name and tensor.ndim == 2:
            for view in torch.chunk(tensor, 3 if "c_attn" in name else 1, dim=1):
                found.setdefault(view.shape, []).append(view)
    return found


def train(model: GPT2LMHeadModel, stream: Tensor, minutes: float, tokenizer: Tokenizer, out: Path) -> None:
    """Train for so many minutes, and write the folder every five.

    float32 master weights and a bfloat16 copy that computes. Two tasks run side by side with one thread each: on
    a shared machine that is faster than two threads inside every operation, which wait for each other.
    """
    pool = ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,))
    worker = copy.deepcopy(model).bfloat16()
    masters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    sums = {name: torch.zeros_like(master) for name, master in masters.items()}
    weights, totals = hidden_matrices(masters), hidden_matrices(sums)
    momenta = {shape: torch.zeros(len(views), *shape) for shape, views in weights.items()}
    others = [name for name, master in masters.items() if not (".h." in name and master.ndim == 2)]
    for name in others:
        masters[name].grad = sums[name]
    adamw = torch.optim.AdamW(
        [{"params": [masters[name]], "weight_decay": DECAY if masters[name].ndim == 2 else 0.0} for name in others],
        lr=0.0, betas=(0.9, 0.95), fused=True,
    )  # fmt: skip

    chunks = stream[: len(stream) // POSITIONS * POSITIONS].view(-1, POSITIONS)
    order = torch.cat([torch.randperm(len(chunks), generator=torch.Generator().manual_seed(e)) for e in range(100)])
    taken, start, saved, smooth, step = TOKENS_PER_STEP // POSITIONS, time.monotonic(), 0.0, math.nan, 0
    while (elapsed := (time.monotonic() - start) / 60) < minutes:
        factor, length = schedule(elapsed / minutes), block_length(elapsed / minutes)
        blocks = chunks[order[step * taken : (step + 1) * taken]].long()
        with torch.no_grad():
            for fast, master in zip(worker.parameters(), masters.values(), strict=True):
                fast.copy_(master)
        parts = blocks.view(-1, TOKENS_PER_TASK // length, length)
        tasks = [pool.submit(gradients, worker, part) for part in parts]
        loss = 0.0
        for total in sums.values():
            total.zero_()
        for task in tasks:
            part_loss, grads = task.result()
            loss += part_loss
            for total, grad in zip(sums.values(), grads, strict=True):
                total += grad
        norm = float(torch.stack([total.norm() for total in sums.values()]).norm())
        for total in sums.values():
            total *= min(1.0, 1.0 / norm)
        updates = [
            pool.submit(muon_step, weights[shape], totals[shape], momenta[shape], MUON_LR * factor) for shape in weights
        ]
        for group in adamw.param_groups:
            group["lr"] = ADAMW_LR * factor
        adamw.step()
        for update in updates:
            update.result()
        step += 1
        smooth = loss if math.isnan(smooth) else 0.9 * smooth + 0.1 * loss
        seconds, seen = time.monotonic() - start, step * TOKENS_PER_STEP
        if step % 20 == 0:
            print(f"{elapsed:6.1f} min  {seen:,} tokens  {seen / seconds:.0f}/s  loss {smooth:.4f}  norm {norm:.2f}")
        if elapsed - saved >= 5:
            write_folder(model, tokenizer, out)
            saved = elapsed
    pool.shutdown()
    print(f"{seen:,} tokens, {seen / len(stream):.2f} passes, {step} steps, {seconds / 60:.1f} minutes")


def write_folder(model: GPT2LMHeadModel, tokenizer: Tokenizer, out: Path) -> None:
    """The ordinary Transformers folder, weights in float16."""
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END, model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False, padding_side="left",
    )  # fmt: skip
    wrapped.save_pretrained(out)
    indented = json.loads((out / "tokenizer.json").read_text(encoding="utf-8"))
    compact = json.dumps(indented, ensure_ascii=False, separators=(",", ":"))
    (out / "tokenizer.json").write_text(compact + "\n", encoding="utf-8")
    copy.deepcopy(model).half().save_pretrained(out)


# Held-out figures and samples ----------------------------------------------------------------------------


@torch.no_grad()
def bits_per_character(folder: Path, texts: list[str], limit: int = 12_000) -> tuple[float, int]:
    """Bits per code point, and how many code points: windows of 256 characters, each behind the end token.

    At most the first 1,024 characters of a text are read, and `limit` in all.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    nats, characters = 0.0, 0
    for text in texts:
        prefix = text[: min(1024, limit - characters)]
        for window in (prefix[at : at + 256] for at in range(0, len(prefix), 256)):
            ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(window, add_special_tokens=False).input_ids]])
            logits = model(ids).logits[0, :-1]
            nats += nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
            characters += len(window)
    return nats / math.log(2) / characters, characters


def samples(folder: Path) -> Iterator[str]:
    """Continuations of the prompts: temperature 0.8, top-p 0.95, seed 0."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for prompt in PROMPTS:
        torch.manual_seed(SEED)
        ids = tokenizer(END + prompt, return_tensors="pt", add_special_tokens=False)
        drawn = model.generate(**ids, do_sample=True, temperature=0.8, top_p=0.95, top_k=0, max_new_tokens=80)
        yield tokenizer.decode(drawn[0], skip_special_tokens=True)


def main() -> None:
    """Corpus, tokenizer, run, figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mirror", type=Path, required=True, help="folder that contains cards/")
    parser.add_argument("--out", type=Path, required=True, help="where the model folder goes")
    parser.add_argument("--minutes", type=float, default=40.0, help="time to train")
    args = parser.parse_args()
    logging.set_verbosity_error()
    splits = read_corpus(args.mirror)
    tokenizer = train_tokenizer(splits["train"])
    stream = torch.tensor([t for text in splits["train"] for t in (*tokenizer.encode(text).ids, 0)], dtype=torch.int16)
    print(f"{len(splits['train'])} works, {sum(map(len, splits['train'])):,} characters, {len(stream):,} tokens")
    model = build_model(tokenizer.get_vocab_size())
    train(model, stream, args.minutes, tokenizer, args.out)
    write_folder(model, tokenizer, args.out)
    for name in ("held-out works", "held-out author", "old kana"):
        bits, characters = bits_per_character(args.out, splits[name])
        print(f"{name}: {bits:.3f} bits per character over {characters:,} characters")
    for text in samples(args.out):
        print("---", text, sep="\n")


if __name__ == "__main__":
    main()
