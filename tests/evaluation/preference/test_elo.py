"""ELO and win rates against closed forms."""

import numpy as np
import pytest

from evaluation.preference.elo import (
    elo_interval,
    elo_scores,
    expected_share,
    play_games,
    tie_counts,
    win_counts,
    win_rate,
)


def games_of(*pairs: tuple[int, int, int]) -> np.ndarray:
    """`(winner, loser, how often)` to `(N, 3)`."""
    return np.array([[winner, loser, 0] for winner, loser, count in pairs for _ in range(count)])


def test_expected_share():
    """400 points are ten to one, equal ratings one to one, and the two shares of a game sum to 1."""
    assert expected_share(1400, 1000) == pytest.approx(10 / 11)
    assert expected_share(1000, 1000) == 0.5
    assert expected_share(1130, 970) + expected_share(970, 1130) == pytest.approx(1)


def test_first_two_games():
    """Equal players: the winner gains K / 2 = 0.5. Winning again gains 1 / (1 + 10^(1/400)), by hand."""
    once, twice = play_games(games_of((0, 1, 1))[None], 2)[0], play_games(games_of((0, 1, 2))[None], 2)[0]
    np.testing.assert_allclose(once, [1000.5, 999.5])
    gain = 1 / (1 + 10 ** (1 / 400))
    np.testing.assert_allclose(twice, [1000.5 + gain, 999.5 - gain])


def test_order_matters_within_a_series_only():
    """Two series at once are two series one by one, and the points of all players stay what they were."""
    series = np.stack([games_of((0, 1, 3), (1, 2, 2)), games_of((1, 2, 2), (0, 1, 3))])
    together = play_games(series, 3)
    np.testing.assert_allclose(together, np.concatenate([play_games(one[None], 3) for one in series]))
    np.testing.assert_allclose(together.mean(axis=1), 1000)
    assert abs(together[0] - together[1]).max() > 0.001


def test_elo_is_the_mean_over_all_orders():
    """Three games have six orders: enough shuffles come to the mean over the six."""
    games = games_of((0, 1, 1), (1, 2, 1), (2, 0, 1))
    orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]]
    exact = play_games(games[orders], 3).mean(axis=0)
    np.testing.assert_allclose(elo_scores(games, 3, rounds=20000), exact, atol=2e-4)
    assert abs(play_games(games[None], 3)[0] - exact).max() > 5e-4  # one order is not the mean


def test_long_series_settle_where_the_win_rate_is_expected():
    """E_1 = 3/4 at a difference of 400 log10(3) = 190.8 points: there no more is gained on the average."""
    ratings = elo_scores(games_of((0, 1, 3000), (1, 0, 1000)), 2, rounds=50)
    assert ratings[0] - ratings[1] == pytest.approx(400 * np.log10(3), abs=6)


def test_elo_repeats_with_its_seed():
    games = games_of((0, 1, 6), (1, 0, 4))
    np.testing.assert_array_equal(elo_scores(games, 2, rounds=50, seed=3), elo_scores(games, 2, rounds=50, seed=3))
    assert not np.array_equal(elo_scores(games, 2, rounds=50, seed=3), elo_scores(games, 2, rounds=50, seed=4))


def test_interval_shows_doubt():
    """About the binomial one: 1.96 sqrt(N/4) wins of about K either way. Nine wins in nine resample to nine in nine."""
    games = games_of((0, 1, 50), (1, 0, 50))
    low, high = elo_interval(games, 2)[0]
    assert low < elo_scores(games, 2)[0] < high
    assert (high - low) / 2 == pytest.approx(1.96 * 5, rel=0.2)
    certain = elo_interval(games_of((0, 1, 9)), 2)[0]
    assert certain[0] == certain[1]


def test_win_rate_has_wilsons_interval():
    """Wilson 1927 by hand: (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)."""
    wins, n, z = 7, 20, 1.959964
    p = wins / n
    centre, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    expected_interval = (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)
    share, *interval = win_rate(wins, n)
    assert share == p
    np.testing.assert_allclose(interval, expected_interval, rtol=1e-6)


def test_a_tie_is_half_a_game_for_either():
    """S = 1/2: equal players stay, and of unequal ones the better loses what the other gains."""
    tie = np.array([[0, 1, 1]])
    np.testing.assert_allclose(play_games(tie[None], 2)[0], [1000, 1000])
    ratings = play_games(np.concatenate([games_of((0, 1, 1)), tie])[None], 2)[0]
    change = 0.5 - 1 / (1 + 10 ** (-1 / 400))
    np.testing.assert_allclose(ratings, [1000.5 + change, 999.5 - change])
    assert change < 0


def test_ties_are_counted_apart():
    games = np.concatenate([games_of((0, 1, 3), (1, 0, 1)), [[0, 1, 1], [1, 0, 1]]])
    np.testing.assert_array_equal(win_counts(games, 2), [[0, 3], [1, 0]])
    np.testing.assert_array_equal(tie_counts(games, 2), [[0, 2], [2, 0]])


def test_win_counts():
    counts = win_counts(games_of((0, 1, 3), (1, 0, 1), (2, 0, 2)), 3)
    np.testing.assert_array_equal(counts, [[0, 3, 0], [1, 0, 0], [2, 0, 0]])
