"""An embedded decider: draws in process, ships in the background, and never raises for its hub."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lane_hubs import KEY, QUICK, Hubs

from equipoise.agent.decisions.uniforms import Uniforms
from equipoise.agent.errors import AgentError
from equipoise.agent.experiment import Experiment, Joined
from equipoise.store.lanes.opening import open_hub
from equipoise.store.records import LANE_BITS


@pytest.fixture
def hubs(tmp_path: Path) -> Iterator[Hubs]:
    """The authority of `tmp_path / log.db`, whose key lies beside it."""
    (tmp_path / "log.db.key").write_bytes(KEY)
    with open_hub(tmp_path / "log.db") as hub:
        yield Hubs(hub=hub)


def joined(hubs: Hubs, folder: Path, number: int = 1) -> Joined:
    """A decider with a lane and tickets for it."""
    made = Experiment.join(str(folder / "log.db"), seconds=0.0, settings=QUICK)
    end = time.monotonic() + 60.0
    while len(hubs.hub.lanes()) < number:
        assert time.monotonic() < end
        time.sleep(0.002)
    hubs.publish()
    assert made.keeper.wait(60.0)
    return made


def test_threads_share_a_lane_and_close_ships_everything(hubs: Hubs, tmp_path: Path) -> None:
    with joined(hubs, tmp_path) as chat:
        choices: list[list[tuple[str, float | None]]] = [[] for _ in range(4)]

        def decide(mine: int) -> None:
            for at in range(50):
                choice = chat.decide(f"r{mine}-{at}", "large", {"words": at})
                assert choice.reason == ""
                assert choice.decision_id is not None
                choices[mine].append((choice.decision_id, choice.propensity))
                chat.outcome(choice, reward=0.5, outputs={"seconds": 1.0})

        threads = [threading.Thread(target=decide, args=(at,)) for at in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        again = chat.decide("r0-7", "large", {"words": 7})
        assert again.decision_id == choices[0][7][0]
        assert chat.trouble is None
    ids = {name for mine in choices for name, _ in mine}
    assert ids == {f"d1-{at}" for at in range(200)}
    assert hubs.shipped(1) == list(range(200))
    uniforms = [u for batch in hubs.decisions() for u in batch.uniform.tolist()]
    assert uniforms == Uniforms(KEY, "chat").of(1 << LANE_BITS, 200).tolist()
    assert sum(each.rows for each in hubs.hub.outcomes(999)) == 200
    assert all(each.whole for each in hubs.hub.lanes())
    assert list((tmp_path / "log.db.lanes.d").iterdir()) == []


def test_without_a_hub_requests_are_served_as_routed(tmp_path: Path) -> None:
    (tmp_path / "log.db.key").write_bytes(KEY)
    with Experiment.join(str(tmp_path / "log.db"), seconds=0.0, settings=QUICK) as chat:
        choice = chat.decide("r1", "large", {"words": 3})
        assert (choice.model, choice.reason, choice.decision_id) == ("large", "lane-lost", None)
        assert choice.propensity is None
        chat.outcome(choice, reward=1.0)  # nothing was logged: nothing to learn
        chat.outcome("r9", reward=1.0)
        assert chat.trouble is not None
    assert chat.lost == 1


def test_outcomes_that_came_before_a_lane_are_told_to_the_first_one(
    hubs: Hubs, tmp_path: Path
) -> None:
    chat = Experiment.join(str(tmp_path / "log.db"), seconds=0.0, settings=QUICK)
    chat.outcome("r9", reward=1.0)
    end = time.monotonic() + 60.0
    while not hubs.hub.lanes():
        assert time.monotonic() < end
        time.sleep(0.002)
    hubs.publish()
    assert chat.keeper.wait(60.0)
    assert chat.close()
    assert [(each.kind, each.rows) for each in hubs.hub.outcomes(9)] == [("reports", 1)]
    assert chat.lost == 0


def test_what_is_wrong_is_refused_as_everywhere(hubs: Hubs, tmp_path: Path) -> None:
    with joined(hubs, tmp_path) as chat:
        with pytest.raises(AgentError, match="routed: model 'nobody' is not one of large, small"):
            chat.decide("r1", "nobody", {"words": 3})
        with pytest.raises(TypeError, match="'rewards'"):
            chat.outcome("r1", rewards=1.0)
        with pytest.raises(AgentError, match="outside the declared range"):
            chat.outcome("elsewhere", reward=9.0)
    with pytest.raises(AgentError, match="this experiment is closed"):
        chat.decide("r1", "large", {"words": 3})
    assert hubs.decisions() == []


def test_the_key_must_be_there_and_the_experiments(
    hubs: Hubs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.write_bytes(bytes(32))
    with pytest.raises(AgentError, match="the key is that of another experiment"):
        Experiment.join(str(tmp_path / "log.db"), key=other, settings=QUICK)
    with pytest.raises(AgentError, match="nothing does not exist: copy it"):
        Experiment.join(str(tmp_path / "log.db"), key=tmp_path / "nothing")
    monkeypatch.delenv("EQUIPOISE_KEY", raising=False)
    with pytest.raises(AgentError, match="does not exist: copy it from the authority"):
        Experiment.join("postgresql://127.0.0.1:1/none")
    monkeypatch.setenv("EQUIPOISE_KEY", KEY.hex()[:-2])
    with pytest.raises(AgentError, match="expected 64 hexadecimal digits"):
        Experiment.join(str(tmp_path / "log.db"))
    assert [each for each in hubs.hub.lanes() if not each.whole] == []
