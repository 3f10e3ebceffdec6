"""The front door: records in, answers that print themselves, and the daemon's own alarm path."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import equipoise.agent as package
from equipoise.agent.client import Choice
from equipoise.agent.config import config_from_dict
from equipoise.agent.errors import AgentError, BrokenError, ConfigError, ConflictError
from equipoise.agent.experiment import Experiment
from equipoise.agent.features import FeatureError
from equipoise.agent.maintenance.audit import audit
from equipoise.agent.maintenance.key_file import key_path, read_key
from equipoise.store.errors import StoreInUseError
from equipoise.store.sqlite import SqliteStore

CONFIG: dict[str, Any] = {
    "name": "chat",
    "models": [{"name": "large", "price": 0.02}, {"name": "small", "price": 0.002}],
    "reward": {"low": 0.0, "high": 1.0, "window": 3600.0},
    "features": {
        "context": [{"type": "number", "name": "words"}],
        "outputs": [{"type": "number", "name": "seconds"}],
    },
    "policy": {"assignment": "uniform", "rate": 0.5, "estimator": "ipw"},
}


class Clock:
    def __init__(self, now: float = 1e9) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def serve(chat: Experiment, first: int, count: int, *, seconds: float = 2.0) -> list[Choice]:
    choices = []
    for number in range(first, first + count):
        choice = chat.decide(f"r{number}", routed="large", features={"words": 12})
        reward = 0.9 if choice.model == "large" else 0.2
        chat.outcome(choice, outputs={"seconds": seconds}, reward=reward)
        choices.append(choice)
    return choices


def test_it_goes_on_where_it_was_closed_and_the_log_audits_clean(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    with Experiment.open(path, CONFIG) as chat:
        choices = serve(chat, 0, 150)
        chat.refresh()
        chat.ingest(
            [
                {
                    "routed": "small",
                    "features": {"words": 3},
                    "outputs": {"seconds": 1.0},
                    "reward": 0.4,
                    "request_id": "old",
                }
            ]
        )
        chat.simulate(
            [
                {
                    "context_id": "c",
                    "model": model,
                    "features": {"words": 3},
                    "outputs": {"seconds": 1.0},
                }
                for model in ("large", "small")
            ]
        )
    with Experiment.open(path) as chat:  # the configuration is the store's own
        again = chat.decide("r0", routed="large", features={"words": 12})
        assert again == choices[0]
        serve(chat, 150, 150)
        assert chat.refresh().models == ("large",)
        expected = [choice for choice in choices if choice.randomized]
        assert {choice.propensity for choice in expected} == {0.75, 0.25}
        assert chat.agent.state.decisions == 300
    with SqliteStore(path, read_only=True) as store:
        assert audit(store, config_from_dict(CONFIG), read_key(path)).clean
        assert store.next_seq == 300 + 300 + 1 + 2


def test_what_it_returns_prints_itself() -> None:
    with Experiment.open(None, CONFIG) as chat:
        serve(chat, 0, 300)
        chat.refresh()
        assert str(chat.status()) == chat.status().sentence
        assert str(chat.recommendation()) == chat.recommendation().sentence
        lines = str(chat.estimates(["ipw"])).splitlines()
        assert [line.split(" ±")[0] for line in lines] == ["ipw: large 0.900", "ipw: small 0.200"]
        assert len(str(chat.checks()).splitlines()) == len(chat.checks())


def test_a_refresh_acts_on_alarms_as_the_daemon_does() -> None:
    """`small` breaks a guardrail: nothing is randomized any more, without anybody doing so."""
    config = {**CONFIG, "guardrails": [{"name": "errors", "limit": 0.2}]}
    with Experiment.open(None, config) as chat:
        for number in range(600):
            choice = chat.decide(f"r{number}", routed="large", features={"words": 12})
            failed = float(choice.model == "small" and number % 2 == 0)
            parts = {"outputs": {"seconds": 1.0}, "metrics": {"errors": failed}, "reward": 0.5}
            chat.outcome(choice, **parts)
        assert chat.agent.state.paused is None
        chat.refresh()
        # With one model left there is nothing to compare: randomizing stops.
        assert "errors" in (chat.agent.state.paused or "")
        alerts = [alert for alert in chat.agent.store.alerts() if alert.check == "guardrail"]
        assert [alert.status for alert in alerts] == ["alarm"]
        after = [
            chat.decide(f"s{number}", routed="small", features={"words": 1})
            for number in range(100)
        ]
        assert {(choice.model, choice.randomized) for choice in after} == {("small", False)}
        chat.resume("mended")
        assert chat.agent.state.paused is None
        assert chat.agent.rule.era == 1


def test_a_refresh_closes_what_is_over() -> None:
    clock = Clock()
    with Experiment.open(None, CONFIG, clock=clock) as chat:
        late = chat.decide("late", routed="large", features={"words": 1})
        clock.now += 3601.0
        chat.refresh()
        chat.outcome(late, outputs={"seconds": 1.0}, reward=1.0)
        assert chat.agent.late == 1


def test_numbers_of_numpy_are_numbers() -> None:
    with Experiment.open(None, CONFIG) as chat:
        choice = chat.decide("r", routed="large", features={"words": np.int64(3)})
        chat.outcome(choice, outputs={"seconds": np.float32(1.0)}, reward=np.float32(0.5))
        assert chat.agent.light.pending.reward[0] == 0.5


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"routed": "nobody"}, "nobody"),
        ({"features": {"words": "many"}}, "words"),
        ({"features": {"length": 1}}, "length"),
        ({"request_id": 7}, "request_id"),
        ({"eligible": ["nobody"]}, "nobody"),
        ({"at": -1.0}, "at"),
    ],
)
def test_a_wrong_request_is_refused_by_name_and_nothing_is_logged(
    wrong: dict[str, object], named: str
) -> None:
    with Experiment.open(None, CONFIG) as chat:
        request = {"request_id": "r", "routed": "large", "features": {"words": 1}} | wrong
        with pytest.raises((AgentError, FeatureError), match=named):
            chat.decide(**request)  # type: ignore[arg-type]
        assert chat.agent.light.next_seq == 0


def test_a_wrong_outcome_or_row_is_refused_by_name() -> None:
    with Experiment.open(None, CONFIG) as chat:
        choice = chat.decide("r", routed="large", features={"words": 1})
        with pytest.raises(TypeError, match="rewards"):
            chat.outcome(choice, rewards=1.0)
        with pytest.raises(AgentError, match=r"1\.5"):
            chat.outcome(choice, reward=1.5)
        with pytest.raises(AgentError, match="routed"):
            chat.ingest([{"features": {"words": 1}, "outputs": {"seconds": 1.0}}])
        with pytest.raises(AgentError, match="int"):
            chat.ingest([7])  # type: ignore[list-item]
        with pytest.raises(ConflictError):
            chat.decide("r", routed="small", features={"words": 1})
        chat.outcome(choice, reward=0.5)
        with pytest.raises(ConflictError):
            chat.outcome(choice, reward=0.6)


def test_a_store_needs_its_configuration_its_key_and_one_writer(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    with pytest.raises(ConfigError, match="needs a configuration"):
        Experiment.open(path)
    assert not path.exists()
    with pytest.raises(ConfigError, match="needs a configuration"):
        Experiment.open(None)
    with pytest.raises(ConfigError, match="models"):
        Experiment.open(path, {"name": "chat"})
    assert not path.exists()
    with Experiment.open(path, CONFIG) as chat:
        chat.decide("r", routed="large", features={"words": 1})
        with pytest.raises(StoreInUseError):
            Experiment.open(path, CONFIG)
    chat.close()  # again
    key_path(path).unlink()
    with pytest.raises(AgentError, match="key"):
        Experiment.open(path)


def test_a_file_a_dict_and_a_config_are_the_same(tmp_path: Path) -> None:
    example = Path(__file__).resolve().parents[2] / "equipoise.toml"
    with Experiment.open(None, example) as from_file:
        config = from_file.agent.config
    with Experiment.open(None, config) as chat:
        assert chat.agent.config == config


def test_threads_may_share_one(tmp_path: Path) -> None:
    with Experiment.open(tmp_path / "chat.db", CONFIG) as chat:
        threads = [
            threading.Thread(target=serve, args=(chat, 100 * index, 50)) for index in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert chat.agent.state.decisions == 200
    with SqliteStore(tmp_path / "chat.db", read_only=True) as store:
        assert audit(store, config_from_dict(CONFIG), read_key(tmp_path / "chat.db")).clean


def test_the_package_hands_its_names_on_without_loading_what_they_need() -> None:
    names = sorted(package.__all__)
    assert len(names) == 9
    for name in names:
        assert getattr(package, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing"):
        _ = package.nothing
    code = (
        "import sys; from equipoise.agent import Experiment, Client; print('numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_refresh_logs_which_windows_are_over() -> None:
    clock = Clock()
    with Experiment.open(None, CONFIG, clock=clock) as chat:
        chat.decide("silent", routed="large", features={"words": 1})
        clock.now += 3601.0
        chat.refresh()
        assert chat.agent.light.next_seq == 2
        assert chat.agent.light.pending.expired[0]


def test_closing_saves_the_state_up_to_the_last_row(tmp_path: Path) -> None:
    with Experiment.open(tmp_path / "chat.db", CONFIG) as chat:
        serve(chat, 0, 10)
    with SqliteStore(tmp_path / "chat.db", read_only=True) as store:
        saved = store.restore()
        assert saved is not None
        assert saved.seq == store.next_seq == 20


def test_a_state_that_is_not_that_of_the_log_is_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("half of it is folded")

    with Experiment.open(tmp_path / "chat.db", CONFIG) as chat:
        serve(chat, 0, 10)
        monkeypatch.setattr(chat.agent.state, "apply", fail)
        with pytest.raises(BrokenError):
            chat.decide("r", routed="large", features={"words": 1})
    with SqliteStore(tmp_path / "chat.db", read_only=True) as store:
        assert store.restore() is None
        assert store.next_seq == 21


def test_a_closed_one_acknowledges_nothing(tmp_path: Path) -> None:
    chat = Experiment.open(tmp_path / "chat.db", CONFIG)
    choice = chat.decide("r", routed="large", features={"words": 1})
    chat.close()
    with Experiment.open(tmp_path / "chat.db") as again:
        for call in (
            lambda: chat.decide("s", routed="large", features={"words": 1}),
            lambda: chat.outcome(choice, reward=1.0),
            lambda: chat.ingest([]),
            lambda: chat.pause("tired"),
            chat.refresh,
            chat.status,
        ):
            with pytest.raises(AgentError, match="is closed: open it again"):
                call()
        assert again.agent.state.decisions == 1


def test_a_forked_process_is_refused_and_does_not_close_its_parents(tmp_path: Path) -> None:
    code = """
