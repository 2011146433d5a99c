"""Compare GGUF bases in Tsugiki and in llama.cpp: `python -m benchmarks.gguf.bases model.gguf …`.

Requires llama-cpp-python. For each file, it prints a table with:

- the number of texts, of some fixed and 2,000 random ones, that llama.cpp tokenises differently; texts with U+2581,
  which is a space for SentencePiece and a letter for llama.cpp, are counted separately;
- the differences of the logits on two texts, and how often the top token agrees. llama.cpp rounds the activations to
  8 bits when it multiplies quantised weights, so this is repeated with the same weights stored as float32;
- for each text, the number of greedy tokens before the first difference;
- the seconds to load model and tokenizer, the first and the second time.
"""

import argparse
import os
import random
import shlex
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, dequantize
from llama_cpp import Llama

from benchmarks.figures import Figures
from tsugiki.base.gguf.conversion_cache import converted_folder
from tsugiki.base.loading import load_model, load_tokenizer
from tsugiki.report.table import Table

HEADERS = {"en": ["measurement", "value"], "ja": ["測定項目", "値"]}
TEXTS = [
    "The gardener cut 12 branches in 1923, and the capital of France is Paris; the capital of Japan is Tokyo. In the "
    "morning he listened to the wind in the trees, and did not hear that somebody had come through the gate.",
    "庭師は朝早く起きて、梅の枝を三本切った。雨はもう止んでいた。日本の首都は東京で、フランスの首都はパリである。",
]
FIXED = [
    *TEXTS,
    *(
        "Hello world",
        "  two spaces",
        " one",
        "",
        "\n",
        "x\r\ny\t\tz",
        "\tif x:\n\t\treturn 'y'",
        "don't can't I'LL we've",
    ),
    *(
        "e\u0301 ﬁ é",
        "A\u00a0B\u3000C",
        "½ ² Ⅷ １２３ 3.14 0x1F",
        "👨\u200d👩\u200d👧 🐈!",
        "𠮷野家\x00",
        "العربية हिन्दी 한국어 ไทย",
    ),
    *("<|im_start|>user\nhi<|im_end|>\n", "<bos><start_of_turn>user\nhi<end_of_turn>", "<s></s><unk><0x41>"),
]
PIECES = [*"abcXYZ 019  \n\t'.,!?<|>_▁é猫の🐈１½\u3000\u00a0", "'s", "'LL", "<|im_start|>", "<bos>", "</s>", "  "]
MARK = "▁"


def main() -> None:
    """Print a table for each file, and write one file with all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, help="JSON file to write the tables to")
    options = parser.parse_args()
    rows: list[list[str]] = []
    for path in options.files:
        measured = _rows(path)
        print(f"\n{path.name}\n\n{Table(HEADERS['en'], measured).to_markdown()}", flush=True)
        rows += [[f"{path.name}: {label}", value] for label, value in measured]
    if options.out:
        Figures(HEADERS, rows, f"python -m benchmarks.gguf.bases {shlex.join(sys.argv[1:])}").write(options.out)


def _rows(path: Path) -> list[list[str]]:
    seconds = []
    with TemporaryDirectory() as cache:  # an empty cache, so that the first load converts the file
        os.environ["XDG_CACHE_HOME"] = cache
        for _ in range(2):
            start = time.perf_counter()
            converted_folder(path)
            model, tokenizer = load_model(str(path)), load_tokenizer(str(path))
            seconds.append(time.perf_counter() - start)
        rows = _token_rows(path, tokenizer)
        ids = [tokenizer(text).input_ids for text in TEXTS]
        with torch.no_grad():
            ours = torch.cat([model(torch.tensor([row])).logits[0].float() for row in ids])
        rows.append(["standard deviation of the logits", f"{ours.std():.2f}"])
        rows += _logit_rows("llama.cpp", path, ids, ours)
        plain = _as_float32(path, Path(cache) / "float32.gguf")
        rows += _logit_rows("llama.cpp on float32", plain, ids, ours)
        rows.append(["greedy tokens before the first difference from llama.cpp (of 32)", _greedy(path, model, ids)])
        rows.append(["the same, with llama.cpp on float32", _greedy(plain, model, ids)])
    return [*rows, ["seconds of the first and the second load", ", ".join(f"{one:.1f}" for one in seconds)]]


def _token_rows(path: Path, tokenizer: Any) -> list[list[str]]:
    draw = random.Random(0)
    texts = FIXED + ["".join(draw.choices(PIECES, k=draw.randint(1, 24))) for _ in range(2000)]
    theirs = Llama(str(path), vocab_only=True, verbose=False)
    other = [t for t in texts if tokenizer(t).input_ids != theirs.tokenize(t.encode(), add_bos=True, special=True)]
    theirs.close()
    without = [text for text in texts if MARK not in text]
    return [
        ["texts that llama.cpp tokenises differently", f"{len([t for t in other if MARK not in t])} of {len(without)}"],
        ["the same, for texts with U+2581", f"{len([t for t in other if MARK in t])} of {len(texts) - len(without)}"],
    ]


def _open(path: Path) -> Any:
    float32 = int(GGMLQuantizationType.F32)
    return Llama(str(path), n_ctx=512, logits_all=True, type_k=float32, type_v=float32, flash_attn=False, verbose=False)


def _logit_rows(name: str, path: Path, ids: list[list[int]], ours: torch.Tensor) -> list[list[str]]:
    model = _open(path)
    scores = []
    for row in ids:
        model.reset()
        model.eval(row)
        scores.append(np.array(model.scores[: len(row)]))
    model.close()
    theirs = torch.tensor(np.concatenate(scores))
    difference = (ours - theirs).abs()
    same = (ours.argmax(-1) == theirs.argmax(-1)).sum()
    return [
        [f"largest and mean difference of a logit from {name}", f"{difference.max():.2g}, {difference.mean():.2g}"],
        [f"top token agrees with {name}", f"{same} of {len(ours)}"],
    ]


def _greedy(path: Path, model: Any, ids: list[list[int]]) -> str:
    """Return the number of greedy tokens before the first difference, for each text."""
    theirs = _open(path)
    counts = []
    for row in ids:
        prompt = torch.tensor([row])
        with torch.no_grad():
            out = model.generate(prompt, max_new_tokens=32, min_new_tokens=32, do_sample=False)[0, len(row) :]
        theirs.reset()
        theirs.eval(row)
        count = 0
        for token in out.tolist():
            if int(np.argmax(theirs.scores[theirs.n_tokens - 1])) != token:
                break
            theirs.eval([token])
            count += 1
        counts.append(count)
    theirs.close()
    return ", ".join(map(str, counts))


def _as_float32(path: Path, out: Path) -> Path:
    """Write a copy of a GGUF file with every tensor in float32."""
    reader = GGUFReader(path)
    writer = GGUFWriter(out, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


if __name__ == "__main__":
    main()
