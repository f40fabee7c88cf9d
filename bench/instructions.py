"""Instructions of a compiled kernel: those it has, and those that a warp of a launch issues.

A warp's walk through the disassembled kernel is followed: thread 0 of one block, with the integers
of the launch. What loops count with is computed as the GPU does; results of floating-point
arithmetic and of memory are unknown, but for what the thread itself stored and for the arrays that
``Memory`` describes. A shuffle returns what the thread gave, as if all lanes had the same. An
instruction counts once whenever a warp issues it, whatever its predicate, and every warp of a block
is taken to walk like the first. A branch onwards that depends on what is unknown is not taken: what
it would skip counts. On a branch back that does, the walk is given up.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

Known = int | None
Bits = tuple[int, int]  # a word some bits of which, the second, are unknown
Memory = Mapping[int, Callable[[int], int]]  # base address: value at a byte offset from there

WORD = 0xFFFFFFFF
STACK = 1 << 60  # where the thread's own memory begins
MOST = 5_000_000  # instructions of a walk, after which it is given up
_LINE = re.compile(
    r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?)(U?P[0-9T]+)\s+)?([A-Z][A-Z0-9_.]*)\s*(.*?)\s*;"
)
_ADDRESS = re.compile(r"(?:desc\[\w+\])?\[(.*)\]")
_BANK = re.compile(r"c\[0x0\]\[(.+)\]")
ORDER = {"LT": int.__lt__, "LE": int.__le__, "GT": int.__gt__, "GE": int.__ge__,
         "EQ": int.__eq__, "NE": int.__ne__}  # fmt: skip


class Lost(Exception):
    """The walk cannot be followed: a loop whose trips depend on data, or a call that is unknown."""


class Instruction(NamedTuple):
    """One line of the disassembly; ``guard``: a predicate's name, ``negated``, "" for none."""

    address: int
    negated: bool
    guard: str
    name: str
    operands: tuple[str, ...]


def parsed(text: str) -> tuple[list[Instruction], dict[str, int]]:
    """The instructions of ``nvdisasm -c`` without what pads, and which of them labels name."""
    found: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if line.startswith(".L_") and line.endswith(":"):
            labels[line[:-1]] = len(found)
        elif match := _LINE.match(line):
            address, negated, guard, name, operands = match.groups()
            split = tuple(o.strip().removesuffix(".reuse") for o in operands.split(",") if o)
            found.append(Instruction(int(address, 16), bool(negated), guard or "", name, split))
    return found, labels


