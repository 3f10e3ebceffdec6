"""The interface as a router and its operators see it, against a real daemon."""

from __future__ import annotations

import json

import pytest
from running import Running, running, until


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    with running(tmp_path_factory.mktemp("api"), "refresh_seconds = 0.3") as started:
        yield started


def problem(answer, status: int) -> dict:
    assert answer.status == status, answer.body
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json
    assert document["status"] == status
    assert document["title"]
    assert document["detail"]
    return document


def test_a_decision_an_outcome_an_estimate(daemon: Running):
    decided = daemon.decide("flow-1")
    assert decided["decision_id"].startswith("d")
    assert decided["model"] in ("large", "small")
    assert decided["probabilities"] == {"large": 0.5, "small": 0.5}
    assert decided["propensity"] == (0.75 if decided["model"] == "large" else 0.25)
    assert decided["reason"] is None
    before = daemon.ask("GET", "/v1/estimates").json
    outcome = {"decision_id": decided["decision_id"], "reward": 0.75, "outputs": {"seconds": 1.5}}
    assert daemon.ask("POST", "/v1/outcomes", outcome).json == {
        "accepted": 1,
        "duplicates": 0,
        "late": 0,
        "rejected": [],
    }
    after = daemon.ask("GET", "/v1/estimates").json
    assert after["log_rows"] == before["log_rows"] + 1
    assert after["waiting"] == before["waiting"] - 1
    assert after["todays_routing"]["value"] is not None or decided["model"] != "large"


def test_the_same_request_gets_the_same_decision(daemon: Running):
    first = daemon.decide("same-1")
    assert daemon.decide("same-1") == first
    until(lambda: "equipoise_queue_rows 0.0" in daemon.ask("GET", "/metrics").body.decode())
    assert daemon.decide("same-1") == first, "read back from SQLite it is the same"


@pytest.mark.parametrize("change", [{"routed": "small"}, {"words": 11.0}])
def test_other_content_under_the_same_id_is_a_conflict(daemon: Running, change):
    daemon.decide("conflict-1")
    asked = {"routed": "large", "words": 10.0, **change}
    body = {
        "request_id": "conflict-1",
        "routed": asked["routed"],
        "features": {"words": asked["words"]},
    }
    problem(daemon.ask("POST", "/v1/decide", body), 409)


def test_parts_of_an_outcome_are_taken_once_each(daemon: Running):
    name = daemon.decide("parts-1")["decision_id"]

    def send(**part):
        return daemon.ask("POST", "/v1/outcomes", {"decision_id": name, **part})

    assert send(outputs={"seconds": 2.0}).json["accepted"] == 1
    assert send(outputs={"seconds": 2.0}).json["duplicates"] == 1
    assert send(reward=0.25).json["accepted"] == 1
    assert send(reward=0.25, outputs={"seconds": 2.0}).json["duplicates"] == 1
    problem(send(reward=0.5), 409)
    problem(send(outputs={"seconds": 2.5}), 409)
    logged = daemon.ask("GET", f"/v1/decisions/{name}").json
    assert [part["reward"] for part in logged["outcomes"]] == [None, 0.25]
    assert [part["outputs"] for part in logged["outcomes"]] == [[2.0], None]
    assert logged["features"] == [0.1]


def test_unknown_things_are_404(daemon: Running):
    problem(daemon.ask("POST", "/v1/outcomes", {"decision_id": "d999999", "reward": 1.0}), 404)
    problem(daemon.ask("POST", "/v1/outcomes", {"request_id": "never", "reward": 1.0}), 404)
    for path in ("/v1/decisions/d999999", "/v1/decisions/x", "/v1/rules/r0", "/v1/nothing", "/x"):
        problem(daemon.ask("GET", path), 404)


def test_a_list_of_outcomes_is_judged_row_by_row(daemon: Running):
    names = [daemon.decide(f"rows-{row}")["decision_id"] for row in range(3)]
    rows = [
        {"decision_id": names[0], "outputs": {"seconds": 1.0}},
        {"decision_id": "d999999", "reward": 1.0},
        {"decision_id": names[1], "reward": 7.0},
        {"decision_id": names[0], "reward": 1.0},
        {"decision_id": names[2], "reward": 1.0, "served": "nobody"},
        {"decision_id": names[0], "reward": 1.0},
        {"decision_id": names[0], "reward": 0.0},
    ]
    answer = daemon.ask("POST", "/v1/outcomes", rows).json
    assert (answer["accepted"], answer["duplicates"]) == (2, 1)
    assert [(row["index"], row["status"]) for row in answer["rejected"]] == [
        (1, 404),
        (2, 422),
        (4, 422),
        (6, 409),
    ]


