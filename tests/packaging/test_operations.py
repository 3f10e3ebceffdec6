"""The files for operators: rules, runbook, unit and image speak of what there is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from equipoise.agent.monitors import DEFAULT_ACTIONS
from equipoise.agent.service.api.schema import PassThrough
from equipoise.agent.service.upkeep.jobs import Jobs
from equipoise.replay.cli import app

ROOT = Path(__file__).resolve().parents[2]
OPERATIONS = ROOT / "docs" / "operations"
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
UNIT = (OPERATIONS / "equipoise.service").read_text()
IMAGE = (OPERATIONS / "Dockerfile").read_text()
SERVICE = "\n".join(
    path.read_text()
    for path in (*(ROOT / "agent/service").rglob("*.py"), ROOT / "agent/config/service.py")
)


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((OPERATIONS / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def sections() -> set[str]:
    return set(re.findall(r"^### (Equipoise\w+)$", RUNBOOK, re.MULTILINE))


def test_every_alarm_has_a_section_and_every_section_an_alarm() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names)) > 20
    assert sections() == set(names)
    for rule in rules():
        assert rule["labels"]["severity"] in ("page", "ticket", "info")
        assert rule["annotations"]["summary"].endswith(".")
        section = RUNBOOK.split(f"### {rule['alert']}\n", 1)[1].split("\n#", 1)[0]
        assert len(section) > 60
        assert section.strip().startswith("*page.*") == (rule["labels"]["severity"] == "page")


def test_every_metric_that_a_rule_names_is_one_of_the_daemons() -> None:
    known = set(re.findall(r'"(equipoise_\w+)"', SERVICE))
    text = (OPERATIONS / "alerts.yml").read_text() + RUNBOOK
    named = set(re.findall(r"\bequipoise_\w+", text))
    base = {re.sub(r"_(?:total|bucket|count|sum)$", "", name) for name in named}
    assert len(base) > 12
    assert base - known == set()


def panels() -> list[dict[str, Any]]:
    board = json.loads((OPERATIONS / "grafana.json").read_text())
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def test_every_expression_of_the_board_is_of_metrics_that_the_daemon_exposes() -> None:
    """Of their type and with their labels; docs/reference/metrics.md is compared with a daemon."""
    row = re.compile(r"^\| `(\w+)` \| (\w+) \| ([^|]*) \|", re.MULTILINE)
    page = (ROOT / "docs/reference/metrics.md").read_text()
    metrics = {
        name: (kind, set(re.findall(r"`(\w+)`", labels)))
        for name, kind, labels in row.findall(page)
    }
    named = set()
    for panel in panels():
        for target in panel["targets"]:
            text = target["expr"]
            selected = re.findall(r"(rate\()?\b(equipoise_\w+)\{([^}]*)\}", text)
            assert len(selected) == text.count("equipoise_") > 0, text
            for rate, name, labels in selected:
                base = re.sub(r"_bucket$", "", name)
                kind, known = metrics[base]
                used = set(re.findall(r"(\w+)(?:=~|!=|=)", labels))
                assert 'instance=~"$instance"' in labels
                assert used <= known | {"instance"}, text
                assert bool(rate) is (kind != "gauge"), f"{text}: a {kind}"
                assert (base != name) is (kind == "histogram")
                shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
                assert shown <= known, f"{text}: {target['legendFormat']}"
                named.add(base)
    assert len(named) > 20
    wanted = ("interval_lower", "decisions_total", "assignments", "budget_left", "check")
    assert named >= {f"equipoise_{name}" for name in (*wanted, "oldest_waiting_seconds")}


def test_the_panels_of_the_board_have_a_place_and_a_source_each() -> None:
    board = json.loads((OPERATIONS / "grafana.json").read_text())
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    cells: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        own = {
            (place["x"] + column, place["y"] + line)
            for column in range(place["w"])
            for line in range(place["h"])
        }
        assert not own & cells, panel["title"]
        cells |= own
    assert {column for column, _ in cells} == set(range(24))
    for panel in panels():
        assert panel["description"].endswith("."), panel["title"]
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert all(source["uid"] == "${datasource}" for source in sources)


def test_every_check_has_an_alarm() -> None:
    found = {re.search(r'check="(\w+)"', rule["expr"]) for rule in rules()}
    assert {match[1] for match in found if match} == set(DEFAULT_ACTIONS)


def test_what_the_runbook_quotes_exists() -> None:
    for reason in re.findall(r"`(store-\w+|stopping)`", RUNBOOK):
        assert reason in str(PassThrough), reason
    for event in re.findall(r"[Ll]og line `(\w+)`", RUNBOOK):
        assert f'"{event}"' in SERVICE, event
    for job in ("refresh", "checkpoint", "expiry", "history", "shadow"):
        assert f'"{job}"' in SERVICE, job
    assert Jobs.__name__ in SERVICE
    commands = set(re.findall(r"equipoise (\w+)", RUNBOOK))
    commands -= {"db"}
    there = {each.callback.__name__ for each in app.registered_commands if each.callback}
    assert commands <= there
    assert {"backup", "restore", "audit", "init"} <= commands
    for anchor in re.findall(r"\(#(\w+)\)", RUNBOOK):
        assert anchor in {name.lower() for name in sections()}


@pytest.mark.parametrize("link", re.findall(r"\]\((operations/[^)]+)\)", RUNBOOK))
def test_its_links_lead_somewhere(link: str) -> None:
    assert (ROOT / "docs" / link).is_file()


def test_the_unit_starts_and_reloads_the_daemon() -> None:
    assert "ExecReload=/bin/kill -HUP $MAINPID" in UNIT
    assert "equipoise serve --config /etc/equipoise/equipoise.toml" in UNIT
    stop = re.search(r"TimeoutStopSec=(\d+)", UNIT)
    assert stop
    assert int(stop[1]) > 10, "longer than service.shutdown_seconds"


def test_systemd_reads_the_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd-analyze on this machine")
    program = re.sub(r"/usr/local/lib/equipoise/bin/equipoise", "/bin/true", UNIT)
    path = tmp_path / "equipoise.service"
    path.write_text(program)
    done = subprocess.run([analyze, "verify", path], capture_output=True, text=True, check=False)
    ours = [line for line in done.stderr.splitlines() if "equipoise.service" in line]
    assert ours == []


def test_the_image_runs_what_is_tested() -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    version = re.search(r"FROM python:([\d.]+)-slim$", IMAGE, re.MULTILINE)
    assert version
    assert version[1] == wanted.removeprefix(">=")
    assert "-c /src/constraints.txt" in IMAGE
    assert re.search(r"^USER equipoise$", IMAGE, re.MULTILINE)
