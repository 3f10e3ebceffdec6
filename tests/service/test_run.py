"""From start to stop: signals, locks, pauses, switches, and what a restart remembers."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import threading
import time

import pytest
from commands import run_command
from running import CONFIG, refused, running, start, until, write_config

from equipoise.agent.config import ExperimentConfig
from equipoise.agent.maintenance.audit import audit
from equipoise.agent.maintenance.key_file import read_key
from equipoise.store.sqlite import SqliteStore

SMALL = '{name = "small", price = 0.01}'


def test_it_is_ready_when_it_says_where_it_listens(tmp_path):
    with running(tmp_path, afresh=True) as daemon:
        assert daemon.ask("GET", "/readyz").json["ready"] is True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_under_load_loses_nothing(tmp_path, number):
    daemon = start(tmp_path)
    acknowledged: list[str] = []

    def load(client: int) -> None:
        try:
            for index in range(100_000):
                decided = daemon.decide(f"s{client}-{index}")
                if decided["decision_id"] is not None:
                    acknowledged.append(decided["request_id"])
        except (OSError, AssertionError):
            pass

    threads = [threading.Thread(target=load, args=(client,)) for client in range(3)]
    for thread in threads:
        thread.start()
    until(lambda: len(acknowledged) > 50)
    assert daemon.stop(number) == 0
    for thread in threads:
        thread.join()
    assert sorted(os.listdir(tmp_path)) == ["chat.toml", "log.db", "log.db.key", "log.db.mark"]
    with SqliteStore(daemon.store, read_only=True) as store:
        assert len(store.find_requests(acknowledged)) == len(acknowledged) > 50
        checkpoint = store.restore()
        assert checkpoint is not None
        assert checkpoint.seq == store.next_seq
        config = ExperimentConfig.from_json(store.settings()["config"])
        assert audit(store, config, read_key(daemon.store)).clean


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    """For tests that leave it as they found it, but for a longer log."""
    with running(tmp_path_factory.mktemp("life")) as started:
        yield started


def following(decided) -> str:
    """The id of the decision after this one."""
    return f"d{int(decided['decision_id'][1:]) + 1}"


def test_a_second_daemon_on_the_same_store_is_refused(daemon):
    one = daemon.decide("one")
    assert "another writer" in refused(daemon.folder)
    assert daemon.decide("two")["decision_id"] == following(one)


def test_a_port_in_use_is_one_line_and_makes_no_store(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert port in refused(tmp_path, "", "--port", port)
    assert not (tmp_path / "log.db").exists()


def test_a_missing_key_is_not_replaced(tmp_path):
    with running(tmp_path) as daemon:
        daemon.decide("one")
    (tmp_path / "log.db.key").rename(tmp_path / "elsewhere")
    assert "log.db.key" in refused(tmp_path)
    assert not (tmp_path / "log.db.key").exists()
    (tmp_path / "elsewhere").rename(tmp_path / "log.db.key")
    with running(tmp_path) as daemon:
        assert daemon.decide("one")["decision_id"] == "d0"


def test_another_experiment_on_the_same_store_is_refused(tmp_path):
    with running(tmp_path):
        pass
    changed = CONFIG.replace("rate = 0.5", "rate = 0.25") + "\n[units]\nttl = 60.0\n"
    with pytest.raises(AssertionError, match="another configuration: units"):
        start(tmp_path, config=changed)


def test_a_pause_is_logged_with_e_0_and_a_budget_is_a_hard_stop_and_both_outlive_a_restart(
    tmp_path,
):
    """What a pause held back comes with the resumption, and what a budget holds back does not."""
    with running(tmp_path) as daemon:
        assert daemon.ask("PUT", "/v1/budget", {"requests": 3}).json["left"] == 3
        made = [daemon.decide(f"b{index}") for index in range(60)]
        assert sum(one["randomized"] for one in made) == 3
        assert daemon.ask("PUT", "/v1/budget", {"requests": None}).json["left"] is None
        answer = daemon.ask("POST", "/v1/pause", {"reason": "a release"}).json
        assert (answer["paused"], answer["reason"], answer["randomizing"]) == (
            True,
            "a release",
            False,
        )
        made = [daemon.decide(f"p{index}") for index in range(40)]
        assert all(one["model"] == "large" and not one["randomized"] for one in made)
        assert all(one["decision_id"] and one["propensity"] == 1.0 for one in made)
        assert daemon.ask("GET", "/v1/recommendation").json["status"] == "paused"
        assert daemon.ask("PUT", "/v1/budget", {"requests": 3}).json["left"] == 0
    with running(tmp_path) as daemon:
        assert daemon.ask("GET", "/readyz").json["mode"]["reason"] == "a release"
        budget = daemon.ask("GET", "/v1/budget").json
        assert (budget["requests"], budget["randomized"], budget["left"]) == (3, 3, 0)
        assert daemon.ask("GET", "/readyz").json["mode"]["activity"] == "paused"
        answer = daemon.ask("POST", "/v1/resume").json
        # It is not paused, and with nothing left in the budget nothing is randomized either.
        assert (answer["paused"], answer["activity"]) == (False, "budget-spent")
        assert answer["randomizing"] is False
        assert not any(daemon.decide(f"r{index}")["randomized"] for index in range(40))
        for wrong in ({"requests": -1}, {"requests": 1.5}, {}, {"budget": 5}, {"requests": 2**63}):
            assert daemon.ask("PUT", "/v1/budget", wrong).status == 422
        assert daemon.ask("PUT", "/v1/budget", {"requests": None}).json["left"] is None
        assert any(daemon.decide(f"c{index}")["randomized"] for index in range(40))


def test_observe_mode_logs_all_and_randomizes_nothing(tmp_path):
    with running(tmp_path, 'mode = "observe"') as daemon:
        made = [daemon.decide(f"o{index}") for index in range(40)]
        assert not any(one["randomized"] for one in made)
        assert made[39]["decision_id"] == "d39"
        assert daemon.ask("GET", "/readyz").json["mode"]["randomizing"] is False
        text = daemon.ask("GET", "/metrics").body.decode()
        would = text.partition("\nequipoise_would_randomize_total ")[2].split()[0]
        assert 5 < float(would) < 35, "half of them"


def test_the_kill_switch_is_a_file(daemon):
    before = daemon.decide("before")
    switch = daemon.folder / "log.db.kill"
    switch.touch()
    until(lambda: daemon.ask("GET", "/readyz").status == 503)
    passed = daemon.decide("during", routed="small")
    assert passed["reason"] == "kill-switch"
    assert (passed["model"], passed["decision_id"], passed["propensity"]) == ("small", None, 1)
    outcome = {"request_id": "before", "reward": 1.0}
    assert daemon.ask("POST", "/v1/outcomes", outcome).json["accepted"] == 1
    switch.unlink()
    until(lambda: daemon.ask("GET", "/readyz").status == 200)
    assert daemon.decide("during")["decision_id"] == following(before)


def test_the_kill_switch_is_a_signal_too(daemon):
    before = daemon.decide("before a signal")
    daemon.process.send_signal(signal.SIGUSR1)
    until(lambda: daemon.ask("GET", "/readyz").status == 503)
    assert daemon.decide("during a signal")["reason"] == "kill-switch"
    daemon.process.send_signal(signal.SIGUSR2)
    until(lambda: daemon.ask("GET", "/readyz").status == 200)
    assert daemon.decide("during a signal")["decision_id"] == following(before)


def test_a_hangup_reads_the_configuration_again(tmp_path):
    with running(tmp_path) as daemon:
        write_config(tmp_path, 'mode = "observe"\ndurability = "power"')
        daemon.process.send_signal(signal.SIGHUP)
        until(lambda: daemon.ask("GET", "/readyz").json["mode"]["mode"] == "observe")
        until(lambda: any("durability" in line and "restart-needed" in line for line in daemon.log))
        write_config(tmp_path, "mode = 5")
        daemon.process.send_signal(signal.SIGHUP)
        until(lambda: any("service.mode" in line for line in daemon.log))
        assert daemon.ask("GET", "/readyz").json["mode"]["mode"] == "observe"


def test_a_hangup_takes_over_what_may_change_in_a_running_experiment(tmp_path):
    other = CONFIG.replace('assignment = "uniform"', 'assignment = "top-two"')
    with running(tmp_path) as daemon:
        before = daemon.ask("GET", "/readyz").json["rule_id"]
        write_config(tmp_path, config=other + "[budget]\nrequests = 0\n")
        daemon.process.send_signal(signal.SIGHUP)
        until(lambda: any("budget.requests" in line for line in daemon.log))
        assert daemon.ask("GET", "/readyz").json["rule_id"] == before
        write_config(tmp_path, config=other + "[budget]\nrequests = 1\n")
        daemon.process.send_signal(signal.SIGHUP)
        until(lambda: any("reloaded" in line for line in daemon.log))
        assert daemon.ask("GET", "/readyz").json["rule_id"] != before
        assert daemon.ask("GET", "/v1/budget").json["requests"] == 1
        drawn = [daemon.decide(f"r{index}")["randomized"] for index in range(20)]
        assert sum(drawn) == 1
        assert daemon.ask("GET", "/v1/estimates").status == 200
        added = other.replace("rate = 0.5", "rate = 0.25")
        added = added.replace(SMALL, f'{SMALL}, {{name = "tiny"}}')
        service = 'log_level = "warning"\nmode = "observe"'
        write_config(tmp_path, service, added + "[budget]\nrequests = 2\n")
        daemon.process.send_signal(signal.SIGHUP)
        # What waits for a start is no fault, and keeps nothing else of the file from being applied.
        until(lambda: any("restart-needed" in line for line in daemon.log))
        said = json.loads(next(line for line in daemon.log if "restart-needed" in line))
        assert said["level"] == "warning"
        assert said["sentence"].startswith("Restart the daemon")
        assert "begins a new era" in said["sentence"]
        assert [change.partition(" ")[0] for change in said["changes"]] == [
            "models[2]",
            "policy.rate",
        ]
        assert sum("reload-refused" in line for line in daemon.log) == 1, "the mistake above"
        assert daemon.ask("GET", "/readyz").json["mode"]["mode"] == "observe"
        assert daemon.ask("GET", "/v1/budget").json["requests"] == 2
        assert daemon.decide("before a start")["probabilities"].keys() == {"large", "small"}
    with running(tmp_path, config=added + "[budget]\nrequests = 2\n") as daemon:
        later = daemon.decide("later")
        assert later["era"] == 1
        assert later["probabilities"].keys() == {"large", "small", "tiny"}
        assert daemon.ask("GET", "/v1/budget").json["requests"] == 2
    # What was said by signal stays until the file says something else.
    with running(tmp_path, config=added + "[budget]\nrequests = 5\n") as daemon:
        assert daemon.ask("GET", "/v1/budget").json["requests"] == 5


def test_a_new_version_of_a_model_is_estimated_by_its_own_rewards_alone(tmp_path):
    """A hang-up says that it waits for a start; from the start on the old rewards are nobody's."""
    config = CONFIG.replace("[policy]", '[policy]\nestimator = "ipw"')
    changed = config.replace(SMALL, f'{SMALL[:-1]}, version = "2"}}')
    assert changed != config

    def earn(daemon, first, worth):
        """200 requests; of every ten on `small`, this many are rated 1."""
        turn = 0
        for at in range(first, first + 200):
            decided, reward = daemon.decide(f"v{at}"), float(at % 2)
            if decided["model"] == "small":
                reward, turn = float(turn % 10 < worth), turn + 1
            body = {"request_id": f"v{at}", "reward": reward, "outputs": {"seconds": 1.0}}
            assert daemon.ask("POST", "/v1/outcomes", body).json["accepted"] == 1

    def small(daemon):
        """Its estimate and error, once they hold all of the log."""
        answer = daemon.ask("GET", "/v1/estimates").json
        row = answer["models"][1]
        assert row["model"] == "small"
        return row["value"], row["standard_error"]

    with running(tmp_path, config=config) as daemon:
        earn(daemon, 0, 9)
        assert small(daemon)[0] == pytest.approx(0.9, abs=0.03)
        write_config(tmp_path, config=changed)
        daemon.process.send_signal(signal.SIGHUP)
        until(lambda: any("restart-needed" in line for line in daemon.log))
        assert small(daemon)[0] == pytest.approx(0.9, abs=0.03)
    for again in range(2):
        with running(tmp_path, config=changed) as daemon:
            if not again:
                assert small(daemon) == (None, None)
                said = daemon.ask("GET", "/v1/recommendation").json["sentence"]
                assert "knows nothing of small yet" in said
                earn(daemon, 200, 1)
            value, error = small(daemon)
            assert value == pytest.approx(0.1, abs=0.03)
            assert 0.0 < error < 0.1


