#!/usr/bin/env python3
"""Counts the instructions of each benchmark case under callgrind, and writes them into a file.

    count_instructions.py BINARY RESULTS
    cargo bench --bench micro --no-run --message-format=json | count_instructions.py --built

The second form prints which BINARY it is that cargo has built.
BINARY is a benchmark of gateway/benches/micro: without an argument it prints the names of its cases, with one it does
that case inside of a function `measured` and prints how often. Each case has a process of its own, so that none
depends on what ran before it. The kernel's instructions are not counted.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

# By name, demangled: `micro::meter::measured` of whatever types.
MEASURED = "*::measured*"
SUMMARY = re.compile(r"^(?:summary|totals): (\d+)", re.MULTILINE)


def main() -> int:
    if sys.argv[1:] == ["--built"]:
        return built(map(json.loads, sys.stdin))
    if len(sys.argv) != 3:
        print(__doc__)
        return 2
    binary, results = sys.argv[1], Path(sys.argv[2])
    names = subprocess.run([binary], check=True, capture_output=True, text=True).stdout.splitlines()
    instructions = {}
    for name in names:
        instructions[name] = count(binary, name)
        print(f"{instructions[name]:>12,}  {name}", flush=True)
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps({"machine": platform.machine(), "instructions": instructions}, indent=2) + "\n")
    return 0


def built(messages: Iterable[dict]) -> int:
    """Reads to the end: cargo does not like to be hung up on."""
    binary = None
    for message in messages:
        if message["reason"] == "compiler-message":
            print(message["message"]["rendered"], file=sys.stderr)
        elif message.get("executable") and message["target"]["kind"] == ["bench"]:
            binary = message["executable"]
    if binary is None:
        return 1
    print(binary)
    return 0


def count(binary: str, name: str) -> int:
    """The instructions of one round."""
    with tempfile.TemporaryDirectory() as directory:
        profile = Path(directory) / "callgrind"
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={profile}", f"--toggle-collect={MEASURED}"]
        done = subprocess.run([*command, binary, name], capture_output=True, text=True)
        found = SUMMARY.search(profile.read_text()) if profile.is_file() else None
    if done.returncode != 0 or not found:
        sys.exit(f"{name}: {done.stderr}")
    total, rounds = int(found[1]), int(done.stdout.split()[-1])
    if total == 0:
        sys.exit(f"{name}: nothing was counted: is there a function that matches {MEASURED}?")
    return round(total / rounds)


if __name__ == "__main__":
    sys.exit(main())
