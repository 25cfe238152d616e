"""The benchmarks answer ``--help`` without loading anything, and what they record can be read back."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
COMMANDS = (
    "peers", "quantizers", "llamacpp", "speed", "fitness", "memory", "representations", "text_codecs", "image_codecs", "sound_codecs",
    "mutations", "kvcache", "communication", "training", "training_parts", "finetuning", "pretrained",
)  # fmt: skip


@pytest.fixture(scope="module")
def common() -> ModuleType:
    """The benchmarks' shared module, loaded from its file."""
    name = "benchmarks_common"
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / "common.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_the_flags_without_heavy_imports(name: str) -> None:
    code = (
        f"import sys, runpy; sys.path.insert(0, {str(BENCHMARKS)!r}); sys.argv = ['{name}.py', '--help']\n"
        "try:\n"
        f"    runpy.run_path({str(BENCHMARKS / f'{name}.py')!r}, run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        "assert not {'torch', 'transformers', 'numpy'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--quick" in done.stdout
    assert "--output" in done.stdout


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*/*.py")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_scripts_parse_and_peer_scripts_import_nothing_of_ours(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    if path.parent.name == "peer_scripts":
        assert not any(name.split(".")[0] == "tersor" for name in imported)


def test_record_round_trips_through_its_file(common: ModuleType, tmp_path: Path) -> None:
    import json

    claims = [common.Claim("faster", 2.5, 2.0, at_least=True), common.Claim("smaller", 0.7, 0.5)]
    rows = [{"tool": "ours", "seconds": 1.25, "bytes": 10}, {"tool": "a | b", "seconds": None, "bytes": 20}]
    record = common.Record("sample", rows, claims, ["data"], ["note"], "python benchmarks/sample.py", 3.0, {"cpu": "x"}, {"tersor": "0"})
    record.write(tmp_path)
    again = common.Record.from_dict(json.loads((tmp_path / "sample.json").read_text(encoding="utf-8")))
    assert again == record
    assert [claim.holds for claim in again.claims] == [True, False]
    page = (tmp_path / "sample.md").read_text(encoding="utf-8")
    assert "| ours | 1.25 | 10 |" in page
    assert "faster: 2.5 (at least 2): holds" in page
    assert "smaller: 0.7 (at most 0.5): does not hold" in page


def test_job_is_measured_from_outside_and_answers(common: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import json, os, sys\n"
        "asked = json.load(open(sys.argv[1]))\n"
        "held = b'x' * 50_000_000\n"
        "json.dump({'twice': 2 * asked['number'], 'threads': os.environ['OMP_NUM_THREADS']}, open(asked['reply'], 'w'))\n"
    )
    ballast = b"x" * 200_000_000  # the memory of this process must not count as the job's
    done = common.run_job(str(script), {"number": 21}, threads=3)
    assert done.reply == {"twice": 42, "threads": "3"}
    assert 50_000_000 < done.peak_memory < len(ballast)
    script.write_text("raise SystemExit('no such thing')")
    with pytest.raises(common.JobFailed) as failed:
        common.run_job(str(script), {}, threads=1)
    assert failed.value.reason() == "no such thing"


def test_command_in_the_record_names_no_place(common: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    place = os.path.join(os.sep, "somewhere", "bin", "python")
    monkeypatch.setattr(sys, "argv", ["benchmarks/peers.py", "--llmcompressor-python", place, f"--output={place}"])
    assert common.typed_command() == "python benchmarks/peers.py --llmcompressor-python python --output=python"
