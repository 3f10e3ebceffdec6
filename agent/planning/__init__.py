"""Budget planning (METHOD section 6): what must be spent to know, and what is known for it.

`plan_request` answers a dict with a dict, for the command and the daemon alike.

request, problem  what is asked for; the question behind it, on the [0, 1] scale
tables            one simulation each (`simulation`), and ways to pay; rows are a `requirement`
plan, sentences   all tables, the recommended row, and what it rests on (`output` prints it)
stored            a problem out of a running experiment
futures, pace     that experiment simulated on, and how fast its traffic comes
forecast          when it will be decided, or why nobody can say
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
