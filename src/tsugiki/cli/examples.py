"""Examples at the end of each command's help; a test checks that their commands and flags exist."""

from collections.abc import Mapping

EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "quickstart": ("tsugiki quickstart", "tsugiki quickstart --out my-first-adapter"),
    "aozora": (
        "tsugiki aozora --author 梶井基次郎 --out kajii.jsonl",
        "tsugiki aozora --author 泉鏡花 --kana old --out kyoka.jsonl",
        "tsugiki aozora --source mirror --title 檸檬 --out lemon.jsonl",
        "tsugiki aozora 424_ruby_19825.zip downloads --out works.jsonl",
    ),
    "new": ("tsugiki new", "tsugiki new kajii.yaml --data kajii.jsonl --minutes 20 --no-preview"),
    "train": (
        "tsugiki train --model embedded --data kajii.jsonl --out runs/kajii",
        "tsugiki train --model embedded --data kajii.jsonl --out runs/short --minutes 10 --prompts 檸檬は",
        "tsugiki train --model USER/NAME --data chat.jsonl --out runs/chat --method dora --r 8",
        "tsugiki train run.yaml --learning-rate 2e-4",
        "tsugiki train --resume runs/kajii --epochs 6",
        "tsugiki train --print-config",
    ),
    "plan": (
        "tsugiki plan --model USER/NAME",
        "tsugiki plan --model USER/NAME --data kajii.jsonl --block-size 1024 --json",
    ),
    "preview": (
        "tsugiki preview --model embedded --data kajii.jsonl",
        "tsugiki preview run.yaml --rows 5 --html preview.html",
    ),
    "pretrain": (
        "tsugiki pretrain examples/embedded_base/pretrain.yaml",
        "tsugiki pretrain --resume runs/base",
    ),
    "methods": ("tsugiki methods", "tsugiki methods dora", "tsugiki methods targets --model USER/NAME"),
    "compare": ("tsugiki compare examples/recipes/twin-compare.yaml --data kajii.jsonl",),
    "sweep": ("tsugiki sweep examples/recipes/twin-sweep.yaml --data kajii.jsonl --out runs/sweep",),
    "report": ("tsugiki report runs/kajii",),
    "bench": (
        "tsugiki bench",
        "tsugiki bench --model embedded --entries all --out bench",
        "tsugiki bench --list",
    ),
    "eval": (
        "tsugiki eval --adapter runs/kajii --data other.txt",
        "tsugiki eval --model embedded --adapter runs/a --adapter runs/b --data other.txt",
        "tsugiki eval --model USER/NAME --questions questions.jsonl --json",
    ),
    "generate": (
        "tsugiki generate --adapter runs/kajii --prompt 檸檬は",
        "tsugiki generate --adapter runs/kajii --prompt 檸檬は --compare",
        "tsugiki generate --model embedded --prompts prompts.txt --jsonl",
    ),
    "chat": ("tsugiki chat runs/chat", "tsugiki chat --model embedded --repetition-penalty 1.2"),
    "serve": (
        "tsugiki serve --model embedded",
        "tsugiki serve --model embedded --adapter kajii=runs/kajii --port 8080",
        "tsugiki serve --model embedded --host 0.0.0.0 --api-key-file key.txt",
    ),
    "merge": (
        "tsugiki merge --adapter runs/kajii --out kajii-model",
        "tsugiki merge --model embedded --adapter a --adapter b --weights 0.7,0.3 --out both",
    ),
    "cache": ("tsugiki cache list", "tsugiki cache clear quantized"),
    "cache list": ("tsugiki cache list", "tsugiki cache list --json"),
    "cache clear": ("tsugiki cache clear", "tsugiki cache clear quantized tokens"),
    "push": (
        "tsugiki push runs/kajii USER/kajii --dry-run",
        "tsugiki push runs/kajii USER/kajii --license cc0-1.0 --language ja",
    ),
    "pull": ("tsugiki pull USER/kajii", "tsugiki pull USER/kajii@main --name kajii"),
    "export": (
        "tsugiki export runs/kajii --gguf kajii.gguf",
        "tsugiki export runs/kajii --merged --gguf model.gguf --dtype q8_0",
        "tsugiki export --model USER/NAME --gguf model.gguf",
    ),
    "adapters": (
        "tsugiki adapters add runs/kajii",
        "tsugiki adapters list",
        "tsugiki adapters show kajii",
    ),
    "adapters list": ("tsugiki adapters list", "tsugiki adapters list --json"),
    "adapters show": ("tsugiki adapters show kajii", "tsugiki adapters show runs/kajii --html kajii.html"),
    "adapters add": ("tsugiki adapters add runs/kajii", "tsugiki adapters add runs/kajii --name lemon"),
    "adapters rename": ("tsugiki adapters rename kajii lemon",),
    "adapters remove": ("tsugiki adapters remove kajii", "tsugiki adapters remove old older --yes"),
    "adapters verify": (
        "tsugiki adapters verify",
        "tsugiki adapters verify runs/kajii --model embedded --for peft",
    ),
    "adapters diff": ("tsugiki adapters diff kajii soseki",),
    "adapters combine": (
        "tsugiki adapters combine kajii soseki --weights 0.5,0.5 --out both",
        "tsugiki adapters combine kajii soseki --type ties_svd --density 0.5 --out both",
    ),
    "adapters scale": ("tsugiki adapters scale kajii --by 0.5 --out half",),
    "adapters truncate": (
        "tsugiki adapters truncate kajii --rank 4 --out small",
        "tsugiki adapters truncate kajii --energy 0.99 --out small",
    ),
    "adapters extract": ("tsugiki adapters extract --model tuned --base USER/NAME --rank 16 --out extracted",),
    "adapters import": ("tsugiki adapters import lora.gguf --model USER/NAME --out lora",),
}
"""Command -> command lines."""
