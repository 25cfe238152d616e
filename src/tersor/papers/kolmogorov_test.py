"""The KoLMogorov Test: compression by programs, on sequences that programs made and on natural data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tersor.errors import InvalidArgument
from tersor.papers.frame import Paper, Result, Row, measured

PAPER = Paper(
    key="kolmogorov-test",
    claim="A search over programs compresses synthetic sequences to fewer bits than plain dynamic programming over runs, than gzip on all "
    "sequences joined, and never emits a wrong program; on natural data programs hardly help.",
    where="tersor.coding.programs: Search, generate_pairs, evaluate, Program",
)

SEEDS = (0, 1, 2)
# Programs to fit the search on come from other seeds than these.
PAIRS = {True: 40, False: 200}
NATURAL = {True: 3_840, False: 25_600}
BLOCK = 128


def run(quick: bool) -> Result:
    """Generating programs as the oracle, searches of every level, gzip and xz on the same sequences, then natural data in blocks of 128."""
    rows: list[Row] = list(measured(_synthetic(PAIRS[quick])))
    rows += list(measured(_natural(NATURAL[quick])))
    full = {seed: _rate(rows, "search, level 4", seed) for seed in SEEDS}
    margins = [min(_rate(rows, rival, seed) - full[seed] for rival in ("search, level 0", "gzip, joined")) for seed in SEEDS]
    wrong = sum(1 - row["accuracy"] for row in rows if "accuracy" in row)
    return Result(
        rows, "dynamic programming over runs, and gzip on all sequences joined", min(margins), SEEDS, min(margins) > 0 and wrong == 0,
        ("generated", "wikitext2.test", "fsdd_600.zip", "ecoli.fa.gz"), _notes(rows),
    )  # fmt: skip


def _rate(rows: list[Row], method: str, seed: int) -> float:
    return next(float(row["rate"]) for row in rows if row["method"] == method and row.get("seed") == seed)


def _synthetic(count: int) -> Iterator[Row]:
    from tersor.coding.programs import Search, evaluate, generate_pairs

    for seed in SEEDS:
        pairs = generate_pairs(count, seed)
        written = {output: program for program, output in pairs}
        sequences = list(written)
        oracle = evaluate(sequences, written.__getitem__)
        yield _row("generating programs", seed, sequences, oracle)
        for name, value in oracle.baselines.items():
            yield {"method": name if "," in name else f"{name}, joined", "data": "synthetic", "seed": seed, "rate": value}
        for level in range(5):
            yield _row(f"search, level {level}", seed, sequences, evaluate(sequences, Search(level)))


def _row(method: str, seed: int | None, sequences: list[bytes], report: Any, data: str = "synthetic") -> Row:
    return {
        "method": method, "data": data, "seed": seed, "rate": report.rate, "nominal_rate": report.nominal_rate, "accuracy": report.accuracy,
        "precision": report.precision, "mean_length": sum(map(len, sequences)) / len(sequences),
    }  # fmt: skip


def _natural(size: int) -> Iterator[Row]:
    from tersor.coding.programs import Search, evaluate

    for name, data in _modalities(size):
        blocks = [data[begin : begin + BLOCK] for begin in range(0, len(data), BLOCK)]
        report = evaluate(blocks, Search())
        yield _row("search, level 4", None, blocks, report, name)
        for rival in ("gzip", "xz"):
            yield {"method": f"{rival}, joined", "data": name, "seed": None, "rate": report.baselines[rival]}


def _modalities(size: int) -> Iterator[tuple[str, bytes]]:
    import gzip
    import zipfile

    from tersor.data import text

    yield "text", text("wikitext2.test.raw").encode()[:size]
    folder = Path(os.environ.get("TERSOR_DATA", ""))
    sounds, genome = folder / "audio" / "fsdd_600.zip", folder / "dna" / "ecoli.fa.gz"
    if not sounds.is_file() or not genome.is_file():
        raise InvalidArgument("natural data needs audio/fsdd_600.zip and dna/ecoli.fa.gz in the folder that TERSOR_DATA names")
    with zipfile.ZipFile(sounds) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".wav"))
        samples = b"".join(_frames(archive.read(name)) for name in names[: 2 + size // 4000])
    yield "audio, 16 bits", samples[:size]
    yield "audio, 8 bits", bytes((high + 128) % 256 for high in samples[1 : 2 * size : 2])
    with gzip.open(genome) as file:
        file.readline()
        yield "dna", file.read(2 * size).replace(b"\n", b"")[:size]


def _frames(recording: bytes) -> bytes:
    import io
    import wave

    with wave.open(io.BytesIO(recording)) as sound:
        return sound.readframes(sound.getnframes())


def _notes(rows: list[Row]) -> list[str]:
    def spread(method: str, key: str = "rate") -> str:
        values = [row[key] for row in rows if row["method"] == method and row["data"] == "synthetic" and key in row]
        return f"{min(values):.3f} to {max(values):.3f}"

    gzip = {row["data"]: row["rate"] for row in rows if row["method"] == "gzip, joined"}
    searched = [row for row in rows if row["method"] == "search, level 4" and row["data"] != "synthetic"]
    natural = "; ".join(f"{row['data']} {row['rate']:.3f} (gzip {gzip[row['data']]:.3f})" for row in searched)
    return [
        f"rates over seeds in decodable bits: generating programs {spread('generating programs')}, "
        f"search {spread('search, level 4')}, bare {spread('search, level 0')}; in the paper's nominal lengths "
        f"{spread('generating programs', 'nominal_rate')}, "
        f"{spread('search, level 4', 'nominal_rate')}, {spread('search, level 0', 'nominal_rate')}",
        f"natural data in blocks of {BLOCK}: {natural}",
        "nominal lengths do not pay for list lengths and predicates, so only the decodable bits decide",
    ]
