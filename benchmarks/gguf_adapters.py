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
import shlex
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import gguf
import numpy as np
from torch import Tensor

from benchmarks.beside_llama_cpp import alike, greedy, llama
from benchmarks.beside_llama_cpp import logits as logits_of
from tsugiki import disable_adapter, load_adapter
from tsugiki.base.loading import load_model, load_tokenizer
from tsugiki.bench.figures import Figures
from tsugiki.bench.table import markdown
from tsugiki.data.encoding import document_start, encode

_HEADERS = {
    "en": [
        *("base", "adapter", "difference of logits", "at the worst token", "KL, nats", "same top token"),
        "same tokens, greedily",
    ],
    "ja": [
        *("ベース", "アダプター", "ロジットの差", "最も違うトークンで", "KL（nat）", "最上位が同じ"),
        "貪欲に同じトークン",
    ],
}


def main() -> None:
    """Print the table and the texts, and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--base", type=Path, required=True, help="the GGUF file that MODEL came from, or was made into")
    parser.add_argument("--prompt", default="吾輩は猫である。名前はまだ無い。")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
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
    texts = [(f"Tsugiki, {which}", drawn) for which, drawn in ours.items()]
    rows = []
    with TemporaryDirectory() as folder:
        lora, plain = Path(folder) / "adapter.gguf", Path(folder) / "base.gguf"
        command = [sys.executable, "-m", "tsugiki", "export", str(options.adapter), "--gguf", str(lora)]
        command += ["--model", options.model, "--base", str(options.base)]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        _in_float32(options.base, plain)
        for name, base in (("as it is", options.base), ("in float32", plain)):
            for which, adapter in (("without", None), ("with", lora)):
                theirs, drawn = llama(base, whole, ids, adapter)
                row = _compare(logits[which], theirs)
                rows.append(
                    [
                        name,
                        which,
                        f"{row['median_difference']:.2g}",
                        f"{row['largest_difference']:.2g}",
                        f"{row['kl_nats']:.1e}",
                        f"{row['same_top_token']:.0%}",
                        f"{alike(ours[which], drawn)} of {len(ours[which])}",
                    ]
                )
                texts.append((f"llama.cpp, {name}, {which}", drawn))
    print(
        f"{options.base.name} with {options.adapter}: {len(whole)} tokens, whose logits the adapter moves by up to "
        f"{shift:.3g}\n"
    )
    figures = Figures(_HEADERS, rows, shlex.join(["python", "-m", "benchmarks.gguf_adapters", *sys.argv[1:]]))
    print(markdown(figures.table("en")))
    for who, drawn in texts:
        print(f"{who}: {tokenizer.decode(drawn)!r}")
    print(f"\n{said}")
    if options.out:
        figures.write(options.out)


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
