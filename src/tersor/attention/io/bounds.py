"""What no schedule can beat, which schedule comes closest, and the statement that ``tersor limits`` prints."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tersor.attention.io.tiles import FLASH, SCHEDULES, Schedule, Tiles, check_problem, choose_tiles, count, square_room
from tersor.errors import InvalidArgument
from tersor.layerwise.checking import check_choice, check_integer, check_number

Model = Literal["standard", "any"]


def lower_bound(n: int, d: int, words: int, model: Model = "standard") -> float:
    """Words that every schedule must move, with constants: valid for every size, tight to a small factor where ``words < n``.

    The largest of the trivial bound, of the one of large caches and of the one of small caches. ``"standard"`` is for programs that
    compute scores term by term (recomputation allowed), ``"any"`` for every way to multiply matrices, over a field of more than ``n``
    elements.

    Args:
        n: Queries and keys.
        d: Width of a head.
        words: Of fast memory.
        model: Of computation.

    Reference:
        Saha, Ye: "The I/O Complexity of Attention, or How Optimal is FlashAttention?", 2024.
        Smith, Lowery, Langou, van de Geijn: "A Tight I/O Lower Bound for Matrix Multiplication", 2019.
    """
    check_problem("naive", n, d, words)
    check_choice("model", model, Model)
    trivial = 4.0 * n * d
    if model == "any":
        # A phase that moves `words` words knows twice as many, and from them at most this many scores.
        scores = max(8 * words**2 / d**2, 8 * words)
        return max(trivial, words * (n * n / scores - 1))
    large = n * n * d * d / (words + 4 * d * d) - words
    # Attention writes n^2 words more and is a matrix product.
    small = 2 * n * n * d / math.sqrt(words) - 2 * words - n * n
    return max(trivial, large, small)


def law(n: int, d: int, words: int) -> float:
    """The order of growth, without constants: ``min(n^2 d / sqrt(words), n^2 d^2 / words)``, which meet at ``words = d^2``."""
    check_problem("naive", n, d, words)
    return n * n * d / max(math.sqrt(words), words / d)


def compression_game_words(entries: int, d: int) -> float:
    """Words that must be sent for ``entries`` entries of a product with a matrix of which any ``d`` rows are independent.

    The game behind ``lower_bound(..., model="any")``: one party knows Q, both know K, a Vandermonde matrix, say.

    Args:
        entries: Of ``Q K^T`` that the other party must learn.
        d: Columns of K.
    """
    check_integer("entries", entries, 1)
    check_integer("d", d, 1)
    return min(d * math.sqrt(entries / 2), entries / 4)


@dataclass(frozen=True)
class Recommendation:
    """The schedule that moves the fewest words.

    Attributes:
        schedule: Which.
        tiles: Its tiles.
        words: That it moves, all heads and sequences together.
        bytes: The same.
        bound: Words that every schedule must move, likewise; without a mask.
        intensity: Arithmetic operations for each byte moved: with more than the machine's operations a second by its bytes a second,
            arithmetic is the bottleneck.
        alternatives: Words of every schedule that fits.
    """

    schedule: Schedule
    tiles: Tiles
    words: int
    bytes: int
    bound: float
    intensity: float
    alternatives: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def recommend(
    n: int, d: int, words: int, *,
    element_bytes: int = 2, batch: int = 1, heads: int = 1, key_heads: int | None = None, causal: bool = False,
) -> Recommendation:  # fmt: skip
    """The schedule and tiles with the least traffic.

    Args:
        n: Queries and keys of a sequence.
        d: Width of a head.
        words: Of fast memory.
        element_bytes: Of a word.
        batch: Sequences.
        heads: Query heads of a sequence.
        key_heads: Heads that keys and values have; query heads that share one are one problem with as many more queries, for ``flash2``.
        causal: Whether blocks that a causal mask hides are skipped; square schedules read them all the same.

    Raises:
        InvalidArgument: If a size is out of range, ``key_heads`` does not divide ``heads``, or no schedule fits.
    """
    check_problem("naive", n, d, words)
    for name, value in (("element_bytes", element_bytes), ("batch", batch), ("heads", heads)):
        check_integer(name, value, 1)
    key_heads = heads if key_heads is None else check_integer("key_heads", key_heads, 1)
    if heads % key_heads:
        raise InvalidArgument(f"key_heads {key_heads} does not divide the {heads} query heads")
    found: dict[Schedule, tuple[int, Tiles]] = {}
    for schedule in SCHEDULES:
        try:
            tiles = choose_tiles(schedule, n, d, words)
        except InvalidArgument:
            continue
        moved = count(schedule, n, d, words, tiles=tiles, causal=causal and schedule in FLASH)
        total = moved.words * heads
        if schedule == "flash2" and key_heads < heads:
            total = _shared_keys(n, d, tiles, heads, key_heads, moved.words)
        found[schedule] = (batch * total, tiles)
    if not found:
        raise InvalidArgument(f"no schedule fits {words} words of fast memory with heads of width {d}; {square_room(1, 1)} would do")
    best = min(found, key=lambda schedule: found[schedule][0])
    moved_words, tiles = found[best]
    operations = 4 * n * n * d * batch * heads * (0.5 if causal else 1.0)
    nbytes = moved_words * element_bytes
    bound = batch * heads * lower_bound(n, d, words) if key_heads == heads else batch * 2.0 * n * d * (heads + key_heads)
    return Recommendation(best, tiles, moved_words, nbytes, bound, operations / nbytes, {name: value[0] for name, value in found.items()})


def _shared_keys(n: int, d: int, tiles: Tiles, heads: int, key_heads: int, alone: int) -> int:
    """Words of ``flash2`` where the queries of all heads that share keys are stacked: keys stream once a block of all of them."""
    stacked = n * heads // key_heads
    streams = math.ceil(stacked / tiles.queries)
    return min(heads * alone, key_heads * (2 * stacked * d + 2 * n * d * streams))


def calculate(*, n: int = 4096, d: int = 64, m: int = 4096, model: str = "standard") -> dict[str, float]:
    """The numbers behind ``tersor limits attention-io``: the bound, and what each schedule moves; infinite where it does not fit.

    Args:
        n: Queries and keys.
        d: Width of a head.
        m: Words of fast memory.
        model: ``"standard"`` or ``"any"``.
    """
    check_choice("model", model, Model)
    moved: dict[str, float] = {"lower_bound": lower_bound(n, d, m, model), "law": law(n, d, m)}  # type: ignore[arg-type]
    for schedule in SCHEDULES:
        try:
            moved[schedule] = float(count(schedule, n, d, m).words)
        except InvalidArgument:
            moved[schedule] = math.inf
    return moved


def measure() -> list[dict[str, Any]]:
    """Every schedule run on a small machine, its counted words beside the bound."""
    from tersor.attention.io.schedules import simulate

    n, d, words = 64, 16, 320
    bound = lower_bound(n, d, words)
    reports = (simulate(schedule, n, d, words) for schedule in SCHEDULES)
    return [
        {"system": f"{report.schedule}, n {n}, d {d}, m {words}", "measured": report.words, "side": "at least", "bound": bound}
        for report in reports
    ]


def sweep(n: int, d: int, smallest: int | None = None, largest: int | None = None, points_an_octave: int = 4) -> list[dict[str, Any]]:
    """Rows ``{"words", "series", "moved"}`` over sizes of fast memory: every schedule where it fits, and the bound.

    Args:
        n: Queries and keys.
        d: Width of a head.
        smallest: Least size; ``4 d`` by default.
        largest: Most; ``n d`` by default.
        points_an_octave: Sizes between one and twice it.
    """
    low, high = smallest or 4 * d, largest or n * d
    check_number("largest", high, low)
    sizes = sorted({round(low * 2 ** (step / points_an_octave)) for step in range(int(points_an_octave * math.log2(high / low)) + 1)})
    rows = []
    for size in sizes:
        values = {name.replace("_", " "): value for name, value in calculate(n=n, d=d, m=size).items() if name != "law"}
        rows += [{"words": size, "series": name, "moved": value} for name, value in values.items() if math.isfinite(value)]
    return rows


LIMITS: tuple[dict[str, Any], ...] = (
    {
        "name": "attention-io",
        "statement": "Attention of n queries and keys of width d with m words of fast memory moves on the order of "
        "min(n^2 d / sqrt(m), n^2 d^2 / m) words at least: FlashAttention is optimal from m = d^2 on, square tiles below.",
        "assumptions": (
            "two levels of memory, computation in the fast one alone, recomputation allowed",
            "model=standard: scores are sums of d products, computed term by term",
            "model=any: any algorithm, over a field of more than n elements",
        ),
        "proven": (
            "the orders in Saha and Ye, 2024 (theorems 3.1 and 4.8); the constants here, from their lemma 3.3 and from Smith et al., 2019",
            "for m < d^2 the order n^2 d / sqrt(m) is proven for the standard model alone; model=any gives n^2 there",
        ),
        "formula": "max(4 n d, n^2 d^2 / (m + 4 d^2) - m, 2 n^2 d / sqrt(m) - 2 m - n^2)",
        "calculator": calculate,
        "measure": measure,
        "correction": "some copies of the abstract print 'N^2 d^2 {M}' for N^2 d^2 / M",
        "paper": "attention-io",
    },
)
