import numpy as np
import pytest
from scipy import stats

from marl_tr.envs.uav.poisson import poisson, poisson_table

MEANS = [1e-3, 0.5, 3.0, 25.0, 400.0, 1e4, 1e5]


@pytest.mark.parametrize("mean", MEANS)
def test_tables_meet_scipy(mean):
    table = poisson_table(mean)
    k = table.first + np.arange(len(table.cumulative))
    assert table.cumulative == pytest.approx(stats.poisson.cdf(k, mean), rel=1e-8, abs=1e-12)
    beyond = stats.poisson.sf(k[-1], mean) + (stats.poisson.cdf(table.first - 1, mean) if table.first else 0)
    assert beyond < 2.0**-53
    assert table.cumulative[-1] == 1.0


@pytest.mark.parametrize("mean", [1e6, 1e9])
def test_large_tables_have_the_mean_and_variance_of_poisson(mean):
    table = poisson_table(mean)
    mass, k = np.diff(table.cumulative, prepend=0), table.first - mean + np.arange(len(table.cumulative))
    assert (mass * k).sum() == pytest.approx(0, abs=1e-6 * np.sqrt(mean))
    assert (mass * k**2).sum() == pytest.approx(mean, rel=1e-6)
    # By a sum of 40 digits over the tail of 1e9.
    if mean == 1e9:
        at = int(mean + 4.5 * np.sqrt(mean)) - table.first
        assert 1 - table.cumulative[at] == pytest.approx(3.3992923726e-6, rel=1e-5)


@pytest.mark.parametrize("mean", [0.5, 3.0, 25.0, 1e6])
def test_draws_are_poisson(mean):
    draws = poisson(3, np.arange(200), purpose=41, step=np.arange(200), count=100, table=poisson_table(mean)).ravel()
    edges = np.unique(stats.poisson.ppf(np.linspace(0.05, 0.95, 19), mean))
    cells = np.bincount(np.searchsorted(edges, draws), minlength=len(edges) + 1)
    expected = np.diff(stats.poisson.cdf(edges, mean), prepend=0, append=1) * draws.size
    assert stats.chisquare(cells, expected).pvalue > 1e-3
    assert draws.mean() == pytest.approx(mean, abs=4 * np.sqrt(mean / draws.size))


def test_draws_do_not_depend_on_neighbours_nor_on_how_many_there_are():
    table = poisson_table(7.0)
    batch = poisson(5, np.arange(65), purpose=41, step=np.arange(65), count=9, table=table)
    for j in (0, 1, 64):
        assert (poisson(5, j, purpose=41, step=j, count=9, table=table)[0] == batch[j]).all()
        assert (poisson(5, j, purpose=41, step=j, count=4, table=table)[0] == batch[j, :4]).all()
    assert (poisson(6, np.arange(65), purpose=41, step=np.arange(65), count=9, table=table) != batch).any()


def test_a_mean_of_zero_gives_zeros_and_one_out_of_range_is_refused():
    assert (poisson(0, np.arange(3), purpose=0, step=0, count=5, table=poisson_table(0.0)) == 0).all()
    for mean in (-1.0, 2e9, float("nan")):
        with pytest.raises(ValueError, match="mean of a Poisson number must be in"):
            poisson_table(mean)
