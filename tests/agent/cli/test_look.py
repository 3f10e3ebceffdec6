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


def _plain(path: Path, count: int = 400, **changes: Any) -> Path:
    """A log of two models in turn, with every column that may be named wrongly."""
    table = [
        {
            "ts": 1_795_000_000 + 60 * at,
            "model": "ab"[at % 2],
            "prompt": f"a prompt of its own, number {at}",
            "when": "01.11.2026 12:00:00",
            "reward": (at // 2) % 2,
            "cost": 0.01,
            **{name: make(at) for name, make in changes.items()},
        }
        for at in range(count)
    ]
    return lines_of(path, table)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--at", "prompt"], "--at prompt: 'a prompt of its own, number 0' is no time; expected"),
        (["--at", "when"], "'01.11.2026 12:00:00' is no time; expected ISO 8601, such as"),
        (["--at", "when"], "a date of day, month and year alone does not say which is which"),
        (["--at", "model"], "--at model: 'a' is no time"),
        (["--cost", "prompt"], "is no number; expected a number of USD, such as 0.012"),
        (["--seconds", "when"], "--seconds when: '01.11.2026 12:00:00' is no number; expected"),
        (["--rewards", "up=1"], "--rewards up: no value of reward is one of these words; it holds"),
        (["--reward", "when"], "--reward when: '01.11.2026 12:00:00' is no number; say what"),
    ],
)
def test_a_named_column_that_cannot_be_read_is_refused(
    tmp_path: Path, arguments: list[str], said: str
) -> None:
    done = run_command("look", _plain(tmp_path / "log.jsonl"), *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def _answer(path: Path, *arguments: str) -> str:
    done = run_command("look", path, *arguments)
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.split())


def test_what_is_like_a_time_or_a_reward_and_is_none_is_named(tmp_path: Path) -> None:
    log = _plain(tmp_path / "log.jsonl", ts=lambda at: at, reward=lambda at: ["meh", "ok"][at % 2])
    printed = _answer(log)
    assert "no row has a reward: say what the words of reward, such as 'meh', are worth" in printed
    printed = _answer(log, "--rewards", "meh=0,ok=1")
    assert "no row has a time: 0 in ts is no time: expected ISO 8601" in printed


def test_the_best_mean_is_the_lowest_where_less_is_better(tmp_path: Path) -> None:
    log = _plain(tmp_path / "log.jsonl", reward=lambda at: int(at % 2 == 0 or at % 8 == 1))
    assert "a has the highest mean reward in the log, 1, before b with 0.25" in _answer(log)
    printed = _answer(log, "--minimise")
    assert "b has the lowest mean reward in the log, 0.25, before a with 1" in printed


def test_ties_and_too_few_rows_are_said(tmp_path: Path) -> None:
    printed = _answer(_plain(tmp_path / "tie.jsonl", reward=lambda at: 1))
    assert "Both models have the same mean reward in the log, 1: it tells none apart." in printed
    printed = _answer(_plain(tmp_path / "few.jsonl", count=30))
    assert "Too few rows have a reward to compare the models: 15 of a and 15 of b; 30 of" in printed
    assert "No plan can be made: too few requests of the models: a (15), b (15)" in printed
    assert "as the log has it (95%" not in printed
    assert "holds one model" not in printed


def test_the_first_of_many_alike_is_no_find_and_who_is_left_out_is_named(tmp_path: Path) -> None:
    chance = random.Random(6)
    rewards = [chance.randint(0, 1) for _ in range(1500)]
    log = _plain(
        tmp_path / "many.jsonl",
        1500,
        model=lambda at: f"m{at * 7 % 15}",
        reward=lambda at: rewards[at],
    )
    printed = _answer(log, "--config", str(tmp_path / "c.toml"))
    assert "one of 15 models is first by chance alone" in printed
    assert "Compared are the 12 models with the most requests. Left out: m" in printed
    text = (tmp_path / "c.toml").read_text()
    left = next(line for line in text.splitlines() if line.startswith('#   "m'))
    assert len(left.split(", ")) == 3
    assert "3 models of the log" in text
    data = tomllib.loads(text)
    assert len(data["models"]) == 12
    assert data["policy"]["estimator"] == "ipw"


