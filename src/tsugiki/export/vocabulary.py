"""A tokenizer as the metadata of a GGUF file.

llama.cpp has tokenizers of its own, and a GGUF file says which of them to use with which vocabulary:

    gpt2     byte-level BPE: merges, and how text is cut before them, by a name from a fixed list (`pre`)
    llama    SentencePiece's BPE, or any BPE over characters with bytes for the rest: a merge is taken by the score of
             what it makes, with no list of pairs
    t5       SentencePiece's unigram model: the likeliest cut by the scores of its pieces

Whether it then cuts text as ours does is asked of llama.cpp itself, in `tokens`.
"""

import base64
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import gguf
from gguf import TokenType

from tsugiki.data.encoding import document_end, document_start
from tsugiki.errors import TsugikiError, summarise_list

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""What stands for a space in SentencePiece's vocabularies."""

_NEVER = -1e30  # the score of what no merge makes
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
"""How a byte-level tokenizer cuts text before its merges -> llama.cpp's name of it."""


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of a tokenizer."""

    model: str
    tokens: Sequence[str]
    types: Sequence[TokenType]
    scores: Sequence[float] | None
    merges: Sequence[str] | None
    ids: Mapping[str, int]
    """Kind of special token -> its id, as `gguf.SpecialVocab` calls them."""
    add_bos: bool
    chat_template: str | list[dict[str, str]] | None
    pre: str = "default"
    add_space_prefix: bool = False
    remove_extra_whitespaces: bool | None = None
    charsmap: bytes | None = None


def read_vocabulary(tokenizer: "PreTrainedTokenizerBase", rows: int, ends: Sequence[int] = ()) -> Vocabulary:
    """The tokenizer as llama.cpp can have it.

    Args:
        tokenizer: of a model.
        rows: of the model's embedding; those that have no token get one that is never used.
        ends: ids that end a text or a turn, besides the tokenizer's end token.

    Raises:
        TsugikiError: a tokenizer of a kind that llama.cpp does not have, or with more tokens than the model has rows.
    """
    fields = _fields(tokenizer)
    kind = fields["model"].get("type")
    cut = _parts(fields["pre_tokenizer"])
    byte_level = any(part["type"] == "ByteLevel" for part in cut)
    model = {"BPE": "gpt2" if byte_level else "llama", "Unigram": "t5"}.get(kind)
    if model is None:
        raise TsugikiError(f"the tokenizer is a {kind}; llama.cpp can have a BPE or a Unigram one")
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
        return replace(vocabulary, merges=[" ".join(pair) for pair in _merges(fields)], pre=_pre(fields, cut))
    prefix = tokenizer.backend_tokenizer.encode("a", add_special_tokens=False).tokens[0].startswith(SPACE)
    if model == "llama":
        return replace(vocabulary, scores=_scores_of_merges(fields, tokens), add_space_prefix=prefix)
    scores = dict(fields["model"]["vocab"])
    return replace(
        vocabulary,
        ids={**vocabulary.ids, "unknown": fields["model"]["unk_id"] or 0},
        scores=[float(scores.get(text, 0.0)) for text in tokens],
        add_space_prefix=prefix,
        remove_extra_whitespaces=_merges_spaces(fields),
        charsmap=_charsmap(fields),
    )


def add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    """Put the metadata of a tokenizer into a file that is being written."""
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges is not None:
        writer.add_token_merges(vocabulary.merges or [""])  # llama.cpp asks that there be a list
    if vocabulary.charsmap is not None:
        writer.add_precompiled_charsmap(vocabulary.charsmap)
    if vocabulary.remove_extra_whitespaces is not None:
        writer.add_remove_extra_whitespaces(vocabulary.remove_extra_whitespaces)
    writer.add_add_space_prefix(vocabulary.add_space_prefix)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(False)  # what is to be gone on with has not ended
    for kind, token in vocabulary.ids.items():
        writer.add_uint32(f"tokenizer.ggml.{kind}_token_id", token)
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)


def adds_start(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether a prompt begins with the start token: always, as here (`data.encoding`), unless there is a chat template.

    A template says for itself how a conversation begins; what stands before plain text is then the tokenizer's word.
    """
    if tokenizer.chat_template is None:
        return True
    return bool(tokenizer("a").input_ids[0] == tokenizer.bos_token_id)


