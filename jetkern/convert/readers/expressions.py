"""Small arithmetic over columns, for schemas: ``abs(FatJet_eta) < 2.4 and FatJet_pt > 200``.

Python's syntax for numbers, names, ``+ - * / // % **``, ``& |``, comparisons, ``in (1, 2)``,
``and or not``, ``a if condition else b``, the functions in ``FUNCTIONS``, ``take`` and
``track_origin``; nothing else, and nothing is run by Python itself. A name is a column, dotted as
it is in the file; one that is no Python name goes in backquotes: ``` `Jet#3.index` ```.

``take(column, index)`` is the entry ``index`` of the list that the column has in the same row (of
the same event): ``take(Track_d0, Cand_track)``. Of a list of lists ``take(column, index, k)`` is
the entry k of the list that ``index`` names. An index below 0, and one that is NaN, as that of
another ``take`` may be, names nothing: the value is NaN.

``track_origin(z, hadron_z, hadron_pdg)`` is the origin of a track that was made at ``z``, given two
lists of the same row: 0 primary vertex, 1 charm hadron, 2 bottom hadron, 3 other, NaN for a z of
NaN.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from jetkern.convert.readers import Column
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
SAME_PLACE = 1e-6
HADRONS = {  # PDG codes of charm and bottom mesons and baryons, by origin; later ones win
    1: ((411, 435), (4121, 4444)),
    2: ((511, 545), (5121, 5554)),
}
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


class Lists:
    """Whole lists for ``take``, of the rows that values belong to.

    Args:
        columns: a list in each of R rows, or a list of lists.
        row: (T,) the row of each value.
        first: what the first row is called in messages.
    """

    def __init__(self, columns: Mapping[str, Column], row: NDArray[np.int64], first: int) -> None:
        self._columns, self._row, self._first = columns, row, first

    def of(self, which: NDArray[np.int64]) -> Lists:
        """The same for some of the values."""
        return Lists(self._columns, self._row[which], self._first)

    def take(self, name: str, index: Any, entry: int | None) -> NDArray[Any]:
        """(T,) entries of lists, NaN where the index (T,) names nothing.

        Raises:
            ValueError: naming row and column, for an index beyond the end or that is not whole.
        """
        column, depth = self._columns[name], 1 if entry is None else 2
        if len(column.counts) != depth:
            kinds = ("single values", "lists", "lists of lists", "lists of lists of lists")
            found = kinds[len(column.counts)]
            raise ValueError(f"take: {name} holds {found} in its rows, expected {kinds[depth]}")
        index = np.broadcast_to(np.asarray(index), self._row.shape)
        some = ~(np.isnan(index) | (index < 0))
        at = self._places(name, index[some], self._row[some], column.counts[0])
        if entry is not None:
            sizes = column.counts[1]
            if (sizes[at] <= entry).any():
                short = int(np.argmax(sizes[at] <= entry))
                self._refuse(
                    name,
                    self._row[some][short],
                    f"has lists of {sizes[at][short]}, none of {entry}",
                )
            at = (np.cumsum(sizes) - sizes)[at] + entry
        if len(at) == len(some):
            return column.values[at]
        values = np.full(len(some), np.nan)
        values[some] = column.values[at]
        return values

    def origin(self, z: Any, places: str, codes: str) -> NDArray[np.float64]:
        """(T,) origins by MPMv2's rule (arXiv 2409.12589, and its code): at a z of 0 primary; at
        that of a charm hadron, or above all of a bottom hadron, theirs; to a millionth.

        Args:
            z: (T,) where the tracks were made; places, codes: columns with the z and PDG code of
                each hadron of a row.

        Raises:
            ValueError: naming column and row, for lists of other depths or unlike lengths.
        """
        columns = [self._columns[name] for name in (places, codes)]
        for name, column in zip((places, codes), columns, strict=True):
            if len(column.counts) != 1:
                raise ValueError(f"track_origin: {name} holds no list in each row")
        sizes, others = (column.counts[0] for column in columns)
        if (sizes != others).any():
            at = int(np.argmax(sizes != others))
            self._refuse(codes, np.int64(at), f"has {others[at]} entries, {places} has {sizes[at]}")
        z = np.broadcast_to(np.asarray(z, np.float64), self._row.shape)
        number = sizes[self._row]
        track = np.repeat(np.arange(len(z)), number)
        before = np.cumsum(number) - number
        starts = np.cumsum(sizes) - sizes
        hadron = starts[self._row][track] + np.arange(len(track)) - before[track]
        close = np.abs(z[track] - columns[0].values[hadron]) < SAME_PLACE
        code = np.abs(columns[1].values[hadron])
        found = np.where(np.abs(z) < SAME_PLACE, 0.0, 3.0)
        for origin, ranges in HADRONS.items():
            of_kind = np.logical_or.reduce([(code >= low) & (code <= high) for low, high in ranges])
            found[track[close & of_kind]] = origin
        return np.where(np.isnan(z), np.nan, found)

    def _places(
        self,
        name: str,
        index: NDArray[Any],
        row: NDArray[np.int64],
        sizes: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """Where entries are in all rows together."""
        for wrong, what in (
            (index != np.floor(index), "is taken by the index {:g}, which is not whole"),
            (index >= sizes[row], "has {n} entries, {:.0f} is taken"),
        ):
            if wrong.any():
                at = int(np.argmax(wrong))
                self._refuse(name, row[at], what.format(index[at], n=sizes[row[at]]))
        return (np.cumsum(sizes) - sizes)[row] + index.astype(np.int64)

    def _refuse(self, name: str, row: np.int64, what: str) -> NoReturn:
        raise ValueError(f"row {self._first + row}: {name} {what}")


class Expression:
    """A checked expression.

    Attributes:
        names: the columns that it uses.
        lists: those that it takes entries of.

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
        self._lists: dict[str, None] = {}
        self._check(self._tree, 0)
        self.names, self.lists = tuple(self._names), tuple(self._lists)

    def evaluate(self, columns: Mapping[str, Any], lists: Lists | None = None) -> Any:
        """The value for columns of equal shapes; without a warning for what is not finite.

        Raises:
            ValueError: for values that it cannot be made of.
        """
        with np.errstate(all="ignore"):
            return self._value(self._tree, columns, lists)

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
            if name == "take":
                self._check_take(node, depth)
                return
            if name == "track_origin":
                self._check_origin(node, depth)
                return
            if name not in FUNCTIONS or node.keywords:
                self._refuse(node)
            if len(node.args) != _ARGUMENTS.get(name, 1):
                self._refuse(node, f"{name} with {len(node.args)} arguments")
            children = list(node.args)
        else:
            self._refuse(node)
        for child in children:
            self._check(child, depth + 1)

    def _check_take(self, node: ast.Call, depth: int) -> None:
        if node.keywords or len(node.args) not in (2, 3):
            self._refuse(node, "take without a column and an index")
        name = self._name(node.args[0])
        if name is None:
            self._refuse(node.args[0], f"take of {ast.unparse(node.args[0])[:60]}")
        self._lists[str(name)] = None
        self._check(node.args[1], depth + 1)
        entry = node.args[2] if len(node.args) == 3 else ast.Constant(0)
        if not (isinstance(entry, ast.Constant) and type(entry.value) is int and entry.value >= 0):
            self._refuse(entry, f"take with {ast.unparse(entry)[:60]} for a number")

    def _check_origin(self, node: ast.Call, depth: int) -> None:
        lists = [self._name(argument) for argument in node.args[1:]]
        if node.keywords or len(lists) != 2 or None in lists:
            self._refuse(node, "track_origin without a z and two columns")
        self._lists |= dict.fromkeys(map(str, lists))
        self._check(node.args[0], depth + 1)

    def _value(self, node: Any, columns: Mapping[str, Any], lists: Lists | None) -> Any:
        def value(child: Any) -> Any:
            return self._value(child, columns, lists)

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
            function = node.func.id  # type: ignore[attr-defined]
            if function in ("take", "track_origin") and lists is None:
                raise ValueError(f"{self.text[:60]!r}: there is nothing here to take from")
            if function == "track_origin":
                names = [str(self._name(argument)) for argument in node.args[1:]]
                return lists.origin(value(node.args[0]), *names)  # type: ignore[union-attr]
            if function == "take":
                entry = node.args[2].value if len(node.args) == 3 else None  # type: ignore
                return _number(
                    lists.take(  # type: ignore[union-attr]
                        str(self._name(node.args[0])), value(node.args[1]), entry
                    )
                )
            return FUNCTIONS[function](*map(value, node.args))
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
