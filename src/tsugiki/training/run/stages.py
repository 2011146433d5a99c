"""One run: from settings, data and a base model to a folder that holds the trained adapter or model.

Each stage takes what it needs of the results of the stages before it, and returns its own. No result changes later. The
weights of the model do, and the record gets what is measured.

    started               settings                         -> Start     processes, display, record, checkpoint
    find_facts            start                            -> Facts     dtype of the base, memory, recomputed blocks
    read_texts            start                            -> Texts     tokenizer, training and held-out text
    load_base             start, facts, texts              -> Base      model, packed rows
    prepare               start, facts, base               -> Ready     all of the following; a preview ends here
      choose_layers         model, what the base predicts    -> Layers    the output head, too, if the text needs it
      make_model_trainable  start, base, layers                           grafts the adapter
      choose_loss           start, base, layers              -> StepLoss  of texts, or of pairs
      choose_numbers        start, base, layers, loss        -> Choices   rows of a step, learning rate, steps
    add_reference         start, base, ready               -> Ready     of pairs: log-probabilities now
    describe              start, base, ready                            machine, base and data in the record
    train_steps           start, base, ready                            evaluates, samples and writes `run.json`
    write_result          start, base                                   the files of the adapter or of the model
"""

from tsugiki.training.measure.facts import Facts
from tsugiki.training.model.sharding import whole_model
from tsugiki.training.model.trainable import save_trained
from tsugiki.training.record.progress import RunProgress
from tsugiki.training.record.run_record import RunRecord
from tsugiki.training.run.load import find_facts, load_base, read_texts
from tsugiki.training.run.preference import add_reference
from tsugiki.training.run.prepare import describe, prepare
from tsugiki.training.run.start import Base, Prepared, Start, started, unwritten
from tsugiki.training.run.train_steps import advice_to_resume, train_steps
from tsugiki.training.settings.config import RunConfig
from tsugiki.training.tools.processes import on_main


def train(
    config: RunConfig, resume: bool = False, progress: RunProgress | None = None, overwrite: bool = False
) -> RunRecord:
    """Train as `config` describes. The folder `config.out` then holds the adapter or model, and `run.json`.

    Returns the record of the finished run.

    Args:
        resume: continue from the newest checkpoint in `config.out`. Only the length of the run, its prompts and some
            intervals may change (see `training.run.resume`); with a larger length, a finished run continues.
        progress: where to show the progress; None: a new display on standard error.
        overwrite: remove the run that `config.out` holds, before the first step.

    Raises:
        TsugikiError: an error that the user can correct. Files that were in the folder before are unchanged.
    """
    with started(config, resume, progress, overwrite) as start:
        facts = find_facts(start)
        train_on(start, facts, load_base(start, facts, read_texts(start)))
    return start.record


def prepared(config: RunConfig) -> Prepared:
    """Return a run that is ready for its first step, and that writes nothing but the cache."""
    start = unwritten(config)
    facts = find_facts(start)
    base = load_base(start, facts, read_texts(start))
    return Prepared(start, base, prepare(start, facts, base))


def train_on(start: Start, facts: Facts, base: Base) -> None:
    """Train on a base that is loaded, and write the result. Runs of a comparison share texts and base."""
    ready = prepare(start, facts, base)
    if base.data.answers:
        ready = add_reference(start, base, base.data.answers, ready)
    describe(start, base, ready)
    train_steps(start, base, ready)
    write_result(start, base)


def write_result(start: Start, base: Base) -> None:
    """Write the files of what was trained, and the record of the finished run."""
    record, out = start.record, start.out
    record.status = "finished"
    trained = whole_model(base.model, keep=start.accelerator.is_main_process)
    has_chats = base.data.summary.learns_conversations

    def write() -> None:
        save_trained(trained, base.tokenizer, out, start.config.save_dtype, with_template=has_chats)
        record.write(out)

    with advice_to_resume(out):
        on_main(start.accelerator, write)