def test_an_outcome_that_never_comes_expires(tmp_path):
    config = CONFIG + "[reward]\nwindow = 0.2\n"
    with running(tmp_path, "expiry_seconds = 0.1", config=config) as daemon:
        daemon.decide("late")
        until(lambda: b'what="expired"} 1.0' in daemon.ask("GET", "/metrics").body)
        answer = daemon.ask("POST", "/v1/outcomes", {"request_id": "late", "reward": 1.0}).json
        assert (answer["accepted"], answer["late"]) == (0, 1)
    database = sqlite3.connect(tmp_path / "log.db")
    assert database.execute("SELECT number FROM expiries").fetchall() == [(0,)]
    database.close()


def test_the_window_counts_over_http_where_no_sweep_runs(tmp_path):
    """One part alone, and one in a list beside one in time; backdated, which helps nothing."""
    config = CONFIG + "[reward]\nwindow = 100\n"
    with running(tmp_path, "expiry_seconds = 3600", config=config) as daemon:
        at = time.time() - 200.0
        for name in ("a", "b"):
            body = {"request_id": name, "routed": "large", "features": {"words": 1.0}, "at": at}
            assert daemon.ask("POST", "/v1/decide", body).status == 200
        daemon.decide("c")
        answer = daemon.ask("POST", "/v1/outcomes", {"request_id": "a", "reward": 1.0, "at": at})
        assert answer.json == {"accepted": 0, "duplicates": 0, "late": 1, "rejected": []}
        parts = [{"request_id": name, "reward": 1.0} for name in ("b", "c")]
        answer = daemon.ask("POST", "/v1/outcomes", parts).json
        assert (answer["accepted"], answer["late"]) == (1, 1)
    with running(tmp_path, "expiry_seconds = 3600", config=config) as daemon:
        told = daemon.ask("GET", "/v1/estimates").json
        assert (told["certified_rows"], told["waiting"]) == (3, 0)


