import math

import numpy as np
import pytest
from scipy import stats

from privshard.core.errors import InputError
from privshard.privacy.sampling import PoissonSampler
from privshard.privacy.stream import insecure_key

KEY = insecure_key(0, shard=0, attempt=0)
UNITS = [f"unit-{i}" for i in range(300)]


def test_marginal_rate_is_the_sample_rate():
    drawn = PoissonSampler(KEY, sample_rate=0.3, steps=400).included(UNITS)
    assert drawn.dtype == bool
    assert drawn.shape == (300, 400)
    spread = math.sqrt(0.3 * 0.7)
    assert abs(drawn.mean() - 0.3) < 5 * spread / math.sqrt(drawn.size)
    assert np.abs(drawn.mean(axis=0) - 0.3).max() < 5 * spread / math.sqrt(300)
    assert np.abs(drawn.mean(axis=1) - 0.3).max() < 5 * spread / math.sqrt(400)


def test_batch_sizes_are_binomial():
    sizes = PoissonSampler(KEY, sample_rate=0.1, steps=3000).included(UNITS).sum(axis=0)
    assert abs(sizes.mean() - 30) < 5 * math.sqrt(27 / 3000)
    assert abs(sizes.var() / 27 - 1) < 5 * math.sqrt(2 / 3000)


def test_units_and_steps_are_independent():
    drawn = PoissonSampler(KEY, sample_rate=0.5, steps=4000).included(UNITS[:40]) - 0.5
    between_units = drawn @ drawn.T / 4000 * 4
    assert np.abs(between_units - np.eye(40)).max() < 5.5 / math.sqrt(4000)
    assert abs((drawn[:, 1:] * drawn[:, :-1]).mean() * 4) < 5 / math.sqrt(drawn.size)


def test_removing_or_reordering_units_changes_nobody_elses_draws():
    sampler = PoissonSampler(KEY, sample_rate=0.4, steps=50)
    whole = sampler.included(UNITS)
    kept = [i for i in reversed(range(len(UNITS))) if i % 7]
    assert np.array_equal(sampler.included([UNITS[i] for i in kept]), whole[kept])


def test_draws_are_the_units_own_stream_below_the_threshold():
    from privshard.privacy.stream import derive_key, key_stream

    raw = key_stream(derive_key(derive_key(KEY, "units"), "ada"), block=0, num_bytes=8 * 20)
    expected = [int.from_bytes(raw[8 * t : 8 * t + 8], "little") < int(0.37 * 2**64) for t in range(20)]
    assert PoissonSampler(KEY, sample_rate=0.37, steps=20).included(["ada"]).tolist() == [expected]


def test_windows_of_steps_are_columns_of_the_whole():
    sampler = PoissonSampler(KEY, sample_rate=0.4, steps=45)
    whole = sampler.included(UNITS[:20])
    for first, size in ((0, 45), (0, 0), (3, 7), (8, 16), (44, 1)):
        assert np.array_equal(
            sampler.included(UNITS[:20], first_step=first, num_steps=size), whole[:, first : first + size]
        )
    assert np.array_equal(sampler.included(UNITS[:20], first_step=13), whole[:, 13:])


def test_batches_are_the_columns_and_empty_steps_are_steps():
    sampler = PoissonSampler(KEY, sample_rate=0.05, steps=70)
    batches = list(sampler.batches(UNITS[:10], window=16))
    assert len(batches) == 70
    assert min(map(len, batches)) == 0
    for step, batch in enumerate(batches):
        assert np.array_equal(batch, np.flatnonzero(sampler.included(UNITS[:10])[:, step]))
    assert [len(batch) for batch in sampler.batches([])] == [0] * 70


def test_rate_one_includes_everyone_and_a_tiny_rate_nobody():
    assert PoissonSampler(KEY, sample_rate=1.0, steps=9).included(UNITS).all()
    assert not PoissonSampler(KEY, sample_rate=1e-15, steps=9).included(UNITS).any()


def test_other_keys_draw_otherwise():
    draws = {
        PoissonSampler(insecure_key(0, shard=s, attempt=a), sample_rate=0.5, steps=64).included(UNITS[:2]).tobytes()
        for s in (0, 1)
        for a in (0, 1)
    }
    assert len(draws) == 4


def test_the_distribution_of_a_window_is_uniform_over_patterns():
    drawn = PoissonSampler(KEY, sample_rate=0.5, steps=4).included([f"u{i}" for i in range(8000)])
    patterns = np.bincount(drawn @ np.array([1, 2, 4, 8]), minlength=16)
    assert stats.chisquare(patterns).pvalue > 1e-4


def test_mistakes_are_named():
    with pytest.raises(InputError, match="sample_rate"):
        PoissonSampler(KEY, sample_rate=0.0, steps=1)
    with pytest.raises(InputError, match="steps"):
        PoissonSampler(KEY, sample_rate=0.5, steps=0)
    sampler = PoissonSampler(KEY, sample_rate=0.5, steps=4)
    with pytest.raises(InputError, match="distinct"):
        sampler.included(["a", "a"])
    with pytest.raises(InputError, match="window"):
        sampler.included(["a"], first_step=2, num_steps=3)
