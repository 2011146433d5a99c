r"""Compare an adapter in llama.cpp and in Tsugiki: `python -m benchmarks.gguf.adapters MODEL ADAPTER --base BASE.gguf`.

The adapter is exported with `tsugiki export` and run on the base's GGUF file: as it is, and with every tensor converted
to float32. The conversion removes the rounding of a quantised base, so that the remaining difference is due to the
adapter. Tsugiki computes in float32 on MODEL, which has the same weights as the file. The table compares the logits on
the prompt and our continuation, the top token at each position, and greedy decoding. The difference at a token is the
largest one of its logits; the table gives that of the median token and of the worst. Requires llama-cpp-python.

    tsugiki train --model MODEL --data src/tsugiki/assets/quickstart --out ADAPTER --max-steps 16 --learning-rate 2e-3 \
        --batch-size 1 --block-size 64 --lora-dropout 0
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import gguf
import numpy as np
from torch import Tensor

from benchmarks.figures import Figures
from benchmarks.gguf.llama_cpp_outputs import common_prefix, greedy, llama_cpp_outputs
from benchmarks.gguf.llama_cpp_outputs import logits as logits_of
from tsugiki import disable_adapter, load_adapter
from tsugiki.base.loading import load_model, load_tokenizer
from tsugiki.data.encoding import document_start, encode

_HEADERS = {
    "en": [
        *("base", "adapter", "median difference of logits", "largest difference", "KL, nats", "top token agrees"),
        "equal greedy tokens",
    ],
    "ja": [
        *("ベース", "アダプター", "ロジットの差（中央値）", "最大の差", "KL（nat）", "最上位トークンの一致率"),
        "貪欲生成で一致したトークン",
    ],
}


def main() -> None:
    """Print the table and the generated texts, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--base", type=Path, required=True, help="GGUF file with the same weights as MODEL")
    parser.add_argument("--prompt", default="吾輩は猫である。名前はまだ無い。")
    parser.add_argument("--out", type=Path, help="JSON file to write the table to")
    options = parser.parse_args()

    tokenizer = load_tokenizer(options.model)
    ids = [document_start(tokenizer), *encode(tokenizer, [options.prompt])[0]]
    model = load_model(options.model).eval()
    load_adapter(model, options.adapter)
    ours = {"with": greedy(model, ids)}
    with disable_adapter(model):
        ours["without"] = greedy(model, ids)
        whole = [*ids, *ours["with"]]
        logits = {"without": logits_of(model, whole)}
    logits["with"] = logits_of(model, whole)
    del model
    shift = float((logits["with"] - logits["without"]).abs().max())
    texts = [(f"Tsugiki, {state} adapter", generated) for state, generated in ours.items()]
    rows = []
    with TemporaryDirectory() as folder:
        lora, plain = Path(folder) / "adapter.gguf", Path(folder) / "base.gguf"
        command = [sys.executable, "-m", "tsugiki", "export", str(options.adapter), "--gguf", str(lora)]
        command += ["--model", options.model, "--base", str(options.base)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        _in_float32(options.base, plain)
        for name, base in (("as it is", options.base), ("in float32", plain)):
            for state, adapter in (("without", None), ("with", lora)):
                theirs, generated = llama_cpp_outputs(base, whole, ids, adapter)
                row = _compare(logits[state], theirs)
                rows.append(
                    [
                        name,
                        state,
                        f"{row['median_difference']:.2g}",
                        f"{row['largest_difference']:.2g}",
                        f"{row['kl_nats']:.1e}",
                        f"{row['same_top_token']:.0%}",
                        f"{common_prefix(ours[state], generated)} of {len(ours[state])}",
                    ]
                )
                texts.append((f"llama.cpp, base {name}, {state} adapter", generated))
    print(
        f"{options.base.name} with {options.adapter}: {len(whole)} tokens; the adapter changes their logits by up to "
        f"{shift:.3g}\n"
    )
    figures = Figures(_HEADERS, rows, shlex.join(["python", "-m", "benchmarks.gguf.adapters", *sys.argv[1:]]))
    print(figures.table("en").to_markdown())
    for name, generated in texts:
        print(f"{name}: {tokenizer.decode(generated)!r}")
    print(f"\n{output}")
    if options.out:
        figures.write(options.out)


def _in_float32(source: Path, out: Path) -> None:
    """Write a copy of a GGUF file with every tensor in float32."""
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
