"""Represent a tokenizer as metadata of a GGUF file.

llama.cpp implements three kinds of tokenizer. A GGUF file names the kind (`model`) and contains the vocabulary:

    gpt2     byte-level BPE: a list of merges, and the name of a fixed way to split text before the merges (`pre`)
    llama    SentencePiece's BPE, or any BPE over characters with byte fallback: no list of merges, the merge whose
             result has the highest score comes first
    t5       SentencePiece's unigram model: the most likely segmentation by the scores of the pieces

`gguf_tokenizer_check` verifies that the file then gives the same tokens as the tokenizer.
"""

import base64
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gguf
from gguf import TokenType

from tsugiki.annotations import PreTrainedTokenizerBase
from tsugiki.data.encoding import document_end, document_start
from tsugiki.errors import TsugikiError, summarise_list
from tsugiki.language import _, ngettext

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""The character that represents a space in SentencePiece's vocabularies."""

_NEVER_MERGED = -1e30  # the score of a token that no merge produces
_BYTE = re.compile("<0x[0-9A-F]{2}>")

_CASED = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
_UPPER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_REST_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PRE_TOKENIZERS: Mapping[tuple[str, ...], str] = {
    ("bytes",): "gpt-2",
    ("digits", "bytes"): "smollm",
    (rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}",): "llama-bpe",
    (rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}",): "qwen2",
    (rf"{_CASED}|{_UPPER}|\p{{N}}|{_REST_SLASH}",): "tekken",
    (rf"{_CASED}{_SHORT}?|{_UPPER}{_SHORT}?|\p{{N}}{{1,3}}|{_REST_SLASH}",): "gpt-4o",
}
"""The steps by which a byte-level tokenizer splits text before the merges -> llama.cpp's name for them."""


@dataclass(frozen=True)
class Vocabulary:
    """The metadata of a tokenizer in a GGUF file."""

    model: str
    """`gpt2`, `llama` or `t5`."""
    tokens: Sequence[str]
    types: Sequence[TokenType]
    scores: Sequence[float] | None
    merges: Sequence[str] | None
    ids: Mapping[str, int]
    """Kind of special token, by the names of `gguf.SpecialVocab` -> its id."""
    add_bos: bool
    chat_template: str | list[dict[str, str]] | None
    pre: str = "default"
    """llama.cpp's name for the way to split text before the merges."""
    add_space_prefix: bool = False
    remove_extra_whitespaces: bool | None = None
    charsmap: bytes | None = None


def read_vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int, ends: Sequence[int] = ()) -> Vocabulary:
    """Convert a model's tokenizer to the metadata of a GGUF file.

    `rows` is the number of rows of the model's embedding; rows without a token get an unused token. `ends` are ids of
    tokens that end a text or a turn, in addition to the EOS token.
    """
    fields = _fields(tokenizer)
    kind = fields["model"].get("type")
    pre_tokenizers = _steps(fields["pre_tokenizer"])
    byte_level = any(step["type"] == "ByteLevel" for step in pre_tokenizers)
    model = {"BPE": "gpt2" if byte_level else "llama", "Unigram": "t5"}.get(kind)
    if model is None:
        message = _("the tokenizer is a {kind} model; llama.cpp supports BPE and Unigram models")
        raise TsugikiError(message.format(kind=kind))
    tokens, types = _tokens(tokenizer, fields, rows, spaces=model != "gpt2")
    vocabulary = Vocabulary(
        model,
        tokens,
        types,
        scores=None,
        merges=None,
        ids=_ids(tokenizer, ends),
        add_bos=adds_start(tokenizer),
        chat_template=_template(tokenizer),
    )
    if model == "gpt2":
        return replace(
            vocabulary, merges=[" ".join(pair) for pair in _merges(fields)], pre=_pre(fields, pre_tokenizers)
        )
    prefix = tokenizer.backend_tokenizer.encode("a", add_special_tokens=False).tokens[0].startswith(SPACE)
    if model == "llama":
        return replace(vocabulary, scores=_scores_of_merges(fields, tokens), add_space_prefix=prefix)
    scores = dict(fields["model"]["vocab"])
    return replace(
        vocabulary,
        ids={**vocabulary.ids, "unknown": fields["model"]["unk_id"] or 0},
        scores=[float(scores.get(text, 0.0)) for text in tokens],
        add_space_prefix=prefix,
        remove_extra_whitespaces=_removes_extra_spaces(fields),
        charsmap=_charsmap(fields),
    )


