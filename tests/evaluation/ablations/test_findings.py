"""The findings of Table 1 as rules on figures."""

import math

import pytest

from evaluation.ablations.findings import FAILS, FINDINGS, HOLDS, OPEN, Sample, better, collapses, conclude, not_worse
from evaluation.ablations.tables import TABLES

ROWS = [row for part in TABLES.values() for row in part.rows]


def test_the_papers_findings_hold_on_the_papers_figures():
    """With its values as two seeds of no spread, all do but the one that it calls inconclusive itself (Table 1f)."""
    paper = {row.run: {"distance": row.fid, "agreement": row.clip_score} for row in ROWS if row.fid is not None}

    def figure(run, key, steps):
        return Sample((paper[run][key],) * 2) if run in paper and steps == 1 else None

    verdicts = {finding.text: finding.verdict(figure) for finding in FINDINGS}
    unknown = [text for text, verdict in verdicts.items() if verdict is None and not text.startswith("(ours)")]
    assert unknown == ["More sampling steps do not hurt: 2 and 4 are no worse in distance than 1"]
    assert all(verdict is None for text, verdict in verdicts.items() if text.startswith("(ours)"))
    assert [text for text, verdict in verdicts.items() if verdict not in (HOLDS, None)] == [
        "One teacher step suffices: 2 and 4 have no lower distance"  # 20.3 at 4 steps against 20.6
    ]


def test_rules_weigh_a_difference_against_its_error():
    """Standard error of the difference: sqrt(2 * 0.01 / 2) = 0.1; lower is better for a distance only."""
    low, high, near = Sample((1.0, 1.2)), Sample((2.0, 2.2)), Sample((1.1, 1.3))
    assert low.spread == pytest.approx(math.sqrt(0.02))
    assert (better(low, high, "distance"), better(high, low, "distance")) == (HOLDS, FAILS)
    assert (better(low, high, "agreement"), better(high, low, "agreement")) == (FAILS, HOLDS)
    assert (better(low, near, "distance"), not_worse(near, low, "distance")) == (OPEN, HOLDS)
    assert not_worse(high, low, "distance") == FAILS
    one = Sample((9.0,))
    assert (better(low, one, "distance"), not_worse(low, one, "distance"), one.spread) == (OPEN, OPEN, None)
    assert (collapses(one, Sample((3.0,)), "distance"), collapses(one, Sample((3.1,)), "distance")) == (HOLDS, FAILS)
    assert [conclude(v) for v in ([HOLDS, OPEN, FAILS], [HOLDS, OPEN], [None, HOLDS], [None])] == [
        FAILS, OPEN, HOLDS, None,
    ]  # fmt: skip
