r"""An adapter in llama.cpp beside Tsugiki: `python -m benchmarks.gguf_adapters MODEL ADAPTER --base BASE.gguf`.

The adapter is exported by the command line and run on the base's GGUF file, as it is and with every tensor made
float32, which takes the rounding of a quantised base away: what is left then is the adapter's. Tsugiki computes in
float32 on MODEL, whose weights are those of the file. Compared are logits on the prompt and our continuation of it,
the likeliest token at each place, and what each draws greedily. A token's difference is the largest of its logits;
the table has the median token's, and the worst. Needs llama-cpp-python.

    tsugiki train --model MODEL --data src/tsugiki/assets/quickstart --out ADAPTER --max-steps 16 --learning-rate 2e-3 \
        --batch-size 1 --grad-accum 1 --block-size 64 --dropout 0
"""

import argparse
import json
import subprocess
import sys
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf
import llama_cpp
import numpy as np
import torch
from torch import Tensor

from tsugiki import disable_adapter, load_adapter
from tsugiki.bench.table import markdown
from tsugiki.data.encoding import document_start, encode
from tsugiki.models import load_model, load_tokenizer
from tsugiki.train.record import describe_machine

_HEADERS = ["base", "adapter", "difference of logits", "at the worst token", "KL", "same top token", "greedy"]
_NEW = 40
_F32 = 0  # ggml's number of the type


def main() -> None:
    """Print the table and the texts, and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--base", type=Path, required=True, help="the GGUF file that MODEL came from, or was made into")
    parser.add_argument("--prompt", default="吾輩は猫である。名前はまだ無い。どこで生れたか")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    options = parser.parse_args()

    tokenizer = load_tokenizer(options.model)
    ids = [document_start(tokenizer), *encode(tokenizer, [options.prompt])[0]]
    model = load_model(options.model).eval()
    load_adapter(model, options.adapter)
    ours = {"with": _greedy(model, ids)}
    with disable_adapter(model):
        ours["without"] = _greedy(model, ids)
        whole = [*ids, *ours["with"]]
        logits = {"without": _logits(model, whole)}
    logits["with"] = _logits(model, whole)
    del model
    shift = float((logits["with"] - logits["without"]).abs().max())
    figures: dict[str, Any] = {
        "command": f"python -m benchmarks.gguf_adapters {Path(options.model).name} {options.adapter.name} "
        f"--base {options.base.name}",
        "machine": describe_machine(),
        "llama_cpp_python": llama_cpp.__version__,
        "prompt": options.prompt,
        "largest_shift": shift,
    }
    figures["tsugiki"] = {which: tokenizer.decode(drawn) for which, drawn in ours.items()}
    rows = []
    with TemporaryDirectory() as folder:
        lora, plain = Path(folder) / "adapter.gguf", Path(folder) / "base.gguf"
        command = [sys.executable, "-m", "tsugiki", "export", str(options.adapter), "--gguf", str(lora)]
        command += ["--model", options.model, "--base", str(options.base)]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        _in_float32(options.base, plain)
        for name, base in (("as it is", options.base), ("in float32", plain)):
            for which, adapter in (("without", None), ("with", lora)):
                theirs, drawn = _llama(base, adapter, whole, ids)
                row = _compare(logits[which], theirs)
                row |= {"alike": _alike(ours[which], drawn), "text": tokenizer.decode(drawn)}
                figures[f"{name}, {which}"] = row
                rows.append(
                    [
                        name,
                        which,
                        f"{row['median_difference']:.2g}",
                        f"{row['largest_difference']:.2g}",
                        f"{row['kl_nats']:.1e}",
                        f"{row['same_top_token']:.0%}",
                        f"{row['alike']} of {len(ours[which])}",
                    ]
                )
    print(
        f"{options.base.name} with {options.adapter}: {len(whole)} tokens, whose logits the adapter moves by up to "
        f"{shift:.3g}\n"
    )
    print(markdown((_HEADERS, rows)))
    for which, text in figures["tsugiki"].items():
        print(f"\nTsugiki, {which}: {text!r}")
        print(f"llama.cpp, {which}: {figures[f'as it is, {which}']['text']!r}")
    print(f"\n{said}")
    if options.out:
        options.out.write_text(json.dumps(figures, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _greedy(model: Any, ids: list[int]) -> list[int]:
    """The ids that the model draws after these."""
    drawn = model.generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=_NEW,
        do_sample=False,
        pad_token_id=0,
    )
    new: list[int] = drawn[0, len(ids) :].tolist()
    return new


@torch.no_grad()
def _logits(model: Any, ids: list[int]) -> Tensor:
    out: Tensor = model(input_ids=torch.tensor([ids])).logits[0].float()
    return out


def _llama(base: Path, adapter: Path | None, whole: list[int], ids: list[int]) -> tuple[Tensor, list[int]]:
    """llama.cpp's logits of `whole`, and the ids that it draws greedily after `ids`."""
    model = llama_cpp.Llama(
        str(base),
        lora_path=str(adapter) if adapter else None,
        n_ctx=256,
        logits_all=True,
        type_k=_F32,
        type_v=_F32,
        verbose=False,
    )
    model.eval(whole)
    logits = torch.tensor(np.array(model.scores[: len(whole)]))
    model.reset()
    model.eval(ids)
    drawn: list[int] = []
    while len(drawn) < _NEW and (not drawn or drawn[-1] != model.token_eos()):
        drawn.append(int(np.argmax(model.scores[len(ids) + len(drawn) - 1])))
        model.eval(drawn[-1:])
    model.close()
    return logits, drawn


def _in_float32(source: Path, out: Path) -> None:
    """A copy of a GGUF file with every tensor in float32."""
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(out, architecture)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", "general.file_type"):
            inner = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _alike(ours: list[int], theirs: list[int]) -> int:
    """How many tokens are the same before the first that is not."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ours, theirs, strict=False)))


def _compare(ours: Tensor, theirs: Tensor) -> dict[str, float]:
    a, b = ours.double(), theirs[:, : ours.shape[1]].double()
    p, q = a.log_softmax(-1), b.log_softmax(-1)
    differences = (a - b).abs().max(-1).values
    return {
        "median_difference": float(differences.median()),
        "largest_difference": float(differences.max()),
        "kl_nats": float((p.exp() * (p - q)).sum(-1).mean()),
        "same_top_token": float((a.argmax(-1) == b.argmax(-1)).double().mean()),
    }


if __name__ == "__main__":
    main()
