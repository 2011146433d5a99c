"""LoRA by PEFT and Trainer, as their documentation shows it: a competitor of `benchmarks.speed.wall_time`.

    python -m benchmarks.speed.peft_trainer MODEL DATA STEPS --attention eager

The texts of DATA (a folder of .txt files) are joined and cut into rows of 512 tokens; a step trains on four.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

ROWS, LENGTH = 4, 512


def main() -> None:
    """Train, and save the adapter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("steps", type=int)
    parser.add_argument("--attention", choices=["sdpa", "eager"], default="sdpa")
    options = parser.parse_args()
    set_seed(42)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(
        options.model, dtype=torch.bfloat16, attn_implementation=options.attention
    )
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM, r=8, lora_alpha=32, lora_dropout=0.1, target_modules=["c_attn", "c_proj"]
    )
    ids = [
        token for file in sorted(options.data.glob("*.txt")) for token in tokenizer(file.read_text("utf-8")).input_ids
    ]
    starts = range(0, len(ids) - LENGTH + 1, LENGTH)
    rows = [{"input_ids": ids[start : start + LENGTH], "labels": ids[start : start + LENGTH]} for start in starts]
    with TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            max_steps=options.steps,
            per_device_train_batch_size=ROWS,
            learning_rate=1e-4,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(
            get_peft_model(model, config), settings, train_dataset=rows, data_collator=default_data_collator
        )
        trainer.train()
        trainer.save_model()


if __name__ == "__main__":
    main()
