"""A page on which the embedded model and an adapter for it continue the same opening."""

from importlib.resources import files
from pathlib import Path

import gradio

import tsugiki

ADAPTER = Path("runs/telegram")
EXAMPLES = ("明治時代の", "吾輩は猫である。名前はまだ無い。", "今朝ハ")
ABOUT = """# Tsugiki 接ぎ木
A small Japanese model, and the same model with a LoRA adapter, trained for a minute on texts in the orthography of old
laws and telegrams. It has learned the style only; the sentences make no sense.

小さな日本語モデルと、戦前の法律や電報のような漢字片仮名交じり文を 1 分ほど学習した LoRA アダプターを比べます。
覚えたのは文体だけで、意味は通りません。"""
LONGEST = 200  # characters of an opening


def train_once() -> None:
    """Train the adapter, unless a former start has."""
    if not (ADAPTER / "adapter_model.safetensors").exists():
        texts = files("tsugiki") / "assets" / "quickstart"
        tsugiki.train(model="embedded", data=str(texts), out=str(ADAPTER))


def write(opening: str, seed: float) -> tuple[str, str]:
    """Return how the model alone and the model with the adapter continue an opening, with the same random numbers."""
    opening = opening[:LONGEST] or EXAMPLES[0]
    options = {"model": "embedded", "max_new_tokens": 80, "seed": int(seed)}
    alone = tsugiki.generate(opening, **options)
    return opening + alone, opening + tsugiki.generate(opening, adapter=str(ADAPTER), **options)


def page() -> gradio.Blocks:
    """Return the page."""
    with gradio.Blocks(title="Tsugiki") as blocks:
        gradio.Markdown(ABOUT)
        opening = gradio.Textbox(EXAMPLES[0], label="Opening 書き出し", max_length=LONGEST)
        seed = gradio.Number(0, label="Random numbers 乱数", precision=0, minimum=0, maximum=999)
        button = gradio.Button("Continue 続きを書く", variant="primary")
        with gradio.Row():
            outputs = [gradio.Textbox(label=label, lines=8) for label in ("base 学習前", "with the adapter 学習後")]
        gradio.on([button.click, opening.submit], write, [opening, seed], outputs)
        gradio.Examples([[text] for text in EXAMPLES], opening)
    return blocks


if __name__ == "__main__":
    train_once()
    page().launch()
