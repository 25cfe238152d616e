"""Labels of the two tasks on code are true: clones compute the same, defects differ in one place, and no family is in two parts."""

from __future__ import annotations

import ast
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch

from tersor.errors import InvalidArgument
from tersor.training import Function, clone_pairs, defects, library_functions, split_functions
from tersor.training.code_transforms import clone, family, loops_to_while, mutate, rename, rewritable, swap_assignments, without_docstring

SOURCES = """
def total(items, start=0):
    '''Add.'''
    result = start
    for item in items:
        if item < 0:
            continue
        if item > 90:
            break
        result += item
    return result

def nested(rows):
    seen = []
    count = 0
    for row in rows:
        for left, right in row:
            seen.append((right, left))
            count = count + 1
    return seen, count

def caught(text):
    try:
        value = int(text)
    except ValueError as error:
        return type(error).__name__
    return value

def squares(n):
    base = 3
    other = n
    return [base * x + other for x in range(n) if x % 2], {k: k for k in range(base)}

def generator(items):
    first = 1
    second = 2
    for item in items:
        yield item + first
    else:
        yield second

def walrus(text, *more, sep=','):
    if (found := text.split(sep)):
        return [f'{part!r:>4}' for part in found], more
    return None

def shadow(items):
    next = 5
    for item in items:
        next += item
    return next

limit = 7

def defaults(limit=limit, items=(1, 2, 3)):
    iterator = limit
    for x in items:
        iterator += x
    return iterator
"""
CALLS = {
    "total": [([1, -2, 3, 99, 4],), ([],)], "nested": [([[(1, 2)], [], [(3, 4), (5, 6)]],)], "caught": [("3",), ("x",)], "squares": [(7,)],
    "generator": [([1, 2],)], "walrus": [("a,b",), ("a", 1, 2)], "shadow": [([1, 2],)], "defaults": [(), (2,)],
}  # fmt: skip


def tree(source: str, name: str | None = None) -> ast.FunctionDef:
    return next(node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and name in (None, node.name))


def outcomes(function: ast.FunctionDef, calls) -> list:
    """What ``function`` gives in the module that it is of."""
    space: dict = {}
    exec(SOURCES + ast.unparse(function), space)
    given = [space[function.name](*arguments) for arguments in calls]
    return [list(result) if hasattr(result, "__next__") else result for result in given]


@pytest.mark.parametrize("name", CALLS)
def test_every_rewriting_computes_the_same(name: str):
    function, calls = tree(SOURCES, name), CALLS[name]
    assert rewritable(function)
    expected = outcomes(function, calls)
    rewritings = [without_docstring(function), loops_to_while(function), swap_assignments(function)]
    rewritings += [clone(function, np.random.default_rng(seed)) for seed in range(12)]
    for rewritten in rewritings:
        assert outcomes(rewritten, calls) == expected
    assert ast.unparse(function) == ast.unparse(tree(SOURCES, name))


def test_rewritings_do_what_they_are_called():
    function = tree(SOURCES, "total")
    assert not [node for node in ast.walk(loops_to_while(function)) if isinstance(node, ast.For)]
    assert ast.get_docstring(without_docstring(function)) is None
    swapped = swap_assignments(tree("def f(a):\n    x = a\n    y = 1\n    z = y\n    return x, z"))
    assert [ast.unparse(node) for node in swapped.body[:3]] == ["y = 1", "x = a", "z = y"]
    source = tree("def f(a, self):\n    import os as b\n    return a + b.a + self.a + len(c=a)")
    renamed = rename(source, lambda taken: "q" * (1 + sum("q" in name for name in taken)))
    assert ast.unparse(renamed) == "def q(qq, self):\n    import os as b\n    return qq + b.a + self.a + len(c=qq)"


@pytest.mark.parametrize(
    "body",
    ["g = lambda: 1", "global x", "print(locals())", "def h():\n        pass", "super().f()", "match a:\n        case b:\n            a()"],
)
def test_what_could_change_its_meaning_is_not_rewritten(body: str):
    assert not rewritable(tree(f"def f(a):\n    {body}\n    return a"))


@pytest.fixture(scope="module")
def library() -> list[Function]:
    return library_functions(limit=250, per_module=12)


def skeleton(node: ast.AST) -> str:
    """The tree without names of variables, with loops and statements in any order: an independent view of what a clone keeps."""
    attributes = sorted(part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute))
    numbers = sorted(repr(part.value) for part in ast.walk(node) if isinstance(part, ast.Constant) and part.value is not True)
    returns = sum(isinstance(part, ast.Return | ast.Yield | ast.Raise) for part in ast.walk(node))
    operators = sorted(type(part).__name__ for part in ast.walk(node) if isinstance(part, ast.operator | ast.cmpop | ast.boolop))
    return repr((attributes, numbers, returns, operators))


