"""Multiple choice behind worked examples: prompts that fit, the tokens of the options, and what subjects belong to."""

from __future__ import annotations

from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.evaluation.kick.items import Choice
from tersor.evaluation.task_files import LETTERS
from tersor.models import Model

LONGEST = 2048  # tokens of a prompt, as in the paper
_SUBJECTS = {
    "STEM": """abstract_algebra astronomy college_biology college_chemistry college_computer_science college_mathematics college_physics
computer_security conceptual_physics electrical_engineering elementary_mathematics high_school_biology high_school_chemistry
high_school_computer_science high_school_mathematics high_school_physics high_school_statistics machine_learning""",
    "humanities": """formal_logic high_school_european_history high_school_us_history high_school_world_history international_law
jurisprudence logical_fallacies moral_disputes moral_scenarios philosophy prehistory professional_law world_religions""",
    "social sciences": """econometrics high_school_geography high_school_government_and_politics high_school_macroeconomics
high_school_microeconomics high_school_psychology human_sexuality professional_psychology public_relations security_studies
sociology us_foreign_policy""",
    "other": """anatomy business_ethics clinical_knowledge college_medicine global_facts human_aging management marketing medical_genetics
miscellaneous nutrition professional_accounting professional_medicine virology""",
}
CATEGORIES = {subject: category for category, subjects in _SUBJECTS.items() for subject in subjects.split()}


def prompt_of(choice: Choice, shots: int) -> str:
    """The header that names the subject, the first ``shots`` worked examples, and the question."""
    head = f"The following are multiple choice questions (with answers) about {choice.subject.replace('_', ' ')}.\n\n"
    return head + "".join(choice.shots[:shots]) + choice.text


def fitted(model: Model, choice: Choice, shots: int, longest: int = LONGEST) -> tuple[Tensor, list[int], int]:
    """The tokens to read, those of the options, and how many worked examples there was room for.

    Options are the last tokens of the four whole strings, which agree before them, so it does not matter whether the tokenizer merges
    the blank between question and letter.

    Args:
        model: Its tokenizer and context decide.
        choice: What is asked.
        shots: Worked examples at most; the last ones are dropped until the prompt fits, then its beginning.
        longest: Tokens of the prompt at most.

    Raises:
        InvalidArgument: If the tokenizer does not write the letters A to D as one token each.
    """
    room = min(longest, model.max_context)
    for kept in range(min(shots, len(choice.shots)), -1, -1):
        prompt = prompt_of(choice, kept)
        tokens, options = _options(model, prompt)
        if len(tokens) <= room or kept == 0:
            return tokens[-room:], options, kept
    raise AssertionError("the loop ends with no shots")


def _options(model: Model, prompt: str) -> tuple[Tensor, list[int]]:
    """The tokens before the letter, and what each of the four letters is as one token after them."""
    # Some tokenizers merge a blank with a few letters only; after a line break every letter stands alone.
    for between in (" ", "\n"):
        wholes = [model.encode(f"{prompt}{between}{letter}") for letter in LETTERS]
        start = min(map(len, wholes)) - 1
        options = [int(whole[start]) for whole in wholes]
        same = all(len(whole) == start + 1 and bool((whole[:start] == wholes[0][:start]).all()) for whole in wholes)
        if same and len(set(options)) == len(LETTERS):
            return wholes[0][:start], options
    raise InvalidArgument(f"the tokenizer of {model.name} does not write the letters A to D as one token each, so options cannot be scored")
