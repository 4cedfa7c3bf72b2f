"""The benchmarks' own functions."""

from types import SimpleNamespace

from utils.files import PROJECT


def test_memory_is_left_out_where_there_is_no_proc(monkeypatch):
    monkeypatch.syspath_prepend(PROJECT / "benchmarks")
    import bench_scaling

    monkeypatch.setattr(bench_scaling.Path, "exists", lambda path: False)
    assert bench_scaling.memory_of(SimpleNamespace(pid=1)) == ["", ""]


def test_no_data_is_one_line(monkeypatch, tmp_path, fails):
    monkeypatch.syspath_prepend(PROJECT / "benchmarks")
    import bench_training

    assert "not a folder that contains CIFAR-10" in fails(bench_training.main, "--data", tmp_path)
    assert "--rounds" in fails(bench_training.main, "--rounds", "many")