def test_nan_is_missing_and_costs_below_zero_are_unknown(tmp_path: Path) -> None:
    log = _plain(
        tmp_path / "log.jsonl",
        reward=lambda at: float("nan") if at % 4 < 2 else (at // 4) % 2,
        cost=lambda at: -1.0 if at % 40 < 2 else float("inf") if at % 40 < 4 else 0.5,
    )
    assert b"NaN" in log.read_bytes()
    assert b"Infinity" in log.read_bytes()
    done = run_command("look", log, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["findings"]
    assert (found["rows"], found["used"], found["lost"]) == (400, 400, 0)
    assert [each["rated"] for each in found["models"]] == [100, 100]
    assert [each["cost"] for each in found["models"]] == [0.5, 0.5]
    assert found["unreadable"] == {"cost below 0": 20}
    assert found["traffic"] == pytest.approx(60.0)
    assert "20 values of cost are below 0 and count as none." in _answer(log)


@pytest.mark.parametrize("turned", [False, True])
def test_a_file_of_two_shapes_is_refused(tmp_path: Path, turned: bool) -> None:
    found = list(rows(2500, World(), 31))
    halves: list[list[Any]] = [found, [litellm(row, at) for at, row in enumerate(found)]]
    first, later = halves[::-1] if turned else halves
    done = run_command("look", lines_of(tmp_path / "log.jsonl", [*first, *later]))
    assert (done.returncode, done.stdout) == (2, "")
    names = ("litellm", "no known shape") if turned else ("no known shape", "litellm")
    assert "first rows are of {}, later ones of {}: split the file".format(*names) in done.stderr


def test_tables_stack_where_they_are_too_wide_and_cut_no_number(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = json.loads(run_command("look", log, "--json").stdout)["findings"]["models"]
    for width in (60, 80):
        monkeypatch.setenv("COLUMNS", str(width))
        printed = run_command("look", log).stdout
        tables = [line for line in printed.splitlines() if line.startswith(" ")]
        assert max(map(len, tables)) <= width
        lines = [line.split() for line in tables]
        cells = {cell for line in lines if line and line[0] == "large" for cell in line}
        large = next(each for each in models if each["name"] == "large")
        assert {"$0.011", f"{large['rated']:,}"} <= cells
        assert f"{large['slow']:.3g}" in cells
        assert any(line[:3] == ["rows", "verdict", "how"] for line in lines)
        assert any(line[:4] == ["all", "requests", "not", "random"] for line in lines)


def test_a_log_of_one_model_is_reported_without_a_configuration(tmp_path: Path) -> None:
    path = _plain(tmp_path / "log.jsonl", model=lambda at: "a")
    done = run_command("look", path, "--config", tmp_path / "c.toml")
    assert done.returncode == 2
    assert "The log holds one model, a" in done.stdout
    assert "c.toml is not written: it needs a log with two models or more" in done.stderr
    assert not (tmp_path / "c.toml").exists()
    assert "writes a configuration" not in _answer(path)


def test_other_names_are_known_and_numbers_without_a_meaning_are_not_tested(tmp_path: Path) -> None:
    chance = random.Random(8)
    table = [
        {
            "Modell": "ab"[at % 2],
            "Wann": f"2026-11-{1 + at // 24:02d}T{at % 24:02d}:00:00Z",
            "Bewertung": chance.randint(0, 1),
            "Kosten": chance.random(),
            "Laenge": chance.random(),
        }
        for at in range(400)
    ]
    path = lines_of(tmp_path / "de.jsonl", table)
    found = json.loads(run_command("look", path, "--json").stdout)
    taken = {role: path for role, (path, _) in found["roles"].items()}
    assert taken == {"model": "Modell", "reward": "Bewertung", "at": "Wann", "cost": "Kosten"}
    assert found["tested"] == ["Laenge"]
    foreign = {"Modell": "llm", "Wann": "x1", "Bewertung": "x2", "Kosten": "x3", "Laenge": "x4"}
    renamed = [{foreign[name]: value for name, value in row.items()} for row in table]
    path = lines_of(tmp_path / "x.jsonl", renamed)
    printed = _answer(path)
    assert "Tested: no column. Not tested: x2, x3, x4. Say which is the cost" in printed
    found = json.loads(run_command("look", path, "--cost", "x3", "--json").stdout)
    assert found["tested"] == ["x2", "x4"]