def test_a_batch_is_decided_together_or_not_at_all(daemon: Running):
    def ask(*names, words=5.0):
        requests = [
            {"request_id": name, "routed": "small", "features": {"words": words}} for name in names
        ]
        return daemon.ask("POST", "/v1/decide/batch", {"requests": requests})

    decisions = ask("batch-1", "batch-2").json["decisions"]
    assert [decision["request_id"] for decision in decisions] == ["batch-1", "batch-2"]
    again = ask("batch-2", "batch-3").json["decisions"]
    assert again[0] == decisions[1]
    problem(ask("batch-4", "batch-4"), 409)
    problem(ask("batch-5", "batch-6", words=-1.0), 422)
    assert ask("batch-4", "batch-5").status == 200, "nothing of the refused ones was logged"
    assert ask().json == {"decisions": []}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"features": {"words": "many"}}, "features.words"),
        ({"features": {"words": -1}}, "features.words"),
        ({"features": {}}, "features.words"),
        ({"features": {"words": 1, "extra": 1}}, "features.extra"),
        ({"features": [1.0, 2.0]}, "features"),
        ({"request_id": ""}, "request_id"),
        ({"request_id": "a line\nand another"}, "request_id"),
        ({"request_id": "nul\0"}, "request_id"),
        ({"request_id": "x" * 201}, "request_id"),
        ({"routed": 5}, "routed"),
        ({"at": -5}, "at"),
        ({"at": 1e300}, "at"),
        ({"surplus": 1}, None),
        ({"routed": "unheard"}, None),
        ({"eligible": ["unheard"]}, None),
    ],
)
def test_a_wrong_field_is_named(daemon: Running, change, field):
    body = {"request_id": "wrong-1", "routed": "large", "features": {"words": 1.0}, **change}
    assert problem(daemon.ask("POST", "/v1/decide", body), 422).get("field") == field


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"a":' * 3000, b"NaN", b"1e999", b'"\\ud800"'],
)
def test_what_is_no_request_is_refused(daemon: Running, body):
    for path in ("/v1/decide", "/v1/decide/batch", "/v1/outcomes"):
        answer = daemon.ask("POST", path, body)
        if (path, body) == ("/v1/outcomes", b"[]"):
            assert answer.status == 200
        else:
            problem(answer, answer.status if answer.status == 422 else 400)


def test_rules_and_decisions_can_be_read_again(daemon: Running):
    decided = daemon.decide("read-1")
    rule = daemon.ask("GET", f"/v1/rules/{decided['rule_id']}").json
    assert rule["body"]["allocation"]["gate_name"] == "fixed-rate"
    logged = daemon.ask("GET", f"/v1/decisions/{decided['decision_id']}").json
    kept = {name: decided[name] for name in decided if name not in ("reason", "outcome_token")}
    assert logged["decision"] == {**logged["decision"], **kept}


def test_the_rule_follows_what_is_learnt(daemon: Running):
    first = daemon.decide("learn-0")["rule_id"]
    count = iter(range(1, 100_000))

    def changed() -> bool:
        # Rewards go on: one alone may be of a request that was served as routed.
        number = next(count)
        rule = daemon.decide(f"learn-{number}")["rule_id"]
        outcome = {"request_id": f"learn-{number}", "reward": number % 3 / 2}
        daemon.ask("POST", "/v1/outcomes", outcome | {"outputs": {"seconds": number % 5}})
        return rule != first

    until(changed)


def test_families_can_be_asked_for(daemon: Running):
    answer = daemon.ask("GET", "/v1/estimates?family=ipw,grounded").json
    assert set(answer["families"]) == {"hierarchical", "ipw", "grounded"}
    assert daemon.ask("GET", "/v1/recommendation?family=ipw").json["family"] == "ipw"
    problem(daemon.ask("GET", "/v1/estimates?family=magic"), 422)
    problem(daemon.ask("GET", "/v1/estimates?famly=ipw"), 422)
    problem(daemon.ask("GET", "/v1/recommendation?family=ipw,cvci"), 422)


def test_checks_and_recommendation(daemon: Running):
    assert daemon.ask("GET", "/v1/checks").json["status"] in ("ok", "watch", "alarm", "unknown")
    answer = daemon.ask("GET", "/v1/recommendation").json
    assert answer["certified"] is None
    assert answer["action"] == "keep", "nothing is certified, so nothing is served"
    assert "leaning" in answer
    assert answer["sentence"].startswith("Not certified: ")


def test_every_rate_has_a_plan(daemon: Running):
    numbers = {"models": 2, "traffic": 500.0, "reward_rate": 0.4, "effect": 0.1}
    for rate in (0.500001, 1.0):
        answer = daemon.ask("POST", "/v1/plan", numbers | {"rate": rate, "policies": ["uniform"]})
        assert answer.status == 200
        rates = [row["rate"] for row in answer.json["rates"]]
        assert rate in rates
        assert rates[-1] == 1.0
    seldom = problem(daemon.ask("POST", "/v1/plan", numbers | {"rated": 0.08}), 422)
    assert "declare what one means" in seldom["detail"]
    assert seldom["field"] == "rated"


