#!/usr/bin/env python3
"""Checks the chart without helm, without a cluster and without a network.

A chart that renders is not yet one that runs: a misspelt field is dropped silently by older API servers, a
misspelt variable keeps the gateway from starting, a misspelt value is ignored by helm. So the chart is linted,
its schema must refuse bad values, all of ci/*-values.yaml are rendered, compared with the goldens and validated
strictly against the oldest and the newest Kubernetes that we name, the gateway itself checks the environment that
each gives it, and the suites under tests/ are run.

    check_chart.py --gateway target/debug/gateway   check; the last line is "N passed, N failed"
    check_chart.py --update                         write the goldens and the table of README.md afresh

A tool that is missing is a failure, not a skip: see requirements.txt.
"""

from __future__ import annotations

import argparse
import difflib
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

try:
    import kubernetes_validate
    import yaml
    from helm_python import Chart, HelmError, HelmValuesError, lint

    from suites import run_suites
except ImportError as error:
    sys.exit(f"check_chart: {error}. Install helm/tools/requirements.txt, or run `make chart`.")

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "pulsegate"
KUBERNETES = ["1.28", "1.37"]
RELEASE, NAMESPACE = "demo", "prod"
GENERATED = ("<!-- values: begin -->", "<!-- values: end -->")

# A row is: values that must be refused, and a part of the message.
REFUSED_BY_SCHEMA: list[tuple[dict[str, Any], str]] = [
    ({"replicas": 2}, "replicas"),
    ({"replicaCount": -1}, "replicaCount"),
    ({"replicaCount": "2"}, "replicaCount"),
    ({"image": {"digest": "sha256:abc"}}, "digest"),
    ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
    ({"redis": {"url": "http://redis:6379"}}, "url"),
    ({"redis": {"uri": "redis://redis:6379"}}, "uri"),
    ({"redis": {"existingSecret": {"urlKey": "url"}}}, "urlKey"),
    ({"config": {"tickIntervall": "5s"}}, "tickIntervall"),
    ({"config": {"tickInterval": "5"}}, "tickInterval"),
    ({"config": {"tickInterval": 5}}, "tickInterval"),
    ({"config": {"drainWindow": None}}, "drainWindow"),
    ({"config": {"drainWindow": "25sec"}}, "drainWindow"),
    ({"config": {"outboxBytes": "64KB"}}, "outboxBytes"),
    ({"config": {"maxConnectionsPerIp": -1}}, "maxConnectionsPerIp"),
    ({"config": {"maxConnectionsPerIp": "10"}}, "maxConnectionsPerIp"),
    ({"config": {"maxConnections": 0}}, "maxConnections"),
    ({"config": {"trustedProxies": "10.0.0.0/8"}}, "trustedProxies"),
    ({"config": {"trustedProxies": ["proxy.example.org"]}}, "trustedProxies"),
    ({"config": {"allowedOrigins": ["https://example.org/path"]}}, "allowedOrigins"),
    ({"config": {"reconnectBudget": "500"}}, "reconnectBudget"),
    ({"config": {"logFormat": "xml"}}, "logFormat"),
    ({"config": {"proxyProtocol": "yes"}}, "proxyProtocol"),
    ({"bindAddress": "localhost"}, "bindAddress"),
    ({"ingest": {"token": "two words"}}, "token"),
    ({"ingest": {"token": "long-enough,short"}}, "token"),
    ({"config": {"allowedOrigins": ["example.org"]}}, "allowedOrigins"),
    ({"config": {"keyPrefix": "a}b"}}, "keyPrefix"),
    ({"service": {"type": "ExternalName"}}, "type"),
    ({"service": {"port": 0}}, "port"),
    ({"service": {"port": 70000}}, "port"),
    ({"ingress": {"hosts": [{"paths": []}]}}, "host"),
    ({"ingress": {"hosts": [{"host": "a", "paths": [{"path": "ws", "pathType": "Exact"}]}]}}, "path"),
    ({"probes": {"liveness": {"periodSeconds": 0}}}, "periodSeconds"),
    ({"podDisruptionBudget": {"enabled": "yes"}}, "enabled"),
    ({"autoscaling": {"minReplicas": 0}}, "minReplicas"),
    ({"terminationGracePeriodSeconds": 0}, "terminationGracePeriodSeconds"),
    ({"extraEnv": [{"value": "nameless"}]}, "extraEnv"),
    ({"podLabels": {"tier": 1}}, "podLabels"),
    ({"maxSurge": "0%"}, "maxSurge"),
]


