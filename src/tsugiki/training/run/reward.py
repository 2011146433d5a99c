"""A run that learns by a reward: rounds of asking the model, scoring its answers, and learning pairs of them.

    check_rules    start, rules                     the rules of the run; the folder `rounds`
    open_rounds    start, rules   -> Rounds         prompts in parts, the base
    judge_start                   -> RewardRound 0  answers to validation and held-out prompts, sampled and scored
    take_round     number         -> RewardRound    for each round, all of the following:
      answers        number         -> answers        of the model of the round before to some prompts, scored by the
                                                      rules (`rounds/N.answers.jsonl`, `rounds/N.pairs.jsonl`)
      learn          number                           the best against the worst answer to each prompt: a run of
                                                      preference tuning on the loaded base (`rounds/N`)
      judge          number         -> RewardRound    as the start
    weaken                        -> RewardRounds   parts of the update of the best round, judged as well
    finish                        -> RunRecord      what has the highest reward on the validation prompts, of what is
                                                    not spoiled (`training.record.result`)

What is stored is not computed again, so that a run which is resumed has the same answers, also by a rule that scores at
random. Prompts whose answers scored all alike when they were drawn last teach nothing, and are drawn less often.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from tsugiki.adapters.format import save_adapter
from tsugiki.adapters.library import adapter_folder
from tsugiki.adapters.pretrained import load_adapter
from tsugiki.annotations import PreTrainedModel, PreTrainedTokenizerBase
from tsugiki.data.read.answers import PromptRow
from tsugiki.data.records import NONE, Message
from tsugiki.data.windows import Window
from tsugiki.dtypes import BaseDtype
from tsugiki.errors import TsugikiError, summarise_list
from tsugiki.fast.paths import use_plain_paths
from tsugiki.generation.generate import continue_rows
from tsugiki.generation.prompt import tokens_of_prompts
from tsugiki.generation.sampling import Sampling
from tsugiki.io.atomic import check_new_file, make_folder, refuse_existing, write_bytes
from tsugiki.io.digests import check_digest, write_digest
from tsugiki.io.file_names import RECORD_FILE
from tsugiki.io.measurements import decide
from tsugiki.io.run_folder import CHECKPOINTS, remove_run
from tsugiki.language import _, counts
from tsugiki.lora.graft import ungraft
from tsugiki.lora.hold import is_grafted
from tsugiki.lowbit.nf4 import product_dtype
from tsugiki.lowbit.quantized_layer import key_of
from tsugiki.preference.rewards import Rule, parse_rule, reward_of, scores_of
from tsugiki.preference.sampling import (
    Answer,
    AnswerCounts,
    PromptAnswers,
    answer_of,
    count_answers,
    is_spoiled,
    nothing_to_learn,
    read_answers,
    seeds_of,
    variety,
    write_answers,
    write_pairs,
    write_prompts,
)
from tsugiki.training.choose.decisions import has_only_pairs, multiply_update
from tsugiki.training.data.divide import split_prompts
from tsugiki.training.measure.facts import given_facts
from tsugiki.training.record.progress import RunProgress
from tsugiki.training.record.result import RewardRound, choose_round, still_gains
from tsugiki.training.record.run_record import RunRecord, Sample, read_record
from tsugiki.training.run.load import base_with_texts, find_facts, load_run_model, load_run_tokenizer, read_texts
from tsugiki.training.run.stages import train_on
from tsugiki.training.run.start import Start, started, unwritten
from tsugiki.training.score.evaluate import evaluate
from tsugiki.training.settings.config import RewardSettings, RunConfig
from tsugiki.training.settings.files import validated
from tsugiki.training.tools.processes import on_main

ROUNDS = "rounds"
"""The folder in the run's folder that holds the answers and the runs of the rounds."""
_RETENTION = "retention.jsonl"
_JUDGED = 3  # answers to each validation and held-out prompt
_DECIDING = 24
"""Prompts whose answers say whether the model is spoiled, at least: those of validation, then some to learn from."""
_RETAINED = 48  # prompts that are the retention text, at most
_STRENGTHS = 0.3, 0.5, 0.7
"""The parts of an update that are judged besides the whole one."""
_SHOWN = 3  # prompts whose first answers are shown
_ROWS = 48
"""The most answers of a batch."""
_ALIKE = 0.25
"""How often a prompt is drawn whose answers scored all alike, relative to the others."""


