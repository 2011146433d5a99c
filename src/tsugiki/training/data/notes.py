"""Word what is unusual about the data of a run, one sentence each, from what the division has found."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from tsugiki.annotations import PreTrainedTokenizerBase
from tsugiki.data.chat import DEFAULT_TEMPLATE
from tsugiki.data.corpus import Corpus, Part
from tsugiki.data.mixing import Mixed
from tsugiki.data.overlap import Kind, Repeated
from tsugiki.data.records import Completion, Conversation, Document, Record
from tsugiki.data.splits import Integers, duplicates, parse_held_out, rare, share_of
from tsugiki.data.store import RecordIndex
from tsugiki.data.tokenizer_coverage import LITTLE_TEXT
from tsugiki.errors import summarise_list
from tsugiki.io.progress import Detail
from tsugiki.language import _, counts
from tsugiki.preference.pairs import TOO_LONG, Preferences
from tsugiki.training.record.run_record import DataSummary, SplitSummary
from tsugiki.training.settings.config import AUTO, RunConfig


def template_notes(kinds: set[type[Record]], tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Yield what the tokenizer's chat template, if it has one, means for records of these kinds."""
    if tokenizer.chat_template == DEFAULT_TEMPLATE and kinds != {Document}:
        note = _("questions and answers are turns of a plain chat template; {flag:chat_template} gives another")
        yield Detail(note)
    elif not tokenizer.chat_template or Conversation in kinds:
        return
    elif Completion in kinds:
        note = _(
            "prompt and completion become turns of the user and the assistant in the chat template of the "
            "tokenizer; {flag:chat_template none} joins them as plain text"
        )
        yield Detail(note)
    else:
        yield _(
            "the tokenizer has a chat template, and the data are plain text: if the model is a chat model, it may "
            "answer worse afterwards; its base model learns plain text better"
        )


def document_notes(config: RunConfig, is_one: bool) -> Iterator[str]:
    """Yield whether the data are one document, whose end is held out."""
    if is_one:
        share = share_of(parse_held_out(config.held_out))
        yield _("one document: its last {held_out:.0%} is held out", held_out=share)


def repeat_notes(train: Part, validation: Part | None, repeated: Repeated, of_validation: Repeated) -> Iterator[str]:
    """Yield which rows repeat scored text: `repeated` are those of training, by what they repeat."""
    if validation is not None and of_validation:
        message = _("left out of the validation text, because they repeat held-out text: {records}: {names}")
        names = named_repeats(validation.corpus, of_validation, "held-out")
        yield message.format(records=counts.records(len(of_validation)), names=names)
    if found := repeating(repeated, "held-out", "validation"):
        message = _("trained on, although they repeat held-out or validation text: {records}: {names}")
        if len(train.left_out):
            message = _(
                "left out of training, because they repeat held-out or validation text: {records}: {names}; "
                "{flag:allow_overlap} trains on them"
            )
        names = named_repeats(train.corpus, found, "held-out", "validation")
        yield message.format(records=counts.records(len(found)), names=names)
    yield from retention_notes(train, repeated)


def retention_notes(train: Part, repeated: Repeated) -> Iterator[str]:
    """Yield which rows that are trained on repeat the retention text."""
    found = repeating({row: repeated[row] for row in train.kept.tolist() if row in repeated}, "retention")
    if found:
        message = _(
            "{records} that are trained on repeat the retention text, so the run seems to forget less than it "
            "does: {names}"
        )
        names = named_repeats(train.corpus, found, "retention")
        yield message.format(records=counts.records(len(found)), names=names)


def repeating(repeated: Repeated, *kinds: Kind) -> Repeated:
    """Return the rows that repeat a text which is scored for one of these kinds."""
    return {row: found for row, found in repeated.items() if found.keys() & {*kinds}}


def named_repeats(corpus: Corpus, repeated: Repeated, *kinds: Kind) -> str:
    """Return the names of some rows and of the scored texts that they repeat, the latter of one of the kinds."""
    labels = {"held-out": _("held out"), "validation": _("validation"), "retention": _("retention")}
    names = []
    for row, found in repeated.items():
        kind = next(kind for kind in kinds if kind in found)
        names.append(f"{corpus.index.sources[row]} ({labels[kind]}: {found[kind]})")
    return summarise_list(names)


def window_notes(config: RunConfig, summary: SplitSummary, windows: int) -> Iterator[str]:
    """Yield whether the held-out text, of which so many windows are scored, chooses the step that is kept as well."""
    if summary.validation is not None and summary.validation.from_held_out:
        yield _("little text is kept aside: every second piece of it chooses what is kept, and the others test that")
    elif summary.validation is None and config.validation == AUTO and windows == 1:
        yield _("too little text is kept aside to choose a step as well: the last step is kept")


