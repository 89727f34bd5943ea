"""PTX text to instructions: statements, registers and labels of inline-assembly scopes, source lines."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from types import MappingProxyType

from cupy_intfa.ptxsim.errors import PtxError
from cupy_intfa.ptxsim.operands import Immediate, Operand, parse_operand, split


@dataclass(frozen=True)
class Line:
    """A place in the source: file, line, and the places that it was inlined at, outwards."""

    file: str
    number: int
    callers: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        """Write ``file:line``, and from where it was reached."""
        chain = "".join(f" < {file}:{number}" for file, number in self.callers)
        return f"{self.file}:{self.number}{chain}" if self.number else "no line"


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Parameters
    ----------
    opcode : str
        In full, ``ld.global.v2.u32``.
    arguments : str
        The operands as they stand.
    line : Line
        Where it comes from.
    guard : str
        Register of the predicate, or empty.
    negated : bool
        Whether the guard is negated.
    """

    opcode: str
    arguments: str
    line: Line
    guard: str = ""
    negated: bool = False

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """The opcode at its points."""
        return tuple(self.opcode.split("."))

    @cached_property
    def operands(self) -> tuple[Operand, ...]:
        """The operands, read."""
        return tuple(parse_operand(text) for text in split(self.arguments))

    def __str__(self) -> str:
        """Write the instruction, shortened."""
        guard = f"@{'!' * self.negated}{self.guard} " if self.guard else ""
        text = " ".join(f"{guard}{self.opcode} {self.arguments}".split())
        return text if len(text) <= 110 else text[:107] + "..."


@dataclass(frozen=True)
class Variable:
    """A variable: name, alignment, bytes, and its first bytes where they are given."""

    name: str
    align: int
    size: int
    content: bytes = b""


@dataclass(frozen=True)
class Entry:
    """A kernel, parsed.

    Parameters
    ----------
    name : str
        Of the entry.
    parameters, shared, local, constants : tuple of Variable
        Parameters with their offsets given by order and alignment; variables of shared and of local memory; module
        variables in global or constant memory.
    dynamic : Variable or None
        The array of dynamic shared memory.
    registers : mapping of str to int
        Width in bits, 1 for a predicate.
    code : tuple of Instruction
        The body; a label is the index of the instruction behind it.
    labels : mapping of str to int
        Index by label.
    """

    name: str
    parameters: tuple[Variable, ...]
    shared: tuple[Variable, ...]
    local: tuple[Variable, ...]
    constants: tuple[Variable, ...]
    dynamic: Variable | None
    registers: Mapping[str, int]
    code: tuple[Instruction, ...]
    labels: Mapping[str, int]


_STATEMENT = re.compile(
    r"\s*(?:(?P<loc>\.loc\b[^\n]*)|(?P<label>[$\w]+):(?!:)|(?P<scope>[{}])"
    r"|(?P<statement>[^;{}]+(?:\{[^{}]*\}[^;{}]*)*);)"
)
_INSTRUCTION = re.compile(r"(?:@(!?)([%\w$]+)\s+)?([a-z][\w.:]*)\s*(.*)$", re.DOTALL)
_LOC = re.compile(r"\.loc\s+(\d+)\s+(\d+)\s+(\d+)(?:.*inlined_at\s+(\d+)\s+(\d+)\s+(\d+))?")
_VARIABLE = re.compile(
    r"\.(?P<space>shared|local|global|const)\s+(?:\.attribute\([^)]*\)\s*)?(?:\.align\s+(?P<align>\d+)\s+)?"
    r"\.(?P<type>[busf]\d+)\s+(?P<name>[\w$]+)(?P<dims>(?:\[\d*\])*)\s*(?:=\s*(?P<value>[^;]*))?"
)
_NAME = re.compile(r"[%$\w]+")


