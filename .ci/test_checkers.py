#!/usr/bin/env python3
"""Plants violations and sees that each checker reports them: a checker that cannot fail is worse than none."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Assembled, so that this file does not hold what check_docs.py looks for.
SOMEBODYS_PATH = "/".join(["", "home", "somebody", "pulsegate"])

ARCHITECTURE = """# Architecture
## Code map
- `gateway/src/{lib,hub}.rs` the node
- `gateway/src/hub/tests.rs`, `gateway/src/take.lua`
## Invariants
| Name | What |
|---|---|
| **ORDER** | stream order |
| **GAP** | no silent hole |
## After
| **OTHER** | not an invariant |
"""
LIB = """//! A `{` in a comment, and Inv. ORDER: kept here.
const OPEN: char = '{';
const TEXT: &str = "#[cfg(test)] mod x { \\" }";
fn longest<'a>(x: &'a str) -> &'a str { x }
#[cfg(test)]
mod unit {
    const RAW: &str = r#" } " } "#;
    // Inv. ORDER: attacked here.
}
"""


class Repository:
    """A small repository in which all checks pass, until a test breaks it."""

    def __init__(self, directory: str) -> None:
        self.root = Path(directory)
        subprocess.run(["git", "init", "-q"], cwd=self.root, check=True)
        for name, text in {
            "docs/ARCHITECTURE.md": ARCHITECTURE,
            "README.md": "[map](docs/ARCHITECTURE.md#code-map)\n```\n[not a link](nowhere)\n```\n",
            "gateway/src/lib.rs": LIB,
            "gateway/src/hub.rs": "#[cfg(test)]\nmod tests;\n",
            "gateway/src/hub/tests.rs": "// Inv. GAP: attacked here.\n",
            "gateway/src/take.lua": "-- Inv. GAP: kept here.\n",
            "rust-toolchain.toml": '[toolchain]\nchannel = "1.95.0"\n',
            "Dockerfile": f"FROM rust:1.95.0-bookworm AS build\nWORKDIR {SOMEBODYS_PATH}\n",
            "Cargo.toml": '[workspace.package]\nversion = "0.1.0"\n',
            "helm/pulsegate/Chart.yaml": 'appVersion: "0.1.0"\n',
        }.items():
            self.write(name, text)

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def replace(self, name: str, old: str, new: str) -> None:
        text = (self.root / name).read_text()
        assert old in text, f"{old!r} is not in {name}"
        self.write(name, text.replace(old, new))


class CheckerTest(unittest.TestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.repository = Repository(directory.name)

    def run_checker(self, script: str, *arguments: str) -> tuple[int, str]:
        command = [sys.executable, str(HERE / script), *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        self.assertEqual(done.stderr, "")
        return done.returncode, done.stdout

    def passes(self, script: str, *arguments: str) -> None:
        code, output = self.run_checker(script, *arguments)
        self.assertEqual(code, 0, output)

    def fails(self, message: str, script: str, *arguments: str) -> None:
        code, output = self.run_checker(script, *arguments)
        self.assertEqual(code, 1, output)
        self.assertIn(message, output)


class Invariants(CheckerTest):
    def check(self, message: str | None = None) -> None:
        arguments = ("check_invariants.py", "--root", str(self.repository.root))
        self.passes(*arguments) if message is None else self.fails(message, *arguments)

    def test_a_true_repository_passes(self) -> None:
        self.check()

    def test_a_citation_inside_cfg_test_is_not_code(self) -> None:
        self.repository.replace("gateway/src/lib.rs", "Inv. ORDER: kept", "nothing kept")
        self.check("ORDER: no code cites it")

    def test_a_citation_outside_cfg_test_is_not_a_test(self) -> None:
        self.repository.replace("gateway/src/lib.rs", "Inv. ORDER: attacked", "nothing attacked")
        self.check("ORDER: no test cites it")

    def test_a_lua_script_is_code(self) -> None:
        self.repository.replace("gateway/src/take.lua", "Inv. GAP", "inv. gap")
        self.check("GAP: no code cites it")

    def test_talk_about_the_form_is_no_citation(self) -> None:
        self.repository.replace("gateway/src/take.lua", "Inv. GAP:", "as in `Inv. GAP`")
        self.check("GAP: no code cites it")

    def test_an_out_of_line_test_module_is_a_test(self) -> None:
        self.repository.write("gateway/src/hub/tests.rs", "")
        self.check("GAP: no test cites it")
        self.repository.write("gateway/src/hub.rs", "#[cfg(test)]\nmod attack;\n")
        self.repository.write("gateway/src/hub/attack.rs", "// Inv. GAP: attacked here.\n")
        self.check()

    def test_the_integration_tests_count(self) -> None:
        self.repository.write("gateway/src/hub/tests.rs", "")
        self.repository.write("gateway/tests/all/gap.rs", "// Inv. GAP: attacked here.\n")
        self.check()

    def test_a_misspelt_name_is_reported(self) -> None:
        self.repository.write("gateway/tests/all.rs", "// Inv. ODER: attacked here.\n")
        self.check("ODER: cited in gateway/tests/all.rs")

    def test_a_document_without_invariants_is_reported(self) -> None:
        self.repository.replace("docs/ARCHITECTURE.md", "## Invariants", "## Promises")
        self.check("no invariant found")


class Documents(CheckerTest):
    def check(self, message: str | None = None) -> None:
        arguments = ("check_docs.py", "--root", str(self.repository.root))
        self.passes(*arguments) if message is None else self.fails(message, *arguments)

    def test_a_true_repository_passes(self) -> None:
        self.check()

    def test_a_path_of_the_map_must_exist(self) -> None:
        self.repository.replace("docs/ARCHITECTURE.md", "{lib,hub}", "{lib,hub,relay}")
        self.check("code map: gateway/src/relay.rs does not exist")

    def test_a_source_must_be_on_the_map(self) -> None:
        self.repository.write("shared/src/lib.rs", "")
        self.check("code map: shared/src/lib.rs is missing")

    def test_the_map_itself_must_be_there(self) -> None:
        self.repository.replace("docs/ARCHITECTURE.md", "## Code map", "## Files")
        self.check('no section "Code map"')

    def test_a_link_must_lead_to_a_file(self) -> None:
        self.repository.write("docs/OPERATIONS.md", "[x](../gone.md)")
        self.check("docs/OPERATIONS.md: link to ../gone.md")

    def test_a_link_must_lead_to_a_heading(self) -> None:
        self.repository.replace("README.md", "#code-map", "#the-map")
        self.check("there is no such heading")

    def test_a_local_path_is_reported(self) -> None:
        self.repository.write("gateway/src/take.lua", f"-- see {SOMEBODYS_PATH}\n-- Inv. GAP: kept\n")
        self.check("gateway/src/take.lua:1: absolute local path")

    def test_a_url_is_no_local_path(self) -> None:
        self.repository.write("docs/OPERATIONS.md", f"https://example.org{SOMEBODYS_PATH}")
        self.check()

    def test_a_long_file_needs_a_reason(self) -> None:
        self.repository.write("gateway/src/lib.rs", "\n" * 601)
        self.check("gateway/src/lib.rs: 601 lines")
        self.repository.write(".ci/long-files.txt", "gateway/src/lib.rs:\n")
        self.check("gateway/src/lib.rs: 601 lines")
        self.repository.write(".ci/long-files.txt", "# why\ngateway/src/lib.rs: one table, read top to bottom\n")
        self.check()

    def test_an_exception_without_need_is_reported(self) -> None:
        self.repository.write(".ci/long-files.txt", "gateway/src/lib.rs: it was long once\n")
        self.check("needs no exception")

    def test_versions_must_agree(self) -> None:
        self.repository.replace("Dockerfile", "1.95.0", "1.94.0")
        self.check("Rust is 1.95.0")
        self.repository.replace("Dockerfile", "1.94.0", "1.95.0")
        self.repository.replace("Cargo.toml", "0.1.0", "0.2.0")
        self.check("Pulsegate is 0.2.0")


CARGO = """
     Running unittests src/lib.rs (target/debug/deps/gateway-0123456789abcdef)
