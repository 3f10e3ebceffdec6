"""Runs in an environment of Vowpal Wabbit: what it and its estimators say of an exported folder.

    python vw_estimates.py FOLDER SCRATCH

Prints JSON: rows; by candidate `ips` and `snips` of vw-estimators; `vw`, the IPS estimate that
Vowpal Wabbit itself reports for a model or today's routing served to everybody; and how far the
labels that it reads are from the text (float32).
"""

import json
import sys
from pathlib import Path

import vowpalwabbit
from estimators.bandits import ips, snips
from estimators.utils import ds_parse


def main(folder: Path, scratch: Path) -> dict:
    events = folder / "decisions.dsjson"
    said = json.loads((folder / "experiment.json").read_text())
    candidates, actions = list(said["estimates"]), said["actions"]
    sums = {name: (ips.Estimator(), snips.Estimator()) for name in candidates}
    cost_gap = probability_gap = 0.0
    rows = 0
    reader = vowpalwabbit.Workspace("--cb_adf --cb_type ips --dsjson --quiet")
    with open(events, "rb") as lines:
        for line in lines:
            rows += 1
            cooked, event = ds_parse.json_cooked(line), json.loads(line)
            assert cooked["p"] == event["_label_probability"] == event["p"][0]
            assert cooked["a"] == event["_label_Action"] == event["a"][0]
            assert cooked["num_a"] == len(actions)
            for name, pair in sums.items():
                for estimator in pair:
                    estimator.add_example(
                        cooked["p"], -float(cooked["cost"]), event["p_pred"][name]
                    )
            if rows <= 2000:
                examples = reader.parse(line.decode())
                label = vowpalwabbit.CBLabel.from_example(examples[1 + event["_labelIndex"]])
                (read,) = label.costs
                cost_gap = max(cost_gap, abs(read.cost - event["_label_cost"]))
                probability_gap = max(
                    probability_gap, abs(read.probability / event["_label_probability"] - 1)
                )
                reader.finish_example(examples)
    reader.finish()
    own = {}
    for name in candidates:
        if name in actions or name == "(today's routing)":
            own[name] = served_to_everybody(name, events, scratch, actions, rows)
    return {
        "rows": rows,
        "estimates": {
            name: {"ips": one.get(), "snips": other.get()} for name, (one, other) in sums.items()
        },
        "vw": own,
        "cost_gap": cost_gap,
        "probability_gap": probability_gap,
    }


def served_to_everybody(name, events, scratch, actions, rows) -> float:
    """The mean reward that Vowpal Wabbit reports of a fixed policy, in test mode on our events.

    It learns the policy from made-up events, in which only the wanted action costs -1.
    """
    lessons, policy, predictions = (scratch / each for each in ("lessons", "policy", "predictions"))
    with open(lessons, "w") as file:
        for _ in range(60):
            for routed in actions:
                for at, action in enumerate(actions):
                    wanted = routed if name not in actions else name
                    file.write(json.dumps(lesson(at, actions, routed, float(action == wanted))))
                    file.write("\n")
    of_routed = "-q rm --ignore_linear m --ignore_linear r"
    seen = "--ignore r" if name in actions else of_routed
    learner = f"--cb_adf --cb_type ips --dsjson --quiet --ignore x {seen} -d {lessons} -f {policy}"
    vowpalwabbit.Workspace(learner).finish()
    test = vowpalwabbit.Workspace(f"-t -i {policy} --dsjson --quiet -d {events} -p {predictions}")
    loss = test.get_sum_loss()
    test.finish()
    with open(predictions) as best, open(events) as lines:
        chosen = [int(line.split(":")[0].split(",")[0]) for line in best if line.strip()]
        for at, (line, action) in enumerate(zip(lines, chosen, strict=True)):
            event = json.loads(line)
            (routed,) = event["c"]["r"]
            wanted = name if name in actions else routed.removeprefix("routed=")
            assert actions[action] == wanted, (at, action, wanted)
    return -loss / rows


def lesson(at: int, actions: list, routed: str, reward: float) -> dict:
    count = len(actions)
    order = [at, *(each for each in range(count) if each != at)]
    return {
        "_label_cost": -reward,
        "_label_probability": 1 / count,
        "_label_Action": at + 1,
        "_labelIndex": at,
        "Timestamp": "2026-01-01T00:00:00.0000000Z",
        "Version": "1",
        "EventId": "lesson",
        "a": [each + 1 for each in order],
        "c": {
            "r": {f"routed={routed}": 1.0},
            "_multi": [{"m": {f"model={each}": 1.0}} for each in actions],
        },
        "p": [1 / count] * count,
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]))))