class Checks:
    """Counts what passed and prints what did not."""

    def __init__(self) -> None:
        self.passed = 0
        self.failed = 0

    def add(self, ok: bool, name: str, why_not: str = "") -> None:
        if ok:
            self.passed += 1
        else:
            self.failed += 1
            print(f"FAILED {name}\n       {why_not}")

    def section(self, title: str, before: int) -> None:
        print(f"{title}: {self.passed - before} passed")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--gateway", type=Path, help="a built gateway, for its --check-config")
    what.add_argument("--update", action="store_true")
    arguments = parser.parse_args()
    if arguments.gateway and not arguments.gateway.is_file():
        parser.error(f"{arguments.gateway} is not there: cargo build -p gateway")
    update: bool = arguments.update
    checks = Checks()
    with Chart.load(CHART) as chart:
        steps = [
            ("lint", lambda: check_lint(checks)),
            ("schema", lambda: check_schema(checks, chart)),
            ("values", lambda: check_values(checks, chart, update)),
            ("render", lambda: check_renders(checks, chart, update)),
            ("suites", lambda: run_suites(chart, CHART / "tests", checks.add)),
        ]
        if arguments.gateway:
            steps.append(("environment", lambda: check_environment(checks, chart, arguments.gateway)))
        for title, step in steps:
            before = checks.passed
            step()
            checks.section(title, before)
    print(f"{checks.passed} passed, {checks.failed} failed")
    return 1 if checks.failed else 0


def check_lint(checks: Checks) -> None:
    for version in KUBERNETES:
        result = lint(CHART, strict=True, kube_version=f"v{version}.0")
        # Severity 1 is advice (such as an icon); 2 and 3 are warnings and errors.
        findings = [message for message in result["messages"] if message["severity"] >= 2]
        checks.add(not findings and not result["errors"], f"lint {version}", f"{findings} {result['errors']}")


def check_schema(checks: Checks, chart: Chart) -> None:
    for values, part in REFUSED_BY_SCHEMA:
        try:
            chart.validate_schema(values)
        except HelmValuesError as error:
            checks.add(part in str(error), f"schema refuses {values}", f"for another reason: {error}")
        else:
            checks.add(False, f"schema refuses {values}", "it was accepted")


def check_values(checks: Checks, chart: Chart, update: bool) -> None:
    """values.yaml, the schema, README.md and full-values.yaml know the same keys."""
    documented = documented_values()
    defaults = chart.values
    leaves = {path for path in leaf_paths(defaults)}
    for path in sorted(leaves):
        known = any(path == key or path.startswith(f"{key}.") for key in documented)
        checks.add(known, f"values.yaml: {path}", "has no '# --' comment")
    config = set(chart.schema["properties"]["config"]["properties"])
    checks.add(config == set(defaults["config"]), "config keys", "values.yaml and the schema differ: "
               f"{sorted(config ^ set(defaults['config']))}")
    full = yaml.safe_load((CHART / "ci" / "full-values.yaml").read_text())["config"]
    checks.add(config == set(full), "config keys", f"ci/full-values.yaml lacks {sorted(config - set(full))}")

    readme = CHART / "README.md"
    text = readme.read_text()
    begin, end = (text.index(marker) for marker in GENERATED)
    table = "\n".join(
        ["| Key | Default | Meaning |", "|---|---|---|"]
        + [f"| `{key}` | {default_text(defaults, key)} | {meaning} |" for key, meaning in documented.items()]
    )
    wanted = f"{text[:begin]}{GENERATED[0]}\n{table}\n{text[end:]}"
    if update and wanted != text:
        readme.write_text(wanted)
        text = wanted
    checks.add(wanted == text, "README.md", "the table of values is stale: check_chart.py --update")


def documented_values() -> dict[str, str]:
    """Dotted key to meaning, in the order of values.yaml."""
    found: dict[str, str] = {}
    parents: list[str] = []
    meaning = None
    for line in (CHART / "values.yaml").read_text().splitlines():
        comment = re.match(r"\s*# -- (.+)", line)
        if comment:
            meaning = comment.group(1).replace("|", "\\|")
            continue
        key = re.match(r"( *)([A-Za-z]\w*):", line)
        if key:
            depth = len(key.group(1)) // 2
            parents = parents[:depth] + [key.group(2)]
            if meaning:
                found[".".join(parents)] = meaning
        meaning = None
    return found


def leaf_paths(values: dict[str, Any], prefix: str = "") -> list[str]:
    leaves = []
    for key, value in values.items():
        if isinstance(value, dict) and value:
            leaves += leaf_paths(value, f"{prefix}{key}.")
        else:
            leaves.append(f"{prefix}{key}")
    return leaves


def default_text(defaults: dict[str, Any], dotted: str) -> str:
    value: Any = defaults
    for key in dotted.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if isinstance(value, (dict, list)) and value:
        return "see `values.yaml`"
    if value is None:
        return "`null`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`" if value != "" else '`""`'


