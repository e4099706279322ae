"""Follows one thread through a kernel's machine code and counts the instructions on its way.

Integers and predicates are computed from the launch: its parameters, its grid, the thread's place. What is loaded from
tensors or shared memory and what is computed in floating point is unknown. Where a branch depends on that, both ways
are counted, as the lanes of a warp take either, except for calls, which are the slow paths of divisions. So a
kernel whose loops are bounded by its parameters is counted exactly for an item that lies in the middle of things.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

Word = int | None  # 32 bits, or unknown
ALL = 0xFFFFFFFF
PARAMETERS_AT = {80: 0x160, 90: 0x210}  # in the first constant bank, behind block (0) and grid (12)
COMPARE: dict[str, Callable[[int, int], bool]] = {
    "EQ": lambda a, b: a == b,
    "NE": lambda a, b: a != b,
    "LT": lambda a, b: a < b,
    "LE": lambda a, b: a <= b,
    "GT": lambda a, b: a > b,
    "GE": lambda a, b: a >= b,
}
LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;")
GUARD = re.compile(r"@(!?)(U?P\w+)\s+")
MOST = 10_000_000  # instructions of a thread


@dataclass
class Instruction:
    address: int
    guard: str  # a predicate, "PT" for always
    name: str  # without modifiers
    modifiers: list[str]
    operands: list[str]
    text: str


@dataclass
class Trace:
    """Instructions that a thread executed, in parts between the barriers of its block."""

    parts: list[Counter[str]] = field(default_factory=lambda: [Counter()])  # by name
    at: Counter[int] = field(default_factory=Counter)  # by address
    loops: set[tuple[int, int]] = field(default_factory=set)  # first and last address

    @property
    def total(self) -> int:
        return sum(self.at.values())

    def inner_loop(self, code: list[Instruction], names: tuple[str, ...]) -> tuple[int, int]:
        """(instructions, those of `names`) in the body of the smallest loop that executes most of these.

        Of a kernel with barriers, behind the first. Where no loop is left, what is executed there.
        """
        barrier = next((i.address for i in code if i.name == "BAR" and self.at[i.address]), 0)
        bodies = []
        for first, last in self.loops:
            body = [i for i in code if max(first, barrier) <= i.address <= last]
            inside = [i for i in body if i.name in names]
            if first >= barrier and inside:
                bodies.append((sum(self.at[i.address] for i in inside), len(body), len(inside)))
        most = sum(self.at[i.address] for i in code if i.name in names and i.address >= barrier)
        chosen = [(length, inside) for executed, length, inside in bodies if 2 * executed > most]
        return min(chosen, default=(sum(n for a, n in self.at.items() if a >= barrier), most))


def parse(listing: str) -> dict[str, list[Instruction]]:
    """The functions in what `cuobjdump -sass` prints, by their mangled names."""
    functions = {}
    for part in listing.split("Function : ")[1:]:
        functions[part.split("\n", 1)[0].strip()] = [_instruction(*match) for match in LINE.findall(part)]
    return functions


def _instruction(address: str, text: str) -> Instruction:
    guard, rest = "PT", text
    if match := GUARD.match(text):
        guard, rest = match.group(1) + match.group(2), text[match.end() :]
    name, _, operands = rest.partition(" ")
    name, *modifiers = name.split(".")
    split = [o.strip().replace(".reuse", "") for o in operands.split(",")] if operands else []
    return Instruction(int(address, 16), guard, name, modifiers, split, text)


class Thread:
    """A thread of a launch, `thread` of its block's first dimension. block, grid: three sizes; place: of the block."""

    def __init__(
        self,
        code: list[Instruction],
        architecture: int,
        parameters: bytes,
        block: tuple[int, int, int],
        grid: tuple[int, int, int],
        place: tuple[int, int, int],
        thread: int,
    ) -> None:
        self.code = code
        self.index = {instruction.address: n for n, instruction in enumerate(code)}
        start = PARAMETERS_AT[architecture]
        self.bank = struct.pack("6I", *block, *grid).ljust(start, b"\0") + parameters + bytes(16)
        self.params = range(start, start + len(parameters))
        self.special = dict(zip(("SR_CTAID.X", "SR_CTAID.Y", "SR_CTAID.Z"), place)) | {"SR_CgaCtaId": 0}
        self.special |= {"SR_TID.X": thread, "SR_LANEID": thread % 32, "SRZ": 0, "SR_TID.Y": 0, "SR_TID.Z": 0}
        self.registers: dict[str, Word] = {}
        self.predicates: dict[str, bool | None] = {}

    # --- operands ---

    def read(self, operand: str) -> Word:
        """A value that may reach 2^32 where it was negated, so that sums carry as the hardware's do."""
        sign, name = operand[0] if operand[0] in "-~" else "", operand.lstrip("-~")
        if re.fullmatch(r"0x[0-9a-f]+|\d+", name):
            value: Word = int(name, 0)
        elif name.startswith("c["):
            value = self.constant(name, 4)
        else:
            value = 0 if name in ("RZ", "URZ") else self.registers.get(name)
        if value is None or not sign:
            return value
        return (value ^ ALL) + (sign == "-")

    def constant(self, operand: str, size: int) -> Word:
        match = re.fullmatch(r"c\[0x0\]\[(?:(U?R\w+)\+?)?(-?0x[0-9a-f]+)?\]", operand)
        if match is None:
            return None
        base = self.read(match.group(1)) if match.group(1) else 0
        at = None if base is None else base + int(match.group(2) or "0", 16)
        if at is None or (at not in self.params and at >= 24):
            return None
        return int.from_bytes(self.bank[at : at + size], "little")

    def wide(self, operand: str) -> Word:
        """64 bits, from a pair of registers."""
        if operand.startswith("c["):
            return self.constant(operand, 8)
        low, high = self.read(operand), self.read(_next(operand))
        return None if low is None or high is None else low & ALL | (high & ALL) << 32

    def test(self, operand: str) -> bool | None:
        value = True if operand.lstrip("!") in ("PT", "UPT") else self.predicates.get(operand.lstrip("!"))
        return value if value is None or operand[0] != "!" else not value

    def write(self, operand: str, value: Word) -> None:
        if operand not in ("RZ", "URZ"):
            self.registers[operand] = None if value is None else value & ALL

    def write_wide(self, operand: str, value: Word) -> None:
        self.write(operand, value)
        self.write(_next(operand), None if value is None else value >> 32)

    # --- execution ---

    def run(self) -> Trace:
        trace, n, calls, waiting = Trace(), 0, [], set()
        decided: set[tuple[int, int]] = set()
        undecided: set[tuple[int, int]] = set()
        for _ in range(MOST):
            i = self.code[n]
            waiting.discard(i.address)
            trace.at[i.address] += 1
            trace.parts[-1][i.name] += 1
            go, n = self.test(i.guard), n + 1
            if i.name in ("EXIT", "RET", "BAR", "CALL", "BRA", "BRX"):
                if i.name == "BRA" and len(i.operands) == 2:
                    go = _and(go, self.test(i.operands[0]) if "DIV" not in i.modifiers else False)
                if i.name == "EXIT" and go:
                    if undecided - decided:
                        raise ValueError(f"loops that depend on what is loaded: {sorted(undecided - decided)}")
                    return trace
                if i.name == "BAR":
                    trace.parts.append(Counter())
                elif i.name == "RET":
                    n = calls.pop()
                elif i.name == "CALL" and go:
                    calls.append(n)
                    n = self.index[int(i.operands[-1], 16)]
                elif i.name == "BRX":
                    raise ValueError(f"a branch to a computed address: {i.text}")
                elif i.name == "BRA":
                    target = int(i.operands[-1], 16)
                    if target <= i.address:
                        (decided if go is not None else undecided).add((target, i.address))
                        trace.loops.add((target, i.address))
                        if go:
                            n = self.index[target]
                    elif go is None:
                        if self.calls_between(n):
                            n = self.index[target]
                        elif not self.calls_between(self.index[target]):
                            waiting.add(target)
                    elif go:
                        # The other way of an unknown branch, which this one leaps over, comes first.
                        between = [w for w in waiting if i.address < w < target and i.guard == "PT"]
                        n = self.index[min(between, default=target)]
            elif go is not False:
                self.execute(i, go is None)
        raise ValueError(f"more than {MOST} instructions")

    def calls_between(self, n: int) -> bool:
        """Whether the straight line of code from the n-th instruction on calls a function."""
        for i in self.code[n : n + 40]:
            if i.name == "CALL":
                return True
            if i.name in ("BRA", "EXIT", "RET", "BSYNC"):
                return False
        return False

    def execute(self, i: Instruction, unsure: bool) -> None:
        """Sets what an instruction writes: to unknown where that is, or whether it is executed."""
        rule = getattr(self, f"do_{i.name.removeprefix('U')}", None)  # the uniform data path has the same operations
        if rule is not None and not unsure:
            rule(i.modifiers, i.operands)
        else:
            doubles = ["64"] if i.name[0] == "D" or i.name == "CS2R" else []
            self.execute_unknown([*i.modifiers, *doubles], i.operands)

    def execute_unknown(self, modifiers: list[str], operands: list[str]) -> None:
        for n, operand in enumerate(operands[:3]):
            if re.fullmatch(r"U?P\d", operand):
                self.predicates[operand] = None
            elif re.fullmatch(r"U?R\d+", operand):
                size = 4 if "128" in modifiers else 2 if {"64", "WIDE", "F64"} & set(modifiers) else 1
                for _ in range(size):
                    self.write(operand, None)
                    operand = _next(operand)
                return
            elif n == 0 and operand not in ("PT", "UPT"):
                return

    def split(self, operands: list[str]) -> tuple[str, list[str], list[str], list[str]]:
        """Destination, predicates that are written, sources, predicates that are read."""
        first, *others = operands
        n = 0
        while n < len(others) and _is_predicate(others[n]):
            n += 1
        rest = others[n:]
        return first, others[:n], [o for o in rest if not _is_predicate(o)], [o for o in rest if _is_predicate(o)]

    def add(self, target: str, carries: list[str], terms: list[Word], more: list[bool | None]) -> None:
        known = None not in terms and None not in more
        total = sum(t for t in terms if t is not None) + sum(map(bool, more)) if known else None
        self.write(target, total)
        for carry in carries:
            self.predicates[carry] = None if total is None else total >> 32 > 0

    def do_IADD3(self, modifiers: list[str], operands: list[str]) -> None:
        target, carries, sources, more = self.split(operands)
        self.add(target, carries, [self.read(s) for s in sources], [self.test(p) for p in more])

    do_VIADD = do_IADD = do_IADD3

    def do_MOV(self, modifiers: list[str], operands: list[str]) -> None:
        self.write(operands[0], self.read(operands[1]))

    do_R2UR = do_MOV

    def do_IMAD(self, modifiers: list[str], operands: list[str]) -> None:
        target, carries, (a, b, c), more = self.split(operands)
        x, y = self.read(a), self.read(b)
        product = 0 if 0 in (x, y) else None
        if x is not None and y is not None:
            signed = "U32" not in modifiers and set(modifiers) & {"WIDE", "HI"}
            product = _signed(x) * _signed(y) if signed else (x & ALL) * (y & ALL)
        if not set(modifiers) & {"WIDE", "HI"}:
            self.add(target, carries, [product and product & ALL, self.read(c)], [self.test(p) for p in more])
            return
        addend = self.wide(c) if c not in ("RZ", "URZ") else 0
        total = None if product is None or addend is None else product + addend
        if "HI" in modifiers:
            self.write(target, None if total is None else total >> 32)
        else:
            self.write_wide(target, total)
        for carry in carries:
            self.predicates[carry] = None if total is None else total >> 64 > 0

    def do_LEA(self, modifiers: list[str], operands: list[str]) -> None:
        target, carries, sources, more = self.split(operands)
        values, shift = [self.read(s) for s in sources[:-1]], int(sources[-1], 16)
        if values[0] is None or (len(values) == 3 and values[2] is None):
            self.add(target, carries, [None], [])
            return
        shifted = (values[0] & ALL) << shift
        if "HI" in modifiers:
            high = values[2] if len(values) == 3 else 0
            whole = _signed(values[0]) if "SX32" in modifiers else values[0] & ALL | ((high or 0) & ALL) << 32
            shifted = whole >> (32 - shift)
        self.add(target, carries, [shifted & ALL, values[1]], [self.test(p) for p in more])

    def do_SHF(self, modifiers: list[str], operands: list[str]) -> None:
        low, by, high = (self.read(o) for o in operands[1:4])
        if by is None or ("HI" in modifiers and high is None) or ("L" in modifiers and low is None):
            self.write(operands[0], None)
            return
        by = min(by, 63)
        if "64" in "".join(modifiers):
            whole = None if low is None or high is None else low & ALL | (high & ALL) << 32
            shifted = None if whole is None else whole << by if "L" in modifiers else whole >> by
            value = shifted if shifted is None or "HI" not in modifiers else shifted >> 32
        elif "L" in modifiers:
            value = (low or 0) << by
        else:
            source = high if "HI" in modifiers else low
            value = None if source is None else (_signed(source) if "S32" in modifiers else source & ALL) >> by
        self.write(operands[0], value)

    def do_LOP3(self, modifiers: list[str], operands: list[str]) -> None:
        written = _is_predicate(operands[0])
        target, predicates, sources, _ = self.split(operands[1:] if written else operands)
        predicates = [operands[0]] if written else predicates
        a, b, c = (self.read(s) for s in sources[:3])
        table = int(sources[3], 16)
        value: Word = None
        if None not in (a, b, c):
            value = sum((table >> ((a >> n & 1) << 2 | (b >> n & 1) << 1 | (c >> n & 1)) & 1) << n for n in range(32))
        self.write(target, value)
        for predicate in predicates:
            self.predicates[predicate] = None if value is None else value != 0

    def do_PLOP3(self, modifiers: list[str], operands: list[str]) -> None:
        values = [self.test(o) for o in operands[2:5]]
        for target, lut in zip(operands[:2], operands[5:7]):
            table = int(lut, 16)
            found = {bool(table >> (a << 2 | b << 1 | c) & 1) for a, b, c in _choices(values)}
            self.predicates[target] = found.pop() if len(found) == 1 else None

    def do_ISETP(self, modifiers: list[str], operands: list[str]) -> None:
        a, b = self.read(operands[2]), self.read(operands[3])
        result: bool | None = None
        if a is not None and b is not None:
            signed = "U32" not in modifiers
            x, y = (_signed(a), _signed(b)) if signed else (a & ALL, b & ALL)
            result = COMPARE[modifiers[0]](x, y)
            if "EX" in modifiers:
                lower = self.test(operands[5])
                result = lower if x == y else COMPARE[modifiers[0]](x, y)
        both = _and if "AND" in modifiers else _or
        more = self.test(operands[4])
        self.predicates[operands[0]] = both(result, more)
        self.predicates[operands[1]] = both(None if result is None else not result, more)

    def do_SEL(self, modifiers: list[str], operands: list[str]) -> None:
        first, a, b = self.test(operands[3]), self.read(operands[1]), self.read(operands[2])
        self.write(operands[0], a if first or a == b else b if first is False else None)

    def do_IMNMX(self, modifiers: list[str], operands: list[str]) -> None:
        self.extreme(modifiers, operands[0], self.read(operands[1]), self.read(operands[2]), operands[3])

    do_VIMNMX = do_IMNMX

    def do_VIADDMNMX(self, modifiers: list[str], operands: list[str]) -> None:
        a, b = self.read(operands[1]), self.read(operands[2])
        total = None if a is None or b is None else a + b
        self.extreme(modifiers, operands[0], total, self.read(operands[3]), operands[4])

    def extreme(self, modifiers: list[str], target: str, a: Word, b: Word, least: str) -> None:
        if a is None or b is None:
            self.write(target, None)
            return
        key = (lambda x: x & ALL) if "U32" in modifiers else _signed
        self.write(target, min(a, b, key=key) if self.test(least) else max(a, b, key=key))

    def do_IABS(self, modifiers: list[str], operands: list[str]) -> None:
        value = self.read(operands[1])
        self.write(operands[0], None if value is None else abs(_signed(value)))

    def do_LDC(self, modifiers: list[str], operands: list[str]) -> None:
        size = {"64": 8, "U8": 1, "S8": 1, "U16": 2, "S16": 2}.get(modifiers[0] if modifiers else "", 4)
        value = self.constant(operands[1].replace("RZ", "0x0"), size)
        (self.write_wide if size == 8 else self.write)(operands[0], value)

    def do_S2R(self, modifiers: list[str], operands: list[str]) -> None:
        self.write(operands[0], self.special.get(operands[1]))

    do_S2UR = do_S2R

    def do_CS2R(self, modifiers: list[str], operands: list[str]) -> None:
        value = self.special.get(operands[1])
        (self.write if "32" in modifiers else self.write_wide)(operands[0], value)

    def do_HFMA2(self, modifiers: list[str], operands: list[str]) -> None:
        value: Word = None
        if operands[1:3] == ["-RZ", "RZ"]:  # how constants are made
            value = int.from_bytes(struct.pack("<2e", float(operands[4]), float(operands[3])), "little")
        self.write(operands[0], value)

    # Divisions by what only the launch knows start from a reciprocal in float32.
    def do_I2F(self, modifiers: list[str], operands: list[str]) -> None:
        value = self.read(operands[1]) if modifiers in (["U32", "RP"], ["RP"]) else None
        if value is None:
            self.execute_unknown(["F64"] if "F64" in modifiers else [], operands)
            return
        number = value & ALL if "U32" in modifiers else _signed(value)
        bits = _bits(float(number))
        self.write(operands[0], bits + (_float(bits) < number))

    def do_MUFU(self, modifiers: list[str], operands: list[str]) -> None:
        value = self.read(operands[1]) if modifiers == ["RCP"] else None
        self.write(operands[0], _bits(1 / _float(value & ALL)) if value and _float(value & ALL) else None)

    def do_F2I(self, modifiers: list[str], operands: list[str]) -> None:
        value = self.read(operands[1]) if "TRUNC" in modifiers and not {"U64", "S64", "F64"} & set(modifiers) else None
        if value is None:
            self.execute_unknown(["64"] if "64" in "".join(modifiers) else [], operands)
            return
        number = _float(value & ALL)
        self.write(operands[0], int(number) if number == number and abs(number) < 2**32 else None)

    def do_VOTE(self, modifiers: list[str], operands: list[str]) -> None:
        self.predicates[operands[0]] = self.test(operands[1])

    do_VOTEU = do_VOTE


def _next(register: str) -> str:
    match = re.fullmatch(r"([-~]?U?R)(\d+)", register)
    return f"{match.group(1)}{int(match.group(2)) + 1}" if match else register


def _bits(number: float) -> int:
    return int.from_bytes(struct.pack("<f", number), "little")


def _float(bits: int) -> float:
    return float(struct.unpack("<f", bits.to_bytes(4, "little"))[0])


def _is_predicate(operand: str) -> bool:
    return re.fullmatch(r"!?U?P(\d|T)", operand) is not None


def _signed(value: int) -> int:
    value &= ALL
    return value - (1 << 32) if value >> 31 else value


def _and(a: bool | None, b: bool | None) -> bool | None:
    return False if a is False or b is False else None if a is None or b is None else True


def _or(a: bool | None, b: bool | None) -> bool | None:
    return True if a or b else None if a is None or b is None else False


def _choices(values: list[bool | None]) -> Iterator[tuple[bool, ...]]:
    if not values:
        yield ()
        return
    for first in (False, True) if values[0] is None else (values[0],):
        for rest in _choices(values[1:]):
            yield (first, *rest)
