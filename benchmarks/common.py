"""What every benchmark shares: its flags, jobs in processes of their own, the environments of peers, and the record it writes."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "results"
Row = dict[str, Any]


def parser(description: str | None, *, repeats: int, threads: int | None = None) -> argparse.ArgumentParser:
    """The flags that every benchmark takes.

    Args:
        description: The benchmark's docstring.
        repeats: How often each timing is repeated by default; the median is reported.
        threads: Default of ``--threads``; without it the benchmark sets threads itself.
    """
    summary = (description or "").split("\n\n")[0]
    flags = argparse.ArgumentParser(description=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    flags.add_argument("--quick", action="store_true", help="little data, one repeat; records nothing unless --output is given")
    flags.add_argument("--output", type=Path, help="folder of the record; benchmarks/results for a full run")
    flags.add_argument("--repeats", type=int, default=repeats, help="repeats of each timing, interleaved; medians are reported")
    if threads is not None:
        flags.add_argument("--threads", type=int, default=threads, help="threads of every process, ours and the peer's")
    return flags


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Claim:
    """A bound that measured numbers are held against.

    Attributes:
        says: The claim in words.
        value: What was measured.
        bound: What it must not exceed, or fall below where ``at_least``.
    """

    says: str
    value: float
    bound: float
    at_least: bool = False

    @property
    def holds(self) -> bool:
        """Whether the measured value keeps the bound."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def __str__(self) -> str:
        sign = "at least" if self.at_least else "at most"
        return f"{self.says}: {self.value:.3g} ({sign} {self.bound:.3g}): {'holds' if self.holds else 'does not hold'}"


@dataclass(frozen=True)
class Record:
    """What a benchmark measured, as written to ``results/NAME.json`` and ``NAME.md``.

    Attributes:
        name: Of the benchmark.
        rows: One row a configuration.
        claims: Bounds computed from the rows.
        data: Models and texts that the numbers come from.
        notes: What a reader must know.
        command: What was typed.
        seconds: Wall time of the whole benchmark.
        machine: Processor, threads, memory, system.
        versions: Of ours and the peers' packages.
    """

    name: str
    rows: Sequence[Row]
    claims: Sequence[Claim]
    data: Sequence[str]
    notes: Sequence[str]
    command: str
    seconds: float
    machine: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        claims = [{**asdict(claim), "holds": claim.holds} for claim in self.claims]
        return {**asdict(self), "claims": claims}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Record:
        """The record that :meth:`to_dict` made."""
        claims = [Claim(**{key: value for key, value in claim.items() if key != "holds"}) for claim in plain["claims"]]
        return cls(**{**plain, "claims": claims})

    def markdown(self) -> str:
        """The record as a page."""
        machine = ", ".join(f"{key} {value}" for key, value in self.machine.items())
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        parts = [f"# {self.name}", f"`{self.command}`, {self.seconds / 60:.1f} min", table(self.rows)]
        parts += ["\n".join(f"- {line}" for line in lines) for lines in (self.claims, self.notes) if lines]
        return "\n\n".join([*parts, f"Machine: {machine}.  \nVersions: {versions}.  \nData: {', '.join(self.data)}."]) + "\n"

    def write(self, folder: Path) -> None:
        """Write ``NAME.json`` and ``NAME.md`` into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        content = json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n"
        (folder / f"{self.name}.json").write_text(content, encoding="utf-8")
        (folder / f"{self.name}.md").write_text(self.markdown(), encoding="utf-8")


@dataclass
class Session:
    """One run of a benchmark: collects rows and facts, then records them.

    Args:
        name: Of the benchmark, the stem of its file.
        flags: What :func:`parser` parsed.
    """

    name: str
    flags: argparse.Namespace
    rows: list[Row] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    data: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)

    @property
    def repeats(self) -> int:
        """How often a timing is repeated in this run."""
        return 1 if self.flags.quick else int(self.flags.repeats)

    @property
    def folder(self) -> Path | None:
        """Where the record goes; ``None`` for a quick run without ``--output``."""
        return self.flags.output or (None if self.flags.quick else RESULTS)

    def say(self, text: str) -> None:
        """Progress, to stderr."""
        print(f"[{time.perf_counter() - self.began:6.0f} s] {text}", file=sys.stderr, flush=True)

    def peer_versions(self, versions: Mapping[str, str]) -> None:
        """Note what a peer consists of; packages that we have too are marked as its own."""
        self.versions |= {f"peer's {name}" if name in ("torch", "transformers") else name: number for name, number in versions.items()}

    def failed(self, what: str, failure: JobFailed) -> None:
        """A job failed: say so in the record and go on."""
        self.say(str(failure))
        self.notes.append(f"{what} failed: {failure.reason()}")

    def finish(self) -> int:
        """Print the page and, for a full run or with ``--output``, write it; returns 0."""
        versions = own_versions() | self.versions
        threads = getattr(self.flags, "threads", None)
        record = Record(
            self.name, self.rows, self.claims, self.data, self.notes, typed_command(), round(time.perf_counter() - self.began, 1),
            machine(threads), versions,
        )  # fmt: skip
        print(record.markdown())
        if self.folder is not None:
            record.write(self.folder)
        return 0


def typed_command() -> str:
    """The command line without the places of this machine: an environment's path is named by its last folder alone."""

    def bare(part: str) -> str:
        flag, sign, value = part.rpartition("=")
        return f"{flag}{sign}{Path(value).name}" if Path(value).is_absolute() else part

    shown = [bare(part) for part in sys.argv[1:]]
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *shown])


