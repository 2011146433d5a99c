"""Encode records as token ids, and mark the tokens that count in the loss.

                    tokens                              in the loss
    document        <start> text <end>                  all but <start>
    completion      <start> prompt completion <end>     the completion and <end>
    conversation    the rendered chat template          the assistant's turns, each with the token that ends it

A completion is a conversation of two turns if the tokenizer has a chat template. <start> is the tokenizer's begin token
if it adds one to every text, otherwise its end token. Prompt and answer are encoded together as one text. If a token
would span both, they are encoded separately, so that the prompt has the same tokens as in generation.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from tsugiki.annotations import PreTrainedTokenizerBase
from tsugiki.data.chat import ChatTemplate, Rendering, read_template, render
from tsugiki.data.records import AssistantTurns, Completion, Conversation, Document, Record
from tsugiki.errors import TsugikiError


@dataclass(frozen=True)
class EncodedRecord:
    """The token ids of one record, and for each token whether it counts in the loss."""

    ids: list[int]
    loss_mask: list[bool]

    @property
    def target_tokens(self) -> int:
        """Number of tokens that count in the loss; 0 for a conversation in which no turn is trained."""
        return sum(self.loss_mask)


def begin_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the begin token if the tokenizer adds it to every text, otherwise None."""
    begin = tokenizer.bos_token_id
    return int(begin) if begin is not None and tokenizer("a").input_ids[:1] == [begin] else None


def document_start(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token before a document: the begin token if the tokenizer adds one to texts, otherwise the end token.

    Training, evaluation and generation all use it as the context of a text's first token.
    """
    begin = begin_token(tokenizer)
    return document_end(tokenizer) if begin is None else begin


def document_end(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that ends a document."""
    if tokenizer.eos_token_id is None:
        raise TsugikiError("the tokenizer has no end token (eos_token); set one in its tokenizer_config.json")
    return int(tokenizer.eos_token_id)


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of each text, without special tokens."""
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids
    return ids


def encode_records(
    tokenizer: PreTrainedTokenizerBase, records: Sequence[Record], assistant_turns: AssistantTurns = "all"
) -> list[EncodedRecord]:
    """Encode a batch of records; some dozens are enough to use all cores.

    The tokenizer is called once for documents and once for the other records.
    """
    documents = [record for record in records if isinstance(record, Document)]
    answers = [record for record in records if not isinstance(record, Document)]
    encoded_documents = iter(_encode_documents(tokenizer, documents))
    encoded_answers = iter(_encode_answers(tokenizer, answers, assistant_turns))
    return [next(encoded_documents if isinstance(record, Document) else encoded_answers) for record in records]


def _encode_documents(tokenizer: PreTrainedTokenizerBase, documents: Sequence[Document]) -> list[EncodedRecord]:
    if not documents:
        return []
    start, end = document_start(tokenizer), document_end(tokenizer)
    rows = encode(tokenizer, [document.text for document in documents])
    return [EncodedRecord([start, *ids, end], [False] + [True] * (len(ids) + 1)) for ids in rows]


def _encode_answers(
    tokenizer: PreTrainedTokenizerBase, records: Sequence[Completion | Conversation], turns: AssistantTurns
) -> list[EncodedRecord]:
    if tokenizer.chat_template:
        records = [record.conversation if isinstance(record, Completion) else record for record in records]
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
            row = EncodedRecord([start, *row.ids, end], [False, *row.loss_mask, True])
        _check_end_tokens(tokenizer, row, record.source)
        encoded.append(row)
    return encoded


def _encode_renderings(tokenizer: PreTrainedTokenizerBase, renderings: Sequence[Rendering]) -> list[EncodedRecord]:
    if not renderings:
        return []
    if not tokenizer.is_fast:
        raise TsugikiError(
            "the tokenizer does not report the character offsets of tokens, which prompts and answers require; use "
            "a base model with a tokenizer.json"
        )
    texts = [rendering.text for rendering in renderings]
    batch = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    encoded = []
    for rendering, ids, offsets in zip(renderings, batch.input_ids, batch.offset_mapping, strict=True):
        borders = [start for start, _ in rendering.spans if start > 0]
        if not _are_between_tokens(borders, offsets):
            ids, offsets = _encode_separately(tokenizer, rendering.text, borders)
        encoded.append(EncodedRecord(ids, _inside(offsets, rendering.spans)))
    return encoded


def _are_between_tokens(borders: Sequence[int], offsets: Sequence[tuple[int, int]]) -> bool:
    """Return whether a token ends and a token begins at each of these positions of the text, and no token spans it.

    All of this is checked, because some tokenizers exclude white space at the edges of a token from its offsets.
    """
    in_order = sorted(offsets)
    starts = [first for first, _ in in_order]
    furthest = [0, *accumulate((last for _, last in in_order), max)]  # the furthest end of the first n tokens
    begin, end = set(starts), {last for _, last in offsets}
    return all(
        border in begin and border in end and furthest[bisect_left(starts, border)] <= border for border in borders
    )


def _inside(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[bool]:
    """Return for each token whether it overlaps one of the spans, which are in order and do not overlap.

    The token that ends a turn may extend beyond its span, because some tokenizers include the following line feed.
    """
    starts = [start for start, _ in spans]

    def overlaps(first: int, last: int) -> bool:
        place = bisect_left(starts, last)  # the spans before it begin before the token ends
        return place > 0 and first < spans[place - 1][1]

    return [overlaps(first, last) for first, last in offsets]


def _encode_separately(
    tokenizer: PreTrainedTokenizerBase, text: str, borders: Sequence[int]
) -> tuple[list[int], list[tuple[int, int]]]:
    """Encode the pieces of a text between the borders separately; return token ids and character offsets."""
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    for start, stop in zip([0, *borders], [*borders, len(text)], strict=True):
        for token, (first, last) in _encode_piece(tokenizer, text[start:stop], inner=start > 0):
            ids.append(token)
            offsets.append((start + first, start + last))
    return ids, offsets


def _encode_piece(tokenizer: PreTrainedTokenizerBase, piece: str, inner: bool) -> list[tuple[int, tuple[int, int]]]:
    """Return the token ids of a piece of a text, each with its character offsets in the piece.

    Some tokenizers add a space at the beginning of a text. So an inner piece is encoded after a line feed, whose tokens
    are then dropped, provided that they are separate from those of the piece.
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


def _check_end_tokens(tokenizer: PreTrainedTokenizerBase, row: EncodedRecord, source: str) -> None:
    """Check that the last token of each answer, which ends it, does not also occur inside it."""
    answer: list[int] = []
    for index, (token, in_loss) in enumerate(zip(row.ids, row.loss_mask, strict=True)):
        if in_loss:
            answer.append(token)
        if answer and (not in_loss or index + 1 == len(row.ids)):
            if answer.count(answer[-1]) > 1:
                end = tokenizer.convert_ids_to_tokens(answer[-1])
                raise TsugikiError(
                    "{source} contains {end}, the token that ends an answer; remove it (it is added automatically)",
                    source=source,
                    end=end,
                )
            answer = []
