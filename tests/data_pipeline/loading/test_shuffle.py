"""Order and shares of the data, by brute force: every record once an epoch, whatever the hosts and
wherever a run begins.
"""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caphuman_jax.errors import SettingError
from data_pipeline.loading.shuffle import Share, hashed, permuted, records_of

FEW = settings(max_examples=60, deadline=None)


@pytest.mark.parametrize("count", [*range(1, 40), 97, 256, 1000, 4097])
def test_every_position_goes_to_another_record(count):
    assert sorted(permuted(np.arange(count), count, 3, 1)) == list(range(count))


def test_the_permutation_of_20_million_is_a_bijection_and_needs_no_array():
    count = 20_000_003
    part = permuted(np.arange(10_000_000, 10_200_000), count, 0, 0)
    assert len(np.unique(part)) == len(part) and 0 <= part.min() and part.max() < count
    far = 2**40 + 7  # and of numbers that no machine could hold
    assert len(np.unique(permuted(np.arange(far - 50_000, far), far, 0, 0))) == 50_000


def test_positions_are_independent_of_each_other():
    whole = permuted(np.arange(1000), 1000, 5, 2)
    assert [int(permuted(p, 1000, 5, 2)[0]) for p in (0, 17, 999)] == whole[[0, 17, 999]].tolist()


def test_all_orders_of_few_records_are_about_equally_likely():
    for count in (2, 3, 4):
        seen = Counter(
            tuple(permuted(np.arange(count), count, seed, 0))
            for seed in range(200 * math.factorial(count))
        )
        assert len(seen) == math.factorial(count)
        # Chi-square with 1 to 23 degrees of freedom: a p-value of 1e-6 lies at 24 to 71.
        assert sum((n - 200) ** 2 / 200 for n in seen.values()) < {2: 24, 3: 36, 4: 71}[count]


def test_a_big_order_looks_shuffled():
    count = 5000
    order = permuted(np.arange(count), count, 0, 0)
    other = permuted(np.arange(count), count, 0, 1)
    deviation = 1 / math.sqrt(count)
    for a, b in (
        (np.arange(count), order),
        (order[:-1], order[1:]),
        (order, other),
        (order, permuted(np.arange(count), count, 1, 0)),
    ):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4.5 * deviation
    # Fixed points and neighbors that stay neighbors: about one of each is expected, Poisson.
    assert (order == np.arange(count)).sum() < 9 and (np.diff(order) == 1).sum() < 9
    # A window of the stream holds records from everywhere.
    assert np.histogram(order[:1000], bins=10, range=(0, count))[0].min() > 60


def test_hashes_of_neighbors_differ_in_half_of_their_bits():
    bits = np.unpackbits(
        (hashed(1, np.arange(4096)) ^ hashed(1, np.arange(1, 4097))).view(np.uint8)
    )
    assert abs(bits.mean() - 0.5) < 0.005
    assert hashed(-1, 2**40).shape == (1,) and hashed(1, 2) != hashed(2, 1)


@FEW
@given(
    count=st.integers(1, 40),
    local=st.integers(1, 5),
    hosts=st.integers(1, 4),
    seed=st.integers(0, 2**31),
    epochs=st.integers(1, 3),
)
def test_every_record_exactly_once_an_epoch_over_all_hosts(count, local, hosts, seed, epochs):
    batch = local * hosts
    stream = {}
    for host in range(hosts):
        share = Share(batch, 0, host, hosts)
        for step in range(-(-count * epochs // batch)):
            stream.update(dict.fromkeys(share.samples(step).tolist(), host))
            assert len(share.samples(step)) == local
    samples = np.array(sorted(stream))
    assert samples.tolist() == list(range(len(samples))), "hosts overlap, or leave samples out"
    epoch, record = records_of(samples, count, seed)
    for e in range(epochs):
        assert sorted(record[epoch == e]) == list(range(count))


@FEW
@given(
    count=st.integers(1, 30),
    seed=st.integers(0, 99),
    first=st.sampled_from([(4, 1), (4, 2), (6, 3)]),
    then=st.sampled_from([(4, 4), (6, 2), (5, 1), (12, 3)]),
    steps=st.integers(0, 9),
)
def test_a_run_that_goes_on_with_other_hosts_and_batches_sees_what_the_first_would_have_seen(
    count, seed, first, then, steps
):
    def run(start, batch, hosts, steps):
        return [
            records_of(
                np.concatenate([Share(batch, start, h, hosts).samples(s) for h in range(hosts)]),
                count,
                seed,
            )[1]
            for s in range(steps)
        ]

    batch, hosts = first
    before = run(0, batch, hosts, steps)
    after = run(steps * batch, *then, 5)
    through = run(0, 1, 1, steps * batch + 5 * then[0])
    assert np.concatenate([*before, *after]).tolist() == np.concatenate(through).tolist()


def test_one_pass_takes_as_many_batches_as_it_needs():
    assert [Share(4).steps(n) for n in (1, 4, 5, 8)] == [1, 1, 2, 2]
    assert Share(4, start=6).steps(9) == 1 and Share(4, start=9).steps(9) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch": 6, "process_count": 4},
        {"batch": 0},
        {"batch": 4, "process_count": 2, "process_index": 2},
        {"batch": 4, "start": -1},
    ],
)
def test_shares_that_cannot_be_are_refused(wrong):
    with pytest.raises(SettingError):
        Share(**wrong)
