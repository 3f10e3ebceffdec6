"""A daemon over a store that rows drawn elsewhere were read into."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from commands import run_command
from running import CONFIG, running, until

MAPPING = """
[[ingest]]
name = "flag"
kind = "decisions"
drawn = "request"
shares = {large = 0.5, small = 0.5}
fields = {model = "arm", reward = "thumb", request_id = "id"}
features = {words = "words"}
"""


def ingest(folder: Path, log: str, *arguments: str) -> Any:
    (folder / "flag.toml").write_text(CONFIG + MAPPING)
    order = ("--config", "flag.toml", "--mapping", "flag", *arguments)
    return run_command("ingest", log, *order, cwd=folder)


def test_it_keeps_their_answer_and_draws_in_an_era_of_its_own(tmp_path: Path) -> None:
    rng = random.Random(3)
    with (tmp_path / "flag.jsonl").open("w") as file:
        for at in range(500):
            arm = rng.choice(["large", "small"])
            thumb = float(rng.random() < {"large": 0.9, "small": 0.4}[arm])
            row = {"id": f"f{at}", "arm": arm, "thumb": thumb, "words": at % 90}
            file.write(json.dumps(row) + "\n")
    done = ingest(tmp_path, "flag.jsonl", "--store", "log.db")
    assert done.returncode == 0, done.stderr
    with running(tmp_path, "refresh_seconds = 0.3") as daemon:
        told = ingest(tmp_path, "flag.jsonl", "--store", "log.db")
        assert told.returncode == 2
        assert "send them with --url" in told.stderr, "the store has one writer"
        decided = [daemon.decide(f"q{at}") for at in range(40)]
        drawn = [each for each in decided if each["randomized"]]
        assert drawn, "what others decided stops nothing here"
        eras = until(lambda: daemon.ask("GET", "/v1/eras").json["eras"])
        assert [era["era"] for era in eras] == [0, 1, 2]
        assert eras[1]["reason"].startswith("rows drawn by flag, as declared on ")
        assert eras[1]["answer"]["status_models"] == ["large"]
        assert "on requests drawn by flag, as declared on" in eras[1]["answer"]["sentence"]
        assert eras[1]["answer"]["requests"] == 500
        budget = daemon.ask("GET", "/v1/budget").json
        assert budget["randomized"] == len(drawn)
        rule = daemon.ask("GET", f"/v1/rules/{decided[0]['rule_id']}").json
        assert "drawn" not in json.dumps(rule)
        for each in decided:
            body = {"request_id": each["request_id"], "reward": 1.0, "outputs": {"seconds": 1.0}}
            daemon.ask("POST", "/v1/outcomes", body)
        until(lambda: daemon.ask("GET", "/v1/estimates").json["certified_rows"] == 40)
    audited = run_command("audit", "log.db", "--json", cwd=tmp_path)
    found = json.loads(audited.stdout)
    assert (audited.returncode, found["faults"]) == (0, [])
    assert list(found["drawn"].values()) == [500]
