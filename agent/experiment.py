"""The front door: one experiment inside your own program, in the words of records.

`Experiment.open` opens a store with its configuration and key. `decide` and `outcome` are the verbs
of `Client`, which has them against a daemon; `ingest` and `simulate` take usage logs (OBS) and
replays (SIM); `refresh` estimates, freezes the next rule and carries out what alarms ask for; the
other methods say what is known. What they return prints itself.

>>> import tempfile
>>> config = {
...     "name": "chat",
...     "models": [{"name": "large"}, {"name": "small"}],
...     "reward": {"low": 0.0, "high": 1.0, "window": 3600.0},
...     "features": {"context": [{"type": "number", "name": "words"}]},
...     "policy": {"assignment": "uniform", "rate": 0.5, "estimator": "ipw"},
... }
>>> folder = tempfile.TemporaryDirectory()
>>> with Experiment.open(f"{folder.name}/chat.db", config) as chat:
...     for number in range(300):
...         choice = chat.decide(f"r{number}", routed="large", features={"words": 12})
...         chat.outcome(choice, reward=0.9 if choice.model == "large" else 0.2)
...     status = chat.refresh()
>>> status.models
('large',)
>>> folder.cleanup()
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar

from equipoise.agent.client import PARTS, Choice, Features

if TYPE_CHECKING:
    from equipoise.agent.agent import Accepted, Agent
    from equipoise.agent.answers.recommendation import Recommendation
    from equipoise.agent.answers.status import Activity, Status
    from equipoise.agent.budget.cost import Spent
    from equipoise.agent.config import ExperimentConfig
    from equipoise.agent.config.service import LaneSettings
    from equipoise.agent.errors import ConfigError
    from equipoise.agent.estimators.base import Estimates
    from equipoise.agent.lanes.decider import LaneKeeper
    from equipoise.agent.lifecycle.eras import Ended
    from equipoise.agent.monitors.check import Checks
    from equipoise.store.contract import Store
    from equipoise.store.records import Observation, Outcome, Simulation

Path: TypeAlias = str | os.PathLike[str]
Row = TypeVar("Row")


class Experiment:
    """One experiment over one store; `open` makes one.

    One process may write to a store at a time. Threads of it may share an experiment: calls wait
    for each other. agent: what decides and learns, for whoever needs arrays instead of records.
    """

    def __init__(self, agent: Agent, clock: Callable[[], float] = time.time) -> None:
        from equipoise.agent.record_adapter import RecordAdapter

        self.agent = agent
        self._clock = clock
        self._records = RecordAdapter(agent, clock)
        self._lock = threading.RLock()
        self._closed = False
        self._process = os.getpid()

    @classmethod
    def open(
        cls,
        store: Path | None,
        config: Path | Mapping[str, Any] | ExperimentConfig | None = None,
        *,
        clock: Callable[[], float] = time.time,
        key: Path | None = None,
    ) -> Self:
        """Open a store, which is made with its key where there is none.

        store: the path of its file, or a URL postgresql://host/database?schema=name; None keeps
        everything in memory, for trying out. config: the path of a TOML file, its content as a
        dict, or an `ExperimentConfig`; None takes the one the store was opened with last. clock:
        seconds since the epoch, for rows without a time. key: the file of its secret key, where
        that is not beside it.

        Raises ConfigError with every problem of a configuration, AgentError where the store was
        opened with another one that cannot be changed or its key is missing, and StoreError for a
        file that is no store, or one that another process has open.
        """
        from equipoise.agent.agent import Agent
        from equipoise.agent.decisions.uniforms import new_key
        from equipoise.agent.lifecycle.opening import with_after_decision
        from equipoise.agent.maintenance.key_file import open_key
        from equipoise.store.memory import MemoryStore
        from equipoise.store.opening import exists, named, open_served

        experiment = None if config is None else _experiment_config(config)
        if store is None:
            if experiment is None:
                raise _missing_config("an experiment in memory")
            memory = MemoryStore()
            experiment = with_after_decision(experiment, memory)
            return cls(Agent(experiment, memory, new_key(), at=clock()), clock)
        if experiment is None and not exists(store):
            raise _missing_config(named(store))
        opened = open_served(store)
        try:
            experiment = _stored_config(opened) if experiment is None else experiment
            experiment = with_after_decision(experiment, opened)
            return cls(Agent(experiment, opened, open_key(opened, key), at=clock()), clock)
        except BaseException:
            opened.close()
            raise

    @staticmethod
    def join(
        store: str,
        *,
        key: bytes | Path | None = None,
        folder: Path | None = None,
        seconds: float = 10.0,
        settings: LaneSettings | None = None,
        clock: Callable[[], float] = time.time,
    ) -> Joined:
        """Decide in this program for an experiment whose authority is elsewhere (`serve --role
        authority`, or with `--workers`).

        store: its URL `postgresql://…`, or the path of its store on this machine. key: the
        experiment's, or the file that holds it; by default EQUIPOISE_KEY, or where that of the
        store lies.
        folder: for what the authority does not have yet; made where it is missing, and kept by
        programs that follow each other. seconds: to wait for a lane; without one, requests are
        served as routed until there is. settings: times, by default those of `[service.lanes]`.
        Raises AgentError where the key is missing or another experiment's.
        """
        from equipoise.agent.config.service import LaneSettings
        from equipoise.agent.lanes.decider import LaneKeeper, lane_folder
        from equipoise.agent.maintenance.key_file import given_key
        from equipoise.store.lanes.opening import open_hub

        if not isinstance(key, bytes):
            key = given_key(store, key)
        times = settings or LaneSettings()
        where = lane_folder(store, None if folder is None else os.fspath(folder))
        joined = Joined(clock)
        joined.keeper = LaneKeeper(
            lambda: open_hub(store, seconds=times.lease_seconds),
            key,
            where,
            f"{socket.gethostname()}:{os.getpid()}",
            times,
            run=joined.run,
            clock=clock,
        )
        joined.keeper.start()
        try:
            joined.keeper.wait(seconds)
        except BaseException:
            joined.close(0.0)
            raise
        return joined

    def decide(
        self,
        request_id: str,
        routed: str,
        features: Features,
        *,
        unit_id: str | None = None,
        context_id: str | None = None,
        eligible: list[str] | None = None,
        at: float | None = None,
    ) -> Choice:
        """The model to serve this request; logged before it is returned.

        routed: what production would serve. features: named values as configured, or the vector.
        unit_id: whose request it is; context_id: of a replayed context; eligible: the models that
        may serve it, all by default; at: seconds since the epoch, now by default. The same
        request_id again gets the same decision.
        Raises AgentError or FeatureError, both ValueErrors, naming field, value and limit; nothing
        is logged then.
        """
        from equipoise.store.records import Request

        request = _record(
            Request,
            {
                "request_id": request_id,
                "routed": routed,
                "features": features,
                "unit_id": unit_id,
                "context_id": context_id,
                "eligible": eligible,
                "at": at,
            },
        )
        with self._opened():
            decision = self._records.decide_one(request)
        return Choice(
            request_id,
            decision.model,
            decision.routed,
            decision.randomized,
            decision.propensity,
            decision.decision_id,
        )

    def outcome(self, request: Choice | str, **parts: Any) -> None:
        """Report what came of a request, by its choice or its request_id.

        Parts: outputs, which come with the response; reward, which may come later; metrics; served,
        the model that answered where it is another than the chosen one; attempt; delivered, False
        where the chosen model was never tried; at, seconds since the epoch. Each counts once.
        Raises TypeError for another part, and AgentError where one cannot be; nothing is logged
        then.
        """
        from equipoise.store.records import Outcome

        known = (PARTS - {"outcome_token"}) | {"at"}
        if not parts.keys() <= known:
            raise TypeError(
                f"{sorted(parts.keys() - known)} is no part of an outcome: {sorted(known)}"
            )
        request_id = request.request_id if isinstance(request, Choice) else request
        outcome = _record(Outcome, {**parts, "request_id": request_id})
        with self._opened():
            self._records.observe([outcome])

    def ingest(self, rows: Iterable[Observation | Mapping[str, Any]]) -> Accepted:
        """Take in rows of a usage log (OBS): records, or dicts with their fields.

        Raises AgentError or FeatureError for the first row that cannot be; none is logged then.
        """
        from equipoise.store.records import Observation

        observations = _records(Observation, rows)
        with self._opened():
            return self._records.ingest(observations)

    def simulate(self, rows: Iterable[Simulation | Mapping[str, Any]]) -> Accepted:
        """Take in cached contexts replayed on models (SIM): records, or dicts with their fields.

        Raises AgentError or FeatureError for the first row that cannot be; none is logged then.
        """
        from equipoise.store.records import Simulation

        simulations = _records(Simulation, rows)
        with self._opened():
            return self._records.simulate(simulations)

    def refresh(self) -> Status:
        """Close decisions whose window is over, estimate, freeze the next rule, and do what alarms
        ask for (a pause, a new era, a model left out), as the daemon does; the status then. Once it
        is decided nothing is randomized any more, unless `budget.after_decision` says so."""
        with self._opened():
            now = self._clock()
            self.agent.expire(now)
            self.agent.refresh(now)
            return self.agent.answers.status()

    def recommendation(self, family: str | None = None) -> Recommendation:
        """What to do with production traffic, by an estimator family; the configured one by
        default."""
        with self._opened():
            return self.agent.answers.recommendation(family)

    def status(self) -> Status:
        """What is certified, at any time, with its sentence."""
        with self._opened():
            return self.agent.answers.status()

    def activity(self) -> Activity:
        """What is done with requests now: randomized, or why not."""
        with self._opened():
            return self.agent.answers.activity()

    def spent(self) -> Spent:
        """What randomizing has cost so far: requests, USD, and rewards against today's routing."""
        with self._opened():
            return self.agent.answers.spent()

    def checks(self) -> Checks:
        """What every check says of the era in force."""
        with self._opened():
            return self.agent.answers.checks(self._clock())

    def estimates(self, families: Iterable[str] | None = None) -> Estimates:
        """Values of the models by estimator family; by the configured one by default."""
        with self._opened():
            configured = self.agent.config.policy.estimator
            names = [configured] if families is None else families
            return self.agent.answers.estimates([names] if isinstance(names, str) else names)

    def pause(self, reason: str) -> None:
        """Randomize nothing until `resume`; kept in the store."""
        with self._opened():
            self.agent.controls.pause(reason, self._clock())

    def end(self, model: str | None = None, *, keep: bool = False, reason: str = "") -> Ended:
        """End the experiment: nothing is randomized until `resume`, and who is to be served from
        now on is kept. model: that one; keep: leave today's routing as it is; with neither, what
        `recommendation` says to do. With neither, an end that stands is
        repeated. Raises AgentError for a
        model that does not exist, and where it has ended in another way."""
        from equipoise.agent.answers.recommendation import KEEP

        with self._opened():
            answers, action = self.agent.answers, model
            standing = self.agent.state.ended
            if standing is not None and model is None and not keep:
                action = standing.model
            elif model is None and not keep:
                advice = answers.recommendation().action
                action = None if advice == KEEP else advice
            certified = action is not None and action == answers.certified_winner()
            now = self._clock()
            return self.agent.controls.end(action, reason, now, certified=certified)

    def resume(self, why: str = "") -> None:
        """Randomize again; in a new era if a check had paused, or after an end."""
        with self._opened():
            self.agent.controls.resume(self._clock(), why)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[None]:
        """One verb at a time. Raises AgentError once it is closed, and in a forked process, which
        would give the numbers of its parent's decisions again."""
        from equipoise.agent.errors import AgentError

        if self._process != os.getpid():
            why = f"was opened by process {self._process}"
            raise AgentError(f"this experiment {why}: open it in this one, {os.getpid()}")
        with self._lock:
            if self._closed:
                raise AgentError("this experiment is closed: open it again")
            yield

    def close(self) -> None:
        """Save the state, and close the store. Closing again changes nothing."""
        from equipoise.store.errors import StoreError

        if self._process != os.getpid():
            return  # it is the parent's
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self.agent.broken is None:
                # A checkpoint only saves time; the log itself is whole without it.
                with contextlib.suppress(StoreError):
                    self.agent.checkpoint(self._clock())
            self.agent.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


