"""Compares: a test that the stock pipeline passes and ours doesn't fails the run, and nothing else does."""

from collections import defaultdict

import pytest

_outcomes: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)  # (group, test) -> kind -> outcome


def pytest_configure(config):
    """The mark that names a test's side; and diffusers' own, which its conftest would register."""
    config.addinivalue_line("markers", "compared(kind, group): one side of a comparison")
    config.addinivalue_line("filterwarnings", "ignore::pytest.PytestUnknownMarkWarning")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Note how each test went, with its set-up."""
    report = (yield).get_result()
    mark = item.get_closest_marker("compared")
    if mark and (report.when == "call" or report.outcome != "passed"):
        _outcomes[mark.kwargs["group"], item.name][mark.kwargs["kind"]] = report.outcome


def _worse() -> list[str]:
    return [
        f"{group}: {test}"
        for (group, test), found in _outcomes.items()
        if found.get("stock") == "passed" and found.get("ours") == "failed"
    ]


def pytest_sessionfinish(session, exitstatus):
    """0 where ours passes all that stock passes. Interruptions and empty runs keep their own status."""
    if exitstatus in (0, 1) and _outcomes:
        session.exitstatus = 1 if _worse() else 0


def pytest_terminal_summary(terminalreporter):
    """One line a suite."""
    groups = defaultdict(lambda: {kind: defaultdict(int) for kind in ("stock", "ours")})
    for (group, _), found in _outcomes.items():
        for kind, outcome in found.items():
            groups[group][kind][outcome] += 1
    terminalreporter.section("diffusers' own tests: passed, failed, skipped")
    for group, kinds in groups.items():
        sides = (f"{k} {n['passed']:>3}, {n['failed']:>2}, {n['skipped']:>2}" for k, n in kinds.items())
        terminalreporter.write_line(f"{group:<15} {'    '.join(sides)}")
    for line in _worse():
        terminalreporter.write_line(f"ours fails, stock passes: {line}")