class Walk:
    """A thread's registers and memory on its way through a kernel.

    Args:
        bank: bytes of the constant bank, where a kernel's parameters are: value of each word.
        special: values of special registers, such as SR_CTAID.X.
    """

    def __init__(self, bank: Mapping[int, int], special: Mapping[str, int], memory: Memory) -> None:
        self.bank, self.special, self.arrays = bank, special, memory
        self.registers: dict[str, Known | Bits] = {}
        self.stored: dict[tuple[str, int], Bits] = {}

    # -- operands -------------------------------------------------------------------------------

    def word(self, operand: str) -> Known:
        """Value of a register, immediate or constant, 32 bits."""
        operand = operand.removesuffix(".reuse").removesuffix(".64")
        if operand[0] in "-~" and not operand[1:2].isdigit():
            value = self.word(operand[1:])
            return None if value is None else (-value if operand[0] == "-" else ~value) & WORD
        if operand[0].isdigit() or operand[0] == "-":
            try:
                return int(operand, 0) & WORD
            except ValueError:
                return None  # a floating-point number
        if match := _BANK.fullmatch(operand):
            place = self._sum(match[1])
            return None if place is None else self.bank.get(place)
        if operand in ("RZ", "URZ"):
            return 0
        found = self.registers.get(operand)
        return None if isinstance(found, tuple) else found

    def bits(self, operand: str) -> Bits:
        """Value of a word of which bits may be unknown, such as one that predicates were put in."""
        found = self.registers.get(operand)
        if isinstance(found, tuple):
            return found
        word = self.word(operand)
        return (0, WORD) if word is None else (word, 0)

    def pair(self, operand: str) -> Known:
        """Value of two registers, 64 bits."""
        low = self.word(operand)
        if operand in ("RZ", "URZ"):
            return 0
        high = self.word(_after(operand)) if operand[0] in "RU" else None
        if _BANK.fullmatch(operand):
            place = self._sum(_BANK.fullmatch(operand)[1])  # type: ignore[index]
            high = None if place is None else self.bank.get(place + 4)
        elif high is None and low is not None and operand[0] not in "RU":
            high = WORD if low >> 31 else 0
        return None if low is None or high is None else high << 32 | low

    def truth(self, operand: str) -> bool | None:
        """Value of a predicate."""
        negated = operand.startswith("!")
        name = operand.removeprefix("!")
        value = True if name in ("PT", "UPT") else self.word(name)
        return None if value is None else bool(value) != negated

    def _sum(self, text: str) -> Known:
        total = 0
        for part in text.split("+"):
            value = self.word(part)
            if value is None:
                return None
            total += value - (1 << 32) if part.startswith("-") else value
        return total

    def address(self, operand: str, space: str) -> Known:
        """Of a memory operand such as desc[UR4][R2.64+0x10]."""
        match = _ADDRESS.fullmatch(operand)
        if not match:
            return None
        total = 0
        for part in match[1].split("+"):
            wide = part.endswith(".64") or (space == "G" and part.startswith("U"))
            value = self.pair(part.removesuffix(".64")) if wide else self.word(part)
            if value is None:
                return None
            immediate = part.startswith(("-", "0x"))
            total += value - (1 << 32) if immediate and value >> 31 else value
        return total

    def put(self, register: str, value: Known, words: int = 1) -> None:
        """Sets a register, or ``words`` that follow each other."""
        for i in range(words):
            part = None if value is None else value >> 32 * i & WORD
            if register not in ("RZ", "URZ", "PT", "UPT"):
                self.registers[register] = part
            register = _after(register)

    def put_bits(self, register: str, value: int, unknown: int) -> None:
        self.put(register, None if unknown == WORD else value)
        if 0 < unknown < WORD and register not in ("RZ", "URZ"):
            self.registers[register] = value & ~unknown, unknown

    def flag(self, register: str, value: bool | None) -> None:
        self.put(register, None if value is None else int(value))

    # -- instructions ---------------------------------------------------------------------------

    def run(self, step: Instruction) -> None:
        """What an instruction does to registers and memory, or that they are unknown."""
        base, *kinds = step.name.split(".")
        base = base[1:] if base[0] == "U" and hasattr(self, f"do_{base[1:].lower()}") else base
        do = getattr(self, f"do_{base.lower()}", None)
        if do is not None:
            do(kinds, step.operands)
        elif step.operands:
            self.forget(step.name, step.operands)

    def forget(self, name: str, operands: tuple[str, ...]) -> None:
        words = 4 if ".128" in name else 2 if ".64" in name or ".WIDE" in name else 1
        for operand in operands[:3]:
            if not re.fullmatch(r"U?P\d", operand):
                break
            self.registers[operand] = None
        first = next((o for o in operands if re.fullmatch(r"U?R\d+", o)), None)
        if first and first in operands[:3] and not name.startswith(("ST", "RED", "BAR")):
            self.put(first, None, words)

    def do_mov(self, kinds: list[str], o: tuple[str, ...]) -> None:
        self.put_bits(o[0], *self.bits(o[1]))

    def do_s2r(self, kinds: list[str], o: tuple[str, ...]) -> None:
        self.put(o[0], self.special.get(o[1], 0))

    do_s2ur = do_s2r

    def do_cs2r(self, kinds: list[str], o: tuple[str, ...]) -> None:
        self.put(o[0], 0 if o[1] == "SRZ" else None, 1 if "32" in kinds else 2)

    def do_ldc(self, kinds: list[str], o: tuple[str, ...]) -> None:
        wide = "64" in kinds
        self.put(o[0], self.pair(o[1]) if wide else self.word(o[1]), 1 + wide)

    def do_r2ur(self, kinds: list[str], o: tuple[str, ...]) -> None:
        self.put(o[0], self.word(o[1]))

    def do_shfl(self, kinds: list[str], o: tuple[str, ...]) -> None:
        self.put(o[1], self.word(o[2]))

    def do_redux(self, kinds: list[str], o: tuple[str, ...]) -> None:
        self.put(o[0], self.word(o[1]) if {"MIN", "MAX", "OR", "AND"} & set(kinds) else None)

    def do_iadd3(self, kinds: list[str], o: tuple[str, ...]) -> None:
        target, rest = o[0], list(o[1:])
        carries = []
        while rest and re.fullmatch(r"U?P[\dT]", rest[0]):
            carries.append(rest.pop(0))
        wide = "64" in kinds
        terms = [self.pair(r) if wide else self.word(r) for r in rest[:3]]
        extra = [self.truth(p) for p in rest[3:]] if "X" in kinds else []
        if None in terms or None in extra:
            self.put(target, None, 1 + wide)
            for carry in carries:
                self.flag(carry, None)
            return
        # A carry of a subtraction is that of adding the complement and one.
        total = sum(terms) + sum(extra)  # type: ignore[arg-type]
        self.put(target, total, 1 + wide)
        zero_negated = sum(r[0] == "-" and t == 0 for r, t in zip(rest, terms, strict=False))
        for carry in carries:
            self.flag(carry, bool((total >> 32) + zero_negated))

    def do_viadd(self, kinds: list[str], o: tuple[str, ...]) -> None:
        terms = [self.word(t) for t in o[1:3]]
        self.put(o[0], None if None in terms else sum(terms))  # type: ignore[arg-type]

    def do_imad(self, kinds: list[str], o: tuple[str, ...]) -> None:
        rest = [p for p in o[1:] if not re.fullmatch(r"!?U?P[\dT]", p)]
        if kinds[:1] == ["MOV"]:
            self.do_mov(kinds, (o[0], rest[2]))
            return
        wide, high = "WIDE" in kinds, "HI" in kinds
        a, b = self.word(rest[0]), self.word(rest[1])
        c = self.pair(rest[2]) if wide else self.word(rest[2])
        zero = rest[0] in ("RZ", "URZ") or rest[1] in ("RZ", "URZ")
        carry = self.truth(o[-1]) if "X" in kinds else False
        if c is None or carry is None or (not zero and (a is None or b is None)):
            self.put(o[0], None, 1 + wide)
            return
        c += carry
        factors = (a or 0, b or 0)
        if (wide or high) and "U32" not in kinds:
            factors = (_signed(factors[0]), _signed(factors[1]))
        product = 0 if zero else factors[0] * factors[1]
        self.put(o[0], (product >> 32) + c if high else product + c, 1 + wide)

    def do_isetp(self, kinds: list[str], o: tuple[str, ...]) -> None:
        a, b, combine = self.word(o[2]), self.word(o[3]), self.truth(o[4])
        how = "OR" if "OR" in kinds else "XOR" if "XOR" in kinds else "AND"
        value: bool | None = None
        if a is not None and b is not None:
            if "U32" not in kinds:
                a, b = _signed(a), _signed(b)
            value = ORDER[kinds[0]](a, b)
            if "EX" in kinds and (a == b):
                value = self.truth(o[5])
            elif "EX" in kinds and kinds[0] in ("EQ", "NE"):
                value = kinds[0] == "NE"
        self.flag(o[0], _joined(how, value, combine))
        self.flag(o[1], _joined(how, None if value is None else not value, combine))

    def do_lop3(self, kinds: list[str], o: tuple[str, ...]) -> None:
        flag = o[0] if re.fullmatch(r"U?P[\dT]", o[0]) else ""
        target, *rest = o[1:] if flag else o
        value, unknown = _by_table(int(rest[3], 0), [self.bits(r) for r in rest[:3]])
        self.put_bits(target, value, unknown)
        if flag:
            self.flag(flag, True if value & ~unknown else None if unknown else False)

    def do_plop3(self, kinds: list[str], o: tuple[str, ...]) -> None:
        terms = [(0, 1) if t is None else (int(t), 0) for t in map(self.truth, o[2:5])]
        for flag, table in zip(o[:2], o[5:7], strict=True):
            value, unknown = _by_table(int(table, 0), terms)
            self.flag(flag, None if unknown & 1 else bool(value & 1))

    def do_shf(self, kinds: list[str], o: tuple[str, ...]) -> None:
        low, by, high = (self.word(p) for p in o[1:4])
        used = {"L": ("HI" in kinds, "HI" not in kinds or "U64" in kinds)}.get(
            kinds[0], ("HI" in kinds, "HI" not in kinds)
        )
        if by is None or (used[0] and high is None) or (used[1] and low is None):
            self.put(o[0], None)
            return
        by = min(by, 63)
        both = (high or 0) << 32 | (low or 0)
        if kinds[0] == "L":
            value = both << by >> 32 if "HI" in kinds else (low or 0) << by
        elif "HI" in kinds:
            value = (_signed(high or 0) if "S32" in kinds else (high or 0)) >> by
        else:
            value = both >> by
        self.put(o[0], value)

    def do_lea(self, kinds: list[str], o: tuple[str, ...]) -> None:
        flag = o[1] if re.fullmatch(r"U?P[\dT]", o[1]) else ""
        target, rest = o[0], list(o[2:] if flag else o[1:])
        carry = self.truth(rest.pop()) if "X" in kinds else False
        a, b = self.word(rest[0]), self.word(rest[1])
        by = int(rest[-1], 0)
        value: Known = None
        if "HI" not in kinds:
            if a is not None and b is not None:
                value = (a << by & WORD) + b
        else:
            sign = "SX32" in kinds
            high = (WORD if a is not None and a >> 31 else 0) if sign else self.word(rest[2])
            if None not in (a, b, high, carry):
                value = ((high << 32 | a) >> (32 - by) & WORD) + b + bool(carry)  # type: ignore[operator]
        self.put(target, value)
        if flag:
            self.flag(flag, None if value is None else bool(value >> 32))

    def do_sel(self, kinds: list[str], o: tuple[str, ...]) -> None:
        choice = self.truth(o[3])
        options = self.word(o[1]), self.word(o[2])
        same = options[0] if options[0] == options[1] else None
        self.put(o[0], same if choice is None else options[not choice])

    def do_imnmx(self, kinds: list[str], o: tuple[str, ...]) -> None:
        flags = [p for p in o[1:] if re.fullmatch(r"!?U?P[\dT]", p)]
        rest = [p for p in o[1:] if p not in flags]
        a, b, least = self.word(rest[0]), self.word(rest[1]), self.truth(flags[-1])
        if a is None or b is None or least is None:
            self.put(o[0], None)
        else:
            key = int if "U32" in kinds else _signed
            self.put(o[0], (min if least else max)(a, b, key=key))

    do_vimnmx = do_imnmx

    def do_viaddmnmx(self, kinds: list[str], o: tuple[str, ...]) -> None:
        a, b, c, least = self.word(o[1]), self.word(o[2]), self.word(o[3]), self.truth(o[4])
        if a is None or b is None or c is None or least is None:
            self.put(o[0], None)
        else:
            key = int if "U32" in kinds else _signed
            self.put(o[0], (min if least else max)(a + b & WORD, c, key=key))

    def do_sgxt(self, kinds: list[str], o: tuple[str, ...]) -> None:
        value, bits = self.word(o[1]), self.word(o[2])
        if value is None or bits is None:
            self.put(o[0], None)
            return
        value &= (1 << bits) - 1
        if "U32" not in kinds and bits and value >> (bits - 1):
            value -= 1 << bits
        self.put(o[0], value & WORD)

    def do_p2r(self, kinds: list[str], o: tuple[str, ...]) -> None:
        (before, unknown), mask = self.bits(o[2]), self.word(o[3]) if len(o) > 3 else 0x7F
        shift, value = _byte(kinds), 0
        mask = 0x7F if mask is None else mask
        for i in range(7):
            flag = self.truth(f"P{i}")
            value |= (flag or 0) << i
            unknown = unknown & ~(mask & 1 << i) << shift | (flag is None) << i & mask << shift
        self.put_bits(o[0], before & ~(mask << shift) | (value & mask) << shift, unknown & WORD)

    def do_r2p(self, kinds: list[str], o: tuple[str, ...]) -> None:
        (value, unknown), mask, shift = self.bits(o[1]), self.word(o[2]), _byte(kinds)
        for i in range(7):
            if mask is None or mask >> i & 1:
                known = not unknown >> (i + shift) & 1
                self.flag(f"P{i}", bool(value >> (i + shift) & 1) if known else None)

    def do_prmt(self, kinds: list[str], o: tuple[str, ...]) -> None:
        a, select, b = self.bits(o[1]), self.word(o[2]), self.bits(o[3])
        if select is None or kinds:
            self.put(o[0], None)
            return
        value = unknown = 0
        for i in range(4):
            at = select >> 4 * i & 0xF
            word, holes = (part >> 8 * (at & 3) & 0xFF for part in (a if at & 7 < 4 else b))
            if at & 8:
                word, holes = 0xFF * (word >> 7), 0xFF * (holes >> 7)
            value, unknown = value | word << 8 * i, unknown | holes << 8 * i
        self.put_bits(o[0], value, unknown)

    # -- memory ---------------------------------------------------------------------------------

    def _store(self, space: str, kinds: list[str], o: tuple[str, ...]) -> None:
        at = self.address(o[0], space)
        if at is None:
            return
        register = o[1]
        for i in range(_words(kinds)):
            self.stored[space, at + 4 * i] = self.bits(register)
            register = _after(register)

    def _load(self, space: str, kinds: list[str], o: tuple[str, ...]) -> None:
        at = self.address(o[-1] if o[-1].endswith("]") else o[1], space)
        register = next(p for p in o if re.fullmatch(r"U?R(\d+|Z)", p))
        for i in range(_words(kinds)):
            known = (0, WORD) if at is None else self.stored.get((space, at + 4 * i), (0, WORD))
            if space == "G" and at is not None:
                array = self.arrays.get(at >> 44 << 44)
                known = (array(at + 4 * i & (1 << 44) - 1), 0) if array else (0, WORD)
            self.put_bits(register, *known)
            register = _after(register)

    def do_stl(self, kinds: list[str], o: tuple[str, ...]) -> None:
        self._store("L", kinds, o)

    def do_ldl(self, kinds: list[str], o: tuple[str, ...]) -> None:
        self._load("L", kinds, o)

    def do_sts(self, kinds: list[str], o: tuple[str, ...]) -> None:
        self._store("S", kinds, o)

    def do_lds(self, kinds: list[str], o: tuple[str, ...]) -> None:
        self._load("S", kinds, o)

    def do_ldg(self, kinds: list[str], o: tuple[str, ...]) -> None:
        self._load("G", kinds, o)


