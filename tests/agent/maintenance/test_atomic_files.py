"""A folder is replaced only where nothing goes with it that nobody has twice."""

from __future__ import annotations

import os
import shutil

import pytest
from commands import run_command

from equipoise.agent.errors import AgentError
from equipoise.agent.experiment import Experiment
from equipoise.agent.maintenance.atomic_files import whole_folder

DECLARED = {"name": "chat", "models": [{"name": "a"}, {"name": "b"}]}
DEAD = 2**22 + 1
"""No process has this number: it is above the most that Linux gives."""


def names(folder):
    return sorted(os.listdir(folder))


@pytest.mark.parametrize("made_by", ["export", "backup"])
def test_a_folder_that_holds_the_store_is_not_replaced(tmp_path, made_by):
    """Its key would be gone with it."""
    with Experiment.open(tmp_path / "log.db", DECLARED) as chat:
        chat.decide("r1", routed="a", features=[])
    out = tmp_path / "out"
    assert run_command(made_by, tmp_path / "log.db", "--out", out).returncode == 0
    for path in tmp_path.glob("log.db*"):
        shutil.move(path, out / path.name)
    (tmp_path / "link").symlink_to(out)
    before = names(out)
    for store, target in ((out / "log.db", out), (tmp_path / "link" / "log.db", out)):
        refused = run_command(made_by, store, "--out", target, "--force")
        assert refused.returncode == 2
        assert "holds log.db, which is read: choose another --out" in refused.stderr
        assert set(before) <= set(names(out))
    elsewhere = run_command(made_by, out / "log.db", "--out", tmp_path / "again")
    assert elsewhere.returncode == 0, elsewhere.stderr


def replaced(path, text):
    with whole_folder(path, replace="mark") as folder:
        (folder / "mark").write_text(text)


def test_hidden_folders_that_are_not_ours_are_left_alone(tmp_path):
    out = tmp_path / "o*t"
    others = [".o*t.partial-12-old", ".o*t.replaced-mine", f".oxt.partial-{DEAD}"]
    for name in others:
        (tmp_path / name).mkdir()
    (tmp_path / f".o*t.partial-{DEAD}").mkdir()
    replaced(out, "one")
    replaced(out, "two")
    assert names(tmp_path) == sorted([*others, "o*t"])
    assert (out / "mark").read_text() == "two"


def test_a_replacement_that_was_killed_is_undone(tmp_path):
    replaced(tmp_path / "out", "one")
    (tmp_path / "out").rename(tmp_path / f".out.replaced-{DEAD}")
    with pytest.raises(AgentError, match="out exists"), whole_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out" / "mark").read_text() == "one"


def test_where_the_last_step_fails_the_old_folder_stays(tmp_path):
    out = tmp_path / "out"
    replaced(out, "one")
    with pytest.raises(FileNotFoundError), whole_folder(out, replace="mark") as folder:
        shutil.rmtree(folder)
    assert (out / "mark").read_text() == "one"
    assert names(tmp_path) == ["out"]


def test_of_a_link_only_the_link_is_replaced(tmp_path):
    replaced(tmp_path / "real", "one")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    replaced(tmp_path / "link", "two")
    assert (tmp_path / "real" / "mark").read_text() == "one"
    assert (tmp_path / "link" / "mark").read_text() == "two"
    assert names(tmp_path) == ["link", "real"]
