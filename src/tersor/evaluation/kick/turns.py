"""Second turns of conversations: what is asked after the first answer."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path

from tersor.errors import InvalidArgument
from tersor.evaluation.kick.items import GENERAL_KINDS, Item, instruction_prompt, spec_bench_rows
from tersor.models import Model


def second_turn_items(dense: Model, folder: str | Path | None = None, limit: int | None = None, new_tokens: int = 64) -> list[Item]:
    """The second turns of MT-Bench's conversations, behind the first turn and the original's answer to it; kinds take turns.

    In the paper every model goes on from its own first answer, so that what is lost in the first turn is lost twice and no two models
    are asked the same. Here all read the same conversation, and the rows of this task are of the second turn alone.

    Args:
        dense: The original, which answers the first turns.
        folder: Of ``spec_bench.jsonl``; ``$TERSOR_DATA/tasks`` without it.
        limit: The first so many; all without it.
        new_tokens: Of a first answer.

    Raises:
        InvalidArgument: If the file is missing, or ``new_tokens`` is below 1.
        CorruptFile: If a row is damaged.
    """
    from tersor.models.generation import continue_texts

    if new_tokens < 1:
        raise InvalidArgument(f"new_tokens must be at least 1, got {new_tokens}")
    rows = [row for row in spec_bench_rows(folder) if row["category"] in GENERAL_KINDS and len(row["turns"]) > 1]
    kinds: dict[str, list[tuple[str, str, str]]] = {}
    for row in rows:
        kinds.setdefault(row["category"], []).append((row["category"], row["turns"][0], row["turns"][1]))
    chosen = [entry for turn in zip_longest(*kinds.values()) for entry in turn if entry is not None][:limit]
    first = [instruction_prompt(text) for _, text, _ in chosen]
    answered = continue_texts(dense, first, max_new_tokens=new_tokens) if first else []
    return [
        Item(f"{prompt} {answer.text.strip()}\n{instruction_prompt(second)}", group=kind)
        for prompt, answer, (kind, _, second) in zip(first, answered, chosen, strict=True)
    ]