def train_by_reward(
    config: RunConfig, resume: bool = False, progress: RunProgress | None = None, overwrite: bool = False
) -> RunRecord:
    """Train by the rules of `config.reward`; the arguments, the folder and the record are those of `stages.train`.

    Raises:
        TsugikiError: an error that the user can correct, such as answers that all score alike, a rule that fails too
            often, or no round that is better than the start.
    """
    rules = [parse_rule(text) for text in config.reward]
    with started(config, resume, progress, overwrite) as start:
        check_rules(start, rules)
        run = open_rounds(start, rules)
        if not start.record.rounds:
            run.judge_start()
        rounds, was_finished = start.record.rounds, start.record.kept_round is not None
        while len(rounds) <= run.numbers.rounds and (was_finished or still_gains(rounds)):
            if not run.take_round(len(rounds)):
                break
        run.weaken()
        return run.finish()


def preview_answers(config: RunConfig, prompts: int) -> list[PromptAnswers]:
    """Return some prompts of a run with a few answers of its model to each, and their scores; nothing is written."""
    run = open_rounds(unwritten(config), [parse_rule(text) for text in config.reward])
    return run.ask(0, run.parts["training"][:prompts], _JUDGED, "preview")[0]


def write_pairs_once(config: RunConfig, out: Path) -> AnswerCounts:
    """Ask the model about all prompts as a round does, and write the pairs to the file `out`.

    Beside it, `out` with the suffix `.answers.jsonl` gets all answers.
    """
    files = out, out.with_suffix(".answers.jsonl")
    for file in files:
        check_new_file(file)
    run = open_rounds(unwritten(config), [parse_rule(text) for text in config.reward])
    answers, _scoring = run.ask(0, run.parts["training"], run.numbers.samples, "round 1")
    write_answers(files[1], answers)
    counted = count_answers(answers)
    if not counted.pairs:
        raise TsugikiError(nothing_to_learn(counted, files[1]))
    write_pairs(out, answers)
    return counted


def check_rules(start: Start, rules: Sequence[Rule]) -> None:
    """Check that the rules are those with which the run was started, and write the record of a new run."""
    before, folder, now = start.before.get("rules"), start.out / ROUNDS, [rule.identity() for rule in rules]
    if before and (changed := sorted({*before} ^ {*now})):
        raise TsugikiError(
            "the rules have changed since the run was started: {names}; start another run for other rules",
            names=summarise_list(changed),
        )

    def begin() -> None:
        if start.overwrite:
            remove_run(start.out)
            shutil.rmtree(folder, ignore_errors=True)
        elif not before:
            refuse_existing(folder)
        start.record.resolved_settings["rules"] = now
        start.record.write(start.out)
        make_folder(folder)

    on_main(start.accelerator, begin)


def open_rounds(start: Start, rules: Sequence[Rule]) -> "Rounds":
    """Read the prompts and load the base, whose dtype all rounds have."""
    parts, facts, resolved = split_prompts(start.config), find_facts(start), start.record.resolved_settings
    model = load_run_model(start, facts)
    if "product_dtype" in resolved:
        decide(key_of(model.dtype), resolved["product_dtype"] == "int8")
    elif start.device.type == "cpu" and (multiplied := product_dtype(model)) is not None:
        resolved["product_dtype"] = multiplied
    resolved["base_dtype"] = facts.dtype
    numbers = start.config.reward_settings or RewardSettings()
    return Rounds(start, rules, numbers, parts, model, load_run_tokenizer(start.config), facts.dtype)