def issued(text: str, walk: Walk) -> Counter[int]:
    """How often a warp issues each instruction of ``nvdisasm -c``, by address; not what waits.

    Raises:
        Lost: if the walk cannot be followed.
    """
    program, labels = parsed(text)
    places = {step.address: i for i, step in enumerate(program)}
    counts: Counter[int] = Counter()
    at = total = 0
    while at < len(program):
        step = program[at]
        at += 1
        total += 1
        if total > MOST:
            raise Lost(f"no end after {MOST} instructions")
        if not step.name.startswith("NOP"):
            counts[step.address] += 1
        taken = walk.truth(("!" if step.negated else "") + step.guard) if step.guard else True
        if step.name.startswith("EXIT"):
            if taken:
                return counts
        elif step.name.startswith("BRA") and "DIV" not in step.name:
            *conditions, target = step.operands
            for condition in conditions:
                value = walk.truth(condition)
                taken = None if taken is None or value is None else taken and value
            place = labels[target.removeprefix("`(").removesuffix(")")]
            if taken is None and place < at:
                raise Lost(f"a loop at {step.address:x} whose trips depend on data")
            at = place if taken else at
        elif step.name.startswith("CALL"):
            if taken is None:
                raise Lost(f"a call at {step.address:x} that depends on data")
            if not taken:
                continue
            at = labels.get(step.operands[-1].removeprefix("`(").removesuffix(")"), -1)
            if at < 0:
                raise Lost("a call of what is not in the kernel")
        elif step.name.startswith("RET"):
            back = walk.word(step.operands[0])
            if back not in places:
                raise Lost("a return to an unknown place")
            at = places[back]
        elif taken is None:
            walk.forget(step.name, step.operands)
        elif taken:
            walk.run(step)
    return counts


