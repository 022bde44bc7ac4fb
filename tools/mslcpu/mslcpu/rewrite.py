"""Preprocessed Metal source to what clang's C++ for OpenCL takes.

Attributes go, and what they said about kernels and their parameters is kept. Instantiations with a host name
are listed. Function constants become constants. Threadgroup variables come from the runtime. Constructors of
vectors become calls.
"""

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass, field

from .tokens import RewriteError, Tokens

_VECTOR = re.compile(r"(packed_)?(float|half|bfloat|u?int|u?short|u?char|u?long|bool)[234]")
# Kernel argument attribute -> MslPosition of native/operations.h.
POSITIONS = {
    "thread_position_in_grid": 0,
    "thread_position_in_threadgroup": 1,
    "thread_index_in_threadgroup": 2,
    "threadgroup_position_in_grid": 3,
    "threads_per_threadgroup": 4,
    "dispatch_threads_per_threadgroup": 5,
    "threadgroups_per_grid": 6,
    "threads_per_grid": 7,
    "grid_size": 7,
    "simdgroup_index_in_threadgroup": 8,
    "simdgroups_per_threadgroup": 9,
    "dispatch_simdgroups_per_threadgroup": 9,
    "threads_per_simdgroup": 10,
    "thread_execution_width": 10,
    "thread_index_in_simdgroup": 11,
    "thread_index_in_quadgroup": 12,
    "quadgroup_index_in_threadgroup": 13,
    "quadgroups_per_threadgroup": 14,
    "dispatch_quadgroups_per_threadgroup": 14,
    "grid_origin": 15,
}


@dataclass(frozen=True)
class Parameter:
    """A kernel's parameter: a buffer in a space, or a position."""

    name: str
    space: str
    is_const: bool
    index: int


@dataclass(frozen=True)
class Kernel:
    name: str
    qualified: str
    parameters: tuple[Parameter, ...]
    is_template: bool
    most_threads: int


@dataclass
class Unit:
    """A rewritten source, its kernels by name, and its instantiations as (host name, kernel, expression)."""

    text: str = ""
    kernels: dict[str, Kernel] = field(default_factory=dict)
    instantiations: list[tuple[str, str, str]] = field(default_factory=list)


def rewrite(source: str, constants: Mapping[int | str, bool | int | float]) -> Unit:
    """Rewrites `source`; `constants` are the values of function constants, by index or name."""
    return _Rewriter(Tokens(source), constants).run()