@dataclass(frozen=True)
class Rounds:
    """The rounds of a run. The main process asks and judges; all processes learn."""

    start: Start
    rules: Sequence[Rule]
    numbers: RewardSettings
    parts: Mapping[str, list[PromptRow]]
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    dtype: BaseDtype

    def path(self, name: object) -> Path:
        """Return a path in the folder of the rounds."""
        return self.start.out / ROUNDS / str(name)

    def judge_start(self) -> None:
        """Judge the model before the first round, and write prompts as retention text: it chooses, so none held out."""
        rows = [*self.parts["validation"], *self.parts["training"]]

        def judge() -> RewardRound:
            write_prompts(self.path(_RETENTION), rows[:_RETAINED])
            return self.judge(0)

        self._add(on_main(self.start.accelerator, judge))

    def take_round(self, number: int) -> bool:
        """Ask, learn and judge; False if there are no pairs to learn, which before the first step is an error."""
        times = [_cpu_seconds()]
        answers, scoring = on_main(self.start.accelerator, lambda: self.answers(number))
        counted = count_answers(answers)
        nothing = nothing_to_learn(counted, self.path(f"{number}.answers.jsonl"))
        if not counted.pairs and number == 1:
            raise TsugikiError(nothing)
        for line in self._uninformative_rules(answers) if counted.pairs else [nothing]:
            self.start.display.print(line)
        if not counted.pairs:
            return False
        times.append(_cpu_seconds())
        self.learn(number)
        times.append(_cpu_seconds())
        found = on_main(self.start.accelerator, lambda: self.judge(number))
        times.append(_cpu_seconds())
        asking, learning, judging = np.diff(times).tolist()
        seconds = {"sampling": asking - scoring, "scoring": scoring, "learning": learning, "judging": judging}
        self._add(found.model_copy(update={"learned": counted, "seconds": seconds}))
        return True

    def answers(self, number: int) -> tuple[list[PromptAnswers], float]:
        """Return the answers of a round, and the CPU seconds of the rules; write its pairs. Stored ones are read."""
        file, scoring = self.path(f"{number}.answers.jsonl"), 0.0
        if not check_digest(file):
            found, scoring = self.ask(number - 1, self._drawn(number), self.numbers.samples, f"round {number}")
            write_answers(file, found)
            write_digest(file)
        answers = read_answers(file)
        write_pairs(self.path(f"{number}.pairs.jsonl"), answers)
        return answers, scoring

    def learn(self, number: int) -> None:
        """Learn the pairs of a round by a run of its own on the loaded base, unless that was done before."""
        out = self.path(number)
        earlier = read_record(out) if (out / RECORD_FILE).is_file() else None
        if earlier is not None and earlier.status == "finished":
            return
        progress = RunProgress(shown=False)  # a line for each round suffices
        with (
            self.start.display.stage(_("learning pairs"), None),
            started(self.settings_of_pairs(number), earlier is not None, progress) as start,
        ):
            base = base_with_texts(start, self.model, self.dtype, read_texts(start))
            train_on(start, given_facts(start.config, start.record, start.device), base)
        self._remove_adapter()
        on_main(start.accelerator, lambda: shutil.rmtree(out / CHECKPOINTS, ignore_errors=True))

    def judge(self, number: int, strength: float = 1.0) -> RewardRound:
        """Return what a part of the update of a round is worth; held-out prompts are only reported."""
        validation, held_out = self.parts["validation"], self.parts["held_out"]
        deciding = [*validation, *self.parts["training"][: max(_DECIDING - len(validation), 0)]]
        answers, _scoring = self.ask(number, [*deciding, *held_out], _JUDGED, "judged", strength)
        rewards = [fmean(one.rewards or [0.0]) for one in answers]
        texts = [[answer.text for answer in one.answers] for one in answers[: len(deciding)]]
        return RewardRound(
            round=number,
            strength=strength,
            held_out=rewards[len(deciding) :],
            validation=rewards[: len(validation)],
            length=fmean(len(text) for of_row in texts for text in of_row),
            distinct=fmean(variety(text) for of_row in texts for text in of_row),
            spoiled=[fmean(map(is_spoiled, of_row)) for of_row in texts],
            samples=[(one.row.text, one.answers[0].text) for one in [*answers[len(deciding) :], *answers][:_SHOWN]],
            retention=self._retention(number, strength) if number else None,
        )

    def weaken(self) -> None:
        """Judge parts of the update of the round with the highest reward, if the method has a strength."""
        record, on_all = self.start.record, partial(on_main, self.start.accelerator)
        best = max(record.rounds[1:], key=lambda one: one.reward).round
        with self._adapted(best):  # a part of an update is a model between the base and the round's
            has_strength = self.start.config.start_from is None and has_only_pairs(self.model)
        for strength in _STRENGTHS[len(record.weakened) :] if has_strength else ():
            record.weakened.append(on_all(partial(self.judge, best, strength)))
            on_all(lambda: record.write(self.start.out))

    def finish(self) -> RunRecord:
        """Write the best adapter, and return the record, which has what the run of its round has, too.

        If nothing is better than the start, this is an error.
        """
        record, out = self.start.record, self.start.out
        kept = choose_round([*record.rounds, *record.weakened], self.numbers.forgetting)
        own = {name: getattr(record, name) for name in ("config", "resolved_settings", "rounds", "weakened")}
        own |= {"kept_round": kept.round, "strength": kept.strength, "status": "finished"}
        own["samples"] = _samples([record.rounds[0], kept] if kept.round else record.rounds[:1])
        if kept.strength < 1:  # what its run has measured is of the whole update
            own["retention_evaluations"] = []
        record = read_record(self.path(kept.round or 1)).model_copy(update=own)

        def write() -> None:
            for path in sorted(self.path(kept.round).iterdir()) if kept.round else ():
                if path.is_file() and path.name != RECORD_FILE and not path.name.startswith("."):
                    write_bytes(out / path.name, path.read_bytes())
            if kept.strength < 1:
                with self._adapted(kept.round, kept.strength):
                    save_adapter(self.model, out)
            record.write(out)

        on_main(self.start.accelerator, write)
        if not kept.round:
            raise TsugikiError(
                "no round has a higher validation reward than the start without more than {most:.0%} more loss on the "
                "retention text ({flag:reward_settings forgetting}), or answers that repeat themselves or are empty, "
                "also with a part of its update; {out} has figures and adapters of all rounds",
                most=self.numbers.forgetting,
                out=out,
            )
        return record

    def ask(
        self, number: int, rows: Sequence[PromptRow], samples: int, seed: str, strength: float = 1.0
    ) -> tuple[list[PromptAnswers], float]:
        """Return answers with rewards of the model with the adapter of a round; of round 0, with that of `start_from`.

        The second result is the CPU seconds of the rules.
        A prompt that is a text is the user's turn if the tokenizer has a chat template, as in training. `strength` is
        the part of the adapter's update.
        """
        seed, display = f"{self.start.config.seed} {seed}", self.start.display
        with (
            self._adapted(number, strength),
            display.stage(_("sampling answers"), len(rows) * samples) as advance,
        ):
            answers = self._sampled(rows, samples, seed, advance)
        answered = [(rows[place // samples], one.text) for place, one in enumerate(answers)]
        begun = _cpu_seconds()
        with display.stage(_("scoring answers"), None):
            scores = scores_of(self.rules, answered, seed, self.numbers.seconds, display.print)
        scoring = _cpu_seconds() - begun
        both = zip(answers, scores, strict=True)
        scored = [replace(one, scores=results, reward=reward_of(self.rules, results)) for one, results in both]
        parts = [scored[place : place + samples] for place in range(0, len(scored), samples)]
        return list(map(PromptAnswers, rows, parts)), scoring

    def _sampled(
        self, rows: Sequence[PromptRow], samples: int, seed: str, advance: Callable[[int], None]
    ) -> list[Answer]:
        messages = [
            [Message(turn["role"], turn["content"]) for turn in row.prompt if isinstance(turn, dict)] for row in rows
        ]
        prompts = [(turns or str(row.prompt), row.source, "") for row, turns in zip(rows, messages, strict=True)]
        asked, ends = tokens_of_prompts(self.model, self.tokenizer, prompts, self.start.config.system)
        ids, reasons = [row for row in asked for _sample in range(samples)], dict[int, str]()
        more: Any = {"seeds": seeds_of(seed, len(ids)), "finish": reasons.__setitem__, "at_once": _ROWS}
        sampling = Sampling(self.numbers.temperature, top_p=1.0, repetition_penalty=1.0)
        texts = continue_rows(self.model, self.tokenizer, ids, self.numbers.tokens, sampling, ends, advance, **more)
        return [answer_of(text, reasons[place] != "stop") for place, text in enumerate(texts)]

    @contextmanager
    def _adapted(self, number: int, strength: float = 1.0) -> Iterator[None]:
        """Within the block, the model has the adapter of a round, with a part of its update."""
        folder = self._adapter(number)
        if folder is not None:
            load_adapter(self.model, folder, allow_base_mismatch=True)
        if strength < 1:
            multiply_update(self.model, strength)
        yield
        self._remove_adapter()

    def _remove_adapter(self) -> None:
        if is_grafted(self.model):
            ungraft(self.model)
            use_plain_paths(self.model)

    def _adapter(self, number: int) -> Path | None:
        begun = self.start.config.start_from
        return self.path(number) if number else None if begun is None else adapter_folder(begun)

    def _drawn(self, number: int) -> list[PromptRow]:
        """Return the prompts of a round, which are drawn without replacement, in their order."""
        rows, most = self.parts["training"], self.numbers.prompts
        weights = dict.fromkeys((row.source for row in rows), 1.0)
        for earlier in range(1, number):
            found = read_answers(self.path(f"{earlier}.answers.jsonl"))
            weights |= {one.row.source: _ALIKE if one.are_alike else 1.0 for one in found}
        shares = np.array(list(weights.values())) / sum(weights.values())
        rng = np.random.default_rng([self.start.config.seed, number])
        places = rng.choice(len(rows), min(most, len(rows)), replace=False, p=shares)
        return [rows[place] for place in np.sort(places)]

    def settings_of_pairs(self, number: int) -> RunConfig:
        """Return the settings of the run that learns the pairs of a round."""
        config, before = self.start.config, self._adapter(number - 1)
        settings = config.model_dump(mode="json", exclude_unset=True)
        of_adapter = ("lora", "method", "method_config") if number > 1 else ()  # that of the round before has them
        for name in ("reward", "reward_settings", "columns", "drop_duplicates", *of_adapter):
            settings.pop(name, None)
        files = {"data": str(self.path(f"{number}.pairs.jsonl")), "out": str(self.path(number))}
        files |= {"retention_data": config.retention_data or str(self.path(_RETENTION))}
        parts = {"held_out": NONE, "validation": NONE, "keep": "last", "allow_overlap": True}
        base = {"start_from": None if before is None else str(before), "base_dtype": self.dtype}
        return validated(RunConfig, {**settings, **files, **parts, **base}, None)

    def _retention(self, number: int, strength: float) -> float:
        """Return the loss on the retention text with a part of the update of a round, relative to the base."""
        before, after = (one.loss for one in read_record(self.path(number)).retention_evaluations)
        if strength < 1:
            windows, turns = self._retained, self.start.config.assistant_turns
            with self._adapted(number, strength):
                after = evaluate(self.model, self.tokenizer, windows, turns).loss
        return after / before

    @cached_property
    def _retained(self) -> list[Window]:
        """The retention text."""
        return read_texts(unwritten(self.settings_of_pairs(1))).division.retention_windows

    def _add(self, found: RewardRound) -> None:
        """Add a round to the record, write it, and say what it was worth."""
        record = self.start.record
        record.rounds.append(found)
        record.weakened.clear()  # of a run that was finished before, and goes on
        record.samples = _samples(record.rounds)
        on_main(self.start.accelerator, lambda: record.write(self.start.out))
        message = _("round {round}: mean reward {validation:.3f} on validation prompts, learned {pairs}")
        if not found.validation:
            message = _("round {round}: learned {pairs}")
        if not found.round:
            message = _("before round 1: mean reward {validation:.3f} on validation prompts; at most {most} rounds")
        worth, pairs = fmean(found.validation or [0.0]), counts.pairs(found.learned.pairs)
        if found.round or found.validation:
            self.start.display.print(
                message.format(round=found.round, validation=worth, pairs=pairs, most=self.numbers.rounds)
            )

    def _uninformative_rules(self, answers: Sequence[PromptAnswers]) -> Iterator[str]:
        """Yield a note on each rule that gave all answers the same score, such as 0 because no answer satisfies it."""
        for place, rule in enumerate(self.rules):
            given = {answer.scores[place] for one in answers for answer in one.answers}
            if len(given) == 1:
                yield _(
                    "the rule {rule} gives {score} to all answers of this round, so it teaches nothing",
                    rule=rule.text,
                    score=given.pop(),
                )


def _samples(judged: Sequence[RewardRound]) -> list[Sample]:
    """Return the answers of some models; the number of the round is the step."""
    return [Sample(step=one.round, prompt=prompt, text=text) for one in judged for prompt, text in one.samples]


def _cpu_seconds() -> float:
    """Return the processor time of this process, and of programs that it has started and that have ended."""
    return sum(os.times()[:4])
