"""The voting page in a real browser. Needs chromium, chromedriver and selenium; skipped aloud where they are absent."""

import threading
from contextlib import contextmanager

import pytest

from evaluation.preference.server import WORDING, StudyServer
from evaluation.preference.store import Store, read_votes
from tests.browser import needs_browser, open_browser
from tests.evaluation.run_folders import PROMPTS, make_run

pytestmark = needs_browser("the voting page")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def runs(tmp_path):
    return [make_run(tmp_path / name, brightness, prompts=PROMPTS[:3]) for name, brightness in (("a", 60), ("b", 190))]


@contextmanager
def serving(path, runs, port=0):
    """A study's server in a thread. Yields its port."""
    study = {"runs": sorted(run.name for run in runs), "prompts_sha256": runs[0].manifest["prompts_sha256"]}
    server = StudyServer(("127.0.0.1", port), Store(path, study, len(runs[0].prompts)), runs, 4, 0.3)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def state(browser) -> dict:
    """What the page shows."""
    return browser.execute_script(
        """const $ = (id) => document.getElementById(id);
        return {busy: $("pair").classList.contains("busy"), over: !$("end").hidden, question: $("question").textContent,
                prompt: $("prompt").textContent, count: $("count").textContent, problem: $("problem").textContent,
                left: $("left").querySelector("img").src, loaded: $("left").querySelector("img").naturalWidth};"""
    )


def wait(browser, ready, seconds=15) -> dict:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, seconds, poll_frequency=0.02).until(lambda _: ready(state(browser)))
    return state(browser)


def ready_to_vote(page: dict) -> bool:
    return page["over"] or not page["busy"]


def test_a_study_from_the_first_vote_to_the_last(browser, tmp_path, runs):
    """By mouse and by keys; the prompt is shown for adherence only; a reload shows the same pair; all is from here."""
    seen = []
    with serving(tmp_path / "s.sqlite", runs) as port:
        address = f"http://127.0.0.1:{port}/"
        browser.get(f"{address}?voter=ann")
        page = wait(browser, ready_to_vote)
        browser.refresh()
        assert wait(browser, ready_to_vote)["left"] == page["left"]
        while not (page := wait(browser, ready_to_vote))["over"]:
            assert page["loaded"] == 32
            assert page["prompt"] in (PROMPTS[:3] if page["question"] == WORDING["adherence"] else [""])
            seen.append(page["left"])
            if len(seen) % 2:
                browser.find_element("id", "left").click()
            else:
                browser.find_element("tag name", "body").send_keys("\ue014")  # arrow to the right
            wait(browser, lambda now, last=page: now["over"] or now["left"] != last["left"])
        loaded = browser.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name);")
    votes = read_votes(tmp_path / "s.sqlite")
    assert len(votes) == len(seen) == len(set(seen))
    assert sum(not vote["is_check"] for vote in votes) == 2 * 3
    assert {vote["voter"] for vote in votes} == {"ann"}
    assert page["count"] == f"{len(votes)} votes given"
    assert loaded
    assert all(name.startswith(address) or name.startswith("data:") for name in loaded)


def test_the_page_outlives_the_server(browser, tmp_path, runs):
    """The server goes away and comes back: the page says so, asks the same task again, and no vote is lost."""
    with serving(tmp_path / "s.sqlite", runs) as port:
        browser.get(f"http://127.0.0.1:{port}/?voter=bob")
        wait(browser, ready_to_vote)
        browser.find_element("id", "left").click()
        page = wait(browser, lambda now: now["count"] == "1 vote given" and not now["busy"])
    browser.find_element("id", "right").click()
    wait(browser, lambda now: "trying again" in now["problem"])
    assert len(read_votes(tmp_path / "s.sqlite")) == 1
    with serving(tmp_path / "s.sqlite", runs, port):
        again = wait(browser, lambda now: not now["busy"])
        assert (again["left"], again["problem"]) == (page["left"], "")
        browser.find_element("id", "right").click()
        wait(browser, lambda now: now["count"] == "2 votes given")
    assert len(read_votes(tmp_path / "s.sqlite")) == 2


def test_a_voter_without_a_name_keeps_the_one_drawn(browser, tmp_path, runs):
    with serving(tmp_path / "s.sqlite", runs) as port:
        for _ in range(2):
            browser.get(f"http://127.0.0.1:{port}/")
            wait(browser, ready_to_vote)
            browser.find_element("id", "left").click()
            wait(browser, lambda now: now["busy"] is False and now["count"] != "0 votes given")
    voters = [vote["voter"] for vote in read_votes(tmp_path / "s.sqlite")]
    assert len(voters) == 2
    assert len(set(voters)) == 1
    assert len(voters[0]) == 24