running 3 tests
test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s
     Running tests/main.rs (target/debug/deps/main-0123456789abcdef)
test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
   Doc-tests gateway
test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
"""


class Counts(CheckerTest):
    def check(self, logs: dict[str, str], floors: dict[str, int], message: str | None = None) -> None:
        root = self.repository.root
        for name, text in logs.items():
            self.repository.write(f"{name}.log", text)
        self.repository.write("floors.json", json.dumps(floors))
        arguments = ("check_counts.py", "--floors", str(root / "floors.json"), *(str(root / f"{name}.log") for name in logs))
        self.passes(*arguments) if message is None else self.fails(message, *arguments)

    def test_every_runner_is_understood(self) -> None:
        logs = {
            "rust": CARGO,
            "tap": "# tests 4\n# pass 4\n# fail 0\n",
            "spec": "\x1b[34mℹ pass 5\x1b[39m\nℹ fail 0\n",
            "plain": "lint: 3 passed\n6 passed, 0 failed\n",
            "unit": "Ran 7 tests in 0.1s\n\nOK\n",
            "pytest": "=========== 8 passed, 1 warning in 0.12s ===========\n",
        }
        floors = {"gateway:src/lib.rs": 3, "main:tests/main.rs": 2, "gateway:doc": 1}
        self.check(logs, floors | {"tap": 4, "spec": 5, "plain": 6, "unit": 7, "pytest": 8})

    def test_a_shrunk_suite_is_reported(self) -> None:
        self.check({"tap": "# pass 3\n# fail 0\n"}, {"tap": 4}, "tap: 3 tests passed, at least 4")

    def test_a_vanished_suite_is_reported(self) -> None:
        self.check({"tap": "# pass 4\n"}, {"tap": 4, "main:tests/main.rs": 2}, "main:tests/main.rs: did not run")

    def test_a_log_without_results_is_reported(self) -> None:
        self.check({"tap": "# pass 4\n", "other": "nothing to do\n"}, {"tap": 4}, "other: its log holds no test result")

    def test_a_new_suite_needs_a_floor(self) -> None:
        self.check({"tap": "# pass 4\n", "new": "1 passed, 0 failed\n"}, {"tap": 4}, "new: has no floor")

    def test_failures_are_reported(self) -> None:
        self.check({"tap": "# pass 4\n# fail 1\n"}, {"tap": 4}, "tap: 1 failed")
        self.check({"tap": "# pass 4\n# cancelled 1\n"}, {"tap": 4}, "tap: 1 failed")
        self.check({"unit": "Ran 7 tests in 0.1s\n\nFAILED (failures=1, errors=1)\n"}, {"unit": 5}, "unit: 2 failed")
        self.check({"plain": "4 passed, 2 failed\n"}, {"plain": 4}, "plain: 2 failed")

    def test_a_missing_log_is_reported(self) -> None:
        self.fails("no log", "check_counts.py", str(self.repository.root / "gone.log"))

    def test_no_floors_at_all_is_reported(self) -> None:
        self.check({"tap": ""}, {}, "no floors are committed")

    def test_floors_are_written(self) -> None:
        root = self.repository.root
        self.repository.write("tap.log", "# pass 4\n# fail 0\n")
        self.passes("check_counts.py", "--floors", str(root / "new.json"), "--write-floors", str(root / "tap.log"))
        self.assertEqual(json.loads((root / "new.json").read_text()), {"tap": 4})


class Budget(CheckerTest):
    def check(
        self,
        counted: dict[str, int],
        budget: dict[str, int],
        message: str | None = None,
        machine: str = "x86_64",
        rust: str = "1.95.0",
    ) -> None:
        valid_for = {"machine": "x86_64", "rust": rust}
        self.repository.write("budget.json", json.dumps({"valid_for": valid_for, "tolerance_percent": 10, "cases": budget}))
        self.run_on(counted, message, machine)

    def run_on(self, counted: dict[str, int], message: str | None, machine: str, *more: str) -> None:
        root = self.repository.root
        self.repository.write("results.json", json.dumps({"machine": machine, "instructions": counted}))
        files = ("--budget", str(root / "budget.json"), "--toolchain", str(root / "rust-toolchain.toml"))
        arguments = ("check_bench_budget.py", *files, *more, str(root / "results.json"))
        self.passes(*arguments) if message is None else self.fails(message, *arguments)

    def test_within_the_tolerance_passes(self) -> None:
        self.check({"a": 1100, "b": 10}, {"instructions: a": 1000, "instructions: b": 1000})

    def test_a_regression_is_reported(self) -> None:
        self.check({"a": 1101}, {"instructions: a": 1000}, "instructions: a: 1,101 counted, the budget is 1,000 (+10.1 %)")

    def test_a_case_and_its_budget_belong_together(self) -> None:
        self.check({"a": 1, "b": 1}, {"instructions: a": 1}, "instructions: b: has no budget")
        self.check({"a": 1}, {"instructions: a": 1, "instructions: b": 1}, "instructions: b: was not counted")
        self.check({}, {}, "the budget is empty")

    def test_a_budget_of_another_compiler_is_reported(self) -> None:
        self.check({"a": 1}, {"instructions: a": 1}, "made with Rust 1.94.0, this is 1.95.0", rust="1.94.0")

    def test_another_processor_is_not_judged(self) -> None:
        self.check({"a": 2000}, {"instructions: a": 1000}, machine="aarch64")

    def test_a_budget_is_written(self) -> None:
        self.run_on({"a": 7}, None, "x86_64", "--write-budget")
        self.check({"a": 7}, json.loads((self.repository.root / "budget.json").read_text())["cases"])


if __name__ == "__main__":
    unittest.main()