class _Rewriter:
    def __init__(self, tokens: Tokens, constants):
        self.tokens, self.text, self.constants = tokens, tokens.text, constants
        self.unit = Unit()
        self.vectors = self._vector_aliases()
        self.classes = {self.text[i + 1] for i in range(len(tokens)) if self.text[i] in ("struct", "class")}
        self.namespaces: list[str] = []
        self.blocks: list[str] = []
        self.parentheses = self.statement = self.arrays = 0

    def run(self) -> Unit:
        steps = (
            self._instantiation,
            self._kernel,
            self._attribute,
            self._scope,
            self._thread_reference,
            self._threadgroup_variable,
            self._vector,
            self._bfloat_literal,
        )
        index = 0
        while index < len(self.tokens):
            # A step returns where to go on, or None where it has nothing to do.
            index = next((found for step in steps if (found := step(index)) is not None), index + 1)
        self.unit.text = str(self.tokens)
        return self.unit

    def _attributes(self, index: int) -> tuple[dict[str, str], int]:
        """Attributes of the `[[...]]` groups that start at `index`, and the index after them."""
        found = {}
        while self.tokens.is_pair(index):
            stop = self.tokens.after(index)
            for first, last in self.tokens.split(index + 2, stop - 2):
                place = first
                while self.text[place + 1] == "::":
                    place += 2
                given = self.tokens.join(place + 2, last - 1) if self.text[place + 1] == "(" else ""
                found[self.text[place]] = given
            index = stop
        return found, index

    def _instantiation(self, index: int) -> int | None:
        if self.text[index] != "template" or self.text[index + 1] == "<":
            return None
        attributes, place = self._attributes(index + 1)
        stop = place
        while self.text[stop] != ";":
            stop += 1
        place += self.text[place] == "kernel"
        if self.text[place] == "decltype":
            expression = self.tokens.join(place + 2, self.tokens.after(place + 1) - 1)
        else:
            expression = self.tokens.join(place + 1, self.tokens.after_name(place + 1))
        base = expression.split("<")[0].split("::")[-1].strip()
        host = "".join(re.findall(r'"([^"]*)"', attributes.get("host_name", ""))) or expression
        self.unit.instantiations.append((host, base, "".join(f"{n}::" for n in self.namespaces) + expression))
        self.tokens.replace(index, stop + 1, "")
        self.statement = stop + 1
        return stop + 1

    def _kernel(self, index: int) -> int | None:
        start, attributes = index, {}
        if self.tokens.is_pair(index):
            attributes, index = self._attributes(index)
        if self.parentheses or ("kernel" not in attributes and self.text[index] != "kernel"):
            return None
        index += self.text[index] == "kernel"
        more, place = self._attributes(index)
        while self.text[place] in ("static", "inline"):
            place += 1
        if self.text[place] != "void":
            raise RewriteError(f"a kernel returns {self.text[place]}")
        name, stop = self.text[place + 1], self.tokens.after(place + 2)
        limit = (attributes | more).get("max_total_threads_per_threadgroup", "")
        self.unit.kernels[name] = Kernel(
            name,
            "".join(f"{n}::" for n in self.namespaces) + name,
            self._parameters(place + 3, stop - 1),
            "template" in self.text[self.statement : start],
            int(limit) if limit.isdigit() else 1024,
        )
        self.tokens.replace(start, place, "")
        return place

    def _parameters(self, first: int, stop: int) -> tuple[Parameter, ...]:
        found, buffers = [], 0
        for start, end in self.tokens.split(first, stop):
            place = start
            while place < end and not self.tokens.is_pair(place):
                place += 1
            attributes, _ = self._attributes(place)
            words = self.text[start:place]
            space = next((word for word in words if word in ("device", "constant", "threadgroup")), "")
            position = next((POSITIONS[name] for name in attributes if name in POSITIONS), None)
            if position is not None:
                found.append(Parameter(words[-1], "", True, position))
            elif space in ("device", "constant"):
                index = int(attributes.get("buffer", buffers))
                buffers = max(buffers, index + 1)
                found.append(Parameter(words[-1], space, "const" in words, index))
            else:
                raise RewriteError(f"kernel parameter {' '.join(words)} is neither a buffer nor a position")
        return tuple(found)

    def _attribute(self, index: int) -> int | None:
        if not self.tokens.is_pair(index):
            return None
        attributes, stop = self._attributes(index)
        if "function_constant" not in attributes or self.parentheses:
            self.tokens.replace(index, stop, "")
            return stop
        name, key = self.text[index - 1], attributes["function_constant"]
        key = int(key) if key.isdigit() else key
        given = self.constants.get(key, self.constants.get(name))
        words = self.text[self.statement : index - 1]
        kind = " ".join(word for word in words if word not in ("constant", "const", "static", "constexpr"))
        value = str(0 if given is None else given).lower()
        self.tokens.replace(
            self.statement,
            stop + 1,
            f"static constexpr constant {kind} {name} = {kind}({value});"
            f" static constexpr constant bool __defined_{name} = {str(given is not None).lower()};",
        )
        self.statement = stop + 1
        return stop + 1

    def _scope(self, index: int) -> int | None:
        """Keeps track of namespaces, blocks and statements."""
        word = self.text[index]
        if word == "namespace" and self.text[index - 1] != "using" and self.tokens.is_name(index + 1):
            stop = self.tokens.after_name(index + 1)
            self.namespaces.append(self.tokens.join(index + 1, stop).replace(" ", ""))
            self.blocks.append("namespace")
            self.statement = stop + 1
            return stop + 1
        self.parentheses += (word == "(") - (word == ")")
        if word == "{":
            head = self.text[self.statement : index]
            is_class = any(w in ("struct", "class", "union", "enum") for w in head) and ")" not in head
            self.blocks.append("class" if is_class else "block")
        elif word == "}" and self.blocks and self.blocks.pop() == "namespace":
            self.namespaces.pop()
        if word in ("{", "}") or (word == ";" and not self.parentheses):
            self.statement = index + 1
        return None

    def _thread_reference(self, index: int) -> int | None:
        """Temporaries of clang have no space, so references to const and constructors must ask for none."""
        if self.text[index] != "thread":
            return None
        before, place = self.text[index - 1], index + 1
        while self.text[place] in ("const", "typename"):
            place += 1
        is_const = before == "const" or place > index + 1
        binds = is_const and self.parentheses and self.text[self.tokens.after_name(place)] == "&"
        if binds or (before == ")" and self._closes_constructor(index - 1)):
            self.tokens.replace(index, index + 1, "")
        return None

    def _closes_constructor(self, index: int) -> bool:
        depth = 0
        while True:
            depth += (self.text[index] == ")") - (self.text[index] == "(")
            if depth == 0:
                break
            index -= 1
        starts = (";", "{", "}", ":", ">", "METAL_FUNC", "constexpr", "explicit", "inline")
        return self.text[index - 1] in self.classes and self.text[index - 2] in starts

    def _threadgroup_variable(self, index: int) -> int | None:
        inside = self.blocks and self.blocks[-1] == "block" and not self.parentheses
        if self.text[index] != "threadgroup" or not inside:
            return None
        place = index + 1
        while self.text[place] in ("const", "volatile", "typename", "unsigned", "signed"):
            place += 1
        name = self.tokens.after_name(place)
        if not self.tokens.is_name(name) or self.text[name + 1] not in ("[", ";", ","):
            return None
        kind, stop = self.tokens.join(index + 1, name), name
        while self.text[stop] != ";":
            stop += 1
        declarations = [self._array(kind, *part) for part in self.tokens.split(name, stop)]
        self.tokens.replace(index, stop + 1, " ".join(declarations))
        self.statement = stop + 1
        return stop + 1

    def _array(self, kind: str, first: int, stop: int) -> str:
        self.arrays += 1
        name, extents, made = self.text[first], self.tokens.join(first + 1, stop), f"__array_{self.arrays}"
        return (
            f"typedef {kind} {made}{extents}; threadgroup {made}& {name} = *(threadgroup {made}*)"
            f'__msl_threadgroup({self.arrays}u, sizeof({made}), metal::__granule<{kind}>, "{name}", 0);'
        )

    def _vector_aliases(self) -> set[str]:
        self.vectors: set[str] = set()
        for index in range(len(self.tokens)):
            if self.text[index] == "using" and self.text[index + 2] == "=":
                stop = self._after_vector(index + 3)
                if stop and self.text[stop] == ";":
                    self.vectors.add(self.text[index + 1])
            elif self.text[index] == "typedef":
                stop = self._after_vector(index + 1)
                if stop and self.text[stop + 1] == ";":
                    self.vectors.add(self.text[stop])
        return self.vectors

    def _after_vector(self, index: int) -> int | None:
        """Index after the vector type at `index`, if one stands there."""
        index += self.text[index] == "typename"
        index += 2 * (self.text[index] == "metal" and self.text[index + 1] == "::")
        if _VECTOR.fullmatch(self.text[index]) or self.text[index] in self.vectors:
            return index + 1
        if self.text[index] == "vec" and self.text[index + 1] == "<":
            return self.tokens.after(index + 1)
        return None

    def _vector(self, index: int) -> int | None:
        """`float4(...)` and `static_cast<float4>(...)`."""
        cast = self.text[index] == "static_cast"
        first = index + 2 if cast else index
        if not self.tokens.is_name(first) or self.text[index - 1] in (".", "->", "operator"):
            return None
        stop = self._after_vector(first)
        if stop is None or self.text[stop + cast] != "(":
            return None
        self.tokens.replace(index, stop + cast, f"__make<{self.tokens.join(first, stop)}>")
        return stop + cast

    def _bfloat_literal(self, index: int) -> int | None:
        word = self.text[index]
        if self.tokens.is_number(index) and word.endswith("bf") and not word.startswith("0x"):
            self.tokens.replace(index, index + 1, f"((bfloat){word[:-2]}f)")
        return None


def entries(unit: Unit, only: Set[str] | None = None) -> tuple[str, dict[str, tuple[str, Kernel]]]:
    """Functions without arguments that call the kernels, as source, and their symbols by host name."""
    items = list(unit.instantiations)
    plain = (kernel for kernel in unit.kernels.values() if not kernel.is_template)
    items += [(kernel.name, kernel.name, kernel.qualified) for kernel in plain]
    lines, table = ["#pragma OPENCL EXTENSION __cl_clang_function_pointers : enable"], {}
    for number, (host, base, expression) in enumerate(items):
        if only is not None and host not in only:
            continue
        kernel = unit.kernels[base]
        arguments = ", ".join(
            f"__argument<__parameters<decltype({expression})>::at<{place}>>"
            f"::{'buffer' if parameter.space else 'position'}({parameter.index})"
            for place, parameter in enumerate(kernel.parameters)
        )
        symbol = f"__msl_entry_{number}"
        lines.append(
            f'extern "C" __attribute__((visibility("default"))) void {symbol}() {{'
            f" {expression}({arguments}); }}"
        )
        table[host] = symbol, kernel
    return "\n".join(lines) + "\n", table
