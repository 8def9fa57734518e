"""Win rates and ELO scores from pairwise votes (appendix B.2 of the paper), as pure functions of arrays.

Games are an integer array `(N, 3)`: index of the winner, index of the loser, and 1 for a tie of these two, else 0.
"""

import numpy as np

START, K = 1000.0, 1.0  # as in the paper
ROUNDS = 1000  # shuffled orders; the paper's text has "bootstrap ... in a randomly shuffled order"
CONFIDENCE = 0.95


def expected_share(rating: np.ndarray | float, other: np.ndarray | float) -> np.ndarray | float:
    """E_1 = 1 / (1 + 10^((R_2 - R_1) / 400)): the expected fraction of games that a player wins."""
    return 1 / (1 + 10 ** ((other - rating) / 400))


def play_games(games: np.ndarray, num_players: int, start: float = START, k: float = K) -> np.ndarray:
    """Compute the ratings after several series of games: R_i' = R_i + K (S_i - E_i) for each game.

    Args:
        games: `(rounds, N, 3)`, the games of each round in the order played. A tie counts as S = 1/2.
        num_players: number of players P.
        start: initial rating of all players.
        k: weight of one game.

    Returns:
        `(rounds, P)`; every row has the mean `start`.
    """
    rounds = np.arange(len(games))
    ratings = np.full((len(games), num_players), start)
    for winner, loser, tie in games.transpose(1, 2, 0):
        gain = k * (1 - tie / 2 - expected_share(ratings[rounds, winner], ratings[rounds, loser]))
        ratings[rounds, winner] += gain
        ratings[rounds, loser] -= gain
    return ratings


def elo_scores(games: np.ndarray, num_players: int, rounds: int = ROUNDS, seed: int = 0) -> np.ndarray:
    """ELO scores `(P,)`: the mean over `rounds` random orders of all games (in one order, later games count more)."""
    shuffled = _shuffle(games, rounds, np.random.default_rng(seed))
    return play_games(shuffled, num_players).mean(axis=0)


def elo_interval(games: np.ndarray, num_players: int, rounds: int = ROUNDS, seed: int = 0) -> np.ndarray:
    """95 % interval of the ELO scores `(P, 2)`: percentiles over resamplings of the games with replacement.

    Shuffling only shows the influence of the order, not the variation between voters.
    """
    generator = np.random.default_rng(seed)
    resampled = games[generator.integers(len(games), size=(rounds, len(games)))]
    tail = 50 * (1 - CONFIDENCE)
    return np.percentile(play_games(resampled, num_players), [tail, 100 - tail], axis=0).T


def _shuffle(games: np.ndarray, rounds: int, generator: np.random.Generator) -> np.ndarray:
    order = generator.permuted(np.tile(np.arange(len(games)), (rounds, 1)), axis=1)
    return games[order]


def win_rate(wins: int, total: int) -> tuple[float, float, float]:
    """Fraction of wins and its 95 % confidence interval (Wilson): `(fraction, low, high)`."""
    from scipy.stats import binomtest  # here, because it is an optional package

    interval = binomtest(wins, total).proportion_ci(CONFIDENCE, method="wilson")
    return wins / total, float(interval.low), float(interval.high)


def win_counts(games: np.ndarray, num_players: int) -> np.ndarray:
    """Number of times that the row beat the column, without ties: integers `(P, P)`."""
    return _count_pairs(games[games[:, 2] == 0], num_players)


def tie_counts(games: np.ndarray, num_players: int) -> np.ndarray:
    """Number of ties between row and column: symmetric integers `(P, P)`."""
    counts = _count_pairs(games[games[:, 2] == 1], num_players)
    return counts + counts.T


def _count_pairs(games: np.ndarray, num_players: int) -> np.ndarray:
    counts = np.zeros((num_players, num_players), dtype=int)
    np.add.at(counts, tuple(games[:, :2].T), 1)
    return counts