def test_what_holds_back_the_certificate_is_refused_or_said_everywhere(tmp_path):
    with running(tmp_path) as daemon:
        body = {"request_id": "x", "routed": "large", "features": {"words": 1.0}, "at": 4e9}
        for path, data in (("/v1/decide", body), ("/v1/decide/batch", {"requests": [body]})):
            answer = daemon.ask("POST", path, data)
            assert answer.status == 422
            assert answer.json["field"] == "at"
            assert answer.json["limit"] == "at most 300 s from the agent's clock"
            assert "2096-10-02" in answer.json["detail"]
        daemon.decide("lost")
        for number in range(120):
            daemon.decide(f"q{number}")
        parts = [
            {"request_id": f"q{number}", "outputs": {"seconds": 1.0}, "reward": 0.5}
            for number in range(120)
        ]
        parts[0]["at"] = 4e9
        answer = daemon.ask("POST", "/v1/outcomes", parts).json
        assert (answer["accepted"], len(answer["rejected"])) == (119, 1)
        assert "after the agent's clock" in answer["rejected"][0]["detail"]
        daemon.ask("POST", "/v1/outcomes", {k: v for k, v in parts[0].items() if k != "at"})
        told = daemon.ask("GET", "/v1/estimates").json
        assert (told["waiting"], told["certified_rows"]) == (1, 0)
        assert told["watermark"]["decision_id"] == "d0"
        assert told["watermark"]["sentence"].endswith("holds back 120 requests.")
        metrics = daemon.ask("GET", "/metrics").body
        assert b"equipoise_held_back 120.0" in metrics
        assert b"equipoise_waiting 1.0" in metrics
        assert b'equipoise_assignments{model="small",what="exposed"} 0.0' in metrics
        checks = {each["name"]: each for each in daemon.ask("GET", "/v1/checks").json["checks"]}
        assert checks["watermark"]["figures"]["held_back"] == 120
    shown = run_command("status", tmp_path / "log.db").stdout
    assert "1 waits for its outcome; d0 of" in " ".join(shown.split())