def _after(register: str) -> str:
    match = re.fullmatch(r"([A-Z]+)(\d+)", register)
    return f"{match[1]}{int(match[2]) + 1}" if match else register


def _signed(word: int) -> int:
    return word - (1 << 32) if word >> 31 else word


def _words(kinds: list[str]) -> int:
    return 4 if "128" in kinds else 2 if "64" in kinds else 1


def _joined(how: str, a: bool | None, b: bool | None) -> bool | None:
    if how == "AND" and (a is False or b is False):
        return False
    if how == "OR" and (a or b):
        return True
    if a is None or b is None:
        return None
    return a != b if how == "XOR" else (a and b) if how == "AND" else (a or b)


def _byte(kinds: list[str]) -> int:
    """Where the byte of a register begins that predicates are put in or taken from."""
    return 8 * next((int(kind[1]) for kind in kinds if re.fullmatch(r"B\d", kind)), 0)


def _by_table(table: int, terms: list[Bits]) -> Bits:
    """What LOP3 and PLOP3 make of three terms, bit by bit: what varies with the unknown is that."""
    found = []
    for guess in range(8):
        a, b, c = (v | u if guess >> i & 1 else v & ~u for i, (v, u) in enumerate(terms))
        value = 0
        for i in range(8):
            if table >> i & 1:
                value |= (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
        found.append(value & WORD)
    unknown = 0
    for value in found:
        unknown |= value ^ found[0]
    return found[0], unknown