KEPT_OUTCOMES = 10_000
"""Outcomes that wait for a lane, of a program that has none."""


class Joined:
    """A decider in this program; `Experiment.join` makes one.

    Threads may share it: calls wait for each other. keeper: what leases, fetches and ships, in a
    thread of its own. lost: outcomes that found no room while no lane was held.
    """

    keeper: LaneKeeper

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.lost = 0
        self._clock = clock
        self._lock = threading.RLock()
        self._waiting: deque[Outcome] = deque()
        self._closed = False
        self._process = os.getpid()

    def run(self, work: Callable[[], None]) -> None:
        """Do something between two calls."""
        with self._lock:
            work()

    @property
    def trouble(self) -> str | None:
        """Why requests are served as routed, or soon will be; None where all is well."""
        return self.keeper.trouble

    def decide(self, request_id: str, routed: str, features: Features, **options: Any) -> Choice:
        """The model to serve this request, drawn here and logged before it is returned.

        Parameters as of `Experiment.decide`. Where no lane is held, or its files cannot be
        written, it is the routed model with the reason, and nothing is logged.
        Raises AgentError or FeatureError, both ValueErrors, naming field, value and limit.
        """
        from equipoise.agent.errors import BrokenError
        from equipoise.store.errors import StoreError
        from equipoise.store.records import Request

        fields = {"request_id": request_id, "routed": routed, "features": features}
        request = _record(Request, {**fields, **options})
        with self._opened():
            lane, reason = self.keeper.lane, "lane-lost"
            if lane is not None and lane.decides():
                self._tell_waiting()
                try:
                    decision = lane.records.decide_one(request)
                except BrokenError:
                    reason = "restarting"
                except StoreError:
                    reason = "store-failed"
                else:
                    return Choice(
                        request_id,
                        decision.model,
                        decision.routed,
                        decision.randomized,
                        decision.propensity,
                        decision.decision_id,
                        ask=bool(decision.ask),
                    )
        return Choice(request_id, routed, routed, reason=reason)

    def outcome(self, request: Choice | str, **parts: Any) -> None:
        """Report what came of a request, by its choice or its request_id; parts as of
        `Experiment.outcome`. Of a choice that was not decided nothing is kept. What contradicts a
        decision of another decider is refused by the authority, which counts it.
        """
        from equipoise.store.records import Outcome

        known = (PARTS - {"outcome_token"}) | {"at"}
        if not parts.keys() <= known:
            raise TypeError(
                f"{sorted(parts.keys() - known)} is no part of an outcome: {sorted(known)}"
            )
        if isinstance(request, Choice):
            if request.decision_id is None:
                return
            name = {"decision_id": request.decision_id}
        else:
            name = {"request_id": request}
        outcome = _record(Outcome, {**parts, **name})
        with self._opened():
            self._tell_waiting()
            lane = self.keeper.lane
            if lane is not None:
                lane.records.observe([outcome])
            elif len(self._waiting) < KEPT_OUTCOMES:
                self._waiting.append(outcome)
            else:
                self.lost += 1

    def _tell_waiting(self) -> None:
        """Take the outcomes that came while no lane was held."""
        lane = self.keeper.lane
        while lane is not None and self._waiting:
            try:
                lane.records.observe([self._waiting[0]])
            except ValueError:
                self.lost += 1
            self._waiting.popleft()

    @contextlib.contextmanager
    def _opened(self) -> Iterator[None]:
        from equipoise.agent.errors import AgentError

        if self._process != os.getpid():
            why = f"was joined by process {self._process}"
            raise AgentError(f"this experiment {why}: join it in this one, {os.getpid()}")
        with self._lock:
            if self._closed:
                raise AgentError("this experiment is closed: join it again")
            yield

    def close(self, seconds: float = 10.0) -> bool:
        """Ship what is left, and give the lane back; whether that worked in so many seconds. What
        is left is shipped by the next program with the folder. Closing again changes nothing."""
        if self._process != os.getpid():
            return False  # it is the parent's
        with self._lock:
            if self._closed:
                return self.keeper.lane is None
            self._tell_waiting()
            self._closed = True
            self.lost += len(self._waiting)
        return self.keeper.close(seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _experiment_config(config: Path | Mapping[str, Any] | ExperimentConfig) -> ExperimentConfig:
    from equipoise.agent.config import ExperimentConfig
    from equipoise.agent.config.file import file_from_dict, load_file
    from equipoise.agent.errors import ConfigError

    if isinstance(config, ExperimentConfig):
        return config
    if isinstance(config, Mapping):
        return file_from_dict(_plain("configuration", config)).experiment
    if not isinstance(config, str | os.PathLike):
        received = type(config).__name__
        raise ConfigError([f"received {received}, expected a path, a dict or an ExperimentConfig"])
    return load_file(config).experiment


def _stored_config(store: Store) -> ExperimentConfig:
    from equipoise.agent.config import ExperimentConfig
    from equipoise.agent.lifecycle import stored_config

    text = stored_config.load(store)
    if text is None:
        raise _missing_config("a store that no experiment was opened on")
    return ExperimentConfig.from_json(text)


def _missing_config(what: str) -> ConfigError:
    from equipoise.agent.errors import ConfigError

    return ConfigError([f"{what} needs a configuration, got None"])


def _records(kind: type[Row], rows: Iterable[object]) -> list[Row]:
    """Records of that kind. Raises AgentError, with the number of the row."""
    from equipoise.agent.errors import AgentError

    if isinstance(rows, str | bytes | Mapping) or hasattr(rows, "columns"):
        expected = f"a list of {kind.__name__} or of dicts with its fields"
        raise AgentError(f"rows: received {type(rows).__name__}, expected {expected}")
    records = []
    for number, row in enumerate(rows):
        try:
            records.append(_record(kind, row))
        except AgentError as error:
            raise AgentError(f"row {number}: {error}") from None
    return records


def _record(kind: type[Row], row: object) -> Row:
    """A record of that kind from a dict of its fields; absent where None. Raises AgentError."""
    import msgspec

    from equipoise.agent.errors import AgentError
    from equipoise.store.records import readable

    if isinstance(row, kind):
        return row
    if not isinstance(row, Mapping):
        name = kind.__name__
        raise AgentError(f"received {type(row).__name__}, expected {name} or a dict of its fields")
    fields = {name: _plain(name, value) for name, value in row.items() if value is not None}
    for name, value in fields.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise AgentError(f"{name}: received {value}, expected a finite number")
    try:
        return msgspec.convert(fields, kind)
    except (msgspec.ValidationError, UnicodeError) as error:
        sentence = readable(error) if isinstance(error, msgspec.ValidationError) else str(error)
        raise AgentError(f"{kind.__name__}: {sentence}") from None


def _plain(field: str, value: Any) -> Any:
    """Numbers, arrays and series of NumPy and pandas as Python's. field: for AgentError."""
    from equipoise.agent.errors import AgentError

    if isinstance(value, set | frozenset):
        raise AgentError(f"{field}: received a set, expected a dict or a list, which have an order")
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {name: _plain(field, each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(field, each) for each in value]
    return value.tolist() if hasattr(value, "tolist") else value