def test_a_plan_from_numbers_and_one_that_cannot_be(daemon: Running):
    numbers = {"models": 2, "traffic": 500.0, "reward_rate": 0.4, "effect": 0.1}
    answer = daemon.ask("POST", "/v1/plan", numbers)
    assert answer.status == 200
    assert answer.json["source"] == "numbers"
    assert answer.json["recommended"]["randomized"]["needed"] > 100
    assert "Randomize" in answer.json["sentence"]
    refused = problem(daemon.ask("POST", "/v1/plan", numbers | {"effect": 0.0}), 422)
    assert refused["field"] == "effect"
    assert problem(daemon.ask("POST", "/v1/plan", numbers | {"efect": 0.1}), 422)
    # Nothing has been learnt here that a plan could go on from.
    early = problem(daemon.ask("POST", "/v1/plan", {"effect": 0.1}), 422)
    assert "plan with numbers" in early["detail"]
    assert daemon.ask("GET", "/v1/estimates").status == 200


def test_methods_that_a_path_does_not_take(daemon: Running):
    assert problem(daemon.ask("GET", "/v1/decide"), 405)["limit"] == "POST"
    answer = daemon.ask("DELETE", "/v1/budget")
    problem(answer, 405)
    assert answer.headers["allow"] == "GET, HEAD, PUT"
    assert daemon.ask("HEAD", "/healthz").status == 200


def test_bulk_lines_are_taken_once_and_judged_alone(daemon: Running):
    daemon.decide("decided before")
    usage = {"routed": "large", "features": {"words": 1}, "outputs": {"seconds": 1}, "reward": 1.0}
    again = daemon.ask("POST", "/v1/observations", usage | {"request_id": "decided before"}).json
    assert (again["rows"], again["decided"]) == (0, 1)
    lines = [
        {"routed": "large", "features": {"words": 1}, "outputs": {"seconds": 1}, "reward": 1.0},
        {"routed": "large", "features": {"words": 1}, "outputs": {"seconds": 1}, "reward": 9.0},
        {"routed": "nobody", "features": {"words": 1}, "outputs": {"seconds": 1}, "reward": 1.0},
        {"routed": "large", "features": {"words": 1}, "outputs": {"seconds": 1}, "reward": None},
    ]
    body = b"\n".join(json.dumps(line).encode() for line in lines) + b"\n\n{broken\n"
    answer = daemon.ask("POST", "/v1/observations", body).json
    assert (answer["rows"], answer["unrated"], answer["rejected"]) == (1, 1, 3)
    assert [(row["index"], row["status"]) for row in answer["rejects"]] == [
        (1, 422),
        (2, 422),
        (5, 400),
    ]
    simulated = [
        {"context_id": "c1", "model": model, "features": {"words": 1}, "outputs": {"seconds": 2}}
        for model in ("large", "small", "large")
    ]
    body = b"\n".join(json.dumps(line).encode() for line in simulated)
    answers = [daemon.ask("POST", "/v1/simulations", body).json for _ in range(2)]
    assert [(answer["rows"], answer["duplicates"]) for answer in answers] == [(2, 1), (0, 3)]


def test_the_document_describes_every_answer(daemon: Running):
    document = daemon.ask("GET", "/openapi.json").json
    assert document["openapi"] == "3.1.0"
    paths = document["paths"]
    for path in ("/v1/decide", "/v1/decide/batch", "/v1/outcomes", "/v1/observations"):
        assert "post" in paths[path]
    assert {"get", "put"} <= paths["/v1/budget"].keys()
    content = paths["/v1/decide"]["post"]["requestBody"]["content"]["application/json"]
    decided = daemon.ask("POST", "/v1/decide", content["example"])
    assert decided.status == 200
    assert decided.json["request_id"] == content["example"]["request_id"]
    references = set(json.dumps(document).split('"#/components/schemas/')[1:])
    named = {reference.split('"')[0] for reference in references}
    assert named <= document["components"]["schemas"].keys()


def test_metrics_speak_of_everything_an_operator_watches(daemon: Running):
    daemon.decide("metrics-1")
    daemon.decide("metrics-1")
    until(lambda: b"equipoise_report_log_rows" in daemon.ask("GET", "/metrics").body)
    text = daemon.ask("GET", "/metrics").body.decode()
    for name in (
        'equipoise_decisions_total{model="large",randomized="true"}',
        'equipoise_handler_seconds_bucket{le="0.001",route="/v1/decide"}',
        "equipoise_queue_rows",
        "equipoise_commit_seconds_total",
        'equipoise_interval_width{model="large"}',
        'equipoise_status{status="exploring"} 1.0',
        "equipoise_store_ok 1.0",
        "equipoise_repeated_requests_total",
    ):
        assert name in text, name
