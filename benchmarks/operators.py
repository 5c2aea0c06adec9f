"""Small changes to one function of the package, found in its syntax tree.

A place is a symbol, such as ``"layers.dense:Dense.forward"``: a function, a method, a class or a
module-level name of ``minicnn/layers/dense.py``. An operator, such as ``compare(">", ">=")``, finds
the nodes of that symbol that it can change. Formatting and line numbers do not matter.

`which` chooses among these nodes: None if there must be exactly one, a number (0 for the first, -1
for the last), or a text that occurs in exactly one of them (a name: as a word).
"""

import ast
import copy
import re
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "minicnn"

_SIGNS = {
    "+": ast.Add, "-": ast.Sub, "*": ast.Mult, "/": ast.Div, "//": ast.FloorDiv, "%": ast.Mod,
    "@": ast.MatMult, "**": ast.Pow, "&": ast.BitAnd, "|": ast.BitOr, "^": ast.BitXor,
    "<<": ast.LShift, ">>": ast.RShift, "<": ast.Lt, "<=": ast.LtE, ">": ast.Gt, ">=": ast.GtE,
    "==": ast.Eq, "!=": ast.NotEq, "is": ast.Is, "is not": ast.IsNot, "in": ast.In,
    "not in": ast.NotIn, "and": ast.And, "or": ast.Or,
}


class NotApplicableError(Exception):
    """A symbol or a place in it is not there, or is not unique."""


# Operators ----------------------------------------------------------------------------------------
# Each returns a function that takes a node and returns its replacement, or None.


def compare(old, new):
    """Change a comparison: ``compare(">", ">=")``."""
    def change(node):
        if isinstance(node, ast.Compare):
            for i, sign in enumerate(node.ops):
                if isinstance(sign, _SIGNS[old]):
                    return _with(node, ops=[*node.ops[:i], _SIGNS[new](), *node.ops[i + 1 :]])
        return None
    return change


def arithmetic(old, new):
    """Change an operator: ``arithmetic("+", "-")``; "left" or "right" keeps that operand alone."""
    def change(node):
        if isinstance(node, ast.BinOp) and isinstance(node.op, _SIGNS[old]):
            return getattr(node, new) if new in ("left", "right") else _with(
                node, op=_SIGNS[new]())
        return None
    return change


def number(old, new):
    """Change a constant: ``number(2, 3)``."""
    def change(node):
        same = isinstance(node, ast.Constant) and type(node.value) is type(old)
        return ast.Constant(new) if same and node.value == old else None
    return change


def condition(value):
    """Replace the condition of an `if`, `while` or conditional expression by True or False."""
    def change(node):
        return ast.Constant(value) if getattr(node, "is_condition", False) else None
    return change


def operand(sign, index):
    """Drop an operand of `and` or `or`: ``operand("or", 1)`` drops the second."""
    def change(node):
        if isinstance(node, ast.BoolOp) and isinstance(node.op, _SIGNS[sign]):
            left = [value for i, value in enumerate(node.values) if i != index]
            return left[0] if len(left) == 1 else _with(node, values=left)
        return None
    return change


def drop(kind=None):
    """Drop a statement; of one kind, such as "If" or "Assign"."""
    def change(node):
        fits = isinstance(node, getattr(ast, kind) if kind else ast.stmt)
        return ast.Pass() if fits else None
    return change


def returns(value):
    """Return something else."""
    def change(node):
        return _with(node, value=_parsed(value)) if isinstance(node, ast.Return) else None
    return change


def plain():
    """Change ``x += y`` into ``x = y``."""
    def change(node):
        if isinstance(node, ast.AugAssign):
            return ast.Assign([node.target], node.value, lineno=0)
        return None
    return change


def argument(function, place, value=None):
    """Change an argument of a call, by number or by keyword; without a value, drop it.

    A keyword that the call does not have is added.
    """
    def change(node):
        if not _calls(node, function):
            return None
        by_place = dict(enumerate(node.args)) | {word.arg: word for word in node.keywords}
        if place not in by_place and (value is None or isinstance(place, int)):
            return None
        if value is None:
            by_place.pop(place)
        elif isinstance(place, int):
            by_place[place] = _parsed(value)
        else:
            by_place[place] = ast.keyword(place, _parsed(value))
        values = list(by_place.values())
        words = [word for word in values if isinstance(word, ast.keyword)]
        return _with(node, args=values[: len(values) - len(words)], keywords=words)
    return change


def swap(function, first, second):
    """Swap two arguments of a call, by number."""
    def change(node):
        if not _calls(node, function) or len(node.args) <= max(first, second):
            return None
        return _with(node, args=_swapped(node.args, first, second))
    return change