def other_normalizers(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """What the tokenizer does to text before it cuts it, and llama.cpp does not: NFC, say."""
    parts = _parts(_fields(tokenizer)["normalizer"])
    return [part["type"] for part in parts if part["type"] not in ("Precompiled", "Prepend", "Replace")]


def _fields(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise TsugikiError(
            "the tokenizer has no tokenizer.json; save it with one (save_pretrained of a fast tokenizer)"
        )
    fields: dict[str, Any] = json.loads(backend.to_str())
    return fields


def _parts(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a normalizer or a pre-tokenizer."""
    if part is None:
        return []
    steps = part.get("pretokenizers") or part.get("normalizers")
    return [inner for step in steps for inner in _parts(step)] if steps else [part]


def _tokens(
    tokenizer: "PreTrainedTokenizerBase", fields: Mapping[str, Any], rows: int, *, spaces: bool
) -> tuple[list[str], list[TokenType]]:
    """Text and type of every token in the order of their ids.

    Args:
        tokenizer: whose they are.
        fields: of its tokenizer.json.
        rows: of the model's embedding.
        spaces: whether llama.cpp writes spaces as SentencePiece does.
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    added = {token["id"]: token for token in fields["added_tokens"]}
    surplus = [text for text, token in vocabulary.items() if token >= rows and token not in added]
    if surplus:
        raise TsugikiError(
            f"the tokenizer has {len(surplus):,} tokens more than the model's {rows:,} rows: {summarise_list(surplus)}"
        )
    unknown = tokenizer.unk_token_id
    tokens = [f"[PAD{row}]" for row in range(rows)]
    types = [TokenType.UNUSED] * rows
    for text, token in vocabulary.items():
        if token >= rows:  # such as Gemma's for images: the model cannot read it
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
    twice = [text for text, times in Counter(tokens).items() if times > 1]
    if twice:
        raise TsugikiError(f"llama.cpp would take several tokens for the same: {summarise_list(twice)}")
    return tokens, types


def _ids(tokenizer: "PreTrainedTokenizerBase", ends: Sequence[int]) -> dict[str, int]:
    """The special tokens; with no begin token, what stands before a text in its place."""
    end = document_end(tokenizer)
    begin = document_start(tokenizer) if tokenizer.chat_template is None else tokenizer.bos_token_id
    ids = {"bos": end if begin is None else begin, "eos": end}
    ids |= {"unknown": tokenizer.unk_token_id} if tokenizer.unk_token_id is not None else {}
    ids |= {"padding": tokenizer.pad_token_id} if tokenizer.pad_token_id is not None else {}
    turn = next((token for token in ends if token != end), None)
    return ids | ({"eot": turn} if turn is not None else {})


def _template(tokenizer: "PreTrainedTokenizerBase") -> str | list[dict[str, str]] | None:
    template: str | dict[str, str] | None = tokenizer.chat_template
    if isinstance(template, dict):
        return [{"name": name, "template": text} for name, text in template.items()]
    return template


def _merges(fields: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The pairs; files of old versions write one as a string with a space between."""
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in fields["model"]["merges"])
    return [(left, right) for left, right in pairs]


def _pre(fields: Mapping[str, Any], cut: Sequence[Mapping[str, Any]]) -> str:
    """llama.cpp's name for how text is cut before the merges.

    Raises:
        TsugikiError: it has none that is known here.
    """
    steps = []
    for part in cut:
        if part["type"] == "ByteLevel":
            steps += ["a space in front"] if part["add_prefix_space"] else []
            steps += ["bytes"] if part["use_regex"] else []
        elif part["type"] == "Digits" and part["individual_digits"]:
            steps.append("digits")
        elif part["type"] == "Split" and part["behavior"] == "Isolated" and "Regex" in part["pattern"]:
            steps.append(part["pattern"]["Regex"])
        else:
            steps.append(f"{part['type']} {part.get('pattern', part.get('behavior', ''))}")
    name = PRE_TOKENIZERS.get(tuple(steps))
    if name is None and not fields["model"]["merges"]:
        return "gpt-2"  # single bytes, wherever text is cut
    if name is None:
        raise TsugikiError(
            f"llama.cpp cannot cut text as this tokenizer does: {' then '.join(steps) or 'not at all'} is none of "
            f"{', '.join(PRE_TOKENIZERS.values())}"
        )
    return name


def _scores_of_merges(fields: Mapping[str, Any], tokens: Sequence[str]) -> list[float]:
    """A score for each token by which the merge that comes first in the list is also the best: minus its place."""
    places: dict[str, int] = {}
    for place, (left, right) in enumerate(_merges(fields)):
        places.setdefault((left + right).replace(" ", SPACE), place)
    return [-float(places[text]) if text in places else _NEVER for text in tokens]


def _merges_spaces(fields: Mapping[str, Any]) -> bool:
    """Whether several spaces count as one, and those at the ends as none."""
    return any(part["type"] == "WhitespaceSplit" for part in _parts(fields["pre_tokenizer"])) or any(
        part["type"] == "Replace" and part["pattern"].get("Regex") in (" {2,}", SPACE + "{2,}")
        for part in _parts(fields["normalizer"])
    )


def _charsmap(fields: Mapping[str, Any]) -> bytes | None:
    """SentencePiece's table of what characters are replaced before anything else."""
    coded = next(
        (part["precompiled_charsmap"] for part in _parts(fields["normalizer"]) if part["type"] == "Precompiled"), None
    )
    return base64.b64decode(coded) if coded else None