import os, sys
from equipoise.agent import Experiment
chat = Experiment.open(sys.argv[1], sys.argv[2])
child = os.fork()
if not child:
    try:
        chat.decide("c", routed="large", features={})
    except ValueError as error:
        sys.stdout.write(str(error))
        sys.stdout.flush()
    chat.close()
    os._exit(0)
os.waitpid(child, 0)
chat.pause("the parent goes on")
chat.close()
"""
    example = Path(__file__).resolve().parents[2] / "equipoise.toml"
    command = [sys.executable, "-c", code, str(tmp_path / "chat.db"), str(example)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "was opened by process" in done.stdout


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda chat: chat.outcome("r", reward=float("nan")), "reward: received nan"),
        (lambda chat: chat.outcome("r", reward=float("inf")), "reward: received inf"),
        (lambda chat: chat.decide("s", "large", {1.0}), "features: received a set"),
        (lambda chat: chat.decide("", "large", {"words": 1}), "printable characters"),
        (lambda chat: chat.ingest("usage.jsonl"), "received str"),
        (lambda chat: chat.ingest([{"routed": "large"}]), "row 0: .*features"),
        (lambda chat: chat.simulate({"context_id": "c"}), "received dict"),
    ],
)
def test_what_has_no_meaning_is_refused(call: Callable[[Experiment], object], named: str) -> None:
    with Experiment.open(None, CONFIG) as chat:
        chat.decide("r", routed="large", features={"words": 1})
        rows = chat.agent.fold.next_seq
        with pytest.raises(AgentError, match=named):
            call(chat)
        assert chat.agent.fold.next_seq == rows


def test_series_keep_their_names_and_configurations_may_hold_numpy() -> None:
    config = {**CONFIG, "policy": {**CONFIG["policy"], "rate": np.float64(0.25)}}
    with Experiment.open(None, config) as chat:
        chat.decide("r", "large", pd.Series({"words": 3.0}))
        assert chat.decide("r", "large", {"words": 3.0}).decision_id == "d0"
        assert list(chat.estimates("ipw")) == ["ipw"]
    with pytest.raises(ConfigError, match="received list"):
        Experiment.open(None, [1])  # type: ignore[arg-type]