def question_notes(train: Part, parts: Sequence[Part], held_out: Part) -> Iterator[str]:
    """Yield whether one question has so many records that they are split one by one, not kept together."""
    questions = train.corpus.index.questions
    here = np.concatenate([train.kept, *(part.kept for part in parts if part.corpus is train.corpus)])
    common = int(np.count_nonzero(questions[here]) - np.count_nonzero(rare(questions)[here]))
    if common and len(held_out.rows) and held_out.corpus is train.corpus:
        yield _(
            "{records} ask a question that more than a tenth of the records ask, such as a greeting: they are split "
            "one by one, so some answers kept aside are to questions that are trained on",
            records=counts.records(common),
        )


def near_notes(config: RunConfig, corpus: Corpus, has_answers: bool, held_out: Part) -> Iterator[str]:
    """Yield whether nothing is held out, and how many rows are near-duplicates."""
    if parse_held_out(config.held_out) is None:
        yield _("nothing is held out, so nothing is measured on text that the run has not seen")
    groups = corpus.near
    note = _(
        "near-duplicates of each other: {records} in {groups}, kept together; {flag:drop_duplicates} uses one of each"
    )
    if has_answers:
        note = _("nearly alike: {records} in {groups}, kept together")
        together = {row for group in groups for row in group}
        if held_out.corpus is corpus and 2 * len(together & {*held_out.rows}) > len(held_out.rows):
            note = _(
                "nearly alike: {records} in {groups}, kept together, so the held-out text has no question like the "
                "trained ones"
            )
    if config.drop_duplicates:
        groups = duplicates(corpus.index, groups)
        note = _("near-duplicates of each other: {records} in {groups}; only the longest one of each group is used")
    if groups:
        records, grouped = counts.records(sum(map(len, groups))), counts.groups(len(groups))
        yield Detail(note.format(records=records, groups=grouped))


def known_notes(summary: SplitSummary) -> Iterator[str]:
    """Yield whether most held-out questions are phrasings of what is trained on."""
    held_out, known = summary.held_out.documents, summary.held_out.known_facts
    if 2 * known >= max(held_out, 1):
        message = _(
            "{known:,} of {all:,} questions kept aside are other phrasings of what is trained on; the others ask for "
            "what no row answers"
        )
        if known == held_out:
            message = _("the questions kept aside are other phrasings of what is trained on")
        yield message.format(known=known, all=held_out)


def mix_notes(mixed: Mixed, path: str) -> Iterator[str]:
    """Yield how much of what is learned is from the file of another text."""
    yield _(
        "{share:.1%} of the tokens in the loss are from {path} ({records})",
        share=mixed.share,
        path=path,
        records=counts.records(len(mixed.taken)),
    )


def unfit_notes(
    answers: Mapping[str, tuple[Preferences, Integers]], unfit: Mapping[str, Integers], size: int
) -> Iterator[str]:
    """Yield for each part of the data which pairs of answers are too long for a training row of `size` tokens.

    Args:
        answers: part -> all pairs, and the numbers of those that are in the part.
        unfit: part -> the numbers of those that are too long.
        size: the length of a training row, in tokens.
    """
    names = {"held_out": _("held-out"), "validation": _("validation")}
    for part, too_long in unfit.items():
        preferences, pairs = answers[part]
        if len(too_long) and len(too_long) == len(pairs):
            yield _(
                "none of the {part} pairs fits into a row of {size:,} tokens, so none is scored",
                part=names[part],
                size=size,
            )
        elif len(too_long):
            yield preferences.note(TOO_LONG, too_long.tolist(), size)


def row_notes(summary: DataSummary, model: str) -> Iterator[str]:
    """Yield whether each document has rows of its own, and what is cut off at the end of a row."""
    if summary.document_masking == "separate_rows":
        yield _(
            "{model} cannot mask documents in the same row from each other: each document has separate rows, which "
            "are padded",
            model=model,
        )
    if summary.cut_records:
        yield _(
            "longer than a row of {size} tokens: {examples}; {tokens} at their ends are cut off",
            size=summary.block_size,
            examples=counts.examples(summary.cut_records),
            tokens=counts.tokens(summary.cut_tokens),
        )


def length_notes(summary: DataSummary, index: RecordIndex) -> Iterator[str]:
    """Yield whether there is little text; questions alone are to be learned by heart."""
    if summary.train.characters < LITTLE_TEXT and not index.questions.all():
        yield _(
            "the training text is short ({characters}): it is soon learned by heart",
            characters=counts.characters(summary.train.characters),
        )
