#!/usr/bin/env python3
"""Compares counted instructions with the committed budget, and fails when a case became dearer.

    check_bench_budget.py RESULTS…                  check
    check_bench_budget.py --write-budget RESULTS…   make what was counted the budget

A case may cost the tolerance more than its budget. What costs less by more than that is mentioned: renew the budget,
or the next regression hides in the difference. A case without a budget, a budget without a case, and a budget that was
made with another compiler are errors. Each results file has one quantity (`instructions`, `bytes`) with a number per
case. On another kind of processor the numbers mean nothing, and are not judged.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOLERANCE_PERCENT = 10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--budget", type=Path, default=ROOT / "gateway/benches/budget.json")
    parser.add_argument("--toolchain", type=Path, default=ROOT / "rust-toolchain.toml")
    parser.add_argument("--write-budget", action="store_true")
    arguments = parser.parse_args()

    machine, counted = read(arguments.results)
    rust = re.search(r'^channel = "(.*)"$', arguments.toolchain.read_text(), re.MULTILINE)[1]
    if arguments.write_budget:
        valid_for = {"machine": machine, "rust": rust}
        budget = {"valid_for": valid_for, "tolerance_percent": TOLERANCE_PERCENT, "cases": counted}
        arguments.budget.write_text(json.dumps(budget, indent=2) + "\n")
    budget = json.loads(arguments.budget.read_text())
    valid_for, tolerance = budget["valid_for"], budget["tolerance_percent"]
    if valid_for["rust"] != rust:
        print(f"error: the budget was made with Rust {valid_for['rust']}, this is {rust}: renew it (make bench-renew)")
        return 1
    errors = compare(counted, budget["cases"], tolerance)
    if machine != valid_for["machine"]:
        print(f"not judged: the budget is for {valid_for['machine']}, this is {machine}")
        return 0
    for error in errors:
        print(f"error: {error}")
    return 1 if errors else 0


def read(results: list[Path]) -> tuple[str, dict[str, int]]:
    """What was counted, by `quantity: case`."""
    machine, counted = "", {}
    for path in results:
        result = json.loads(path.read_text())
        machine = result.pop("machine")
        for quantity, cases in result.items():
            counted |= {f"{quantity}: {name}": number for name, number in cases.items()}
    return machine, counted


def compare(counted: dict[str, int], budget: dict[str, int], tolerance: int) -> list[str]:
    """Prints the table, returns what is wrong."""
    errors = []
    width = max(map(len, [*counted, *budget, "case"]))
    print(f"{'case':<{width}} {'budget':>12} {'counted':>12} {'change':>8}")
    for name in sorted({*counted, *budget}):
        allowed, number = budget.get(name), counted.get(name)
        if allowed is None:
            verdict, change = "no budget: renew it (make bench-renew)", ""
            errors.append(f"{name}: has no budget")
        elif number is None:
            verdict, change = "not counted", ""
            errors.append(f"{name}: was not counted")
        else:
            percent = (number - allowed) * 100 / allowed
            change, verdict = f"{percent:+.1f} %", ""
            if percent > tolerance:
                verdict = f"over the budget by more than {tolerance} %"
                errors.append(f"{name}: {number:,} counted, the budget is {allowed:,} ({change})")
            elif percent < -tolerance:
                verdict = "far below the budget: renew it (make bench-renew)"
        columns = ["" if value is None else f"{value:,}" for value in (allowed, number)]
        print(f"{name:<{width}} {columns[0]:>12} {columns[1]:>12} {change:>8} {verdict}".rstrip())
    if not budget:
        errors.append("the budget is empty")
    return errors


if __name__ == "__main__":
    sys.exit(main())
