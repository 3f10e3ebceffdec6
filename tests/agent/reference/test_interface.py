"""What the pages say of records, HTTP and metrics, held against a real daemon."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from commands import run_command
from prometheus_client.parser import text_string_to_metric_families
from running import Running, running, until

from equipoise.agent.config.file import example_text
from equipoise.agent.reference.documented import fields_of, structs_of
from equipoise.agent.reference.interface import (
    CSV,
    ROWS,
    curl,
    operations,
    records_page,
)

ROOT = Path(__file__).resolve().parents[3]
TOKENS = {"route": "a-route-token-for-tests-0", "admin": "an-admin-token-for-tests-1"}
SERVICE = """
refresh_seconds = 0.3
forecast_seconds = 0.5
retention = {days = 30, delete = true}
otlp = {mapping = "requests"}
tokens = [
""" + "".join(
    f'{{name = "{name}", scope = "{name}", token = "{text}"}},\n' for name, text in TOKENS.items()
)
ROW = re.compile(r"^\| `(\w+)` \| (\w+) \| ([^|]*) \| ([^|]*) \|$", re.MULTILINE)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """With the configuration that `equipoise init` writes, less its [service] table."""
    config = re.sub(r"\[service\].*?(?=\n\[)", "", example_text(), flags=re.DOTALL)
    with running(tmp_path_factory.mktemp("http"), f"{SERVICE}]\n", config=config) as started:
        yield started


def send(daemon: Running, command: str, variables: dict[str, str]) -> Any:
    """The answer to a `curl` command as a shell would read it."""
    for name, text in variables.items():
        command = command.replace(f"${name}", text)
    words = iter(shlex.split(command.replace("\\\n", " "))[1:])
    method, headers, body, url = "", {}, None, ""
    for word in words:
        if word == "-X":
            method = next(words)
        elif word == "-H":
            name, _, text = next(words).partition(": ")
            headers[name] = text
        elif word == "--data-binary":
            body = next(words).encode()
        elif word != "-s":
            url = word
    assert "$" not in command
    path = url.removeprefix("localhost:8080")
    answer = daemon.ask(method or ("POST" if body else "GET"), path, body, **headers)
    assert answer.status == 200, (command, answer.body)
    return answer.json


def test_every_operation_answers_its_example_with_the_fields_it_declares(daemon: Running) -> None:
    page = (ROOT / "docs/reference/http.md").read_text()
    examples = re.findall(
        r"^## ([A-Z]+ /\S+)\n.*?```sh\n(.*?)\n```", page, re.MULTILINE | re.DOTALL
    )
    declared = operations()
    assert [heading for heading, _ in examples] == [f"{o.method} {o.path}" for o in declared]
    document = daemon.ask("GET", "/openapi.json", token=TOKENS["route"]).json["paths"]
    served = {f"{method.upper()} {path}" for path, each in document.items() for method in each}
    assert served == {heading for heading, _ in examples}
    variables, answers = {}, {}
    for operation, (heading, command) in zip(declared, examples, strict=True):
        assert command == curl(operation)
        variables["EQUIPOISE_TOKEN"] = TOKENS[operation.scope or "route"]
        answer = answers[heading] = send(daemon, command, variables)
        (struct,) = structs_of(operation.answer)
        # What is there only under another configuration is unset here, and left out.
        left_out = {
            field.name for field in msgspec.structs.fields(struct) if field.default is msgspec.UNSET
        }
        assert set(answer) | left_out == {field.name for field in fields_of(struct)}, heading
        if operation.path == "/v1/decide":
            variables |= {"OUTCOME_TOKEN": answer["outcome_token"], "RULE_ID": answer["rule_id"]}
    assert answers["POST /v1/outcomes"]["accepted"] == 1
    bulk = answers["POST /v1/observations"]
    assert (bulk["rows"], bulk["unrated"], bulk["rejected"]) == (1, 1, 0)
    assert answers["POST /v1/simulations"]["rows"] == 1
    assert answers["GET /v1/decisions"]["outcomes"][0]["reward"] == 1.0
    assert answers["POST /v1/pause"]["paused"]
    assert not answers["POST /v1/resume"]["paused"]


def test_every_field_of_bodies_and_answers_has_a_meaning() -> None:
    """Those of plans are described by the planner's own page."""
    structs, found = [record for record, _ in ROWS.values()], set()
    for operation in operations():
        structs += structs_of(operation.body) + structs_of(operation.answer)
    while structs:
        struct = structs.pop()
        if struct in found or ".planning." in struct.__module__:
            continue
        found.add(struct)
        for field in fields_of(struct):
            assert field.meaning, (
                f"{struct.__name__}: its docstring does not say what {field.name} is"
            )
            structs += structs_of(field.kind)
    assert len(found) > 25


def test_the_records_of_the_page_are_taken(tmp_path: Path) -> None:
    """Lines of every kind, as the page has them, and the table; of the usage log one is unrated."""
    page = (ROOT / "docs/reference/records.md").read_text()
    assert page == records_page(), "write it anew: make reference"
    texts = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    (tmp_path / "equipoise.toml").write_text(example_text())
    (tmp_path / "table.csv").write_text(CSV)
    taken = {}
    for (kind, (record, rows)), text in zip(ROWS.items(), texts, strict=True):
        assert [json.loads(line) for line in text.splitlines()] == rows
        given = {name for row in rows for name in row}
        missing = (
            set(record.__struct_fields__) - given - {"decision_id", "metrics", "at", "unit_id"}
        )
        assert not missing, "each field stands in an example"
        if kind != "outcomes":  # which want their decisions; the daemon takes them above
            (tmp_path / f"{kind}.jsonl").write_text(text)
            done = run_command("ingest", f"{kind}.jsonl", "--kind", kind, "--json", cwd=tmp_path)
            assert done.returncode == 0, done.stderr
            taken[kind] = json.loads(done.stdout)
    assert (taken["observations"]["accepted"], taken["observations"]["unrated"]) == (1, 1)
    assert taken["simulations"]["accepted"] == 1
    table = run_command("ingest", "table.csv", "--json", cwd=tmp_path)
    assert json.loads(table.stdout)["accepted"] == 1


def test_the_page_has_every_metric_that_the_daemon_exposes(daemon: Running) -> None:
    decide = next(each for each in operations() if each.path == "/v1/decide")
    # A forecast is made once there is something to look at.
    send(daemon, curl(decide).replace('"r1"', '"m1"'), {"EQUIPOISE_TOKEN": TOKENS["route"]})

    def text() -> str:
        return daemon.ask("GET", "/metrics", token=TOKENS["route"]).body.decode()

    until(lambda: all(name in text() for name in ("decided_in_hours", "assignments")), 60.0)
    exposed = {}
    for family in text_string_to_metric_families(text()):
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        words = ", ".join(f"`{label}`" for label in sorted(labels)) or "none"
        name = family.name + ("_total" if family.type == "counter" else "")
        exposed[name] = (family.type, words if family.samples else "", family.documentation)
    page = (ROOT / "docs/reference/metrics.md").read_text().partition("## Of a decider")[0]
    listed = {
        name: (kind, words if exposed.get(name, ("", "-"))[1] else "", meaning)
        for name, kind, words, meaning in ROW.findall(page)
    }
    rows = {name: f"| `{name}` | {' | '.join(facts)} |" for name, facts in exposed.items()}
    wrong = [row for name, row in rows.items() if listed.get(name) != exposed[name]]
    assert not wrong, "docs/reference/metrics.md lacks these rows:\n" + "\n".join(wrong)
    assert listed.keys() == exposed.keys(), "the page has a metric that is not exposed"