def check_renders(checks: Checks, chart: Chart, update: bool) -> None:
    cases = sorted((CHART / "ci").glob("*-values.yaml"))
    checks.add(bool(cases), "ci values", "none found")
    goldens = CHART / "ci" / "golden"
    wanted_goldens = {f"{case.name.removesuffix('-values.yaml')}.yaml" for case in cases}
    for stray in {path.name for path in goldens.glob("*")} - wanted_goldens:
        checks.add(False, f"golden {stray}", "belongs to no ci values")
    for case in cases:
        name = case.name.removesuffix("-values.yaml")
        values = yaml.safe_load(case.read_text()) or {}
        try:
            chart.validate_schema(values)
            rendered = chart.render(values, name=RELEASE, namespace=NAMESPACE)
        except HelmError as error:
            checks.add(False, f"render {name}", str(error))
            continue
        check_golden(checks, goldens / f"{name}.yaml", name, as_text(rendered), update)
        check_documents(checks, name, rendered)


def as_text(rendered: dict[str, str]) -> str:
    """All templates that render anything, in order of their names; the notes as a comment."""
    parts = []
    for path, text in sorted(rendered.items()):
        if not text.strip():
            continue
        body = text.strip("\n")
        if path.endswith("NOTES.txt"):
            body = "\n".join(f"# {line}".rstrip() for line in body.splitlines())
        parts.append(f"---\n# Source: {path}\n{body.removeprefix('---').lstrip()}\n")
    return "".join(parts)


def check_golden(checks: Checks, golden: Path, name: str, text: str, update: bool) -> None:
    if update:
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(text)
    old = golden.read_text() if golden.exists() else ""
    diff = difflib.unified_diff(old.splitlines(), text.splitlines(), "golden", "rendered", lineterm="", n=1)
    checks.add(old == text, f"golden {name}", "\n       ".join(diff) + "\n       (check_chart.py --update accepts this)")


def check_documents(checks: Checks, name: str, rendered: dict[str, str]) -> None:
    seen: set[tuple[str, str]] = set()
    for path, text in sorted(rendered.items()):
        if path.endswith(".txt"):
            continue
        for document in yaml.safe_load_all(text):
            if not document:
                continue
            identity = (document["kind"], document["metadata"]["name"])
            checks.add(identity not in seen, f"{name}: {identity}", "is rendered twice")
            seen.add(identity)
            for version in KUBERNETES:
                try:
                    kubernetes_validate.validate(document, version, strict=True)
                    why_not = ""
                except kubernetes_validate.ValidationError as error:
                    why_not = f"{'.'.join(map(str, error.path))}: {error.message}"
                except (kubernetes_validate.SchemaNotFoundError, kubernetes_validate.InvalidSchemaError) as error:
                    why_not = repr(error)
                checks.add(not why_not, f"{name}: {path} against Kubernetes {version}", why_not)


def check_environment(checks: Checks, chart: Chart, gateway: Path) -> None:
    """The gateway accepts the environment of every rendered pod: it refuses to start on a variable it does not know.

    And it reads every secret file that it is given: one that is not there is an error.
    """
    for case in sorted((CHART / "ci").glob("*-values.yaml")):
        name = case.name.removesuffix("-values.yaml")
        with tempfile.TemporaryDirectory() as directory:
            environment = pod_environment(chart, case, Path(directory))
            code, output = check_config(gateway, environment)
            checks.add(code == 0, f"gateway --check-config {name}", f"exit {code}: {output}")
            for variable, path in environment.items():
                if variable.endswith("_FILE"):
                    code, output = check_config(gateway, environment | {variable: f"{path}.missing"})
                    checks.add(code == 2, f"{name}: {variable} of a file that is missing", f"exit {code}, not 2: {output}")


def pod_environment(chart: Chart, case: Path, directory: Path) -> dict[str, str]:
    """The variables of the gateway's container, with files in the directory in place of the mounted secrets."""
    contents = {
        "redis-url": "rediss://redis.example.org:6380/0\n",
        "redis-ca.crt": (Path(__file__).parent / "testdata" / "ca.crt").read_text(),
        "ingest-token": "first-token,second-token\n",
    }
    for file, content in contents.items():
        (directory / file).write_text(content)
    rendered = chart.render(yaml.safe_load(case.read_text()) or {}, name=RELEASE, namespace=NAMESPACE)
    deployment = yaml.safe_load(rendered["pulsegate/templates/deployment.yaml"])
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    mount = "/etc/pulsegate/secrets"
    return {entry["name"]: entry["value"].replace(mount, str(directory)) for entry in container["env"]}


def check_config(gateway: Path, environment: dict[str, str]) -> tuple[int, str]:
    done = subprocess.run([gateway, "--check-config"], env=environment, capture_output=True, text=True, timeout=30)
    return done.returncode, (done.stderr or done.stdout).strip()


if __name__ == "__main__":
    sys.exit(main())