def test_guardrail_metrics_come_over_http_and_every_series_is_told_once(tmp_path):
    rails = '\n[[guardrails]]\nname = "{}"\nlimit = 0.2\n'
    config = CONFIG + rails.format("errors") + rails.format("refusals")
    with running(tmp_path, config=config) as daemon:
        for index in range(40):
            made = daemon.decide(f"r{index}")
            outcome = {
                "decision_id": made["decision_id"],
                "reward": 1.0,
                "outputs": {"seconds": 1.0},
                "metrics": {"errors": 1.0, "refusals": 0.0},
            }
            assert daemon.ask("POST", "/v1/outcomes", outcome).json["accepted"] == 1
        again = daemon.ask("POST", "/v1/outcomes", outcome).json
        assert (again["accepted"], again["duplicates"]) == (0, 1)
        wrong = {"request_id": "r0", "metrics": {"erors": 1.0}}
        assert "erors" in str(daemon.ask("POST", "/v1/outcomes", wrong).json)
        rails_said = [
            check
            for check in daemon.ask("GET", "/v1/checks").json["checks"]
            if check["name"] == "guardrail"
        ]
        assert [check["figures"]["metric"] for check in rails_said] == ["errors", "refusals"]
        text = daemon.ask("GET", "/metrics").body.decode()
        series = [line.rsplit(" ", 1)[0] for line in text.splitlines() if line[:1] != "#"]
        assert len(series) == len(set(series))
        assert any('check="guardrail"' in name for name in series)


