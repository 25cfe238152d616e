"""Two labelled tasks on code that every Python installation carries: clone detection and defect detection."""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tersor.errors import InvalidArgument
from tersor.training.code_transforms import clone, family, mutate, rewritable, without_docstring

# Code of others, or written to be odd.
_SKIPPED = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "__pycache__", "ensurepip"})
# A negative pair is drawn among so many functions of similar length, so that length tells nothing.
_NEIGHBOURS = 16


@dataclass(frozen=True)
class Function:
    """A function or method of a library.

    Attributes:
        module: File that it comes from, relative to the library.
        name: With that of its class.
        source: As ``ast.unparse`` writes it: no comments, one way to indent and to quote.
    """

    module: str
    name: str
    source: str

    def tree(self) -> ast.FunctionDef:
        """Parse it."""
        node = ast.parse(self.source).body[0]
        assert isinstance(node, ast.FunctionDef)
        return node


@dataclass(frozen=True)
class Examples:
    """Texts and what is asked of them.

    Attributes:
        texts: Every text once.
        index: int64 ``[n, k]``, which texts an example is made of: one, or two to compare.
        labels: int64 ``[n]``.
        kinds: For each example, the kind of defect or ``""``.
    """

    texts: tuple[str, ...]
    index: Tensor
    labels: Tensor
    kinds: tuple[str, ...]

    def __len__(self) -> int:
        return self.index.shape[0]


def library_functions(
    folder: str | Path | None = None, *, limit: int | None = None, seed: int = 0, lines: tuple[int, int] = (4, 25), per_module: int = 40,
    docstrings: bool = True,
) -> list[Function]:  # fmt: skip
    """Functions of a library of Python sources, no two of one family (see :func:`tersor.training.code_transforms.family`).

    Args:
        folder: Where ``.py`` files are; the standard library of the running Python without it. Tests are left out.
        limit: How many are wanted at most.
        seed: Of the order of the files, which matters with ``limit``; the same library and seed give the same functions.
        lines: Fewest and most lines of a function, decorators, docstring and comments not counted.
        per_module: At most so many of one file.
        docstrings: Keep them; a model that reads few tokens would see little else of some functions.

    Raises:
        InvalidArgument: If there is no such folder, no such function in it, or a number is out of range.
    """
    if (limit is not None and limit < 1) or per_module < 1 or not 1 <= lines[0] <= lines[1]:
        raise InvalidArgument(f"a library needs positive limits and a range of lines, got {limit}, {per_module} and {lines}")
    root = Path(folder or sysconfig.get_paths()["stdlib"])
    if not root.is_dir():
        raise InvalidArgument(f"there is no folder {root}; give one that holds Python sources")
    paths = sorted(path.relative_to(root) for path in root.rglob("*.py"))
    paths = [path for path in paths if not _SKIPPED & set(path.parts) and not path.name.startswith("test_")]
    random = np.random.default_rng(seed)
    order = random.permutation(len(paths))
    found: list[Function] = []
    families: set[str] = set()
    for path in (paths[place] for place in order):
        taken = 0
        for function, key in _functions(root, path, lines, docstrings):
            if key in families or taken == per_module:
                continue
            families.add(key)
            found.append(function)
            taken += 1
            if len(found) == limit:
                return found
    if not found:
        raise InvalidArgument(f"{root} holds no Python function of {lines[0]} to {lines[1]} lines; give another folder or range")
    return found


def split_functions(functions: Sequence[Function], fractions: Mapping[str, float], *, seed: int = 0) -> dict[str, list[Function]]:
    """Share functions out by module: all of a module go to the same part.

    Args:
        functions: Of :func:`library_functions`, which holds no family twice.
        fractions: Share of each part by name; they sum to 1.
        seed: Of the order of the modules.

    Raises:
        InvalidArgument: If the fractions do not sum to 1, or a part stays empty as there are too few modules.
    """
    if not fractions or min(fractions.values()) <= 0 or abs(sum(fractions.values()) - 1) > 1e-6:
        raise InvalidArgument(f"the fractions of a split must be positive and sum to 1, got {dict(fractions)}")
    modules: dict[str, list[Function]] = {}
    for function in functions:
        modules.setdefault(function.module, []).append(function)
    names = sorted(modules)
    parts: dict[str, list[Function]] = {name: [] for name in fractions}
    random = np.random.default_rng(seed)
    for place in random.permutation(len(names)):
        # The part that lacks most, relative to its share.
        name = min(fractions, key=lambda name: len(parts[name]) / fractions[name])
        parts[name] += modules[names[place]]
    empty = [name for name, part in parts.items() if not part]
    if empty:
        raise InvalidArgument(f"{len(names)} modules do not fill the part {empty[0]!r} of the split; take more functions or fewer parts")
    return parts