def swap_items(first, second, length=None):
    """Swap two items of a tuple, such as indices or axes; of one with `length` items."""
    def change(node):
        if not isinstance(node, ast.Tuple) or not isinstance(node.ctx, ast.Load):
            return None
        fits = len(node.elts) > max(first, second) and length in (None, len(node.elts))
        return _with(node, elts=_swapped(node.elts, first, second)) if fits else None
    return change


def unwrap(function, place=0):
    """Replace a call by one of its arguments, or, with None, by the object of its method."""
    def change(node):
        if not _calls(node, function):
            return None
        return node.func.value if place is None else node.args[place]
    return change


def replace(old, new):
    """Replace an expression: a name, an attribute or something as short."""
    wanted = ast.unparse(_parsed(old))

    def change(node):
        is_read = isinstance(node, ast.expr) and isinstance(
            getattr(node, "ctx", ast.Load()), ast.Load)
        return _parsed(new) if is_read and ast.unparse(node) == wanted else None
    return change


def _with(node, **fields):
    node = copy.copy(node)
    for name, value in fields.items():
        setattr(node, name, value)
    return node


def _parsed(text):
    return ast.parse(text, mode="eval").body


def _calls(node, function):
    name = node.func if isinstance(node, ast.Call) else None
    return getattr(name, "attr", getattr(name, "id", None)) == function


def _swapped(items, first, second):
    items = list(items)
    items[first], items[second] = items[second], items[first]
    return items


# Places -------------------------------------------------------------------------------------------


def path_of(symbol):
    """Return the file of a symbol."""
    path = PACKAGE.joinpath(*symbol.partition(":")[0].split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def changed(symbol, operator, which=None):
    """Return the text of the symbol's file with one node of the symbol changed."""
    path = path_of(symbol)
    if not path.exists():
        raise NotApplicableError(f"{symbol}: minicnn/{path.relative_to(PACKAGE)} does not exist")
    text = path.read_text("utf-8")
    candidates = [
        (node, new) for place in _find(ast.parse(text), symbol) for node in _nodes(place)
        if (new := operator(node)) is not None
    ]
    node, new = _choose(symbol, candidates, which)
    code = ast.unparse(new)
    return _spliced(text, node, code if isinstance(node, ast.stmt) else f"({code})")


def _find(tree, symbol):
    """Return the nodes of a symbol: a property and its setter have the same name."""
    nodes = [tree]
    for name in symbol.partition(":")[2].split("."):
        nodes = [child for node in nodes for child in node.body if name in _names(child)]
        if not nodes:
            raise NotApplicableError(f"{symbol}: {name!r} is not defined there")
    return nodes


def _names(statement):
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        targets = getattr(statement, "targets", None) or [statement.target]
        return {name.id for target in targets for name in ast.walk(target)
                if isinstance(name, ast.Name)}
    return {getattr(statement, "name", None)}


def _nodes(symbol):
    """Return the nodes below a symbol in the order of the text, without docstrings and types."""
    for node in ast.walk(symbol):
        if isinstance(node, ast.If | ast.While | ast.IfExp):
            node.test.is_condition = True
        for test in getattr(node, "ifs", []):
            test.is_condition = True
    found, waiting = [], [symbol]
    while waiting:
        node = waiting.pop()
        if hasattr(node, "lineno") and node is not symbol and not _is_docstring(node):
            found.append(node)
        skipped = (getattr(node, "annotation", None), getattr(node, "returns", None))
        if not isinstance(node, ast.JoinedStr):  # its parts have no position of their own
            waiting += [child for child in ast.iter_child_nodes(node) if child not in skipped]
    return sorted(found, key=lambda node: (node.lineno, node.col_offset, -node.end_lineno,
                                           -node.end_col_offset))


def _is_docstring(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _choose(symbol, candidates, which):
    if isinstance(which, str):
        pattern = rf"\b{which}\b" if which.isidentifier() else re.escape(which)
        candidates = [pair for pair in candidates if re.search(pattern, ast.unparse(pair[0]))]
    if isinstance(which, int) and -len(candidates) <= which < len(candidates):
        return candidates[which]
    if not isinstance(which, int) and len(candidates) == 1:
        return candidates[0]
    places = "".join(f"\n    {ast.unparse(node)}" for node, _ in candidates) or " nothing"
    raise NotApplicableError(f"{symbol}: choice {which!r} must be one of these:{places}")


def _spliced(text, node, code):
    lines = text.encode().splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    data = text.encode()
    begin = starts[node.lineno - 1] + node.col_offset
    end = starts[node.end_lineno - 1] + node.end_col_offset
    return (data[:begin] + code.encode() + data[end:]).decode()
