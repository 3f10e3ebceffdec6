"""Budget planning (METHOD section 6): what must be spent to know, and what is known for it.

`plan_request` answers a dict with a dict, for the command and the daemon alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from equipoise.agent.answers.answers import Answers


def plan_request(data: dict[str, Any], answers: Answers | None = None) -> dict[str, Any]:
    """The plan for a request, as JSON types.

    answers: of the experiment whose sums so far the plan goes on from; None plans from numbers.

    data: fields of `request.PlanRequest`; with answers all of them are optional. Raises PlanError
    naming field, value and limit where the question is impossible.
    """
    import msgspec

    from equipoise.agent.planning.plan import make_plan
    from equipoise.agent.planning.problem import Problem
    from equipoise.agent.planning.request import read_request
    from equipoise.agent.planning.stored import of_experiment

    if answers is None:
        plan = make_plan(Problem.of_numbers(read_request(data)))
    else:
        plan = make_plan(*of_experiment(answers, data))
    result: dict[str, Any] = msgspec.to_builtins(plan)
    return result
