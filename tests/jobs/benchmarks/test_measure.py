import argparse
import json
import time

import pytest
import torch

from jobs.benchmarks import _machine, _measure, _report


def test_counts_time_memory_and_errors():
    held = []

    def fail():
        raise RuntimeError("no room")

    def late():
        held.append(1)
        if len(held) > 4:
            raise RuntimeError("later")

    cases = {"sleep": lambda: time.sleep(0.002), "fail": fail, "late": late}
    found = _measure.measure(cases, examples=10, device="cpu", warm_up=1, repeats=3)
    assert found["sleep"].repeats == 3
    assert found["sleep"].median_s >= 0.002
    assert found["sleep"].examples_per_s == 10 / found["sleep"].median_s
    assert found["fail"].error == "RuntimeError: no room"
    assert found["late"].error == "RuntimeError: later"  # raised in a timed call
    assert found["late"].median_s is None


def test_a_slow_case_is_repeated_less():
    found = _measure.measure({"a": lambda: time.sleep(0.02)}, examples=1, device="cpu", warm_up=0, limit_s=0.05)
    assert 1 <= found["a"].repeats <= 2


def test_sees_the_memory_of_a_call():
    def take():
        return torch.ones(2**25)  # 128 MiB, written

    held, peak = _measure.peak_memory(take, device="cpu")
    if peak is None:
        pytest.skip("this system doesn't restart its memory peak")
    assert peak - held > 100 * 2**20


def test_floor_is_the_slower_of_arithmetic_and_memory():
    found = _machine.Peaks(flops_per_s=10.0, bytes_per_s=100.0, source="published")
    assert found.floor_s(flops=20, num_bytes=100) == 2
    assert found.floor_s(flops=10, num_bytes=300) == 3


def test_counts_the_operations_of_a_product():
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    assert _machine.count_flops(lambda: a @ b) == 2 * 3 * 5 * 7


def test_measured_peaks_are_positive():
    found = _machine.peaks("cpu", dtype=torch.float32)
    assert found.source == "measured"
    assert found.flops_per_s > 0
    assert found.bytes_per_s > 0


def test_reports_table_and_json(tmp_path, capsys):
    file = tmp_path / "out" / "figures.json"
    given = _report.parser("d", model="m", batch=4).parse_args(["--device", "cpu", "--json", str(file)])
    good = _measure.Measured("fast", 8, median_s=0.5, min_s=0.4, max_s=0.6, repeats=3, peak_bytes=2**20)
    bad = _measure.Measured("slow", 8, error="out of memory: 1 GiB")
    rows = [_report.row(good, floor_s=0.25, base_s=1.0), _report.row(bad)]
    _report.finish("name", rows, arguments=given, notes={"peaks": "none"})
    written = json.loads(file.read_text())
    assert written["rows"][0]["examples_per_s"] == 16
    assert written["rows"][0]["ratio"] == 0.5
    assert written["machine"]["torch"] == torch.__version__
    assert written["arguments"]["batch"] == 4
    printed = capsys.readouterr().out
    assert "| fast | 16" in printed
    assert "50 %" in printed
    assert "out of memory: 1 GiB" in printed
    assert isinstance(given, argparse.Namespace)
