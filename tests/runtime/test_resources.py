"""Placement without a cluster: the auto rule, slots, and refusals that say what is missing."""

from __future__ import annotations

import pytest

from privshard.core.errors import InputError, ResourceError
from privshard.runtime.resources import ClusterView, NodeView, Placement, placement


def cluster(*nodes: tuple[float, float]) -> ClusterView:
    return ClusterView(tuple(NodeView(gpus, cpus) for gpus, cpus in nodes))


@pytest.mark.parametrize(
    ("gpus", "num_jobs", "share", "concurrent"),
    [
        (0, 4, 0.0, 4),
        (1, 1, 1.0, 1),
        (4, 3, 1.0, 3),
        (4, 4, 1.0, 4),
        (4, 5, 0.5, 5),
        (2, 6, 0.3333, 6),
        (1, 4, 0.25, 4),
        (1, 9, 0.25, 4),
        (2, 100, 0.25, 8),
    ],
)
def test_auto_takes_whole_gpus_then_shares_down_to_a_quarter(gpus, num_jobs, share, concurrent) -> None:
    assert placement(cluster((gpus, 64)), num_jobs=num_jobs) == Placement(share, 1.0, concurrent)


def test_auto_counts_the_gpus_of_all_machines() -> None:
    assert placement(cluster((2, 8), (0, 8), (2, 8)), num_jobs=8) == Placement(0.5, 1.0, 8)


def test_cpus_bound_the_slots_of_each_machine() -> None:
    assert placement(cluster((0, 7), (0, 3)), cpus_per_shard=4, num_jobs=9).concurrent == 1
    assert placement(cluster((8, 2)), gpus_per_shard=1, num_jobs=9).concurrent == 2
    assert placement(cluster((0, 1)), cpus_per_shard=0.1, num_jobs=99).concurrent == 10


def test_a_share_never_spans_two_gpus() -> None:
    assert placement(cluster((2, 64)), gpus_per_shard=0.6, num_jobs=9).concurrent == 2  # not 2 / 0.6 = 3


def test_the_sum_of_two_machines_is_not_one_machine() -> None:
    with pytest.raises(ResourceError) as refused:
        placement(cluster((1, 8), (1, 8)), gpus_per_shard=2, num_jobs=1)
    assert "2 GPUs and 1 CPU;" in str(refused.value)
    assert "2 machines (1 GPU and 8 CPUs, 1 GPU and 8 CPUs)" in str(refused.value)
    assert "ray.gpus_per_shard" in refused.value.remedy
    assert refused.value.exit_code == 4


def test_too_many_cpus_are_refused_with_the_right_remedy() -> None:
    with pytest.raises(ResourceError, match="1 GPU and 64 CPUs") as refused:
        placement(cluster((1, 8)), cpus_per_shard=64, num_jobs=1)
    assert "ray.cpus_per_shard" in refused.value.remedy


def test_a_cluster_without_machines_is_refused() -> None:
    with pytest.raises(ResourceError, match=r"0 machines \(none\)"):
        placement(cluster(), num_jobs=1)


@pytest.mark.parametrize("gpus", [-1, 1.5, float("nan"), float("inf")])
def test_impossible_gpu_requests_are_bad_input(gpus) -> None:
    with pytest.raises(InputError, match=r"ray\.gpus_per_shard"):
        placement(cluster((4, 4)), gpus_per_shard=gpus, num_jobs=1)


@pytest.mark.parametrize("cpus", [0, -1, float("nan"), float("inf")])
def test_impossible_cpu_requests_are_bad_input(cpus) -> None:
    with pytest.raises(InputError, match=r"ray\.cpus_per_shard"):
        placement(cluster((4, 4)), cpus_per_shard=cpus, num_jobs=1)


def test_no_jobs_need_no_placement() -> None:
    with pytest.raises(InputError, match="at least one job"):
        placement(cluster((0, 4)), num_jobs=0)
