"""Small arithmetic over columns, for schemas: ``abs(FatJet_eta) < 2.4 and FatJet_pt > 200``.

Python's syntax for numbers, names, ``+ - * / // % **``, ``& |``, comparisons, ``in (1, 2)``,
``and or not``, ``a if condition else b`` and the functions in ``FUNCTIONS``; nothing else, and
nothing is run by Python itself. A name is a column, dotted as it is in the file; one that is no
Python name goes in backquotes: ``` `Jet#3.index` ```.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import numpy as np

from jetkern.convert.readers.pid import pdg_mass

MAX_LENGTH = 2000  # characters; deeper nesting than this allows is refused by the parser's depth
_MAX_DEPTH = 50

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": np.abs,
    "sign": np.sign,
    "sqrt": np.sqrt,
    "exp": np.exp,
    "log": np.log,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "tanh": np.tanh,
    "arcsinh": np.arcsinh,
    "arctan": np.arctan,
    "arctan2": np.arctan2,
    "hypot": np.hypot,
    "floor": np.floor,
    "isnan": np.isnan,
    "minimum": np.minimum,
    "maximum": np.maximum,
    "where": np.where,
    "pdg_mass": pdg_mass,
}
_ARGUMENTS = {"arctan2": 2, "hypot": 2, "minimum": 2, "maximum": 2, "where": 3}
_BINARY: dict[type, Callable[..., Any]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.true_divide,
    ast.FloorDiv: np.floor_divide,
    ast.Mod: np.remainder,
    ast.Pow: np.float_power,
    ast.BitAnd: np.bitwise_and,
    ast.BitOr: np.bitwise_or,
}
_COMPARE: dict[type, Callable[..., Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_UNARY: dict[type, Callable[..., Any]] = {
    ast.USub: np.negative,
    ast.UAdd: np.positive,
    ast.Not: np.logical_not,
}


class Expression:
    """A checked expression.

    Attributes:
        names: the columns that it uses.

    Raises:
        ValueError: saying what is not allowed.
    """

    def __init__(self, text: str) -> None:
        self.text = text.strip()
        if len(self.text) > MAX_LENGTH:
            raise ValueError(f"an expression has {len(self.text)} characters, over {MAX_LENGTH}")
        quoted: list[str] = []

        def hide(match: re.Match[str]) -> str:
            quoted.append(match.group(1))
            return f"__quoted_{len(quoted) - 1}"

        try:
            self._tree = ast.parse(re.sub(r"`([^`]+)`", hide, self.text), mode="eval").body
        except (SyntaxError, RecursionError, MemoryError, ValueError) as error:
            reason = error.msg if isinstance(error, SyntaxError) else error
            raise ValueError(f"{self.text[:60]!r} is no expression ({reason})") from None
        self._quoted = {f"__quoted_{i}": name for i, name in enumerate(quoted)}
        self._names: dict[str, None] = {}
        self._check(self._tree, 0)
        self.names = tuple(self._names)

    def evaluate(self, columns: Mapping[str, Any]) -> Any:
        """The value for columns of equal shapes; without a warning for what is not finite."""
        with np.errstate(all="ignore"):
            return self._value(self._tree, columns)

    def _refuse(self, node: ast.AST, what: str = "") -> None:
        shown = what or ast.unparse(node)[:60]
        raise ValueError(f"{self.text[:60]!r}: {shown} is not allowed in an expression")

    def _name(self, node: ast.AST) -> str | None:
        """The column that a name or a dotted name stands for."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name):
            return None
        return ".".join([self._quoted.get(node.id, node.id), *reversed(parts)])

    def _check(self, node: ast.AST, depth: int) -> None:
        if depth > _MAX_DEPTH:
            self._refuse(node, "so deep a nesting")
        children: list[ast.AST] = []
        if isinstance(node, ast.Constant):
            value: Any = node.value
            if type(value) not in (int, float, bool) or abs(value) >= 2**63:
                self._refuse(node)
        elif isinstance(node, ast.Name | ast.Attribute):
            name = self._name(node)
            if name is None:
                self._refuse(node)
            self._names[str(name)] = None
        elif isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
            children = [node.left, node.right]
        elif isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
            children = [node.operand]
        elif isinstance(node, ast.BoolOp):
            children = list(node.values)
        elif isinstance(node, ast.IfExp):
            children = [node.test, node.body, node.orelse]
        elif isinstance(node, ast.Compare):
            children = [node.left]
            for op, right in zip(node.ops, node.comparators, strict=True):
                if isinstance(op, ast.In | ast.NotIn):
                    if not isinstance(right, ast.Tuple | ast.List) or not right.elts:
                        self._refuse(right, f"in {ast.unparse(right)[:60]}")
                    children += right.elts  # type: ignore[attr-defined]
                elif type(op) in _COMPARE:
                    children.append(right)
                else:
                    self._refuse(node)
        elif isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            if name not in FUNCTIONS or node.keywords:
                self._refuse(node)
            if len(node.args) != _ARGUMENTS.get(name, 1):
                self._refuse(node, f"{name} with {len(node.args)} arguments")
            children = list(node.args)
        else:
            self._refuse(node)
        for child in children:
            self._check(child, depth + 1)

    def _value(self, node: Any, columns: Mapping[str, Any]) -> Any:
        def value(child: Any) -> Any:
            return self._value(child, columns)

        if isinstance(node, ast.Constant):
            return np.asarray(node.value)
        if isinstance(node, ast.Name | ast.Attribute):
            return _number(columns[str(self._name(node))])
        if isinstance(node, ast.BinOp):
            left, right = value(node.left), value(node.right)
            if isinstance(node.op, ast.BitAnd | ast.BitOr):
                left, right = (_whole(a, self.text) for a in (left, right))
            else:
                left, right = _number(left), _number(right)
            return _BINARY[type(node.op)](left, right)
        if isinstance(node, ast.UnaryOp):
            operand = value(node.operand)
            if not isinstance(node.op, ast.Not):
                operand = _number(operand)
            return _UNARY[type(node.op)](operand)
        if isinstance(node, ast.BoolOp):
            join = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
            return reduce(join, map(value, node.values))
        if isinstance(node, ast.IfExp):
            return np.where(value(node.test), value(node.body), value(node.orelse))
        if isinstance(node, ast.Call):
            return FUNCTIONS[node.func.id](*map(value, node.args))  # type: ignore[attr-defined]
        result: Any = np.asarray(True)
        left = value(node.left)
        for op, right in zip(node.ops, node.comparators, strict=True):
            if isinstance(op, ast.In | ast.NotIn):
                found = reduce(np.logical_or, (left == value(e) for e in right.elts))
                result = result & (found if isinstance(op, ast.In) else ~found)
            else:
                other = value(right)
                result = result & _COMPARE[type(op)](left, other)
                left = other
        return result


def _number(values: Any) -> Any:
    """Values that differences and products of cannot wrap round, as those of small types do."""
    return values.astype(np.float64 if values.dtype.kind == "f" else np.int64, copy=False)


def _whole(values: Any, text: str) -> Any:
    """Values as they must be for ``&`` and ``|``: true or false, or whole numbers."""
    if values.dtype.kind not in "biu":
        raise ValueError(f"{text!r}: & and | need whole numbers; say and, or")
    return values if values.dtype.kind == "b" else values.astype(np.int64)
