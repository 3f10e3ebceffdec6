"""Which answer an id is of: what caches hand out again, and how tools write one trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from otlp_bodies import span, traces

from equipoise.agent.ingest.joins import COPIES
from tests.agent.ingest.test_joins import lines, log_of, reasons, scored


def chat(id_: str, model: str, created: int, answer: str = "so") -> dict[str, Any]:
    """A logged body of the application's own: what a cache of the gateway did to it is nowhere."""
    asked = {"model": model, "messages": [{"role": "user", "content": "why?"}]}
    said = {"id": id_, "created": created, "choices": [{"message": {"content": answer}}]}
    return {"request": asked, "response": said}


def test_an_answer_that_a_cache_handed_out_again_is_of_who_wrote_it(tmp_path: Path) -> None:
    """And not of the model that was asked this time. Ids alone do not tell: some servers number
    their answers from 0 to 999."""
    rows = [
        chat("chatcmpl-1", "gpt-4o", 1777777000),
        chat("chatcmpl-1", "gpt-4o-mini", 1777777000),
        chat("chatcmpl-1", "gpt-4o-mini", 1777777900, "no"),
        chat("chatcmpl-2", "gpt-4o-mini", 1777777000),
    ]
    rows.append({**rows[1], "response": {**rows[1]["response"], "created": None}})
    # Another user of the same model: a request of its own, whoever wrote the text for whom.
    rows.append(rows[0])
    source = lines(tmp_path / "a.jsonl", rows)
    assert reasons(log_of("openai", source), source) == [None, COPIES, None, None, None, None]
    scores = scored(tmp_path / "s.jsonl", [{"response_id": "chatcmpl-2", "score": 1.0}])
    log = log_of("openai", source, scores=scores)
    assert [usage.reward for usage in log.usages(source)] == [None] * 3 + [1.0, None, None]
    copied = lines(tmp_path / "b.jsonl", rows[:2])
    scores = scored(tmp_path / "s.jsonl", [{"response_id": "chatcmpl-1", "score": 0.0}])
    log = log_of("openai", copied, scores=scores)
    assert [usage.reward for usage in log.usages(copied)] == [0.0, None]


@pytest.mark.parametrize("spelling", ["{}", "tr-{}", "{:upper}"])
def test_a_trace_has_one_id_however_tools_write_it(tmp_path: Path, spelling: str) -> None:
    """MLflow names traces tr- and the digits that the spans have; others write capitals."""
    source = lines(tmp_path / "a.jsonl", [traces(span(171), span(172))])
    ids = [usage.row["trace_id"] for usage in log_of("otlp", source).usages(source)]
    name = ids[1].upper() if "upper" in spelling else spelling.format(ids[1])
    scores = scored(tmp_path / "s.jsonl", [{"trace_id": name, "value": 1.0}])
    log = log_of("otlp", source, scores=scores)
    assert [usage.reward for usage in log.usages(source)] == [None, 1.0]
