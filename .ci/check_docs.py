#!/usr/bin/env python3
"""Checks what the documents promise about the repository.

- The code map of docs/ARCHITECTURE.md is true: every path it names exists, and it names every .rs file under
  gateway/src, shared/src and loadtest/src. Paths stand in backticks, counted from the root; `a/{b,c}.rs` is two.
- Local links in the Markdown files lead to files, and to headings, that exist.
- No tracked file holds an absolute path of somebody's machine.
- No .rs file is longer than 600 lines, unless .ci/long-files.txt says why (`path: reason`).
- One version in several files is the same: Rust in rust-toolchain.toml and Dockerfile, ours in Cargo.toml and the
  chart.
"""

from __future__ import annotations

import argparse
import itertools
import re
import subprocess
import sys
from pathlib import Path

LINES_MAX = 600
MAPPED = ("gateway/src", "shared/src", "loadtest/src")
LOCAL_PATH = re.compile(r"(?<![\w.:/$}~-])/(?:work|root|home|Users)/[\w.]")
# Lock files are written by tools; a Dockerfile speaks of the container's own file system.
LOCAL_PATH_EXEMPT = re.compile(r"(^|/)(Cargo\.lock|package-lock\.json|Dockerfile)$")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1])
    root = parser.parse_args().root
    tracked = tracked_files(root)
    checks = {
        "code map": check_code_map(root, tracked),
        "links": check_links(root, tracked),
        "local paths": check_local_paths(root, tracked),
        "long files": check_long_files(root, tracked),
        "versions": check_versions(root),
    }
    failed = False
    for title, problems in checks.items():
        print(f"{title:<12} {'ok' if not problems else f'{len(problems)} problem(s)'}")
        for problem in problems:
            failed = True
            print(f"error: {problem}")
    return 1 if failed else 0


def tracked_files(root: Path) -> list[str]:
    """Files that git tracks or would track, and that exist."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    return sorted({name for name in listed.split("\0") if name and (root / name).is_file()})


def check_code_map(root: Path, tracked: list[str]) -> list[str]:
    document = root / "docs/ARCHITECTURE.md"
    section = section_of(document.read_text(), "code map") if document.exists() else ""
    if not section:
        return ['docs/ARCHITECTURE.md: no section "Code map"']
    named: set[str] = set()
    for token in re.findall(r"`([^`\s]+)`", section):
        if "/" in token or re.search(r"\.(rs|lua|toml|md|html|py)$", token):
            named |= set(expanded(token))
    problems = [f"code map: {path} does not exist" for path in sorted(named) if not (root / path).exists()]
    for path in tracked:
        if path.endswith(".rs") and path.startswith(tuple(f"{part}/" for part in MAPPED)) and path not in named:
            problems.append(f"code map: {path} is missing from it")
    return problems


def section_of(text: str, title: str) -> str:
    """The text under the first heading that contains the title, up to the next heading of its level or above."""
    lines: list[str] = []
    level = 0
    for line in text.splitlines():
        heading = re.match(r"(#+)\s+(.*)", line)
        if heading and level and len(heading.group(1)) <= level:
            break
        if level:
            lines.append(line)
        elif heading and title in heading.group(2).lower():
            level = len(heading.group(1))
    return "\n".join(lines)


def expanded(token: str) -> list[str]:
    """`a/{b,c}.rs` is `a/b.rs` and `a/c.rs`."""
    parts = re.split(r"\{([^{}]*)\}", token)
    choices = [part.split(",") if index % 2 else [part] for index, part in enumerate(parts)]
    return ["".join(choice) for choice in itertools.product(*choices)]


def check_links(root: Path, tracked: list[str]) -> list[str]:
    problems = []
    for name in tracked:
        if not name.endswith(".md"):
            continue
        text = without_fences((root / name).read_text())
        for target in re.findall(r"\]\(\s*<?([^)\s>]+)>?[^)]*\)", text):
            if re.match(r"[a-z][a-z0-9+.-]*:", target):
                continue
            file, _, anchor = target.partition("#")
            path = ((root / name).parent / file) if file else root / name
            if not path.exists():
                problems.append(f"{name}: link to {target}, which does not exist")
            elif anchor and path.suffix == ".md" and anchor not in anchors(path.read_text()):
                problems.append(f"{name}: link to {target}, but there is no such heading")
    return problems


def without_fences(text: str) -> str:
    return re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub makes of the headings."""
    found: set[str] = set()
    for heading in re.findall(r"^#+\s+(.*?)\s*#*$", without_fences(text), flags=re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        number = itertools.count(1)
        unique = slug
        while unique in found:
            unique = f"{slug}-{next(number)}"
        found.add(unique)
    return found


def check_local_paths(root: Path, tracked: list[str]) -> list[str]:
    problems = []
    for name in tracked:
        if LOCAL_PATH_EXEMPT.search(name):
            continue
        try:
            text = (root / name).read_text()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if match := LOCAL_PATH.search(line):
                problems.append(f"{name}:{number}: absolute local path {line[match.start():][:40]}")
    return problems


def check_long_files(root: Path, tracked: list[str]) -> list[str]:
    problems = []
    allowed: dict[str, str] = {}
    listed = root / ".ci/long-files.txt"
    for line in listed.read_text().splitlines() if listed.exists() else []:
        if line.strip() and not line.startswith("#"):
            path, _, reason = line.partition(":")
            allowed[path.strip()] = reason.strip()
    lengths = {name: len((root / name).read_text().splitlines()) for name in tracked if name.endswith(".rs")}
    for name, length in lengths.items():
        if length > LINES_MAX and not allowed.get(name):
            problems.append(f"{name}: {length} lines, more than {LINES_MAX}: split it, or give a reason in {listed.name}")
    for name in allowed:
        if lengths.get(name, 0) <= LINES_MAX:
            problems.append(f".ci/long-files.txt: {name} needs no exception")
    return problems


def check_versions(root: Path) -> list[str]:
    def found(file: str, pattern: str) -> str:
        path = root / file
        match = re.search(pattern, path.read_text(), flags=re.MULTILINE) if path.exists() else None
        return match.group(1) if match else f"nothing in {file}"

    rust = found("rust-toolchain.toml", r'^channel = "([^"]+)"')
    image = found("Dockerfile", r"^FROM (?:\S*/)?rust:([\d.]+)")
    ours = found("Cargo.toml", r'^version = "([^"]+)"')
    chart = found("helm/pulsegate/Chart.yaml", r'^appVersion: "?([^"\s]+)')
    problems = []
    if rust != image:
        problems.append(f"Rust is {rust} in rust-toolchain.toml, but {image} in Dockerfile")
    if ours != chart:
        problems.append(f"Pulsegate is {ours} in Cargo.toml, but {chart} in helm/pulsegate/Chart.yaml")
    return problems


if __name__ == "__main__":
    sys.exit(main())
