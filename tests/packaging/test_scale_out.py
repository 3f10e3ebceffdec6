"""The files of docs/scale-out are read by their own tools, and their commands by ours."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import run_command

from equipoise.agent.config.file import load_file
from equipoise.store.address import parse_address

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "scale-out"
SECRETS = {
    "PGPASSWORD": "one-that-is-nowhere",
    "ROUTER_TOKEN": "a-token-of-the-router-for-tests",
    "ADMIN_TOKEN": "a-token-of-operators-for-tests",
}


def manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text()))


def compose() -> Any:
    return yaml.safe_load((FOLDER / "compose.yaml").read_text())


def orders() -> Iterator[tuple[str, list[str]]]:
    for name, service in compose()["services"].items():
        if name != "database":
            yield f"compose {name}", service["command"]
    for each in manifests():
        if each["kind"] == "Deployment":
            (container,) = each["spec"]["template"]["spec"]["containers"]
            yield f"kubernetes {container['name']}", container["args"]


@pytest.mark.parametrize(("name", "order"), list(orders()))
def test_every_command_is_one_that_serve_accepts(
    name: str, order: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, secret in SECRETS.items():
        monkeypatch.setenv(variable, secret)
    text = (FOLDER / "equipoise.toml").read_text()
    # Where there is no database, a check would wait for it.
    config = tmp_path / "equipoise.toml"
    config.write_text(re.sub(r'"postgresql://[^"]+"', f'"{tmp_path / "log.db"}"', text))
    given = ["equipoise.toml" in each for each in order]
    assert sum(given) == 1
    order = [str(config) if here else each for here, each in zip(given, order, strict=True)]
    result = run_command(*order, "--check")
    assert result.returncode == 0, result.stderr
    assert "chat compares large, small" in result.stdout


def test_the_configuration_names_a_database_and_everything_that_is_mounted() -> None:
    path = FOLDER / "equipoise.toml"
    settings = load_file(path, {}).service
    assert parse_address(settings.store).schema == "chat"
    (config_map,) = [each for each in manifests() if each["kind"] == "ConfigMap"]
    assert config_map["data"]["equipoise.toml"] == path.read_text()
    services = [each for each in manifests() if each["kind"] == "Service"]
    host = (settings.lanes.authority or "").removeprefix("http://").partition(":")[0]
    assert host in [each["metadata"]["name"] for each in services]
    aliases = compose()["x-authority"]["networks"]["default"]["aliases"]
    assert aliases == [host]
    for each in manifests():
        if each["kind"] != "Deployment":
            continue
        spec = each["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert {settings.key, "/etc/equipoise/equipoise.toml"} <= mounts
        assert any((settings.lanes.folder or "").startswith(f"{mount}/") for mount in mounts)
        waits = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command")
        pause = 0 if waits is None else int(waits[1])
        assert spec["terminationGracePeriodSeconds"] > settings.shutdown_seconds + 10 + pause


def test_compose_reads_its_file() -> None:
    tool = None
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            found = subprocess.run([*command, "version"], capture_output=True, check=False)
            tool = command if found.returncode == 0 else tool
    if tool is None:
        pytest.skip("no docker compose is installed here")
    order = [*tool, "-f", FOLDER / "compose.yaml", "config"]
    result = subprocess.run(
        order, capture_output=True, text=True, check=False, env={**os.environ, **SECRETS}
    )
    assert result.returncode == 0, result.stderr
    services = yaml.safe_load(result.stdout)["services"]
    assert set(services) == set(compose()["services"])
    missing = subprocess.run(order, capture_output=True, text=True, check=False)
    assert missing.returncode != 0
    assert "PGPASSWORD" in missing.stderr


def test_kubectl_reads_the_manifests() -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl is installed here")
    # What it does without a cluster: read every object by its kind, and change it.
    order = ["kubectl", "label", "--local", "-f", FOLDER / "kubernetes.yaml", "read=yes"]
    result = subprocess.run([*order, "-o", "name"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.split()) == len(manifests())


def test_the_manifests_follow_the_schemas_of_kubernetes() -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    for each in manifests():
        kubernetes_validate.validate(each, "1.32", strict=True)
