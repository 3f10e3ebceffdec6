"""Runs in Vowpal Wabbit's environment: decisions drawn from its probabilities, as dsjson.

    python logs_vw.py FOLDER EVENTS

Writes FOLDER/log.dsjson, and FOLDER/truth.json with what VW itself reads in those lines: of each
action the number of labels, their summed cost, and the weight of them that `pdrop` asks for.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

from vowpalwabbit import Workspace

FOLDER, EVENTS = Path(sys.argv[1]), int(sys.argv[2])
ACTIONS = ("large", "small", "tiny")
REWARDS = {"large": 0.7, "small": 0.6, "tiny": 0.3}


def main() -> None:
    generator = random.Random(11)
    learner = Workspace("--cb_explore_adf --epsilon 0.3 --dsjson --quiet")
    truth: dict[str, Any] = {name: {"labels": 0, "cost": 0.0, "weight": 0.0} for name in ACTIONS}
    lines = []
    for number in range(EVENTS):
        event = {
            "Timestamp": f"2026-11-01T{number // 3600 % 24:02d}:{number // 60 % 60:02d}:"
            f"{number % 60:02d}.1230000Z",
            "Version": "1",
            "EventId": f"event-{number}",
            "a": [1, 2, 3],
            "c": {
                "User": {"plan": generator.choice(["free", "paid"])},
                "_multi": [{"_tag": name, "m": {"id": name}} for name in ACTIONS],
            },
            "p": [1 / 3] * 3,
            "VWState": {"m": "a/b"},
        }
        chances = learner.predict(json.dumps(event))
        drawn = generator.choices(range(3), weights=chances)[0]
        order = [drawn, *[each for each in range(3) if each != drawn]]
        reward = float(generator.random() < REWARDS[ACTIONS[drawn]])
        label = {
            "_label_cost": -reward,
            "_label_probability": chances[drawn],
            "_label_Action": drawn + 1,
            "_labelIndex": drawn,
            "o": [{"EventId": event["EventId"], "v": 99.0}] if reward else [],
        }
        event |= {"a": [each + 1 for each in order], "p": [chances[each] for each in order]}
        if number % 10 == 3:
            event["pdrop"] = 0.5
        line = json.dumps(label | event)
        examples = learner.parse(line)
        for action, example in zip(ACTIONS, examples[1:], strict=True):
            if example.get_cbandits_num_costs():
                truth[action]["labels"] += 1
                truth[action]["cost"] += example.get_cbandits_cost(0)
                truth[action]["weight"] += example.get_cbandits_weight()
        learner.learn(examples)
        learner.finish_example(examples)
        lines.append(line)
    lines.append(json.dumps({"RewardValue": 1.0, "EventId": "of-no-event"}))
    (FOLDER / "log.dsjson").write_text("\n".join(lines) + "\n")
    (FOLDER / "truth.json").write_text(json.dumps(truth))


main()
