#!/usr/bin/env python3
"""Counts the tests that really ran, and fails when a suite has shrunk or vanished.

A test run that finds no tests is green. So the logs of a run are read, a table of suites is printed, and each suite
must have at least the number of tests committed in .ci/test-floors.json.

    check_counts.py LOG…                  check
    check_counts.py --write-floors LOG…   make what ran now the floor

A suite of Rust is `binary:source` (as `gateway:src/lib.rs`), any other is the name of its log without `.log`.
Understood are cargo test, node's test runner, unittest, pytest, and lines of the form "12 passed, 0 failed".
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ANSI = re.compile(r"\x1b\[[0-9;]*m")
CARGO_SUITE = re.compile(r"^\s*Running (?:unittests )?(\S+) \(.*?([^/\\]+)-[0-9a-f]{16}(?:\.exe)?\)")
CARGO_DOCS = re.compile(r"^\s*Doc-tests (\S+)")
CARGO_RESULT = re.compile(r"^test result: (?:ok|FAILED)\. (\d+) passed; (\d+) failed; (\d+) ignored")
NODE_COUNT = re.compile(r"^(?:#|ℹ) (pass|fail|cancelled) (\d+)$")
UNITTEST_RAN = re.compile(r"^Ran (\d+) tests? in ")
UNITTEST_BAD = re.compile(r"^FAILED \((.*)\)$")
PYTEST = re.compile(r"^=+ (.*\b(?:passed|failed|error)\b.*) in [\d.]+s.*=+$")
PLAIN = re.compile(r"^(?:\w+: )?(\d+) passed, (\d+) failed(?:, \d+ skipped)?$")


@dataclass
class Suite:
    """What one suite ran."""

    passed: int = 0
    failed: int = 0
    ignored: int = 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", nargs="+", type=Path)
    parser.add_argument("--floors", type=Path, default=Path(__file__).resolve().parent / "test-floors.json")
    parser.add_argument("--write-floors", action="store_true")
    arguments = parser.parse_args()

    suites: dict[str, Suite] = {}
    for log in arguments.logs:
        if not log.is_file():
            print(f"error: no log {log}")
            return 1
        read_log(log.stem, log.read_text(errors="replace"), suites)
    if arguments.write_floors:
        floors = {name: suite.passed for name, suite in sorted(suites.items()) if suite.passed}
        arguments.floors.write_text(json.dumps(floors, indent=2) + "\n")
    floors = json.loads(arguments.floors.read_text())

    problems = compare(suites, floors)
    width = max(map(len, [*suites, *floors, "suite"]))
    print(f"{'suite':<{width}}  passed  failed  ignored  floor")
    for name in sorted(set(suites) | set(floors)):
        suite = suites.get(name, Suite())
        print(f"{name:<{width}}  {suite.passed:>6}  {suite.failed:>6}  {suite.ignored:>7}  {floors.get(name, '-'):>5}")
    for problem in problems:
        print(f"error: {problem}")
    passed = sum(suite.passed for suite in suites.values())
    failed = sum(suite.failed for suite in suites.values())
    print(f"{passed} passed, {failed} failed")
    return 1 if problems else 0


def compare(suites: dict[str, Suite], floors: dict[str, int]) -> list[str]:
    problems = []
    if not floors:
        problems.append("no floors are committed: check_counts.py --write-floors LOG…")
    for name, floor in floors.items():
        if name not in suites:
            problems.append(f"{name}: did not run (at least {floor} tests are expected)")
        elif suites[name].passed < floor:
            problems.append(f"{name}: {suites[name].passed} tests passed, at least {floor} are expected")
    for name, suite in suites.items():
        if suite.failed:
            problems.append(f"{name}: {suite.failed} failed")
        if not (suite.passed or suite.failed or name in floors or ":" in name):
            problems.append(f"{name}: its log holds no test result")
        if suite.passed and name not in floors:
            problems.append(f"{name}: has no floor: check_counts.py --write-floors LOG…")
    return problems


def read_log(stem: str, text: str, suites: dict[str, Suite]) -> None:
    """Adds to the suites what one log tells."""
    lines = [ANSI.sub("", line).rstrip() for line in text.splitlines()]
    if any(CARGO_RESULT.match(line) for line in lines):
        read_cargo(lines, suites)
        return
    suite = suites.setdefault(stem, Suite())
    for line in lines:
        if match := NODE_COUNT.match(line):
            if match.group(1) == "pass":
                suite.passed += int(match.group(2))
            else:
                suite.failed += int(match.group(2))
        elif match := PLAIN.match(line):
            suite.passed += int(match.group(1))
            suite.failed += int(match.group(2))
        elif match := UNITTEST_RAN.match(line):
            suite.passed += int(match.group(1))
        elif match := UNITTEST_BAD.match(line):
            bad = sum(map(int, re.findall(r"(?:failures|errors)=(\d+)", match.group(1))))
            suite.passed -= bad
            suite.failed += bad
        elif match := PYTEST.match(line):
            suite.passed += sum(map(int, re.findall(r"(\d+) passed", match.group(1))))
            suite.failed += sum(map(int, re.findall(r"(\d+) (?:failed|errors?)", match.group(1))))


def read_cargo(lines: list[str], suites: dict[str, Suite]) -> None:
    name = "cargo"
    for line in lines:
        if match := CARGO_SUITE.match(line):
            name = f"{match.group(2)}:{match.group(1)}"
        elif match := CARGO_DOCS.match(line):
            name = f"{match.group(1)}:doc"
        elif match := CARGO_RESULT.match(line):
            suite = suites.setdefault(name, Suite())
            suite.passed += int(match.group(1))
            suite.failed += int(match.group(2))
            suite.ignored += int(match.group(3))


if __name__ == "__main__":
    sys.exit(main())
