"""Write the embedded base as a GGUF file, into which `tsugiki export --merged` merges an adapter.

    python examples/embedded_base/gguf_file.py src/tsugiki/assets/base src/tsugiki/assets/base.gguf

llama.cpp has no splitting at the ends of sentences, as the tokenizer does before its merges: no token of the vocabulary
goes beyond 。 or a line break, so the merges alone give the same tokens. The tokenizer is a BPE over characters with
bytes for the rest, which is SentencePiece's kind (`llama`): the earlier a merge, the higher its score.
"""

import json
import sys
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

NEVER_MERGED = -1e30  # the score of a token that no merge produces
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""How SentencePiece writes a space."""


def main(folder: Path, out: Path) -> None:
    """Write the model in `folder` to the GGUF file `out`."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(out, "gpt2")
    writer.add_name("embedded")
    writer.add_block_count(config["n_layer"])
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(4 * config["n_embd"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    add_vocabulary(writer, json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")), config["eos_token_id"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, config["n_layer"])
    for key, tensor in load_file(folder / "model.safetensors").items():
        name = names.get_name(key, (".weight", ".bias"))
        if name is None:
            raise SystemExit(f"llama.cpp's gpt2 has no tensor for {key}")
        if name.startswith("blk.") and tensor.ndim == 2:  # GPT-2 stores [in, out]
            tensor = tensor.T
        dtype = np.float32 if tensor.ndim == 1 or name == "position_embd.weight" else np.float16
        writer.add_tensor(name, np.ascontiguousarray(tensor.astype(dtype)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_vocabulary(writer: gguf.GGUFWriter, fields: dict, end: int) -> None:
    """Add the content of tokenizer.json; `end` is the token between documents, which begins every text, too."""
    vocabulary = fields["model"]["vocab"]
    texts = sorted(vocabulary, key=vocabulary.__getitem__)
    special = {token["content"] for token in fields["added_tokens"]}
    merged = {}
    for position, pair in enumerate(fields["model"]["merges"]):
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        merged.setdefault(left + right, -float(position))
    types = []
    for text in texts:
        is_byte = len(text) == 6 and text.startswith("<0x")
        kind = gguf.TokenType.BYTE if is_byte else gguf.TokenType.NORMAL
        types.append(gguf.TokenType.CONTROL if text in special else kind)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([text.replace(" ", SPACE) for text in texts])
    writer.add_token_types(types)
    writer.add_token_scores([merged.get(text, NEVER_MERGED) for text in texts])
    writer.add_add_space_prefix(False)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    writer.add_pad_token_id(end)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
