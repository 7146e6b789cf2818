#!/usr/bin/env python3
"""Checks that every invariant is kept somewhere and attacked somewhere.

docs/ARCHITECTURE.md names the invariants in its section "Invariants", one to a line: `| **ORDER** | … |` or
`- **ORDER** …`. Each must be cited as `Inv. ORDER` at least once in code (gateway/src and shared/src, Rust or Lua,
outside tests) and at least once in a test (`#[cfg(test)]` items, tests.rs files, gateway/tests, shared/tests).
A citation of a name that the document does not have is an error too: it is a misspelling, or an invariant nobody
wrote down.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import defaultdict
from pathlib import Path

from rust_source import split, test_modules

# In backticks it is talk about the form, not a citation.
CITATION = re.compile(r"(?<!`)\bInv\.\s+([A-Z][A-Z_]*)\b")
CODE = ("gateway/src", "shared/src")
TESTS = ("gateway/tests", "shared/tests")
TEST_LANGUAGES = {".rs", ".lua", ".py", ".js", ".mjs", ".sh"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1])
    root = parser.parse_args().root
    document = root / "docs/ARCHITECTURE.md"
    names = named_invariants(document.read_text()) if document.exists() else []
    if not names:
        print(f'{document.relative_to(root)}: no invariant found in a section "Invariants"')
        return 1
    code, tests = citations(root)
    problems = []
    for name in names:
        if name not in code:
            problems.append(f"{name}: no code cites it as `Inv. {name}` (in {', '.join(CODE)})")
        if name not in tests:
            problems.append(f"{name}: no test cites it as `Inv. {name}`")
    for name in sorted((set(code) | set(tests)) - set(names)):
        places = ", ".join(sorted(code[name] | tests[name]))
        problems.append(f"{name}: cited in {places}, but docs/ARCHITECTURE.md does not name it")
    for name in names:
        print(f"{name:<12} code {len(code[name])} file(s), tests {len(tests[name])} file(s)")
    for problem in problems:
        print(f"error: {problem}")
    return 1 if problems else 0


def named_invariants(text: str) -> list[str]:
    """Names in the order of the document, from the section whose heading contains "Invariants"."""
    names: list[str] = []
    level = 0
    for line in text.splitlines():
        heading = re.match(r"(#+)\s+(.*)", line)
        if heading:
            if level and len(heading.group(1)) <= level:
                level = 0
            if not level and "invariants" in heading.group(2).lower():
                level = len(heading.group(1))
        elif level:
            name = re.match(r"\s*(?:\||[-*]|\d+\.)\s*\*\*([A-Z][A-Z_]*)\*\*", line)
            if name and name.group(1) not in names:
                names.append(name.group(1))
    return names


def citations(root: Path) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """Name to citing files: in code, and in tests."""
    code: dict[str, set[str]] = defaultdict(set)
    tests: dict[str, set[str]] = defaultdict(set)
    rust = {path: path.read_text() for part in CODE for path in sorted((root / part).rglob("*.rs"))}
    declared = {module for path, text in rust.items() for module in test_modules(path, text)}
    for path, text in rust.items():
        in_tests = path in declared or path.name == "tests.rs" or "tests" in path.relative_to(root).parts
        outside, inside = ("", text) if in_tests else split(text)
        collect(code, outside, path, root)
        collect(tests, inside, path, root)
    for part in CODE:
        for path in sorted((root / part).rglob("*.lua")):
            collect(code, path.read_text(), path, root)
    for part in TESTS:
        for path in sorted((root / part).rglob("*")):
            if path.suffix in TEST_LANGUAGES and "node_modules" not in path.parts:
                collect(tests, path.read_text(), path, root)
    return code, tests


def collect(into: dict[str, set[str]], text: str, path: Path, root: Path) -> None:
    for name in CITATION.findall(text):
        into[name].add(str(path.relative_to(root)))


if __name__ == "__main__":
    sys.exit(main())
