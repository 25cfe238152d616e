"""Mutated, truncated and forged inputs to every decoder: a typed error or the right data, within bounded memory and time.

Half of the cases are damage as it happens, under the old checksum; of containers the other half is forged, under a new one, with headers
that claim anything. Every decoder runs in a process of its own that may take only so much more memory than it has when it begins.
The record is written after each, and ``--resume`` leaves out those that are in it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common

# Beside what a decoder says itself: the process ended, or did not come back.
CRASHED, HUNG = "crashed", "hung"
BAD = ("wrong", "untyped", "slow", CRASHED, HUNG)
# Seconds of no progress at which a process counts as hung: while it comes up (torch, compiled loops, a training of some steps), and later.
START, PATIENCE = 900.0, 300.0


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = common.parser(__doc__, repeats=1, threads=1)
    given = int(os.environ.get("TERSOR_MUTATIONS", "100000"))
    flags.add_argument("--cases", type=int, default=given, help="inputs to every decoder; also TERSOR_MUTATIONS")
    flags.add_argument("--resume", action="store_true", help="leave out decoders that the record already has with so many cases or more")
    flags.add_argument("--only", nargs="*", help="decoders by name")
    flags.add_argument("--megabytes", type=int, default=256, help="memory that a process may take beyond what it has at its first case")
    flags.add_argument("--seconds", type=float, default=5.0, help="processor time that a case may take")
    flags.add_argument("--seed", type=int, default=0, help="of the mutations")
    return flags


class Trial:
    """One decoder: processes that run its cases, and what they told."""

    def __init__(self, name: str, flags: argparse.Namespace, folder: Path) -> None:
        from jobs.mutate import FIELDS, TALLY

        self.name, self.flags, self.fields, self.tally = name, flags, FIELDS, TALLY
        self.path = folder / "tally"
        self.path.write_bytes(TALLY.pack(*[0] * len(FIELDS)))
        self.ends = dict.fromkeys((CRASHED, HUNG), 0)
        self.said: list[str] = []
        self.seconds = 0.0

    def counts(self) -> dict[str, int]:
        """What the processes counted so far."""
        return dict(zip(self.fields, self.tally.unpack(self.path.read_bytes()), strict=True))

    def run(self, cases: int) -> None:
        """All cases; after one that ends the process a new process goes on with the next."""
        began = time.perf_counter()
        while (first := self.counts()["done"]) < cases:
            ended = self._process(first, cases)
            done = self.counts()
            if done["done"] >= cases:
                break
            if done["done"] == first and ended not in (CRASHED, HUNG):
                raise SystemExit(f"{self.name} could not be started: {ended}")
            how = ended if ended in self.ends else CRASHED
            self.ends[how] += 1
            self.said.append(f"case {done['done']}: the process {how}")
            self.path.write_bytes(self.tally.pack(*{**done, "done": done["done"] + 1}.values()))
        self.seconds = time.perf_counter() - began

    def _process(self, first: int, cases: int) -> str:
        """One process, watched: it is ended where no case ends for long."""
        flags = self.flags
        words = (self.name, first, cases, flags.seed, flags.megabytes, flags.seconds, self.path)
        command = [sys.executable, str(common.ROOT / "jobs" / "mutate.py"), *map(str, words)]
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            process = subprocess.Popen(command, env=common.environment(flags.threads, ours=True), stdout=out, stderr=err, text=True)
            hung = self._watch(process, first)
            out.seek(0), err.seek(0)
            for line in out.read().splitlines():
                told = json.loads(line)
                self.said.append(f"case {told['case']}: {told['outcome']}, {told['says']}")
            return HUNG if hung else CRASHED if process.returncode < 0 else err.read()[-2000:].strip()

    def _watch(self, process: subprocess.Popen[str], first: int) -> bool:
        last, since = first, time.monotonic()
        while process.poll() is None:
            time.sleep(0.05)
            done = self.counts()["done"]
            patience = START if done == first else PATIENCE
            if done != last:
                last, since = done, time.monotonic()
            elif time.monotonic() - since > patience:
                process.kill()
                process.wait()
                return True
        return False

    def row(self) -> common.Row:
        """What became of the cases."""
        counts = self.counts()
        return {
            "decoder": self.name, "cases": counts["done"], "typed": counts["typed"], "right": counts["right"],
            "other": counts["changed"], **{name: {**counts, **self.ends}[name] for name in BAD},
            "slowest_ms": counts["slowest"] / 1000, "growth_mb": counts["growth"] / 1024, "seconds": self.seconds,
        }  # fmt: skip


def run(flags: argparse.Namespace) -> int:
    """Every decoder in turn; 1 if one did what none may."""
    import decoders

    session = common.Session("mutations", flags)
    kept = recorded(session) if flags.resume else {}
    known = flags.only or list(decoders.targets())
    wanted = 200 if flags.quick else flags.cases
    for index, name in enumerate(known):
        row, said = kept.get(name, ({}, []))
        if row.get("cases", 0) < wanted:
            row, said = tried(name, flags, wanted)
            session.say(" ".join(f"{key} {common.cell(value)}" for key, value in row.items()))
        session.rows.append(row)
        session.notes += said
        if session.folder is not None and index < len(known) - 1:
            record(session).write(session.folder)
    described = record(session)
    session.claims, session.notes, session.data = list(described.claims), list(described.notes), list(described.data)
    session.finish()
    return int(not all(claim.holds for claim in session.claims))


def tried(name: str, flags: argparse.Namespace, cases: int) -> tuple[common.Row, list[str]]:
    """A decoder's row, and the first of what it should not have done."""
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(name, flags, Path(folder))
        trial.run(cases)
        return trial.row(), [f"{name}, {said}" for said in trial.said[:5]]


def recorded(session: common.Session) -> dict[str, tuple[common.Row, list[str]]]:
    """Rows and notes of an earlier run, by decoder."""
    path = (session.folder or common.RESULTS) / "mutations.json"
    if not path.is_file():
        return {}
    record = common.Record.from_dict(json.loads(path.read_text(encoding="utf-8")))
    return {row["decoder"]: (row, [note for note in record.notes if note.startswith(f"{row['decoder']}, case")]) for row in record.rows}


def record(session: common.Session) -> common.Record:
    """What was measured so far."""
    flags, rows = session.flags, session.rows
    bad, growth = sum(row[key] for row in rows for key in BAD), max(row["growth_mb"] for row in rows)
    claims = [
        common.Claim("cases that end in anything but a typed error or right data", bad, 0),
        common.Claim("largest growth of a process's resident memory, MB", growth, flags.megabytes),
    ]
    notes = [
        *session.notes, "right: the damage lies where it changes nothing, such as a number of the header that means the same.",
        "other: forged files of codecs that lose something, and bare streams, whose callers keep a checksum; what comes out is of the kind "
        "and size that was asked for.",
        f"A process may take {flags.megabytes} MB beyond what it has at its first case, a case {flags.seconds:g} s of processor time; "
        "seconds include the start of the process and a training of some steps where a codec needs one.",
    ]  # fmt: skip
    data = ["inputs made here; stories260k for the language model"]
    seconds = round(time.perf_counter() - session.began, 1)
    return common.Record(
        session.name, rows, claims, data, notes, common.typed_command(), seconds, common.machine(flags.threads), common.own_versions()
    )


if __name__ == "__main__":
    sys.exit(run(parser().parse_args()))
