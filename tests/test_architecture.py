"""Rules of the house that no single room can test: what an import may cost and change, and what the source may not do."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src"
FILES = sorted((SOURCE / "tersor").rglob("*.py"))
PUBLIC = [path for path in FILES if path.stem == "__init__" or not path.stem.startswith("_")]
HEAVY = ("torch", "transformers", "numba", "altair", "ray", "scipy", "gguf", "compressed_tensors", "pydantic", "yaml")

# Each changes the whole process of whoever imports tersor.
GLOBAL_EFFECTS = {
    "torch.manual_seed", "torch.seed", "torch.set_rng_state", "torch.random.manual_seed", "random.seed", "np.random.seed",
    "numpy.random.seed", "transformers.set_seed", "torch.set_num_threads", "torch.set_num_interop_threads", "numba.set_num_threads",
    "torch.set_default_dtype", "torch.set_default_device", "torch.set_grad_enabled", "torch.use_deterministic_algorithms",
    "logging.basicConfig", "warnings.simplefilter", "os.environ.update", "os.environ.setdefault", "os.putenv",
}  # fmt: skip
# Code that only ever runs in a worker process of its own may set that one up.
IN_WORKERS = {"tersor/pipeline/workers.py": {"torch.set_num_threads"}}
# Each runs what is in a file or a text.
UNSAFE = {"eval", "exec", "torch.save", "torch.jit.load", "yaml.load", "yaml.unsafe_load", "os.system"}
PICKLES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
# Draw from the global generator unless they are handed one.
TORCH_DRAWS = {f"torch.{name}" for name in ("rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "poisson")}
NUMPY_DRAWS_ALLOWED = {"default_rng", "Generator", "SeedSequence", "Philox", "PCG64"}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """``("torch.load", call)`` for every call of a dotted name."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, (ast.Name, ast.Attribute)):
            yield ast.unparse(node.func), node


def where(path: Path, node: ast.stmt | ast.expr) -> str:
    return f"{path.relative_to(SOURCE)}:{node.lineno}"


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("module", "light"),
    [
        ("tersor", HEAVY),
        ("tersor.cli", HEAVY),
        ("tersor.weights", ("transformers", "numba", "altair", "ray", "pydantic")),
        ("tersor.layerwise", ("transformers", "numba", "altair", "ray", "pydantic")),
        ("tersor.allocation", ("transformers", "numba", "altair", "ray", "pydantic")),
        ("tersor.models", ("transformers", "numba", "altair", "ray")),
        ("tersor.pipeline.recipe", ("transformers", "numba", "altair", "ray")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_import_brings_only_what_it_needs(module: str, light: tuple[str, ...]):
    loaded = run(f"import sys, {module}; print(*sys.modules)").split()
    assert not set(light) & set(loaded)


def test_importing_everything_changes_nothing_in_the_process():
    # A private module may be a script for an optional runtime; what the public ones need of the others they import.
    modules = [".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__") for path in PUBLIC]
    code = f"""
import json, os, random
import numpy, torch

def state():
    return [torch.get_num_threads(), str(torch.get_default_dtype()), torch.is_grad_enabled(), torch.initial_seed(), os.getcwd(),
            random.getstate()[1][:4], numpy.random.get_state()[1][:4].tolist(), torch.get_rng_state()[:16].tolist()]

before = state()
for name in {modules!r}:
    __import__(name)
print(json.dumps([before, state()]))
"""
    before, after = json.loads(run(code))
    assert before == after


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE / "tersor")))
def test_a_file_keeps_the_rules(path: Path):
    broken = [*_calls_that_break_rules(path), *_imports_that_break_rules(path), *_sizes_that_break_rules(path)]
    assert not broken, "\n".join(broken)


