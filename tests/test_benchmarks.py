"""The benchmarks' own functions."""

from types import SimpleNamespace

from utils.files import PROJECT


def test_memory_is_left_out_where_there_is_no_proc(monkeypatch):
    monkeypatch.syspath_prepend(PROJECT / "benchmarks")
    import bench_scaling

    monkeypatch.setattr(bench_scaling.Path, "exists", lambda path: False)
    assert bench_scaling.memory_of(SimpleNamespace(pid=1)) == ["", ""]
