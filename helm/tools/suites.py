"""Runs helm-unittest suites without the helm-unittest plugin.

The suites under helm/pulsegate/tests are ordinary helm-unittest files, so anybody with helm and the plugin can
run them. The plugin needs helm and a download from outside the package registries; this runner needs only the
Python packages of requirements.txt. It understands the part of the format that our suites use and refuses the
rest: an assertion it does not know is a failure, never a pass.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Callable

import yaml
from helm_python import Chart, HelmError

SUITE_KEYS = {"suite", "templates", "release", "tests", "set", "values"}
TEST_KEYS = {"it", "template", "templates", "set", "values", "documentIndex", "asserts", "release"}

Report = Callable[[bool, str, str], None]


class Unsupported(Exception):
    """The suite uses a part of helm-unittest that this runner does not have."""


def run_suites(chart: Chart, directory: Path, report: Report) -> None:
    """Runs every `*_test.yaml` of a directory; `report(ok, name, why_not)` is called once for each assertion."""
    files = sorted(directory.glob("*_test.yaml"))
    if not files:
        report(False, "suites", f"no *_test.yaml in {directory}")
    for path in files:
        for suite in yaml.safe_load_all(path.read_text()):
            try:
                refuse_unknown(suite, SUITE_KEYS)
                for test in suite["tests"]:
                    run_test(chart, directory, suite, test, f"{path.name}: {test.get('it', '?')}", report)
            except (Unsupported, KeyError) as error:
                report(False, path.name, f"not a suite this runner understands: {error!r}")


def refuse_unknown(mapping: dict[str, Any], known: set[str]) -> None:
    unknown = set(mapping) - known
    if unknown:
        raise Unsupported(f"unknown keys {sorted(unknown)}")


def run_test(
    chart: Chart, directory: Path, suite: dict[str, Any], test: dict[str, Any], name: str, report: Report
) -> None:
    refuse_unknown(test, TEST_KEYS)
    values: dict[str, Any] = {}
    for source in (suite, test):
        for file in source.get("values", []):
            merge(values, yaml.safe_load((directory / file).read_text()) or {})
        for key, value in source.get("set", {}).items():
            merge(values, nested(split_path(key), value))
    release = {"name": "RELEASE-NAME", "namespace": "NAMESPACE", **suite.get("release", {}), **test.get("release", {})}
    error, rendered = None, {}
    try:
        chart.validate_schema(values)
        rendered = chart.render(values, name=release["name"], namespace=release["namespace"])
    except HelmError as failure:
        error = str(failure)
    if not test.get("asserts"):
        report(False, name, "a test without assertions cannot fail")
    for assertion in test.get("asserts", []):
        assertion = dict(assertion)
        templates = [assertion.pop("template")] if "template" in assertion else templates_of(suite, test)
        index = assertion.pop("documentIndex", test.get("documentIndex"))
        negated = assertion.pop("not", False)
        (kind, arguments), = assertion.items()
        why_not = evaluate(kind, arguments or {}, error, rendered, templates, index)
        if negated:
            why_not = None if why_not else f"{kind} holds, but must not"
        report(why_not is None, f"{name}: {kind} {(arguments or {}).get('path', '')}".rstrip(), why_not or "")


def templates_of(suite: dict[str, Any], test: dict[str, Any]) -> list[str]:
    if "template" in test:
        return [test["template"]]
    return test.get("templates") or suite.get("templates") or []


def evaluate(
    kind: str,
    arguments: dict[str, Any],
    error: str | None,
    rendered: dict[str, str],
    templates: list[str],
    index: int | None,
) -> str | None:
    """Why the assertion does not hold, or None if it does."""
    if kind == "failedTemplate":
        return check_failure(arguments, error)
    if error is not None:
        return f"does not render: {error}"
    if kind == "notFailedTemplate":
        return None
    documents = []
    for template in templates:
        found = [text for path, text in rendered.items() if path.endswith(f"/templates/{template.removeprefix('templates/')}")]
        if not found:
            return f"no template {template}"
        if template.endswith(".txt"):
            documents.append({"raw": found[0]})
        else:
            documents += [document for document in yaml.safe_load_all(found[0]) if document]
    if kind == "hasDocuments":
        return None if len(documents) == arguments["count"] else f"{len(documents)} documents"
    if index is not None:
        if index >= len(documents):
            return f"document {index} of {len(documents)}"
        documents = [documents[index]]
    if not documents:
        return "nothing is rendered"
    check = CHECKS.get(kind)
    if check is None:
        return f"assertion {kind} is not supported by this runner"
    for document in documents:
        why_not = check(document, arguments)
        if why_not is not None:
            return why_not
    return None


def check_failure(arguments: dict[str, Any], error: str | None) -> str | None:
    if error is None:
        return "renders, but must fail"
    message, pattern = arguments.get("errorMessage"), arguments.get("errorPattern")
    if message is not None and message not in error:
        return f"fails with another message: {error}"
    if pattern is not None and not re.search(pattern, error):
        return f"fails with another message: {error}"
    return None


# One check for each kind of assertion: None when it holds, else the reason.


def at_path(check: Callable[[Any, dict[str, Any]], bool]) -> Callable[[dict[str, Any], dict[str, Any]], str | None]:
    """Exactly one node must be there, and satisfy the check."""

    def run(document: dict[str, Any], arguments: dict[str, Any]) -> str | None:
        nodes = select(document, arguments["path"])
        if len(nodes) != 1:
            return f"{len(nodes)} nodes at {arguments['path']}"
        return None if check(nodes[0], arguments) else f"found {nodes[0]!r}"

    return run


def exists(document: dict[str, Any], arguments: dict[str, Any]) -> str | None:
    return None if select(document, arguments["path"]) else "is not there"


def not_exists(document: dict[str, Any], arguments: dict[str, Any]) -> str | None:
    nodes = select(document, arguments["path"])
    return f"found {nodes[0]!r}" if nodes else None


def is_kind(document: dict[str, Any], arguments: dict[str, Any]) -> str | None:
    return None if document.get("kind") == arguments["of"] else f"found {document.get('kind')}"


def is_api_version(document: dict[str, Any], arguments: dict[str, Any]) -> str | None:
    return None if document.get("apiVersion") == arguments["of"] else f"found {document.get('apiVersion')}"


def includes(node: Any, content: Any) -> bool:
    return isinstance(node, list) and content in node


def is_subset(node: Any, content: Any) -> bool:
    return isinstance(node, dict) and all(key in node and node[key] == value for key, value in content.items())


CHECKS: dict[str, Callable[[dict[str, Any], dict[str, Any]], str | None]] = {
    "equal": at_path(lambda node, arguments: node == arguments["value"]),
    "notEqual": at_path(lambda node, arguments: node != arguments["value"]),
    "contains": at_path(lambda node, arguments: includes(node, arguments["content"])),
    "notContains": at_path(lambda node, arguments: isinstance(node, list) and arguments["content"] not in node),
    "isSubset": at_path(lambda node, arguments: is_subset(node, arguments["content"])),
    "matchRegex": at_path(lambda node, arguments: re.search(arguments["pattern"], str(node)) is not None),
    "notMatchRegex": at_path(lambda node, arguments: re.search(arguments["pattern"], str(node)) is None),
    "lengthEqual": at_path(lambda node, arguments: len(node) == arguments["count"]),
    "exists": exists,
    "notExists": not_exists,
    "isKind": is_kind,
    "isAPIVersion": is_api_version,
}


# Values and paths.


def merge(into: dict[str, Any], more: dict[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value


def nested(path: list[str], value: Any) -> dict[str, Any]:
    for key in reversed(path):
        value = {key: value}
    return value


def split_path(path: str) -> list[str]:
    """Splits `a.b[0].c["d.e"][?(@.f == "g")]` into its steps."""
    steps = re.findall(r'\[\?\(.*?\)\]|\["[^"]*"\]|\[\d+\]|[^.\[\]]+', path)
    if "".join(steps).replace(".", "") != path.replace(".", ""):
        raise Unsupported(f"path {path}")
    return [step[2:-2] if step.startswith('["') else step for step in steps]


def select(node: Any, path: str) -> list[Any]:
    """All nodes at a path."""
    nodes = [node]
    for step in split_path(path):
        nodes = [child for node in nodes for child in children(node, step)]
    return nodes


def children(node: Any, step: str) -> list[Any]:
    if step.startswith("[?("):
        match = re.fullmatch(r'\[\?\(@\.(\w+)\s*==\s*["\']([^"\']*)["\']\)\]', step)
        if not match:
            raise Unsupported(f"filter {step}")
        key, wanted = match.groups()
        return [item for item in node if item.get(key) == wanted] if isinstance(node, list) else []
    if step.startswith("["):
        index = int(step[1:-1])
        return [node[index]] if isinstance(node, list) and index < len(node) else []
    return [node[step]] if isinstance(node, dict) and step in node else []