def test_clone_pairs_come_from_one_function_and_the_others_from_two(library: list[Function]):
    pairs = clone_pairs(library, variants=2, seed=1)
    origin = {function.source: place for place, function in enumerate(library)}
    assert pairs.labels.tolist() == [1, 0] * (len(pairs) // 2)
    own = 0
    for (first, second), label in zip(pairs.index.tolist(), pairs.labels.tolist(), strict=True):
        original, rewritten = tree(pairs.texts[first]), tree(pairs.texts[second])
        assert pairs.texts[first] in origin
        same = skeleton(without_docstring(original)) == skeleton(rewritten)
        assert same or label == 0
        own += same and label == 0
        assert original.name != rewritten.name
    # Some short functions have one skeleton by chance.
    assert own <= 0.1 * len(pairs)


def test_length_does_not_give_the_label_away(library: list[Function]):
    from sklearn.linear_model import LogisticRegression

    pairs = clone_pairs(library, variants=2, seed=2)
    lengths = np.array([len(text) for text in pairs.texts], dtype=float)[pairs.index.numpy()]
    features = np.stack([lengths[:, 0], lengths[:, 1], np.abs(lengths[:, 0] - lengths[:, 1])], 1) / 1000
    assert LogisticRegression().fit(features, pairs.labels).score(features, pairs.labels) < 0.7


def differ(first: ast.AST, second: ast.AST) -> bool:
    """Whether two nodes of the same place differ in themselves."""
    return type(first) is not type(second) or (isinstance(first, ast.Constant) and first.value != second.value)


def test_defects_differ_in_exactly_one_place_of_the_said_kind(library: list[Function]):
    examples = defects(library, seed=3)
    kinds = {
        "comparison": ast.cmpop, "operator": ast.operator, "and, or": ast.boolop, "truth value": ast.Constant, "off by one": ast.Constant,
    }  # fmt: skip
    assert examples.labels.tolist() == [0, 1] * (len(examples) // 2)
    assert set(examples.kinds) == {"", *kinds}
    for place in range(0, len(examples), 2):
        clean, broken = (list(ast.walk(ast.parse(examples.texts[place + offset]))) for offset in (0, 1))
        ((before, after),) = [pair for pair in zip(clean, broken, strict=True) if differ(*pair)]
        kind = examples.kinds[place + 1]
        assert isinstance(before, kinds[kind])
        assert isinstance(after, kinds[kind])
        if kind == "off by one":
            assert abs(before.value - after.value) == 1


def test_a_function_with_nothing_to_change_has_no_mutant():
    assert mutate(tree("def f(a):\n    return a.b"), np.random.default_rng(0)) is None


def test_functions_are_those_of_the_library_and_of_different_families(library: list[Function]):
    root = Path(sysconfig.get_paths()["stdlib"])
    assert len({family(function.tree()) for function in library}) == len(library) == 250
    for function in library[::25]:
        whole = ast.parse((root / function.module).read_text(encoding="utf-8"))
        names = {node.name for node in ast.walk(whole) if isinstance(node, ast.FunctionDef)}
        assert function.name.rpartition(".")[2] in names


def test_copies_under_other_names_are_one_family():
    first = tree("def f(a, b=1):\n    '''Doc.'''\n    c = a + 1\n    return c.x")
    assert family(first) == family(tree("def g(u, v=2):\n    w = u + 3\n    return w.x"))
    assert family(first) != family(tree("def f(a, b=1):\n    c = a - 1\n    return c.x"))


@pytest.mark.parametrize("seed", range(3))
def test_no_module_is_in_two_parts(library: list[Function], seed: int):
    parts = split_functions(library, {"train": 0.6, "validation": 0.2, "test": 0.2}, seed=seed)
    modules = [{function.module for function in part} for part in parts.values()]
    assert sum(len(part) for part in parts.values()) == len(library)
    assert len(set.union(*modules)) == sum(len(part) for part in modules)
    assert 0.4 < len(parts["train"]) / len(library) < 0.8


def test_same_seed_same_data_and_another_seed_another(library: list[Function]):
    assert library_functions(limit=40, seed=0) == library_functions(limit=40, seed=0) != library_functions(limit=40, seed=1)
    for make in (clone_pairs, defects):
        first, again, other = (make(library[:50], seed=seed) for seed in (0, 0, 1))
        assert first.texts == again.texts != other.texts
        assert torch.equal(first.index, again.index)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda empty: library_functions(empty / "no"), "no folder"),
        (lambda empty: library_functions(empty), "no Python function"),
        (lambda empty: library_functions(lines=(9, 3)), "range of lines"),
        (lambda empty: split_functions([], {"train": 0.5}), "sum to 1"),
        (lambda empty: split_functions([Function("m", "f", "")], {"a": 0.5, "b": 0.5}), "1 modules do not fill"),
        (lambda empty: clone_pairs([]), "take more functions"),
        (lambda empty: clone_pairs([], variants=0), "1 variant"),
        (lambda empty: defects([]), "take more functions"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, message: str, tmp_path: Path):
    with pytest.raises(InvalidArgument, match=message) as caught:
        call(tmp_path)
    assert "\n" not in str(caught.value)
