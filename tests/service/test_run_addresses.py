"""Where a daemon is found: the file of a Unix socket, and a path behind a proxy."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from commands import run_command
from forking import fork
from running import READY_SECONDS, Running, running, write_config

from equipoise.agent.client import Address, Client
from equipoise.agent.config import ConfigError
from equipoise.agent.config.file import file_from_dict

REQUEST = {"request_id": "r1", "routed": "large", "features": {"words": 3}}


@contextmanager
def on_socket(folder: Path, file: Path, service: str = "", *more: str) -> Iterator[Any]:
    """A daemon that listens on a file; the process."""
    path = write_config(folder, service)
    order = ["serve", "--config", path, "--uds", file, "--store", folder / "log.db", *more]
    process = fork(order)
    line = process.stdout.readline()
    if line != f"listening on unix://{file}\n":
        _, words = process.communicate(READY_SECONDS)
        raise AssertionError(f"{line}{words}")
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(15)
            process.communicate(READY_SECONDS)


def refused(folder: Path, *order: object) -> str:
    process = fork(["serve", "--config", write_config(folder), "--store", folder / "b.db", *order])
    _, words = process.communicate(READY_SECONDS)
    assert process.returncode == 2, words
    return str(words)


def post(url: str, path: str, body: object) -> tuple[int, Any]:
    address = Address.of(url)
    connection = address.connection(10.0)
    try:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", address.path + path, json.dumps(body).encode(), headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_a_socket_is_used_as_a_port_would_be(tmp_path: Path) -> None:
    file = tmp_path / "eq.sock"
    with on_socket(tmp_path, file):
        assert stat.S_IMODE(file.stat().st_mode) == 0o660
        escaped = str(file).replace("/", "%2F")
        for url in (f"unix://{file}", f"http+unix://{escaped}", f"http+unix://{escaped}/"):
            assert post(url, "/v1/decide", REQUEST)[0] == 200
        with Client(f"unix://{file}", timeout=5.0) as client:
            choice = client.decide("r2", "large", {"words": 3})
            assert choice.decision_id is not None
            client.outcome(choice, outputs={"seconds": 1.0}, reward=1.0)
            assert client.flush()
        rows = tmp_path / "rows.jsonl"
        row = {"routed": "large", "features": {"words": 1}, "outputs": {"seconds": 1}, "reward": 1}
        rows.write_text(json.dumps(row))
        order = ["ingest", rows, "--config", tmp_path / "chat.toml", "--url", f"unix://{file}"]
        shown = run_command(*map(str, order))
        assert (shown.returncode, shown.stdout) == (0, "1 row is new, 0 were there before\n")
        order = ["end", "--url", f"unix://{file}", "--keep"]
        assert run_command(*map(str, order)).returncode == 0
    assert not file.exists()


def test_a_socket_that_was_left_is_replaced_and_one_in_use_is_not(tmp_path: Path) -> None:
    file = tmp_path / "eq.sock"
    with on_socket(tmp_path, file) as process:
        assert "another program listens there" in refused(tmp_path, "--uds", file)
        assert post(f"unix://{file}", "/v1/decide", REQUEST)[0] == 200
        process.kill()
        process.communicate(READY_SECONDS)
    assert file.exists()
    with on_socket(tmp_path, file, 'uds_mode = "600"\n'):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        status, again = post(f"unix://{file}", "/v1/decide", REQUEST)
        assert (status, again["decision_id"]) == (200, "d0")


def test_no_file_of_somebody_else_is_replaced_or_removed(tmp_path: Path) -> None:
    file = tmp_path / "eq.sock"
    file.write_text("mine")
    assert "there is a file that is no socket" in refused(tmp_path, "--uds", file)
    assert file.read_text() == "mine"
    file.unlink()
    with on_socket(tmp_path, file), socket.socket(socket.AF_UNIX) as other:
        file.unlink()
        other.bind(str(file))  # somebody took the place meanwhile
    assert file.exists()


@pytest.mark.parametrize(
    ("order", "words"),
    [
        (["--uds", "x" * 200], "AF_UNIX path too long"),
        (["--uds", "no/such/folder/eq.sock"], "No such file or directory"),
        (["--uds", "eq.sock", "--port", "0"], "leave --host and --port out"),
    ],
)
def test_what_cannot_be_listened_on_is_said_in_one_line(
    tmp_path: Path, order: list[str], words: str
) -> None:
    assert words in refused(tmp_path, *order)


def test_nobody_is_let_in_before_the_socket_has_its_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from equipoise.agent.config.service import ServiceSettings
    from equipoise.agent.service.run import listen

    modes = []
    bind = socket.socket.bind

    def noting(self: socket.socket, place: Any) -> None:
        bind(self, place)
        modes.append(stat.S_IMODE(os.stat(place).st_mode))

    monkeypatch.setattr(socket.socket, "bind", noting)
    before = os.umask(0)
    try:
        listen(ServiceSettings(uds=str(tmp_path / "eq.sock"), uds_mode="640")).close()
    finally:
        after = os.umask(before)
    assert (modes, after) == ([0o640], 0)


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("behind"), 'base_path = "/team/equipoise"\n') as daemon:
        yield daemon


def test_everything_is_served_under_the_path_and_without_it(behind: Running) -> None:
    for base in ("", "/team/equipoise"):
        assert behind.ask("POST", f"{base}/v1/decide", REQUEST).json["decision_id"] == "d0"
        # The ASGI way as well as the direct one.
        chunked = behind.ask("POST", f"{base}/v1/decide", REQUEST, Expect="100-continue")
        assert chunked.json["decision_id"] == "d0"
        for path in ("/healthz", "/readyz", "/metrics", "/v1/budget", "/v1/decisions/d0"):
            assert behind.ask("GET", base + path).status == 200, base + path
    document = behind.ask("GET", "/team/equipoise/openapi.json").json
    assert document["servers"] == [{"url": "/team/equipoise"}]
    for path in ("/team", "/team/equipoiseX/v1/budget", "/equipoise/v1/budget"):
        assert behind.ask("GET", path).status == 404
    with Client(f"http://127.0.0.1:{behind.port}/team/equipoise/", timeout=5.0) as client:
        assert client.decide("r1", "large", {"words": 3}).decision_id == "d0"


def test_the_page_finds_what_it_needs_wherever_it_lies(behind: Running) -> None:
    moved = behind.ask("GET", "/team/equipoise")
    assert (moved.status, moved.headers["location"]) == (308, "/team/equipoise/")
    html = behind.ask("GET", "/team/equipoise/").body.decode()
    links = [
        part.partition('"')[0] for mark in ('href="', 'src="') for part in html.split(mark)[1:]
    ]
    assert len(links) >= 5
    for link in links:
        assert not link.startswith("/")
        assert behind.ask("GET", f"/team/equipoise/{link}").status == 200


def test_without_a_path_nothing_is_said_of_servers(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        assert "servers" not in daemon.ask("GET", "/openapi.json").json


@pytest.mark.parametrize(
    "path", ["equipoise", "/equipoise/", "/", "/a//b", "/a b", "/../a", "/a?b", "/a\n"]
)
def test_a_path_that_is_none_is_refused(path: str) -> None:
    data = {"name": "chat", "models": [{"name": "a"}, {"name": "b"}]}
    with pytest.raises(ConfigError, match=r"service\.base_path: received .*, expected a path"):
        file_from_dict(data | {"service": {"base_path": path}})
    assert file_from_dict(data | {"service": {"base_path": "/a-1/b_.c"}}).service.base_path


@pytest.mark.skipif(not Path("/usr/bin/curl").exists(), reason="there is no curl")
def test_curl_offers_http2_and_speaks_to_sockets(tmp_path: Path) -> None:
    file = tmp_path / "eq.sock"
    with on_socket(tmp_path, file):
        order = ["curl", "-sS", "--http2", "--unix-socket", file, "-d", json.dumps(REQUEST)]
        shown = subprocess.run(
            [*order, "http://localhost/v1/decide"], capture_output=True, check=True, timeout=30
        )
        assert json.loads(shown.stdout)["decision_id"] == "d0"


@pytest.mark.parametrize(
    "url", ["unix:", "unix://host/path", "unix:///", "http+unix://", "http+unix:///x", "ftp://x", 3]
)
def test_an_address_that_is_none_is_refused(url: Any) -> None:
    with pytest.raises(
        ValueError, match=r"expected http://HOST:PORT or https://HOST:PORT, or unix"
    ):
        Address.of(url)
