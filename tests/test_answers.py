"""docs/make_answers.py's own functions."""

import time

import pytest

from utils.files import PROJECT


def test_a_failing_run_ends_all_runs_of_the_answers(monkeypatch):
    monkeypatch.syspath_prepend(PROJECT / "docs")
    import make_answers

    started = []

    def train(name, *_):
        started.append(name)
        if name == "first":
            raise SystemExit("first: failed")
        time.sleep(0.1)

    monkeypatch.setattr(make_answers, "train", train)
    with pytest.raises(SystemExit, match="first: failed"):
        make_answers.train_all({name: [] for name in ("first", *"abcdefgh")}, [], jobs=2)
    assert len(started) < 5
