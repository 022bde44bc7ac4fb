"""Preprocessed source as tokens, some of which are replaced."""

import re

_TOKEN = re.compile(
    r"""
    (?P<space>[ \t\r\f\v]+|\\\n) | (?P<newline>\n) | (?P<marker>(?<![^\n])\#[^\n]*) |
    (?P<string>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*') | (?P<name>[A-Za-z_]\w*) |
    (?P<number>(?:0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\w*) |
    (?P<operator>::|->|<<=|>>=|<=|>=|==|!=|&&|\|\||\+\+|--|[-+*/%&|^]=|.)
    """,
    re.X | re.S,
)
_CLOSING = {"(": ")", "[": "]", "{": "}", "<": ">"}


class RewriteError(Exception):
    """The source uses the language in a way that the rewriter does not know."""


class Tokens:
    """Significant tokens by index, and the output: every token, in place, some replaced. Lines never move."""

    def __init__(self, source: str):
        matches = list(_TOKEN.finditer(source))
        self._output = [match.group() for match in matches]
        self._kinds = [match.lastgroup for match in matches]
        blank = ("space", "newline", "marker")
        self._places = [place for place, kind in enumerate(self._kinds) if kind not in blank]
        self.text = [self._output[place] for place in self._places]
        # Reading past the end is reading nothing.
        self.text += [""] * 8

    def __len__(self) -> int:
        return len(self._places)

    def is_name(self, index: int) -> bool:
        return index < len(self) and self._kinds[self._places[index]] == "name"

    def is_number(self, index: int) -> bool:
        return index < len(self) and self._kinds[self._places[index]] == "number"

    def is_pair(self, index: int, opening: str = "[") -> bool:
        """Whether `[[` stands here."""
        return self.text[index] == opening and self.text[index + 1] == opening

    def join(self, first: int, stop: int) -> str:
        return " ".join(self.text[first:stop])

    def replace(self, first: int, stop: int, new: str) -> None:
        """Puts `new` in place of the tokens from `first` up to `stop`; newlines and markers stay."""
        for place in range(self._places[first], self._places[stop - 1] + 1):
            if self._kinds[place] not in ("newline", "marker"):
                self._output[place] = ""
        self._output[self._places[first]] = new

    def after(self, opening: int) -> int:
        """Index after the bracket that closes the one at `opening`; `<` closes outside of other brackets."""
        first = self.text[opening]
        last, depth, index = _CLOSING[first], 0, opening
        while index < len(self):
            word = self.text[index]
            if first == "<" and word in ("(", "["):
                index = self.after(index)
                continue
            depth += (word == first) - (word == last)
            if depth == 0:
                return index + 1
            index += 1
        raise RewriteError(f"unbalanced {first}")

    def after_name(self, index: int) -> int:
        """Index after a qualified name with its template arguments."""
        index += 1
        while self.text[index] in ("<", "::"):
            index = self.after(index) if self.text[index] == "<" else index + 2
        return index

    def split(self, first: int, stop: int) -> list[tuple[int, int]]:
        """The parts between the commas of a list."""
        parts, start, index = [], first, first
        while index < stop:
            word = self.text[index]
            if word in _CLOSING:
                index = self.after(index)
                continue
            if word == ",":
                parts.append((start, index))
                start = index + 1
            index += 1
        return [*parts, (start, stop)] if start < stop else parts

    def __str__(self) -> str:
        return "".join(self._output)