def clone_pairs(functions: Sequence[Function], *, variants: int = 1, seed: int = 0) -> Examples:
    """Pairs of a function and a rewritten one: its own (label 1) or that of another function of similar length (label 0).

    Both labels have a rewritten partner, so that traces of the rewriting tell nothing. Functions that cannot be rewritten
    safely are left out.

    Args:
        functions: At least two that can be rewritten.
        variants: Rewritings of each function; each gives one pair of either label.
        seed: Of every choice.

    Raises:
        InvalidArgument: If there are too few.
    """
    if variants < 1:
        raise InvalidArgument(f"a function needs 1 variant at least, got {variants}")
    usable = [function for function in functions if rewritable(function.tree())]
    if len(usable) < 2:
        raise InvalidArgument(f"{len(usable)} of {len(functions)} functions can be rewritten; clone pairs need two: take more functions")
    random = np.random.default_rng(seed)
    count = len(usable)
    texts = [function.source for function in usable]
    for _ in range(variants):
        texts += [ast.unparse(clone(function.tree(), random)) for function in usable]
    by_length = sorted(range(count), key=lambda place: (len(usable[place].source), place))
    rank = {place: position for position, place in enumerate(by_length)}
    rows: list[tuple[int, int]] = []
    for variant in range(1, variants + 1):
        for place in range(count):
            near = max(min(rank[place] - _NEIGHBOURS // 2, count - _NEIGHBOURS - 1), 0)
            others = [other for other in by_length[near : near + _NEIGHBOURS + 1] if other != place]
            other = others[int(random.integers(len(others)))]
            rows += [(place, variant * count + place), (place, variant * count + other)]
    labels = torch.tensor([1, 0] * (len(rows) // 2))
    return Examples(tuple(texts), torch.tensor(rows), labels, ("",) * len(rows))


def defects(functions: Sequence[Function], *, seed: int = 0) -> Examples:
    """Functions as they are (label 0) and with one operator, comparison or constant changed (label 1), both without docstrings.

    Args:
        functions: At least one with something to change; the others are left out.
        seed: Of the choice of the change.

    Raises:
        InvalidArgument: If nothing can be changed.
    """
    random = np.random.default_rng(seed)
    texts: list[str] = []
    kinds: list[str] = []
    for function in functions:
        tree = function.tree()
        if (mutant := mutate(tree, random)) is not None:
            texts += [ast.unparse(without_docstring(tree)), ast.unparse(mutant[0])]
            kinds += ["", mutant[1]]
    if not texts:
        raise InvalidArgument(f"none of {len(functions)} functions has an operator, comparison or constant to change; take more functions")
    index = torch.arange(len(texts))[:, None]
    return Examples(tuple(texts), index, torch.tensor([0, 1] * (len(texts) // 2)), tuple(kinds))


def _functions(root: Path, path: Path, lines: tuple[int, int], docstrings: bool) -> Iterator[tuple[Function, str]]:
    try:
        tree = ast.parse((root / path).read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, OSError):
        return
    for prefix, node in _defined(tree, ""):
        node.decorator_list = []
        bare = ast.unparse(without_docstring(node))
        if lines[0] <= bare.count("\n") + 1 <= lines[1]:
            yield Function(path.as_posix(), prefix + node.name, ast.unparse(node) if docstrings else bare), family(node)


def _defined(tree: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield prefix, node
        elif isinstance(node, ast.ClassDef):
            yield from _defined(node, f"{prefix}{node.name}.")