def table(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table, columns in the order in which they first appear."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns), *([cell(row.get(column)) for column in columns] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(value: Any) -> str:
    """A measured value as table text."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|")


def machine(threads: int | None = None) -> dict[str, Any]:
    """Processor, cores, memory and system; ``threads`` of the measured processes where they were equal."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    found = {"cpu": name, "cores": cores(), "memory_gib": round(memory / 2**30), "system": f"{platform.system()} {platform.machine()}"}
    return found if threads is None else {**found, "threads": threads}


def own_versions(names: Iterable[str] = ("torch", "transformers", "numba", "numpy")) -> dict[str, str]:
    """Installed versions here; Python's own among them."""
    import tersor

    found = {"python": platform.python_version(), "tersor": tersor.__version__}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True)
class Finished:
    """A job that ran in a process of its own.

    Attributes:
        seconds: Wall time of the whole process, imports included.
        cpu_seconds: Processor time.
        peak_memory: Largest resident bytes.
        reply: What the job wrote.
    """

    seconds: float
    cpu_seconds: float
    peak_memory: int
    reply: dict[str, Any]


class JobFailed(Exception):
    """A job ended with an error; the message is the end of what it printed."""

    def reason(self) -> str:
        """Its last line."""
        return (str(self).strip().splitlines() or ["no message"])[-1]


def run_job(script: str, request: Mapping[str, Any], *, threads: int, python: str | None = None) -> Finished:
    """Run ``benchmarks/SCRIPT`` in a fresh process and measure it from outside.

    The script is given the path of a JSON file with ``request``; where to leave its answer is the request's key ``reply``.

    Args:
        script: Path under ``benchmarks``.
        request: Plain JSON values.
        threads: Threads for every library in the process.
        python: Interpreter of a peer's environment; ours without it.

    Raises:
        JobFailed: If the job fails.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "request.json").write_text(json.dumps({**request, "reply": str(folder / "reply.json")}), encoding="utf-8")
        command = [python or sys.executable, str(ROOT / script), str(folder / "request.json")]
        launcher = [sys.executable, str(ROOT / "jobs" / "launcher.py"), str(folder / "took.json"), *command]
        done = subprocess.run(launcher, env=environment(threads, ours=python is None), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise JobFailed(f"{script} failed:\n{(done.stderr.strip() or done.stdout.strip())[-3000:]}")
        took, reply = (json.loads((folder / f"{part}.json").read_text(encoding="utf-8")) for part in ("took", "reply"))
    return Finished(**took, reply=reply)


def environment(threads: int, ours: bool) -> dict[str, str]:
    """This process's environment with ``threads`` for every library; without our package's path for a peer."""
    counts = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL", "OPENBLAS", "NUMBA")}
    kept = {key: value for key, value in os.environ.items() if ours or key != "PYTHONPATH"}
    return {**kept, **counts, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


def interleaved(repeats: int, calls: Mapping[str, Callable[[], Any]]) -> dict[str, list[Any]]:
    """Every call ``repeats`` times, in turns, so that a disturbance of the machine meets all of them."""
    results: dict[str, list[Any]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            results[name].append(call())
    return results


def median(values: Iterable[float]) -> float:
    """The median."""
    return float(statistics.median(values))


def add_peer(flags: argparse.ArgumentParser, flag: str, packages: Sequence[str]) -> None:
    """Add ``--FLAG``, the interpreter of a peer's environment; ``TERSOR_FLAG`` in the environment names it too."""
    variable = f"TERSOR_{flag.upper().replace('-', '_')}"
    text = f"interpreter of an environment with {', '.join(packages)}; made under benchmarks/.peers if not given"
    flags.add_argument(f"--{flag}", default=os.environ.get(variable), help=text)
    flags.set_defaults(**{f"{flag.replace('-', '_')}_packages": list(packages)})


def peer_python(flags: argparse.Namespace, flag: str) -> str:
    """The interpreter that ``flag`` (see :func:`add_peer`) names, or that of a new virtual environment with its packages.

    Raises:
        SystemExit: If the environment cannot be made.
    """
    key = flag.replace("-", "_")
    given = getattr(flags, key)
    if given:
        return str(given)
    folder = ROOT / ".peers" / flag.removesuffix("-python")
    python = folder / "bin" / "python"
    marker = folder / "installed"
    if not marker.is_file():
        print(f"making the environment {folder} with {', '.join(getattr(flags, f'{key}_packages'))}", file=sys.stderr, flush=True)
        packages = getattr(flags, f"{key}_packages")
        for command in ([sys.executable, "-m", "venv", str(folder)], [str(python), "-m", "pip", "install", "-q", *packages]):
            if subprocess.run(command, check=False).returncode != 0:
                raise SystemExit(f"cannot make the environment of the peer ({shlex.join(command)}); name one with --{flag}")
        marker.touch()
    return str(python)