def _bytes_of(width: int, value: str) -> bytes:
    """Read the initial value of a module variable."""
    found = [parse_operand(part) for part in split(value.strip().removeprefix("{").removesuffix("}"))]
    numbers = [one.bits % (1 << width) for one in found if isinstance(one, Immediate)]
    if len(numbers) != len(found):
        raise PtxError(f"initial value {value[:60]!r}: expected numbers")
    return b"".join(number.to_bytes(width // 8, "little") for number in numbers)


def _variable(statement: str) -> tuple[str, Variable] | None:
    found = _VARIABLE.search(statement)
    if not found:
        return None
    width, count = int(found["type"][1:]), 1
    for size in re.findall(r"\[(\d*)\]", found["dims"]):
        count *= int(size or 0)
    content = _bytes_of(width, found["value"]) if found["value"] else b""
    align = int(found["align"] or width // 8)
    return found["space"], Variable(found["name"], align, count * width // 8, content)


@dataclass
class _Body:
    """What has been read of a kernel's body."""

    files: Mapping[int, str]
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    registers: dict[str, int] = field(default_factory=dict)
    variables: list[tuple[str, Variable]] = field(default_factory=list)
    places: dict[tuple[str, int, str], tuple[tuple[str, int], ...]] = field(default_factory=dict)
    line: Line = Line("", 0)

    def locate(self, text: str) -> None:
        """Take a ``.loc``."""
        found = _LOC.match(text)
        if not found:
            return
        file = self.files.get(int(found[1]), "?")
        callers: tuple[tuple[str, int], ...] = ()
        if found[4]:
            outer = (self.files.get(int(found[4]), "?"), int(found[5]), found[6])
            callers = (outer[:2], *self.places.get(outer, ()))
        self.places[file, int(found[2]), found[3]] = callers
        self.line = Line(file, int(found[2]), callers)

    def declare(self, statement: str, rename: Mapping[str, str]) -> None:
        """Take a ``.reg``."""
        _, kind, names = statement.split(None, 2)
        width = 1 if kind == ".pred" else int(re.sub(r"\D", "", kind.partition("x")[0])) * (1 + ("x2" in kind))
        for name in (part.strip() for part in names.split(",")):
            if many := re.match(r"(.*)<(\d+)>$", name):
                self.registers.update((f"{many[1]}{i}", width) for i in range(int(many[2])))
            else:
                self.registers[rename.get(name, name)] = width

    def add(self, statement: str, rename: Mapping[str, str]) -> None:
        """Take any other statement."""
        if statement.startswith("."):
            if variable := _variable(statement):
                self.variables.append(variable)
            return
        if rename:
            statement = _NAME.sub(lambda name: rename.get(name[0], name[0]), statement)
        found = _INSTRUCTION.match(statement)
        if not found:
            raise PtxError(f"cannot read {statement[:80]!r}")
        guard, opcode, arguments = found[2] or "", found[3], found[4].strip()
        self.code.append(Instruction(opcode, arguments, self.line, guard, found[1] == "!"))


def _scopes(tokens: list[re.Match[str]]) -> list[dict[str, str]]:
    """Give each token the new names of what its scopes declare; braces of inline assembly open one."""
    names: list[dict[str, str]] = []
    stack: list[dict[str, str]] = [{}]
    count = 0
    for token in tokens:
        if token["scope"] == "{":
            count += 1
            stack.append(dict(stack[-1]))
        elif token["scope"] == "}":
            stack.pop()
        elif len(stack) > 1:
            if token["label"]:
                stack[-1][token["label"]] = f"{token['label']}__{count}"
            elif token["statement"] and token["statement"].lstrip().startswith(".reg"):
                declared = (part.strip() for part in token["statement"].split(None, 2)[2].split(","))
                stack[-1].update((name, f"%{name.removeprefix('%')}__{count}") for name in declared)
        names.append(stack[-1])
    return names


def _end_of_body(text: str, start: int) -> int:
    """Find the brace that closes the body whose first character is at start."""
    depth = 1
    for brace in re.compile(r"[{}]").finditer(text, start):
        depth += 1 if brace[0] == "{" else -1
        if not depth:
            return brace.start()
    raise PtxError("a kernel's body does not end")


def _parse_body(text: str, files: Mapping[int, str]) -> _Body:
    body = _Body(files)
    tokens = list(_STATEMENT.finditer(text))
    for token, rename in zip(tokens, _scopes(tokens), strict=True):
        if token["loc"]:
            body.locate(token["loc"])
        elif token["label"]:
            body.labels[rename.get(token["label"], token["label"])] = len(body.code)
        elif token["statement"]:
            statement = token["statement"].strip()
            if statement.startswith(".reg"):
                body.declare(statement, rename)
            else:
                body.add(statement, rename)
    body.code.append(Instruction("ret", "", body.line))
    return body


@lru_cache(maxsize=64)
def parse(ptx: str, name: str) -> Entry:
    """Parse a kernel.

    Parameters
    ----------
    ptx : str
        The text of a module.
    name : str
        The kernel's entry point.

    Returns
    -------
    Entry
        The kernel.

    Raises
    ------
    PtxError
        Where the text has no such kernel or cannot be read.
    """
    ptx = re.sub(r"//[^\n]*", "", ptx)
    head = re.search(rf"\.entry\s+{re.escape(name)}\s*\(", ptx)
    if not head:
        others = ", ".join(re.findall(r"\.entry\s+(\w+)", ptx))
        raise PtxError(f"no kernel {name!r} in the PTX: it has {others or 'none'}")
    files = {int(number): _short(file) for number, file in re.findall(r'\.file\s+(\d+)\s+"([^"]*)"', ptx)}
    start = ptx.index("{", head.end())
    body = _parse_body(ptx[start + 1 : _end_of_body(ptx, start + 1)], files)
    variables = [found for text in ptx[: head.start()].split(";") if (found := _variable(text))] + body.variables
    dynamic = [v for space, v in variables if space == "shared" and not v.size]
    return Entry(
        name=name,
        parameters=_parameters(ptx[head.end() : start]),
        shared=tuple(v for space, v in variables if space == "shared" and v.size),
        local=tuple(v for space, v in variables if space == "local"),
        constants=tuple(v for space, v in variables if space in ("global", "const")),
        dynamic=dynamic[0] if dynamic else None,
        registers=MappingProxyType(body.registers),
        code=tuple(body.code),
        labels=MappingProxyType(body.labels),
    )


def _short(path: str) -> str:
    """Name a source as the folder of the kernels does, any other by its last part."""
    return path.rpartition("kernels_cu/")[2] if "kernels_cu/" in path else path.rpartition("/")[2]


def _parameters(text: str) -> tuple[Variable, ...]:
    found = re.findall(
        r"\.param\s+(?:\.align\s+(\d+)\s+)?\.([busf]\d+)\s+(?:\.ptr[.\w\s]*?\s)?(\w+)(?:\[(\d+)\])?\s*(?:,|\))", text
    )
    widths = [int(kind[1:]) // 8 for _, kind, _, _ in found]
    return tuple(
        Variable(name, int(align or width), width * int(count or 1))
        for (align, _, name, count), width in zip(found, widths, strict=True)
    )
