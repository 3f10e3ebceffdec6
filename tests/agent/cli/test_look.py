"""`equipoise look` as users run it: answers, files, exit codes, one line for what is wrong."""

from __future__ import annotations

import json
import random
import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from commands import run_command

from equipoise.agent.config.file import file_from_dict
from equipoise.agent.ingest.bulk import Order, run
from equipoise.agent.service.run import check_only
from tests.agent.look.simulated_logs import World, litellm, rows
from tests.agent.look.test_reading import lines_of


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A month-old log of LiteLLM, confounded, with a canary."""
    found = rows(3000, World(rated=0.5, spacing=60.0, users=400), 21)
    old = ({**row, "ts": row["ts"] - 40 * 86_400} for row in found)
    payloads = [litellm(row, at) for at, row in enumerate(old)]
    return lines_of(tmp_path_factory.mktemp("look") / "usage.jsonl", payloads)


@pytest.fixture(scope="module")
def looked(log: Path) -> dict[str, Any]:
    """What the command says, its page and its configuration, from one run."""
    done = run_command("look", log, "--out", "look.html", "--config", "eq.toml", cwd=log.parent)
    assert done.returncode == 0, done.stderr
    return {
        "printed": done.stdout,
        "page": (log.parent / "look.html").read_text(encoding="utf-8"),
        "config": log.parent / "eq.toml",
    }


def test_the_terminal_says_it_in_order(looked: dict[str, Any]) -> None:
    printed = " ".join(looked["printed"].split())
    said = [
        "small has the highest mean reward in the log",
        "but that is no effect: length of messages",
        "Requests where request_tags has canary look like a random split",
        "What would settle it: ",
        "Models and traffic",
        "What the log flatters, and why it cannot be trusted",
        "small against large: +",
        "Who is sent where",
        "Which rows look randomized already",
        "equipoise plan --models large,small",
        "How to begin",
        "serve --config eq.toml --check",
        "Rows of LiteLLM's StandardLoggingPayload",
        "Written: eq.toml Written: look.html",
    ]
    places = [printed.index(words) for words in said]
    assert places == sorted(places)


def test_the_configuration_is_accepted_and_reads_the_log(
    looked: dict[str, Any], log: Path, tmp_path: Path
) -> None:
    facts = check_only(looked["config"], {"store": str(tmp_path / "a.db")})
    assert facts["mode"] == "observe"
    assert facts["models"] == ["large", "small"]
    order = Order(files=[str(log)], config=looked["config"], store=tmp_path / "a.db", mapping="log")
    result, refused = run(order)
    assert refused.first == []
    payloads = [json.loads(line) for line in log.read_text().splitlines()]
    thumbs = [each["metadata"]["requester_metadata"]["thumb"] for each in payloads]
    assert result.accepted == sum(thumb is not None for thumb in thumbs)
    data = tomllib.loads(looked["config"].read_text())
    assert data["models"][0] == {"name": "large", "price": 0.011}
    assert {each["name"] for each in data["features"]["context"]} == {
        *("plan", "country", "prompt"),
    }
    assert data["reward"]["missing"] == "rated"
    assert data["budget"]["requests"] > 1000


def test_options_of_the_plan_stand_in_the_configuration(log: Path, tmp_path: Path) -> None:
    path = tmp_path / "eq.toml"
    done = run_command("look", log, "--config", path, "--minimise", "--rate", "0.25")
    assert done.returncode == 0, done.stderr
    data = tomllib.loads(path.read_text())
    assert data["reward"]["maximise"] is False
    assert data["policy"]["rate"] == 0.25
    assert "--minimise" in done.stdout
    assert "--rate 0.25" in done.stdout


class _Tags(HTMLParser):
    """Every tag with its attributes; text of cells."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_needs_no_network_and_no_script(looked: dict[str, Any]) -> None:
    parser = _Tags()
    parser.feed(looked["page"])
    names = [tag for tag, _ in parser.tags]
    assert "script" not in names
    assert not any({"src", "href"} & attributes.keys() for _, attributes in parser.tags)
    policy = next(each["content"] for tag, each in parser.tags if "http-equiv" in each)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    assert "url(" not in looked["page"]
    assert names.count("svg") == 2
    assert "prefers-color-scheme: dark" in looked["page"]


def test_json_says_all_of_it(log: Path, tmp_path: Path) -> None:
    done = run_command("look", log, "--json", cwd=tmp_path)
    found = json.loads(done.stdout)
    assert found["findings"]["rows"] == 3000
    assert found["roles"]["model"] == ["model_group | model", "as in logs of litellm"]
    assert found["settled"]["plan"]["recommended"]["randomized"]["needed"] > 1000
    assert found["config"] is None
    again = run_command("look", log, "--json", cwd=tmp_path)
    assert again.stdout == done.stdout


