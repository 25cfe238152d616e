"""Rewritings of Python functions: one kind keeps what they compute, the other breaks it in one place."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from copy import deepcopy

import numpy as np

# Renamed functions must not be recognisable as renamed, so these are ordinary names.
_NAMES = (
    "item", "value", "result", "data", "first", "second", "left", "right", "current", "other", "total", "part", "entry", "source",
    "target", "index", "offset", "limit", "name", "text", "key", "node", "state", "buffer", "size", "start", "stop", "step", "flag",
    "record", "field", "row", "found", "given", "extra", "rest", "head", "tail", "inner", "outer", "mode", "kind", "path", "line",
)  # fmt: skip
# Their meaning is not that of an ordinary local.
_KEPT = frozenset({"self", "cls", "_", "__class__"})
_LOOKS_AT_NAMES = frozenset({"locals", "vars", "eval", "exec", "globals", "dir", "super"})
_NESTED = (
    ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef, ast.Global, ast.Nonlocal, ast.Match, ast.AsyncFor, ast.AsyncWith,
    ast.Await,
)  # fmt: skip

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot,
    ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult, ast.LShift: ast.RShift,
    ast.RShift: ast.LShift, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip


def rewritable(function: ast.FunctionDef) -> bool:
    """Whether :func:`clone` keeps the meaning of ``function``: it has no inner scopes and does not look at the names of its variables."""
    inside = [node for statement in function.body for node in ast.walk(statement)]
    if any(isinstance(node, _NESTED) for node in inside):
        return False
    return not any(isinstance(node, ast.Name) and node.id in _LOOKS_AT_NAMES for node in inside)


def clone(function: ast.FunctionDef, random: np.random.Generator) -> ast.FunctionDef:
    """A function that does the same for positional arguments and looks different.

    Its own name and those of its variables are replaced and its docstring goes; with a chance of three quarters each, ``for`` loops
    become ``while`` loops and neighbouring assignments that do not depend on each other change places.

    Args:
        function: One that is :func:`rewritable`; left as it is.
        random: Source of every choice.

    Returns:
        A new tree.
    """
    copy = without_docstring(function)
    if random.random() < 0.75:
        copy = swap_assignments(copy)
    if random.random() < 0.75:
        copy = loops_to_while(copy)
    return rename(copy, lambda taken: _fresh(taken, random))


def without_docstring(function: ast.FunctionDef) -> ast.FunctionDef:
    """A copy without decorators and docstring."""
    copy = deepcopy(function)
    copy.decorator_list = []
    if ast.get_docstring(copy, clean=False) is not None:
        copy.body = copy.body[1:] or [ast.Pass()]
    return copy


def rename(function: ast.FunctionDef, fresh: Callable[[frozenset[str]], str]) -> ast.FunctionDef:
    """A copy in which the function and all that it binds have other names; globals, attributes and imports keep theirs.

    Args:
        function: One that is :func:`rewritable`.
        fresh: Gives a name that is not among those that it is handed.
    """
    copy = deepcopy(function)
    nodes = [node for part in (copy.args, *copy.body) for node in ast.walk(part)]
    taken = {node.id for node in nodes if isinstance(node, ast.Name)} | {copy.name} | set(_KEPT)
    imported = {node.asname or node.name.partition(".")[0] for node in nodes if isinstance(node, ast.alias)}
    bound = [name for name in _bound(nodes) if name not in _KEPT and name not in imported and not name.startswith("__")]
    taken |= imported | set(bound)
    names: dict[str, str] = {}
    for name in dict.fromkeys([copy.name, *bound]):
        names[name] = fresh(frozenset(taken))
        taken.add(names[name])
    return ast.fix_missing_locations(_Renamed(names).visit(copy))


def loops_to_while(function: ast.FunctionDef) -> ast.FunctionDef:
    """A copy whose ``for`` loops call ``next`` themselves; those with an ``else`` stay."""
    copy = deepcopy(function)
    nodes = list(ast.walk(copy))
    taken = {node.id for node in nodes if isinstance(node, ast.Name)} | set(_bound(nodes))
    if {"iter", "next", "StopIteration"} & set(_bound(nodes)):
        return copy
    return ast.fix_missing_locations(_Unrolled(taken).visit(copy))


def swap_assignments(function: ast.FunctionDef) -> ast.FunctionDef:
    """A copy in which neighbouring assignments of constants and names change places where neither sees the other."""
    copy = deepcopy(function)
    for node in ast.walk(copy):
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            if isinstance(block, list):
                _swap(block)
    return copy


def mutate(function: ast.FunctionDef, random: np.random.Generator) -> tuple[ast.FunctionDef, str] | None:
    """A copy with one defect: a comparison, an operator, ``and`` or ``or``, a truth value, or an integer that is off by one.

    Args:
        function: Any; left as it is.
        random: Chooses the place.

    Returns:
        The copy and the kind of the defect; ``None`` if there is nowhere to put one.
    """
    copy = without_docstring(function)
    places = list(_places(copy))
    if not places:
        return None
    node, index, kind = places[int(random.integers(len(places)))]
    if isinstance(node, ast.Compare):
        node.ops[index] = _COMPARISONS[type(node.ops[index])]()
    elif isinstance(node, ast.BinOp | ast.AugAssign):
        node.op = _OPERATORS[type(node.op)]()
    elif isinstance(node, ast.BoolOp):
        node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        node.value = not node.value
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        node.value += 1 if node.value == 0 or random.random() < 0.5 else -1
    return ast.fix_missing_locations(copy), kind


def family(function: ast.FunctionDef) -> str:
    """The same text for functions that differ in the names of variables, in constants or in their docstrings alone."""
    names = iter(range(1 << 20))
    copy = without_docstring(function)
    copy.returns = None
    if rewritable(copy):
        copy = rename(copy, lambda _: f"v{next(names)}")
    for node in ast.walk(copy):
        if isinstance(node, ast.Constant):
            node.value = type(node.value).__name__
        if isinstance(node, ast.arg):
            node.annotation = None
    copy.name = "f"
    return ast.dump(copy)


def _bound(nodes: list[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store | ast.Del):
            yield node.id
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield node.name


def _fresh(taken: frozenset[str], random: np.random.Generator) -> str:
    name = _NAMES[int(random.integers(len(_NAMES)))]
    while name in taken:
        name = f"{name}_{_NAMES[int(random.integers(len(_NAMES)))]}"
    return name


class _Renamed(ast.NodeTransformer):
    def __init__(self, names: dict[str, str]) -> None:
        self.names = names

    def visit_Name(self, node: ast.Name) -> ast.Name:
        node.id = self.names.get(node.id, node.id)
        return node

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> ast.AST:
        node.name = self.names.get(node.name, node.name) if node.name else None
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        # Defaults and annotations are read outside.
        arguments = node.args
        single = [argument for argument in (arguments.vararg, arguments.kwarg) if argument is not None]
        for argument in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *single]:
            argument.arg = self.names.get(argument.arg, argument.arg)
        node.name = self.names.get(node.name, node.name)
        node.body = [self.visit(statement) for statement in node.body]
        return node


class _Unrolled(ast.NodeTransformer):
    def __init__(self, taken: set[str]) -> None:
        self.taken = taken

    def visit_For(self, node: ast.For) -> list[ast.stmt] | ast.AST:
        self.generic_visit(node)
        if node.orelse:
            return node
        name = next(name for name in (f"iterator{count or ''}" for count in range(1 << 20)) if name not in self.taken)
        self.taken.add(name)
        begin = ast.Assign([ast.Name(name, ast.Store())], _call("iter", node.iter))
        step = ast.Assign([node.target], _call("next", ast.Name(name, ast.Load())))
        stop = ast.ExceptHandler(ast.Name("StopIteration", ast.Load()), None, [ast.Break()])
        return [begin, ast.While(ast.Constant(True), [ast.Try([step], [stop], [], []), *node.body], [])]


def _call(name: str, argument: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(name, ast.Load()), [argument], [])


def _swap(block: list[ast.stmt]) -> None:
    place = 0
    while place + 1 < len(block):
        first, second = _simple(block[place]), _simple(block[place + 1])
        if first and second and first[0] != second[0] and first[0] not in second[1] and second[0] not in first[1]:
            block[place], block[place + 1] = block[place + 1], block[place]
            place += 1
        place += 1


def _simple(statement: ast.stmt) -> tuple[str, set[str]] | None:
    """The name that is assigned and those that are read, where the value is made of constants and names alone."""
    if not isinstance(statement, ast.Assign) or len(statement.targets) != 1 or not isinstance(statement.targets[0], ast.Name):
        return None
    parts = list(ast.walk(statement.value))
    plain = (ast.Constant, ast.Name, ast.Tuple, ast.List, ast.Dict, ast.expr_context)
    if not all(isinstance(part, plain) for part in parts):
        return None
    return statement.targets[0].id, {part.id for part in parts if isinstance(part, ast.Name)}


def _places(function: ast.FunctionDef) -> Iterator[tuple[ast.AST, int, str]]:
    for node in (node for statement in function.body for node in ast.walk(statement)):
        if isinstance(node, ast.Compare):
            yield from ((node, index, "comparison") for index, op in enumerate(node.ops) if type(op) in _COMPARISONS)
        elif isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in _OPERATORS:
            if not (isinstance(node, ast.BinOp) and isinstance(node.left, ast.Constant) and isinstance(node.left.value, str)):
                yield node, 0, "operator"
        elif isinstance(node, ast.BoolOp):
            yield node, 0, "and, or"
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
            yield node, 0, "truth value"
        elif isinstance(node, ast.Constant) and isinstance(node.value, int):
            yield node, 0, "off by one"