def add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    """Add the metadata of a tokenizer to a GGUF file that is being written."""
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges is not None:
        writer.add_token_merges(vocabulary.merges or [""])  # llama.cpp requires a list
    if vocabulary.charsmap is not None:
        writer.add_precompiled_charsmap(vocabulary.charsmap)
    if vocabulary.remove_extra_whitespaces is not None:
        writer.add_remove_extra_whitespaces(vocabulary.remove_extra_whitespaces)
    writer.add_add_space_prefix(vocabulary.add_space_prefix)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(False)  # a prompt that will be continued must not end with EOS
    for kind, token in vocabulary.ids.items():
        writer.add_uint32(f"tokenizer.ggml.{kind}_token_id", token)
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)


def adds_start(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether a prompt begins with a start token.

    Without a chat template it always does, as in training (see `data.encoding`). With a template, the template defines
    how a conversation begins, and the tokenizer defines how plain text begins.
    """
    if tokenizer.chat_template is None:
        return True
    return bool(tokenizer("a").input_ids[0] == tokenizer.bos_token_id)


def unsupported_normalizers(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the names of a tokenizer's normalisations that llama.cpp does not support, such as NFC."""
    steps = _steps(_fields(tokenizer)["normalizer"])
    return [step["type"] for step in steps if step["type"] not in ("Precompiled", "Prepend", "Replace")]


def _fields(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise TsugikiError(
            _("the tokenizer has no tokenizer.json; load it as a fast tokenizer and save it again (save_pretrained)")
        )
    fields: dict[str, Any] = json.loads(backend.to_str())
    return fields


def _steps(component: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the steps of a normalizer or a pre-tokenizer, which may be a sequence of several."""
    if component is None:
        return []
    members = component.get("pretokenizers") or component.get("normalizers")
    return [step for member in members for step in _steps(member)] if members else [component]


def _tokens(
    tokenizer: PreTrainedTokenizerBase, fields: Mapping[str, Any], rows: int, *, spaces: bool
) -> tuple[list[str], list[TokenType]]:
    """Return the text and the type of every token, in the order of their ids.

    `fields` is the content of tokenizer.json, `rows` the number of rows of the model's embedding. `spaces` says whether
    this kind of tokenizer writes a space as ▁, as SentencePiece does.
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    added = {token["id"]: token for token in fields["added_tokens"]}
    surplus = [text for text, token in vocabulary.items() if token >= rows and token not in added]
    if surplus:
        raise TsugikiError(
            ngettext(
                "the tokenizer has {count:,} more token than the model's {rows:,} rows: {surplus}",
                "the tokenizer has {count:,} more tokens than the model's {rows:,} rows: {surplus}",
                len(surplus),
            ).format(count=len(surplus), rows=rows, surplus=summarise_list(surplus))
        )
    unknown = tokenizer.unk_token_id
    tokens = [f"[PAD{row}]" for row in range(rows)]
    types = [TokenType.UNUSED] * rows
    for text, token in vocabulary.items():
        if token >= rows:  # such as Gemma's image token, for which the text model has no embedding
            continue
        tokens[token] = text
        if token in added:
            types[token] = TokenType.CONTROL if added[token]["special"] else TokenType.USER_DEFINED
        elif spaces and _BYTE.fullmatch(text):
            types[token] = TokenType.BYTE
        else:
            types[token] = TokenType.NORMAL
            if spaces:
                tokens[token] = text.replace(" ", SPACE)
        if token == unknown and spaces:
            types[token] = TokenType.UNKNOWN
    duplicates = [text for text, count in Counter(tokens).items() if count > 1]
    if duplicates:
        message = _("llama.cpp would confuse tokens that have the same text: {duplicates}")
        raise TsugikiError(message.format(duplicates=summarise_list(duplicates)))
    return tokens, types


def _ids(tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> dict[str, int]:
    """Return the ids of the special tokens. BOS is the token before every text: EOS if the tokenizer has no BOS."""
    end = document_end(tokenizer)
    begin = document_start(tokenizer) if tokenizer.chat_template is None else tokenizer.bos_token_id
    ids = {"bos": end if begin is None else begin, "eos": end}
    ids |= {"unknown": tokenizer.unk_token_id} if tokenizer.unk_token_id is not None else {}
    ids |= {"padding": tokenizer.pad_token_id} if tokenizer.pad_token_id is not None else {}
    turn = next((token for token in ends if token != end), None)
    return ids | ({"eot": turn} if turn is not None else {})


def _template(tokenizer: PreTrainedTokenizerBase) -> str | list[dict[str, str]] | None:
    template: str | dict[str, str] | None = tokenizer.chat_template
    if isinstance(template, dict):
        return [{"name": name, "template": text} for name, text in template.items()]
    return template


def _merges(fields: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the merges as pairs; old versions of tokenizers write a pair as one string with a space in it."""
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in fields["model"]["merges"])
    return [(left, right) for left, right in pairs]


def _pre(fields: Mapping[str, Any], pre_tokenizers: Sequence[Mapping[str, Any]]) -> str:
    """Return llama.cpp's name for the way in which a byte-level tokenizer splits text before the merges."""
    descriptions = []
    for step in pre_tokenizers:
        if step["type"] == "ByteLevel":
            descriptions += ["a space in front"] if step["add_prefix_space"] else []
            descriptions += ["bytes"] if step["use_regex"] else []
        elif step["type"] == "Digits" and step["individual_digits"]:
            descriptions.append("digits")
        elif step["type"] == "Split" and step["behavior"] == "Isolated" and "Regex" in step["pattern"]:
            descriptions.append(step["pattern"]["Regex"])
        else:
            descriptions.append(f"{step['type']} {step.get('pattern', step.get('behavior', ''))}")
    name = PRE_TOKENIZERS.get(tuple(descriptions))
    if name is None and not fields["model"]["merges"]:
        return "gpt-2"  # without merges every token is one byte, so splitting changes nothing
    if name is None:
        steps = _(" then ").join(descriptions) or _("not at all")
        message = _("llama.cpp cannot split text as this tokenizer does ({steps}); it supports {known}")
        raise TsugikiError(message.format(steps=steps, known=", ".join(PRE_TOKENIZERS.values())))
    return name


def _scores_of_merges(fields: Mapping[str, Any], tokens: Sequence[str]) -> list[float]:
    """Return a score for each token, minus the position of its merge, so that earlier merges have higher scores."""
    positions: dict[str, int] = {}
    for position, (left, right) in enumerate(_merges(fields)):
        positions.setdefault((left + right).replace(" ", SPACE), position)
    return [-float(positions[text]) if text in positions else _NEVER_MERGED for text in tokens]


def _removes_extra_spaces(fields: Mapping[str, Any]) -> bool:
    """Return whether the tokenizer merges repeated spaces into one and removes those at both ends."""
    return any(step["type"] == "WhitespaceSplit" for step in _steps(fields["pre_tokenizer"])) or any(
        step["type"] == "Replace" and step["pattern"].get("Regex") in (" {2,}", SPACE + "{2,}")
        for step in _steps(fields["normalizer"])
    )


def _charsmap(fields: Mapping[str, Any]) -> bytes | None:
    """Return SentencePiece's table of characters that are replaced before tokenisation; None if there is none."""
    coded = next(
        (step["precompiled_charsmap"] for step in _steps(fields["normalizer"]) if step["type"] == "Precompiled"), None
    )
    return base64.b64decode(coded) if coded else None
