"""Examples at the end of each command's help; a test checks that their commands and flags exist."""

from collections.abc import Mapping

EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "quickstart": ("tsugiki quickstart", "tsugiki quickstart --out my-first-adapter"),
    "aozora": (
        "tsugiki aozora --author 樋口一葉 --out ichiyo.jsonl",
        "tsugiki aozora --author 泉鏡花 --kana old --out kyoka.jsonl",
        "tsugiki aozora --source mirror --title 檸檬 --out lemon.jsonl",
        "tsugiki aozora 424_ruby_19825.zip downloads --out works.jsonl",
    ),
    "new": ("tsugiki new", "tsugiki new ichiyo.yaml --data ichiyo.jsonl --minutes 20 --no-preview"),
    "train": (
        "tsugiki train --model embedded --data ichiyo.jsonl --out runs/ichiyo",
        "tsugiki train --model embedded --data ichiyo.jsonl --out runs/short --minutes 10 --prompts 秋の夜、",
        "tsugiki train --model USER/NAME --data chat.jsonl --out runs/chat --method dora --r 8",
        "tsugiki train run.yaml --learning-rate 2e-4",
        "tsugiki train --resume runs/ichiyo --epochs 6",
        "tsugiki train --print-config",
    ),
    "plan": (
        "tsugiki plan --model USER/NAME",
        "tsugiki plan --model USER/NAME --data ichiyo.jsonl --block-size 1024 --json",
    ),
    "preview": (
        "tsugiki preview --model embedded --data ichiyo.jsonl",
        "tsugiki preview run.yaml --rows 5 --html preview.html",
    ),
    "methods": ("tsugiki methods", "tsugiki methods dora", "tsugiki methods targets --model USER/NAME"),
    "compare": ("tsugiki compare examples/recipes/twin-compare.yaml --data ichiyo.jsonl",),
    "sweep": ("tsugiki sweep examples/recipes/twin-sweep.yaml --data ichiyo.jsonl --out runs/sweep",),
    "report": ("tsugiki report runs/ichiyo",),
    "eval": (
        "tsugiki eval --adapter runs/ichiyo --data other.txt",
        "tsugiki eval --model embedded --adapter runs/a --adapter runs/b --data other.txt",
        "tsugiki eval --model USER/NAME --questions questions.jsonl --json",
    ),
    "generate": (
        "tsugiki generate --adapter runs/ichiyo --prompt 秋の夜、",
        "tsugiki generate --adapter runs/ichiyo --prompt 秋の夜、 --compare",
        "tsugiki generate --model embedded --prompts prompts.txt --jsonl",
    ),
    "chat": ("tsugiki chat runs/chat", "tsugiki chat --model embedded --repetition-penalty 1.2"),
    "serve": (
        "tsugiki serve --model embedded",
        "tsugiki serve --model embedded --adapter ichiyo=runs/ichiyo --port 8080",
        "tsugiki serve --model embedded --host 0.0.0.0 --api-key-file key.txt",
    ),
    "merge": (
        "tsugiki merge --adapter runs/ichiyo --out ichiyo-model",
        "tsugiki merge --model embedded --adapter a --adapter b --weights 0.7,0.3 --out both",
    ),
    "cache": ("tsugiki cache list", "tsugiki cache clear quantized"),
    "cache list": ("tsugiki cache list", "tsugiki cache list --json"),
    "cache clear": ("tsugiki cache clear", "tsugiki cache clear quantized tokens"),
    "push": (
        "tsugiki push runs/ichiyo USER/ichiyo --dry-run",
        "tsugiki push runs/ichiyo USER/ichiyo --license cc0-1.0 --language ja",
    ),
    "pull": ("tsugiki pull USER/ichiyo", "tsugiki pull USER/ichiyo@main --name ichiyo"),
    "export": (
        "tsugiki export runs/ichiyo --gguf ichiyo.gguf",
        "tsugiki export runs/ichiyo --merged --gguf model.gguf --dtype q8_0",
        "tsugiki export --model USER/NAME --gguf model.gguf",
    ),
    "adapters": (
        "tsugiki adapters add runs/ichiyo",
        "tsugiki adapters list",
        "tsugiki adapters show ichiyo",
    ),
    "adapters list": ("tsugiki adapters list", "tsugiki adapters list --json"),
    "adapters show": ("tsugiki adapters show ichiyo", "tsugiki adapters show runs/ichiyo --html ichiyo.html"),
    "adapters add": ("tsugiki adapters add runs/ichiyo", "tsugiki adapters add runs/ichiyo --name lemon"),
    "adapters rename": ("tsugiki adapters rename ichiyo lemon",),
    "adapters remove": ("tsugiki adapters remove ichiyo", "tsugiki adapters remove old older --yes"),
    "adapters verify": (
        "tsugiki adapters verify",
        "tsugiki adapters verify runs/ichiyo --model embedded",
    ),
    "adapters diff": ("tsugiki adapters diff ichiyo soseki",),
    "adapters combine": (
        "tsugiki adapters combine ichiyo soseki --weights 0.5,0.5 --out both",
        "tsugiki adapters combine ichiyo soseki --type svd --rank 8 --out both",
    ),
    "adapters scale": ("tsugiki adapters scale ichiyo --by 0.5 --out half",),
    "adapters truncate": (
        "tsugiki adapters truncate ichiyo --rank 4 --out small",
        "tsugiki adapters truncate ichiyo --energy 0.99 --out small",
    ),
    "adapters import": ("tsugiki adapters import adapters.safetensors --model USER/NAME --out lora",),
}
"""Command -> command lines."""
