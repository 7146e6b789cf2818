"""Tells test code from other code in Rust sources, without a Rust parser.

Only what our checkers need: text with comments and literals blanked out (so that braces can be counted), and the
spans of `#[cfg(test)]` items. Positions in the blanked text are those of the original.
"""

from __future__ import annotations

import re
from pathlib import Path

CFG_TEST = re.compile(r"#\s*\[\s*cfg\s*\(\s*(?:all\s*\(\s*)?test\b")
# Longest first: raw strings, strings, char literals (not lifetimes), comments.
NOT_CODE = re.compile(
    r"""
      b?c?r(?P<hashes>\#*)".*?"(?P=hashes)
    | "(?:\\.|[^"\\])*"
    | '(?:\\(?:u\{[0-9a-fA-F_]+\}|x[0-9a-fA-F]{2}|.)|[^'\\\n])'
    | //[^\n]*
    | /\*
    """,
    re.VERBOSE | re.DOTALL,
)


def blanked(text: str) -> str:
    """The text with every comment and literal replaced by spaces; newlines stay."""
    out = list(text)
    position = 0
    while match := NOT_CODE.search(text, position):
        end = block_comment_end(text, match.start()) if match.group() == "/*" else match.end()
        for index in range(match.start(), end):
            if out[index] != "\n":
                out[index] = " "
        position = end
    return "".join(out)


def block_comment_end(text: str, start: int) -> int:
    depth, position = 0, start
    for match in re.finditer(r"/\*|\*/", text[start:]):
        depth += 1 if match.group() == "/*" else -1
        position = start + match.end()
        if depth == 0:
            return position
    return len(text)


def test_spans(text: str) -> list[tuple[int, int]]:
    """Start and end of every item under `#[cfg(test)]` that has a body here."""
    code = blanked(text)
    spans: list[tuple[int, int]] = []
    for match in CFG_TEST.finditer(code):
        if spans and match.start() < spans[-1][1]:
            continue
        opening = re.compile(r"[{;]").search(code, match.end())
        if opening is None:
            continue
        end = opening.end() if opening.group() == ";" else matching_brace(code, opening.start())
        spans.append((match.start(), end))
    return spans


def matching_brace(code: str, opening: int) -> int:
    depth = 0
    for match in re.compile(r"[{}]").finditer(code, opening):
        depth += 1 if match.group() == "{" else -1
        if depth == 0:
            return match.end()
    return len(code)


def test_modules(path: Path, text: str) -> set[Path]:
    """Files that are test code because `#[cfg(test)] mod name;` in this file declares them."""
    found = set()
    for start, end in test_spans(text):
        declaration = re.search(r"\bmod\s+(\w+)\s*;$", blanked(text[start:end]))
        if declaration:
            own = path.stem in ("lib", "main")
            directory = path.parent if own else path.parent / path.stem
            found.add(directory / f"{declaration.group(1)}.rs")
    return found


def split(text: str) -> tuple[str, str]:
    """The text outside and inside `#[cfg(test)]` items."""
    outside, inside, position = [], [], 0
    for start, end in test_spans(text):
        outside.append(text[position:start])
        inside.append(text[start:end])
        position = end
    outside.append(text[position:])
    return "".join(outside), "\n".join(inside)
