"""Logs as the real products draw them; runs in their environment. argv: folder, rows, users.

Vowpal Wabbit explores, and each line has its own probabilities in dsjson. GrowthBook splits users
by a hash for 40% of them, and each line is what its tracking callback was given.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

from growthbook import Experiment, GrowthBook
from vowpalwabbit import pyvw

VALUES = {"large": 0.6, "small": 0.45, "tiny": 0.3}
ARMS = list(VALUES)
FLAG = {"large": 0.6, "small": 0.4}


def explored(path: Path, rows: int) -> None:
    """Epsilon-greedy by VW, that learns as it goes, so that probabilities follow rewards."""
    rng = random.Random(1)
    space = pyvw.Workspace("--cb_explore_adf --epsilon 0.4 -q UA --quiet --random_seed 1")
    with path.open("w") as file:
        for at in range(rows):
            words = rng.randrange(1, 100)
            actions = [{"A": {"arm": arm}} for arm in ARMS]
            context = {"U": {"long": words > 50}, "_multi": actions}
            chances = space.predict(
                [f"shared |U long={words > 50:d}"] + [f"|A arm={arm}" for arm in ARMS]
            )
            chosen = rng.choices(range(len(ARMS)), chances)[0]
            reward = float(rng.random() < VALUES[ARMS[chosen]] + (0.2 if words > 50 else -0.2))
            order = [chosen, *(arm for arm in range(len(ARMS)) if arm != chosen)]
            line = {
                "_label_cost": -reward,
                "_label_probability": chances[chosen],
                "_label_Action": chosen + 1,
                "_labelIndex": chosen,
                "o": [{"v": -reward, "EventId": f"e{at}"}],
                "Timestamp": f"2026-05-01T{at // 3600:02}:{at // 60 % 60:02}:{at % 60:02}.5000000Z",
                "Version": "1",
                "EventId": f"e{at}",
                "a": [arm + 1 for arm in order],
                "c": context,
                "p": [chances[arm] for arm in order],
                "pdrop": 0.0,
                "words": words,
            }
            file.write(json.dumps(line) + "\n")
            examples = [f"shared |U long={words > 50:d}"]
            for arm, name in enumerate(ARMS):
                label = f"{arm}:{-reward}:{chances[arm]} " if arm == chosen else ""
                examples.append(f"{label}|A arm={name}")
            space.learn(examples)
    space.finish()
    # VW reads its own format: as many examples as there are lines, or the log is none.
    command = [sys.executable, "-m", "vowpalwabbit", "--dsjson", "-d", path, "--cb_explore_adf"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    counted = [line for line in done.stderr.splitlines() if "number of examples" in line]
    assert counted, done.stderr
    assert int(counted[0].split("=")[1]) == rows, counted


def split(path: Path, users: int, visits: int = 8) -> None:
    """A hash split; every user comes back, and says nearly the same each time."""
    rng = random.Random(2)
    taste = {user: rng.random() for user in range(users)}
    seen: list[object] = []
    with path.open("w") as file:
        for visit in range(visits):
            for user in range(users):
                experiment = Experiment(
                    key="answers",
                    variations=list(FLAG),
                    weights=list(FLAG.values()),
                    coverage=0.4,
                    hashVersion=2,
                )

                # Called by keywords; what it raises is swallowed, and nothing is logged.
                def viewed(*, result, **more):
                    seen.append(result)

                flags = GrowthBook(attributes={"id": f"u{user}"}, on_experiment_viewed=viewed)
                result = flags.run(experiment)
                flags.destroy()
                if not result.inExperiment:
                    continue
                assert seen, "who is in the experiment is tracked"
                reward = float((taste[user] < VALUES[result.value]) != (rng.random() < 0.02))
                line = {
                    "experiment": "answers",
                    "user": result.hashValue,
                    "variationId": result.variationId,
                    "variationWeights": list(FLAG.values()),
                    "stickyBucketUsed": bool(result.stickyBucketUsed),
                    "at": 1_777_777_000 + visit * users + user,
                    "good": reward,
                    "words": 10,
                }
                file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    explored(folder / "vw.jsonl", int(sys.argv[2]))
    split(folder / "growthbook.jsonl", int(sys.argv[3]))
