"""Invented records, and a parser that checks pages."""

from html.parser import HTMLParser
from typing import Any

from tsugiki.training import RunRecord
from tsugiki.training.record.result import summarise

_VOID = {"meta", "br", "link", "img", "input", "hr"}
_ADDRESSES = {"href", "src", "xlink:href", "srcset", "data", "action"}


TRAINING = {"steps": 40, "loss": 5.2, "tokens": 49494, "seconds": 283.7, "tokens_per_second": 174.46}
TRAINING |= {"peak_memory": 1155526656}
MACHINE = {"processor": "Abacus 9", "cores": 2, "threads": 2, "accelerator": None, "system": "Abax 1", "python": "3.11"}


class Page(HTMLParser):
    """Checks that tags balance, and keeps texts, tables, ids and addresses."""

    def __init__(self, content: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.feed(content)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in _VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [str(value) for name, value in attrs if name == "id"]
        self.addresses += [str(value) for name, value in attrs if name in _ADDRESSES]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another"

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.texts.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def table(self, header: str) -> list[list[str]]:
        """Return the rows of the table with this first header."""
        return next(rows for rows in self.tables if rows[0][0] == header)


def assert_whole(content: str) -> Page:
    """Check that tags are balanced, ids unique, links internal, and that the page loads nothing."""
    page = Page(content)
    assert len(set(page.ids)) == len(page.ids)
    assert set(page.addresses) <= {f"#{name}" for name in page.ids}
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    for fetched in ("http:", "https:", "@import", "url(//", "file:"):
        assert fetched not in content.replace("http://www.w3.org", ""), fetched
    assert set(page.tags) >= {"html", "head", "title", "body"}
    return page


def evaluation(step: int, loss: float, documents: int = 12) -> dict[str, Any]:
    """A measurement as `evaluate` writes it, of documents of 100 tokens and 160 characters that differ a little."""
    scores = [(loss * 100 * (1 + 0.01 * (i - (documents - 1) / 2)), 100, 160) for i in range(documents)]
    found = summarise(scores, range(documents), documents, 0, 0, 0, True)
    return {"step": step, **found.model_dump(), "loss": loss, "documents": [list(score) for score in scores]}


def record(**changes: Any) -> RunRecord:
    """A finished run of an adapter, with some of its fields replaced."""
    fields: dict[str, Any] = {
        "config": {
            "model": "embedded",
            "data": "庭.txt",
            "method": "lora",
            "lora": {"r": 8, "lora_alpha": 32.0, "lora_dropout": 0.1},
            "learning_rate": 0.001,
            "lr_scheduler_type": "linear",
            "epochs": 3.0,
            "max_steps": None,
            "batch_size": 16,
            "seed": 42,
            "prompts": ["庭の梅は"],
        },
        "status": "finished",
        "machine": MACHINE,
        "base": {"name": "embedded", "fingerprint": "sha256:ab", "dtype": "torch.float32"},
        "data": {
            "train": {"documents": 90, "characters": 66491, "fingerprint": "sha256:cd"},
            "held_out": {"documents": 12, "characters": 7374, "fingerprint": "sha256:ef", "measured_characters": 1920},
            "near_duplicates": {"groups": 1, "records": 2, "first": [["庭.txt:3 <梅>", "庭.txt:4 梅"]]},
            "blocks": 194,
            "block_size": 256,
            "blocks_fingerprint": "sha256:01",
            "document_masking": "position_ids",
            "target_tokens_per_epoch": 49494,
            "tokens_per_epoch": 49692,
            "padding": 74,
            "split_records": 9,
            "cut_records": 0,
            "cut_tokens": 0,
        },
        "parameters": {"trainable": 393216, "total": 7360512, "share": 393216 / 7360512},
        "resolved_settings": {"base_dropout": "off", "target_modules": ["c_attn", "c_fc"], "steps": 40},
        "evaluations": [evaluation(0, 5.6), evaluation(20, 5.1), evaluation(40, 4.9)],
        "samples": [
            {"step": step, "prompt": "庭の梅は", "text": f"{step}輪咲いた。\n　\ufffd散った。"} for step in (0, 20, 40)
        ],
        "training": TRAINING,
        "loss_curve": [{"step": i, "loss": 6 - i / 40, "learning_rate": 1e-3 * (1 - i / 40)} for i in range(1, 41)],
    }
    config = {**fields["config"], **changes.pop("config", {})}
    return RunRecord(**{**fields, **changes, "config": config})