def test_a_configuration_is_never_replaced_unasked(log: Path, tmp_path: Path) -> None:
    kept = tmp_path / "eq.toml"
    kept.write_text("mine")
    done = run_command("look", log, "--config", kept)
    assert done.returncode == 2
    assert done.stderr == f"equipoise: {kept} is there already: name another file, or add --force\n"
    assert kept.read_text() == "mine"
    assert run_command("look", log, "--config", kept, "--force").returncode == 0
    assert tomllib.loads(kept.read_text())["service"]["mode"] == "observe"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--model", "modle_group"],
            "--model modle_group: no row has it; did you mean 'model_group'?",
        ),
        (["--reward", "thumb"], "--reward thumb: no row has it; known are: id, trace_id, "),
        (["--column", "metadata.plan"], "--column metadata.plan: no row has it; "),
        (["--from", "litelm"], "--from litelm: did you mean 'litellm'?"),
        (["--from", "helicone"], "its rows are not of helicone; leave out --from to guess"),
        (["--rewards", "up"], "--rewards: 'up' is not WORD=NUMBER"),
        (["--rate", "2"], "rate is 2, expected at least"),
        (["--model", "a["], "path 'a[' is not valid: expected names joined by dots"),
    ],
)
def test_a_wrong_option_gets_one_line(log: Path, arguments: list[str], said: str) -> None:
    done = run_command("look", log, *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("equipoise: ")


def test_a_log_without_a_model_names_what_it_has(tmp_path: Path) -> None:
    table = [{"who": "abc"[at % 3], "score": 1.5, "n": at} for at in range(300)]
    path = lines_of(tmp_path / "log.jsonl", table)
    done = run_command("look", path)
    assert done.returncode == 2
    assert done.stderr == (
        f"equipoise: {path}: no column looks like a model: name it with --model PATH, such as who\n"
    )
    assert run_command("look", path, "--model", "who").returncode == 0


def test_rows_that_cannot_be_read_are_counted_and_change_the_exit_code(tmp_path: Path) -> None:
    path = lines_of(tmp_path / "log.jsonl", list(rows(400, World(), 22)))
    with open(path, "ab") as file:
        file.write(b'{"cut\n[]\n{"model": null}\n')
    done = run_command("look", path)
    assert done.returncode == 1
    printed = " ".join(done.stdout.split())
    assert "403 rows, 400 of them answered by a known model" in printed
    assert "Rows that do not count: 1 without a model, 1 not JSON, 1 not an object." in printed


def test_names_of_any_kind_make_a_page_and_a_configuration(tmp_path: Path) -> None:
    """Seeded: models, columns and values with quotes, tags, dots, brackets and other alphabets."""
    chance = random.Random(23)
    letters = [
        "a",
        "B",
        "7",
        '"',
        "'",
        "<b>",
        "&",
        ".",
        "[",
        "]",
        "=",
        "\\",
        "é",
        "模",
        "\t",
        " ",
        "|",
    ]

    def word() -> str:
        return "".join(chance.choice(letters) for _ in range(chance.randint(1, 8)))

    for attempt in range(3):
        models, names = [f"m{word()}", f"n{word()}"], list({f"c{word()}" for _ in range(4)})
        values = [word() for _ in range(3)]
        table = [
            {
                "model": chance.choice(models),
                "rating": chance.choice([1, 0]),
                "ts": 1.7e9 + at,
                **{name: chance.choice(values) for name in names},
            }
            for at in range(300)
        ]
        folder = tmp_path / str(attempt)
        folder.mkdir()
        path = lines_of(folder / f"{attempt} <x>.jsonl", table)
        done = run_command("look", path, "--out", "o.html", "--config", "c.toml", cwd=folder)
        assert done.returncode == 0, done.stderr
        file = file_from_dict(tomllib.loads((folder / "c.toml").read_text(encoding="utf-8")))
        assert len(file.experiment.models) == 2
        page = (folder / "o.html").read_text(encoding="utf-8")
        assert "<b>" not in re.sub(r"<b>[^<]*</b>", "", page.replace("&lt;b&gt;", ""))
        order = Order(
            files=[str(path)], config=folder / "c.toml", store=folder / "a.db", mapping="log"
        )
        result, refused = run(order)
        assert (result.accepted, refused.first) == (300, [])
