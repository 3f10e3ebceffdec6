"""Runs in an environment of Open Bandit Pipeline: its estimates from an exported folder.

    python obp_estimates.py FOLDER

Prints JSON: rows, and by candidate `ips` and `snips`, each [for lower, for upper ends].
"""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from obp.ope import InverseProbabilityWeighting, OffPolicyEvaluation
from obp.ope import SelfNormalizedInverseProbabilityWeighting as SelfNormalized


def main(folder: Path) -> dict:
    frame = pd.read_parquet(folder / "bandit_feedback.parquet")
    said = json.loads((folder / "experiment.json").read_text())
    context = np.stack(frame["context"])
    assert context.shape == (len(frame), len(said["context"]))
    found: dict = {name: {"ips": [], "snips": []} for name in said["estimates"]}
    for end in ("reward", "reward_high"):
        feedback = {
            "n_rounds": len(frame),
            "n_actions": len(said["actions"]),
            "context": context,
            "action": frame["action"].to_numpy(),
            "reward": frame[end].to_numpy(),
            "position": frame["position"].to_numpy(),
            "pscore": frame["pscore"].to_numpy(),
            "action_context": np.eye(len(said["actions"])),
        }
        estimators = [InverseProbabilityWeighting(), SelfNormalized()]
        evaluation = OffPolicyEvaluation(bandit_feedback=feedback, ope_estimators=estimators)
        for name, values in found.items():
            dist = np.stack(frame[f"action_dist_{name}"])[:, :, None]
            told = evaluation.estimate_policy_values(action_dist=dist)
            values["ips"].append(float(told["ipw"]))
            values["snips"].append(float(told["snipw"]))
    return {"rows": len(frame), "estimates": found}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
