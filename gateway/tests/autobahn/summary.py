"""Judges a report of Autobahn cases: names what is not plainly OK; fails when a case failed or there were none."""

import json
import sys

PASSED = {"OK", "NON-STRICT", "INFORMATIONAL"}


def main(path: str) -> int:
    with open(path, encoding="utf-8") as report:
        agents = json.load(report)
    passed = failed = 0
    for case, result in [item for cases in agents.values() for item in cases.items()]:
        outcomes = {result["behavior"], result["behaviorClose"]}
        if outcomes <= PASSED:
            passed += 1
        else:
            failed += 1
        if outcomes != {"OK"}:
            print(f"case {case}: {result['behavior']}, close {result['behaviorClose']}")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
