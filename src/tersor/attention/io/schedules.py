"""Schedules of attention as programs of an :class:`~tersor.attention.io.machine.IOMachine`: they compute, and what they move is counted."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from tersor.attention.io.machine import Array, Block, IOMachine
from tersor.attention.io.tiles import FLASH, Schedule, Tiles, check_problem, choose_tiles
from tersor.errors import InvalidArgument


@dataclass(frozen=True)
class IOReport:
    """What a schedule did.

    Attributes:
        schedule: Which.
        tiles: Its tiles.
        reads: Words read from slow memory.
        writes: Words written to it.
        peak: Words of fast memory in use at its fullest moment.
        output: ``[n, d]``; ``None`` if nothing was computed.
    """

    schedule: Schedule
    tiles: Tiles
    reads: int
    writes: int
    peak: int
    output: Array | None

    @property
    def words(self) -> int:
        """Reads and writes."""
        return self.reads + self.writes


@dataclass
class _Problem:
    """Attention in slow memory: ``softmax(scale * q @ k.T) @ v`` goes to ``out``."""

    machine: IOMachine
    q: Array
    k: Array
    v: Array
    out: Array
    scale: float
    tiles: Tiles
    causal: bool
    stable: bool

    @property
    def n(self) -> int:
        return self.q.shape[0]

    @property
    def d(self) -> int:
        return self.q.shape[1]


def simulate(
    schedule: Schedule, n: int, d: int, words: int, *,
    numeric: bool = True, inputs: tuple[Array, Array, Array] | None = None, seed: int = 0, scale: float | None = None,
    tiles: Tiles | None = None, strict: bool = True, stable: bool = True, causal: bool = False,
) -> IOReport:  # fmt: skip
    """Run a schedule on a machine of ``words`` words.

    Args:
        schedule: ``"naive"``, ``"flash1"``, ``"flash2"``, ``"square"`` or ``"square_tuned"``.
        n: Queries and keys.
        d: Width of the head.
        words: Of fast memory.
        numeric: Whether to compute; the counts are the same without, and soon there.
        inputs: Queries, keys and values ``[n, d]``; standard normal by default.
        seed: Of the default inputs.
        scale: Of the scores; ``1 / sqrt(d)`` by default.
        tiles: Instead of the best that fit; the machine refuses what does not.
        strict: ``False`` gives ``flash1`` its published tiles.
        stable: Whether the square schedules keep row maxima against overflow of exp.
        causal: Whether query ``i`` sees the keys up to ``i`` alone; for the flash schedules.

    Raises:
        InvalidArgument: If a size is out of range or inputs are not finite matrices of it.
        CacheOverflow: If the tiles do not fit.
    """
    check_problem(schedule, n, d, words)
    if causal and schedule not in FLASH:
        raise InvalidArgument(f"a causal mask is for the flash schedules; {schedule} reads all keys")
    tiles = tiles or choose_tiles(schedule, n, d, words, strict=strict)
    machine = IOMachine(words, numeric=numeric)
    q, k, v = _inputs(inputs, n, d, seed) if numeric else (_shape_only(n, d) for _ in range(3))
    out = np.zeros((n, d)) if numeric else _shape_only(n, d)
    problem = _Problem(machine, q, k, v, out, 1 / math.sqrt(d) if scale is None else scale, tiles, causal, stable)
    {"naive": _naive, "flash1": _flash1, "flash2": _flash2, "square": _square, "square_tuned": _square}[schedule](problem)
    return IOReport(schedule, tiles, machine.reads, machine.writes, machine.peak, out if numeric else None)


def _inputs(given: tuple[Array, Array, Array] | None, n: int, d: int, seed: int) -> tuple[Array, Array, Array]:
    if given is None:
        random = np.random.default_rng(seed)
        return random.standard_normal((n, d)), random.standard_normal((n, d)), random.standard_normal((n, d))
    for name, matrix in zip(("queries", "keys", "values"), given, strict=True):
        if matrix.shape != (n, d) or not np.isfinite(matrix).all():
            raise InvalidArgument(f"{name} must be a finite matrix of shape ({n}, {d}), got shape {matrix.shape}")
    return given


def _shape_only(*shape: int) -> Array:
    """Slow memory for a machine that only counts: a shape over a single word."""
    return np.broadcast_to(np.zeros(()), shape)


def _slow(p: _Problem, *shape: int) -> Array:
    return np.zeros(shape) if p.machine.numeric else _shape_only(*shape)


def _spans(size: int, step: int) -> Iterator[slice]:
    for start in range(0, size, step):
        yield slice(start, min(start + step, size))


def _length(span: slice) -> int:
    return int(span.stop - span.start)


def _naive(p: _Problem) -> None:
    """Scores to slow memory, and back twice: for the softmax, and for the product with the values."""
    machine = p.machine
    scores = _slow(p, p.n, p.n)
    for i in range(p.n):
        with machine.reading(p.q[i]) as (q,), machine.holding((1,)) as (s,):
            for j in range(p.n):
                with machine.reading(p.k[j]) as (k,):
                    machine.compute(partial(_score, p.scale), q, k, s)
                    machine.write(s, scores[i, j : j + 1])
    for i in range(p.n):
        with machine.holding((p.d,), (1,), (1,)) as (o, peak, total):
            machine.compute(_to_nothing, peak)
            for j in range(p.n):
                with machine.reading(scores[i, j : j + 1]) as (s,):
                    machine.compute(_accumulate, s, peak, total)
            for j in range(p.n):
                with machine.reading(scores[i, j : j + 1], p.v[j]) as (s, v):
                    machine.compute(_add_value, s, v, peak, o)
            machine.compute(_normalise, o, total)
            machine.write(o, p.out[i])


def _score(scale: float, q: Array, k: Array, s: Array) -> None:
    s[0] = scale * (q @ k)


def _to_nothing(peak: Array) -> None:
    peak.fill(-np.inf)


def _add_value(score: Array, v: Array, peak: Array, o: Array) -> None:
    o += np.exp(score - peak) * v


def _normalise(o: Array, total: Array) -> None:
    o /= total[:, None] if o.ndim == 2 else total


def _restore(o: Array, total: Array) -> None:
    o *= total[:, None]


def _add_scores(scale: float, q: Array, k: Array, s: Array) -> None:
    s += scale * (q @ k.T)


def _to_factor(peak: Array, last: Array) -> None:
    np.exp(peak - last, out=peak)


def _accumulate(score: Array, peak: Array, total: Array) -> None:
    """One score into a running maximum and the sum of exponentials relative to it."""
    higher = np.maximum(peak, score)
    total[...] = total * np.exp(peak - higher) + np.exp(score - higher)
    peak[...] = higher


def _flash1(p: _Problem) -> None:
    """Keys and values outside, queries inside: output, sums and maxima go to slow memory and back at every step."""
    machine, tiles = p.machine, p.tiles
    sums, peaks = _slow(p, p.n), _slow(p, p.n)
    for rows in _spans(p.n, tiles.queries):
        # Zeros and minus infinity: what the first pass will read.
        with machine.holding((_length(rows), p.d), (_length(rows),), (_length(rows),)) as (o, total, peak):
            machine.compute(_to_nothing, peak)
            for block, target in ((o, p.out), (total, sums), (peak, peaks)):
                machine.write(block, target[rows])
    for columns in _spans(p.n, tiles.keys):
        with machine.reading(p.k[columns], p.v[columns]) as (k, v):
            for rows in _spans(p.n, tiles.queries):
                if p.causal and rows.stop <= columns.start:
                    continue
                with machine.reading(p.q[rows], p.out[rows], sums[rows], peaks[rows]) as (q, o, total, peak):
                    # The output is kept normalised between two steps, as the paper has it.
                    machine.compute(_restore, o, total)
                    _flash_step(p, q, k, v, o, total, peak, rows, columns)
                    machine.compute(_normalise, o, total)
                    for block, target in ((o, p.out), (total, sums), (peak, peaks)):
                        machine.write(block, target[rows])


def _flash2(p: _Problem) -> None:
    """Queries outside with their output at hand, keys and values streaming by."""
    machine, tiles = p.machine, p.tiles
    for rows in _spans(p.n, tiles.queries):
        shapes = ((_length(rows), p.d), (_length(rows),), (_length(rows),))
        with machine.reading(p.q[rows]) as (q,), machine.holding(*shapes) as (o, total, peak):
            machine.compute(_to_nothing, peak)
            for columns in _spans(p.n, tiles.keys):
                if p.causal and rows.stop <= columns.start:
                    break
                with machine.reading(p.k[columns], p.v[columns]) as (k, v):
                    _flash_step(p, q, k, v, o, total, peak, rows, columns)
            machine.compute(_normalise, o, total)
            machine.write(o, p.out[rows])


def _flash_step(p: _Problem, q: Block, k: Block, v: Block, o: Block, total: Block, peak: Block, rows: slice, columns: slice) -> None:
    """One tile of scores into output, sums and maxima; needs room for the tile and one word a row."""

    def step(q: Array, k: Array, v: Array, o: Array, total: Array, peak: Array, s: Array, higher: Array) -> None:
        s[...] = p.scale * (q @ k.T)
        if p.causal:
            s[np.arange(columns.start, columns.stop) > np.arange(rows.start, rows.stop)[:, None]] = -np.inf
        higher[...] = np.maximum(peak, s.max(1))
        np.exp(s - higher[:, None], out=s)
        # The old maxima become the factors by which what was summed so far shrinks.
        np.exp(peak - higher, out=peak)
        o[...] = o * peak[:, None] + s @ v
        total[...] = total * peak + s.sum(1)
        peak[...] = higher

    with p.machine.holding((_length(rows), _length(columns)), (_length(rows),)) as (s, higher):
        p.machine.compute(step, q, k, v, o, total, peak, s, higher)


def _square(p: _Problem) -> None:
    """Two products with square tiles: exponentials of the scores go to slow memory, and come back once for every tile of the output."""
    side = p.tiles.queries
    scores, sums, peaks = _slow(p, p.n, p.n), _slow(p, p.n), _slow(p, p.n, math.ceil(p.n / side))
    for rows in _spans(p.n, side):
        _square_scores(p, rows, scores, sums, peaks)
    for rows in _spans(p.n, side):
        _square_output(p, rows, scores, sums, peaks)


def _square_scores(p: _Problem, rows: slice, scores: Array, sums: Array, peaks: Array) -> None:
    machine, height = p.machine, _length(rows)
    with machine.holding((height,), (height,)) as (total, peak):
        if p.stable:
            machine.compute(_to_nothing, peak)
        for number, columns in enumerate(_spans(p.n, p.tiles.keys)):
            with machine.holding((height, _length(columns))) as (s,):
                for features in _spans(p.d, p.tiles.depth):
                    with machine.reading(p.q[rows, features], p.k[columns, features]) as (q, k):
                        machine.compute(partial(_add_scores, p.scale), q, k, s)
                with machine.holding((height,)) as (factor,):
                    machine.compute(partial(_exponentials, p.stable), s, total, peak, factor)
                machine.write(s, scores[rows, columns])
                if p.stable:
                    machine.write(peak, peaks[rows, number])
        machine.write(total, sums[rows])


def _exponentials(stable: bool, s: Array, total: Array, peak: Array, factor: Array) -> None:
    """Scores to their exponentials relative to the running maximum, and the running sums along."""
    if stable:
        factor[...] = peak
        np.maximum(peak, s.max(1), out=peak)
        np.exp(factor - peak, out=factor)
        total *= factor
    np.exp(s - peak[:, None], out=s)
    total += s.sum(1)


def _square_output(p: _Problem, rows: slice, scores: Array, sums: Array, peaks: Array) -> None:
    machine, height = p.machine, _length(rows)
    last = [peaks[rows, -1]] if p.stable else []
    with machine.reading(sums[rows], *last) as (total, *final):
        for features in _spans(p.d, p.tiles.keys):
            with machine.holding((height, _length(features))) as (o,):
                for number, columns in enumerate(_spans(p.n, p.tiles.keys)):
                    at = [peaks[rows, number]] if p.stable else []
                    with machine.reading(*at) as factors:
                        if p.stable:
                            machine.compute(_to_factor, factors[0], final[0])
                        for part in _spans(_length(columns), p.tiles.depth):
                            at_hand = slice(columns.start + part.start, columns.start + part.stop)
                            with machine.reading(scores[rows, at_hand], p.v[at_hand, features]) as (s, v):
                                machine.compute(_weigh, s, v, o, *factors)
                machine.compute(_normalise, o, total)
                machine.write(o, p.out[rows, features])


def _weigh(s: Array, v: Array, o: Array, *factor: Array) -> None:
    o += (s * factor[0][:, None] if factor else s) @ v