def _calls_that_break_rules(path: Path) -> Iterator[str]:
    forbidden = GLOBAL_EFFECTS - IN_WORKERS.get(path.relative_to(SOURCE).as_posix(), set())
    for name, call in calls(path):
        keywords = {keyword.arg for keyword in call.keywords}
        if name in forbidden:
            yield f"{where(path, call)}: {name} changes the whole process"
        if name in UNSAFE:
            yield f"{where(path, call)}: {name} runs or writes what may be code"
        if name == "torch.load" and "weights_only" not in keywords:
            yield f"{where(path, call)}: torch.load needs weights_only=True"
        if name in TORCH_DRAWS and "generator" not in keywords:
            yield f"{where(path, call)}: {name} needs a generator"
        if name.startswith(("np.random.", "numpy.random.")) and name.rpartition(".")[2] not in NUMPY_DRAWS_ALLOWED:
            yield f"{where(path, call)}: {name} draws from the global generator"
        if "shell" in keywords:
            yield f"{where(path, call)}: no shell"


def _imports_that_break_rules(path: Path) -> Iterator[str]:
    for node in ast.walk(tree(path)):
        if not isinstance(node, (ast.Import, ast.ImportFrom)):
            continue
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        for name in names:
            if name.partition(".")[0] in PICKLES:
                yield f"{where(path, node)}: {name} runs code when it reads"
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            yield f"{where(path, node)}: import names, not *"
        if isinstance(node, ast.ImportFrom) and node.level:
            yield f"{where(path, node)}: import by the absolute name"


def _sizes_that_break_rules(path: Path) -> Iterator[str]:
    length = path.read_text(encoding="utf-8").count("\n")
    if length > 400:
        yield f"{path.relative_to(SOURCE)}: {length} lines; 400 at most"
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = _body_length(node)
            if lines > 50:
                yield f"{where(path, node)}: the body of {node.name} has {lines} lines besides its docstring; 50 at most"


def _body_length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return 0 if not body else (function.end_lineno or 0) - body[0].lineno + 1


@pytest.mark.parametrize("path", PUBLIC, ids=lambda path: str(path.relative_to(SOURCE / "tersor")))
def test_what_is_public_is_documented_and_typed(path: Path):
    missing = [] if ast.get_docstring(tree(path)) or not tree(path).body else [f"{path.relative_to(SOURCE)}: no module docstring"]
    for node in tree(path).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
            missing += _undocumented(path, node) + _untyped(path, node)
    assert not missing, "\n".join(missing)


def _undocumented(path: Path, node: ast.ClassDef | ast.FunctionDef) -> list[str]:
    found = [] if ast.get_docstring(node) else [f"{where(path, node)}: {node.name} has no docstring"]
    # Methods of a class with bases may inherit theirs.
    if isinstance(node, ast.ClassDef) and not node.bases:
        bare = [method for method in _methods(node) if not method.name.startswith("_") and ast.get_docstring(method) is None]
        found += [f"{where(path, method)}: {node.name}.{method.name} has no docstring" for method in bare]
    return found


def _untyped(path: Path, node: ast.ClassDef | ast.FunctionDef) -> list[str]:
    functions = [node] if isinstance(node, ast.FunctionDef) else _methods(node)
    return [f"{where(path, function)}: {function.name} is not fully annotated" for function in functions if not _annotated(function)]


def _methods(node: ast.ClassDef) -> list[ast.FunctionDef]:
    return [child for child in node.body if isinstance(child, ast.FunctionDef)]


def _annotated(function: ast.FunctionDef) -> bool:
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    named = [argument for argument in arguments if argument.arg not in ("self", "cls")]
    variable = [argument for argument in (function.args.vararg, function.args.kwarg) if argument is not None]
    return function.returns is not None and all(argument.annotation is not None for argument in [*named, *variable])


def test_every_room_says_what_it_offers():
    rooms = {path: path.read_text(encoding="utf-8") for path in FILES if path.name == "__init__.py"}
    assert not [path for path, text in rooms.items() if "import " in text and "__all__" not in text]