def test_an_alarm_that_the_analyst_finds_is_carried_out_by_the_daemon(tmp_path):
    """A model over its limit, one of three, is left out by a new era, and stays out after a
    restart; with two models left, the next one over its limit pauses everything."""
    config = CONFIG.replace("models = [", 'models = [{name = "tiny"}, ')
    config += '\n[[guardrails]]\nname = "errors"\nlimit = 0.2\n'

    def traffic(daemon, start, bad):
        for index in range(start, start + 600):  # some hundred draws of each model
            made = daemon.decide(f"r{index}")
            outcome = {"decision_id": made["decision_id"], "reward": 1.0}
            outcome["outputs"] = {"seconds": 1.0}
            outcome["metrics"] = {"errors": float(made["model"] in bad)}
            daemon.ask("POST", "/v1/outcomes", outcome)

    with running(tmp_path, "refresh_seconds = 0.3", config=config) as daemon:
        traffic(daemon, 0, ["small"])
        until(lambda: daemon.ask("GET", "/v1/estimates").json["era"] == 1)
        made = [daemon.decide(f"s{index}") for index in range(60)]
        drawn = {one["model"] for one in made if one["randomized"]}
        assert drawn == {"tiny", "large"}
        assert {one["era"] for one in made} == {1}
        ended, running_era = daemon.ask("GET", "/v1/eras").json["eras"]
        assert ended["answer"]["randomized"] > 100, "its own fold keeps no sums, the analyst's does"
        assert ended["ended_reason"] == running_era["reason"]
        assert running_era["compared"] == ["tiny", "large"]
        alerts = [line for line in daemon.log if '"era"' in line]
        assert any("guardrail" in line for line in alerts)
    with running(tmp_path, "refresh_seconds = 0.3", config=config) as daemon:
        for index in range(60):
            daemon.ask(
                "POST",
                "/v1/outcomes",
                {
                    "request_id": f"s{index}",
                    "reward": 1.0,
                    "outputs": {"seconds": 1.0},
                    "metrics": {"errors": 0.0},
                },
            )
        traffic(daemon, 1000, ["tiny"])
        until(lambda: daemon.ask("GET", "/readyz").json["mode"]["paused"])
        assert "guardrail" in daemon.ask("GET", "/readyz").json["mode"]["reason"]
        assert daemon.ask("GET", "/v1/recommendation").json["status"] == "paused"
        assert not daemon.decide("while-paused")["randomized"]
        assert daemon.ask("GET", "/v1/estimates").json["era"] == 1
        assert daemon.ask("POST", "/v1/resume", {"reason": "fixed"}).json["paused"] is False
        # No row has come since: the report of the era that ended would still be the newest one.
        assert daemon.ask("GET", "/v1/estimates").json["era"] == 2
        assert daemon.decide("after")["era"] == 2
    with SqliteStore(tmp_path / "log.db", read_only=True) as store:
        settings = ExperimentConfig.from_json(store.settings()["config"])
        assert audit(store, settings, read_key(tmp_path / "log.db")).clean
