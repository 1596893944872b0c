import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from marl_tr.envs.uav.traffic import make_traffic
from marl_tr.envs.uav.traffic_config import FullBufferConfig, PoissonConfig, TrafficConfig

HORIZON, SLOT = 40, 0.5
BOOKS = ("backlog", "arrived", "served", "dropped", "waited")


def queues(e=3, g=6, *, dtype=np.float64, slot_s=SLOT, **settings):
    return make_traffic(PoissonConfig(**settings), num_envs=e, num_users=g, slot_s=slot_s, horizon=HORIZON, dtype=dtype)


def begin(traffic, e=3, *, seed=0, first=0, episode=0):
    traffic.begin(np.arange(e), seed=seed, stream=first + np.arange(e), episode=np.full(e, episode))


def slot(traffic, rates, t, *, seed=0, first=0, episode=0):
    e = len(rates)
    moment = np.full(e, episode * (HORIZON + 1) + t)
    return traffic.serve(rates, seed=seed, stream=first + np.arange(e), moment=moment)


def offered(t, e=3, g=6, scale=4e5):
    return np.random.default_rng(t).uniform(0, scale, (e, g))


@pytest.mark.parametrize("queue_bits", [None, 100_000, 12_000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bits_are_conserved_exactly(queue_bits, dtype):
    traffic = queues(queue_bits=queue_bits, dtype=dtype)
    begin(traffic)
    for t in range(HORIZON):
        before = traffic.served.copy()
        found = slot(traffic, offered(t).astype(dtype), t)
        assert (traffic.arrived == traffic.served + traffic.backlog + traffic.dropped).all()
        assert (traffic.backlog >= 0).all()
        assert (found.rates.astype(np.float64) <= offered(t).astype(dtype) * (1 + 1e-6)).all()
        assert found.rates == pytest.approx((traffic.served - before) / SLOT)
        assert found.rates.dtype == found.backlog.dtype == dtype
    assert traffic.served.min() > 0
    assert (traffic.dropped.sum() > 0) == (queue_bits is not None)
    if queue_bits is not None:
        assert traffic.backlog.max() <= queue_bits
        assert (traffic.dropped % 12_000 == 0).all()


@pytest.mark.parametrize("queue_bits", [None, 50_000])
def test_queues_meet_a_list_of_packets(queue_bits):
    """First in, first out, packet after packet; the arrivals are taken from the traffic itself."""
    traffic = queues(queue_bits=queue_bits)
    begin(traffic)
    waiting = {(i, j): [] for i in range(3) for j in range(6)}  # [bits left, slot from which it waits]
    spent = np.zeros((3, 6))  # bit slots of bits that left
    came, known = traffic.arrived.copy(), np.zeros((3, 6), np.int64)
    for t in range(HORIZON + 1):
        for (i, j), queue in waiting.items():
            assert (came[i, j] - known[i, j]) % 12_000 == 0
            for _ in range((came[i, j] - known[i, j]) // 12_000):
                if queue_bits is None or sum(bits for bits, _ in queue) + 12_000 <= queue_bits:
                    queue.append([12_000, t])
        known = came
        for index, queue in waiting.items():
            assert traffic.backlog[index] == sum(bits for bits, _ in queue)
        if t == HORIZON:
            break
        rates = offered(t)
        let_in = (traffic.arrived - traffic.dropped).sum(axis=1)
        found = slot(traffic, rates, t)
        for index, queue in waiting.items():
            left = int(rates[index] * SLOT)
            while queue and left:
                bits = min(left, queue[0][0])
                spent[index] += bits * (t + 1 - queue[0][1])
                left -= bits
                queue[0][0] -= bits
                if queue[0][0] == 0:
                    queue.pop(0)
        still = np.array([sum(bits * (t + 1 - since) for bits, since in queue) for queue in waiting.values()])
        waited = spent + still.reshape(3, 6)
        assert traffic.waited == pytest.approx(waited)
        assert found.metrics["delay_s"] == pytest.approx(SLOT * waited.sum(axis=1) / let_in)
        came = traffic.arrived.copy()


def test_a_queue_that_is_always_emptied_delays_by_one_slot_and_serves_what_arrives():
    traffic = queues(packets_per_s=10.0)
    begin(traffic)
    arrived = traffic.arrived.copy()
    for t in range(HORIZON):
        found = slot(traffic, np.full((3, 6), 1e9), t)
        assert (traffic.served == arrived).all()
        assert found.metrics["delay_s"] == pytest.approx([SLOT] * 3)
        arrived = traffic.arrived.copy()
    assert traffic.served.sum() / (18 * HORIZON * SLOT) == pytest.approx(120_000, rel=0.05)


def test_mean_delay_meets_the_known_queue_of_a_deterministic_server():
    # M/D/1 in slots, one packet a slot: arrivals Poisson(rho) a slot, mean wait rho / (2 (1 - rho)) slots before
    # the one of service.
    rho, slots = 0.6, 4000
    traffic = make_traffic(
        PoissonConfig(packets_per_s=rho, packet_bits=1000),
        num_envs=1,
        num_users=200,
        slot_s=1.0,
        horizon=slots,
        dtype=np.float64,
    )
    begin(traffic, 1)
    for t in range(slots):
        found = traffic.serve(np.full((1, 200), 1000.0), seed=0, stream=np.arange(1), moment=np.array([t]))
    assert found.metrics["delay_s"][0] == pytest.approx(1 + rho / (2 * (1 - rho)), rel=0.02)
    assert traffic.served.sum() / (200 * slots * 1000) == pytest.approx(rho, rel=0.01)


def test_users_without_a_rate_are_not_served():
    traffic = queues()
    begin(traffic)
    found = slot(traffic, np.zeros((3, 6)), 0)
    assert (found.rates == 0).all()
    assert (traffic.served == 0).all()
    assert found.metrics["backlog_mbit"] == pytest.approx(1e-6 * traffic.arrived.sum(axis=1))
    assert np.isfinite(found.metrics["delay_s"]).all()


def test_metrics_add_up_over_users():
    traffic = queues(queue_bits=60_000)
    begin(traffic)
    for t in range(5):
        before = {name: getattr(traffic, name).copy() for name in BOOKS}
        metrics = slot(traffic, offered(t), t).metrics
        change = {name: (getattr(traffic, name) - before[name]).sum(axis=1) for name in BOOKS}
        assert metrics["served_mbps"] == pytest.approx(change["served"] / SLOT * 1e-6)
        assert metrics["arrived_mbps"] == pytest.approx(change["arrived"] / SLOT * 1e-6)
        assert metrics["dropped_mbit"] == pytest.approx(change["dropped"] * 1e-6)
        assert metrics["backlog_mbit"] == pytest.approx(traffic.backlog.sum(axis=1) * 1e-6)


def test_a_batch_of_65_equals_65_singles():
    def play(e, first):
        traffic = queues(e)
        begin(traffic, e, first=first, seed=7, episode=3)
        for t in range(4):
            rates = np.tile(offered(t, 1), (e, 1))
            slot(traffic, rates, t, first=first, seed=7, episode=3)
        return traffic

    together = play(65, 0)
    for j in (0, 1, 31, 64):
        for name in BOOKS:
            assert (getattr(play(1, j), name)[0] == getattr(together, name)[j]).all(), name
    assert (together.arrived[0] != together.arrived[1]).any()


def test_slots_and_episodes_bring_arrivals_of_their_own_and_long_counts_wrap():
    seen = set()
    for episode in (0, 1):
        traffic = queues(1, 30)
        begin(traffic, 1, episode=episode)
        known = traffic.arrived.copy()
        seen.add(tuple(known[0]))
        for t in range(3):
            slot(traffic, offered(t, 1, 30), t, episode=episode)
            seen.add(tuple(traffic.arrived[0] - known[0]))
            known = traffic.arrived.copy()
    assert len(seen) == 8
    far, half, near = queues(1), queues(1), queues(1)
    for traffic, moment in ((far, 5 + 3 * 2**32), (half, 5 + 2**31), (near, 5)):
        traffic.serve(offered(0, 1), seed=0, stream=np.arange(1), moment=np.array([moment]))
    assert (far.arrived == near.arrived).all()
    assert (half.arrived != near.arrived).any()


def test_an_episode_begins_in_the_rows_that_are_named_only():
    traffic = queues()
    begin(traffic)
    slot(traffic, offered(0), 0)
    kept = traffic.state_dict()
    traffic.begin(np.array([1]), seed=0, stream=np.array([1]), episode=np.array([1]))
    for name in BOOKS:
        assert (getattr(traffic, name)[[0, 2]] == kept[name][[0, 2]]).all(), name
    assert (traffic.served[1] == 0).all()
    assert (traffic.arrived[1] == traffic.backlog[1]).all()
    assert (traffic.arrived[1] != kept["arrived"][1]).any()


def test_a_saved_state_goes_on_exactly():
    traffic, twin = queues(), queues()
    begin(traffic)
    slot(traffic, offered(0), 0)
    twin.load_state_dict(traffic.state_dict())
    mine, theirs = slot(traffic, offered(1), 1), slot(twin, offered(1), 1)
    assert (mine.rates == theirs.rates).all()
    assert all((mine.metrics[name] == theirs.metrics[name]).all() for name in mine.metrics)
    assert all((traffic.state_dict()[name] == twin.state_dict()[name]).all() for name in BOOKS)


def test_a_state_of_other_traffic_is_refused():
    traffic = queues()
    full = make_traffic(FullBufferConfig(), num_envs=3, num_users=6, slot_s=1.0, horizon=10)
    with pytest.raises(ValueError, match="the state of Poisson traffic has"):
        traffic.load_state_dict(full.state_dict())
    with pytest.raises(ValueError, match="full buffers have no state"):
        full.load_state_dict(traffic.state_dict())
    with pytest.raises(ValueError, match=r"backlog: shape \(3, 6\) does not fit traffic with \(2, 6\)"):
        queues(2).load_state_dict(traffic.state_dict())


def test_full_buffers_pass_the_rates_on():
    full = make_traffic(FullBufferConfig(), num_envs=3, num_users=6, slot_s=1.0, horizon=10)
    begin(full)
    rates = offered(0)
    found = slot(full, rates, 0)
    assert found.rates is rates
    assert found.metrics == {}
    assert not found.backlog.any()
    full.load_state_dict(full.state_dict())


def test_settings_are_told_apart_by_kind_and_checked():
    adapter = TypeAdapter(TrafficConfig)
    assert isinstance(adapter.validate_python({"kind": "full_buffer"}), FullBufferConfig)
    assert adapter.validate_python({"kind": "poisson", "packet_bits": 8}).packet_bits == 8
    with pytest.raises(ValidationError, match="queue_bits must hold at least one packet"):
        PoissonConfig(packet_bits=1000, queue_bits=999)
    with pytest.raises(ValueError, match="are more bits than can be counted: lower packet_bits"):
        queues(packets_per_s=1e5, packet_bits=10**9, slot_s=3600.0)
