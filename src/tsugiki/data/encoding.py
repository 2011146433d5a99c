"""From records to token ids, and which of them are learned.

    document        <start> text <end>                      all but the start
    completion      <start> prompt completion <end>         the completion and the end
    conversation    as the chat template has it             what the assistant wrote, with the end of each turn

<start> is the begin token where the tokenizer sets one, else the end token. Prompt and answer are encoded together, as
one text; where a token would hold a part of both, they are encoded apart, so that the tokens of the prompt are those
that generation begins from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tsugiki.data.chat import ChatTemplate, Rendering, read_template, render
from tsugiki.data.records import AssistantTurns, Completion, Conversation, Document, Record
from tsugiki.errors import TsugikiError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Encoded:
    """One record: token ids, and for each whether it is learned (predicted from those before it)."""

    ids: list[int]
    learned: list[bool]

    @property
    def target_tokens(self) -> int:
        """How many tokens are learned; 0 where a conversation has no turn to learn."""
        return sum(self.learned)


def document_start(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The token that stands before a document: the begin token if the tokenizer sets one itself, else the end token.

    The same token is the context of a text's first token in training, in evaluation and in generation.

    Raises:
        TsugikiError: the tokenizer has no end token.
    """
    begin = tokenizer.bos_token_id
    if begin is not None and tokenizer("a").input_ids[:1] == [begin]:
        return int(begin)
    return document_end(tokenizer)


def document_end(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The token that ends a document.

    Raises:
        TsugikiError: the tokenizer has none.
    """
    if tokenizer.eos_token_id is None:
        raise TsugikiError("the tokenizer has no end token (eos_token); set one in its tokenizer_config.json")
    return int(tokenizer.eos_token_id)


def encode(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, without any special token."""
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids
    return ids


def encode_records(
    tokenizer: "PreTrainedTokenizerBase", records: Sequence[Record], assistant_turns: AssistantTurns = "all"
) -> list[Encoded]:
    """Token ids of each record and what is learned of them; the tokenizer is called once for each kind of record.

    Args:
        tokenizer: of the base model.
        records: a batch; some dozens use every core.
        assistant_turns: learn all of the assistant's turns, or the last only.

    Raises:
        TsugikiError: no end token or no chat template where one is needed; a conversation that its template cannot
            show (see `chat.render`); an answer that holds the token which ends it.
    """
    documents = [record for record in records if isinstance(record, Document)]
    answers = [record for record in records if not isinstance(record, Document)]
    encoded_documents = iter(_encode_documents(tokenizer, documents))
    encoded_answers = iter(_encode_answers(tokenizer, answers, assistant_turns))
    return [next(encoded_documents if isinstance(record, Document) else encoded_answers) for record in records]


def _encode_documents(tokenizer: "PreTrainedTokenizerBase", documents: Sequence[Document]) -> list[Encoded]:
    if not documents:
        return []
    start, end = document_start(tokenizer), document_end(tokenizer)
    rows = encode(tokenizer, [document.text for document in documents])
    return [Encoded([start, *ids, end], [False] + [True] * (len(ids) + 1)) for ids in rows]


def _encode_answers(
    tokenizer: "PreTrainedTokenizerBase", records: Sequence[Completion | Conversation], turns: AssistantTurns
) -> list[Encoded]:
    template: ChatTemplate | None = None
    renderings: list[Rendering] = []
    for record in records:
        if isinstance(record, Completion):
            renderings.append(Rendering(record.text, ((len(record.prompt), len(record.text)),)))
        else:
            template = template or read_template(tokenizer, record.source)
            renderings.append(render(template, record, turns))
    encoded = []
    for record, row in zip(records, _encode_renderings(tokenizer, renderings), strict=True):
        if isinstance(record, Completion):
            start, end = document_start(tokenizer), document_end(tokenizer)
            row = Encoded([start, *row.ids, end], [False, *row.learned, True])
        _refuse_inner_ends(tokenizer, row, record.source)
        encoded.append(row)
    return encoded


def _encode_renderings(tokenizer: "PreTrainedTokenizerBase", renderings: Sequence[Rendering]) -> list[Encoded]:
    if not renderings:
        return []
    if not tokenizer.is_fast:
        raise TsugikiError(
            "the tokenizer cannot tell which characters a token stands for, which prompts and answers need; "
            "use a base model that has a tokenizer.json"
        )
    texts = [rendering.text for rendering in renderings]
    batch = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    encoded = []
    for rendering, ids, offsets in zip(renderings, batch.input_ids, batch.offset_mapping, strict=True):
        borders = [start for start, _ in rendering.spans if start > 0]
        if not all(_is_between_tokens(border, offsets) for border in borders):
            ids, offsets = _encode_apart(tokenizer, rendering.text, borders)
        encoded.append(Encoded(ids, _inside(offsets, rendering.spans)))
    return encoded


def _is_between_tokens(border: int, offsets: Sequence[tuple[int, int]]) -> bool:
    """Whether one token ends and another begins at a position.

    Both are asked for, since some tokenizers leave white space at a token's edges out of its offsets.
    """
    straddled = any(first < border < last for first, last in offsets)
    return not straddled and any(first == border for first, _ in offsets) and any(last == border for _, last in offsets)


def _inside(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[bool]:
    """For each token whether it belongs to one of the spans.

    The token that ends a turn may reach beyond: some tokenizers let it swallow the line end that follows.
    """
    return [any(start < last and first < stop for start, stop in spans) for first, last in offsets]


def _encode_apart(
    tokenizer: "PreTrainedTokenizerBase", text: str, borders: Sequence[int]
) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids and offsets of a text that is cut at the borders; each piece is encoded by itself."""
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    for start, stop in zip([0, *borders], [*borders, len(text)], strict=True):
        for token, (first, last) in _encode_piece(tokenizer, text[start:stop], inner=start > 0):
            ids.append(token)
            offsets.append((start + first, start + last))
    return ids, offsets


def _encode_piece(tokenizer: "PreTrainedTokenizerBase", piece: str, inner: bool) -> list[tuple[int, tuple[int, int]]]:
    """Ids with their offsets of a piece, without the space that some tokenizers put before a text's beginning.

    An inner piece is encoded after a line feed, whose tokens are dropped again where they stand by themselves.
    """
    if inner:
        line_feed = encode(tokenizer, ["\n"])[0]
        batch = tokenizer("\n" + piece, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        if batch.input_ids[: len(line_feed)] == line_feed:
            rest = slice(len(line_feed), None)
            offsets = [(first - 1, last - 1) for first, last in batch.offset_mapping[rest]]
            return list(zip(batch.input_ids[rest], offsets, strict=True))
    batch = tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return list(zip(batch.input_ids, batch.offset_mapping, strict=True))


def _refuse_inner_ends(tokenizer: "PreTrainedTokenizerBase", row: Encoded, source: str) -> None:
    """Each learned stretch ends with a token that stands nowhere else in it."""
    stretch: list[int] = []
    for index, (token, learned) in enumerate(zip(row.ids, row.learned, strict=True)):
        if learned:
            stretch.append(token)
        if stretch and (not learned or index + 1 == len(row.ids)):
            if stretch.count(stretch[-1]) > 1:
                end = tokenizer.convert_ids_to_tokens(stretch[-1])
                raise TsugikiError(f"{source} holds {end}, the token that ends an answer; take it out, it is added")
            stretch = []
