"""The voting page in a real browser. Needs chromium, chromedriver and selenium; skipped aloud where they are absent."""

import pytest

from evaluation.preference.app import WORDING
from evaluation.preference.votes import read_votes
from tests.evaluation.preference.serving import serving
from tests.evaluation.run_folders import PROMPTS, make_run
from tests.support.browser import needs_browser, open_browser

pytestmark = needs_browser("the voting page")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def runs(tmp_path):
    return [make_run(tmp_path / name, brightness, prompts=PROMPTS[:3]) for name, brightness in (("a", 60), ("b", 190))]


def state(browser) -> dict:
    """What the page shows."""
    return browser.execute_script(
        """const $ = (id) => document.getElementById(id);
        return {busy: $("pair").classList.contains("busy"), over: !$("end").hidden, question: $("question").textContent,
                prompt: $("prompt").textContent, count: $("count").textContent, problem: $("problem").textContent,
                bar: [$("bar").value, $("bar").max], large: $("left").querySelector("img").clientHeight,
                shown: ["left", "right"].map((side) => $(side).querySelector("img").getBoundingClientRect().height),
                left: $("left").querySelector("img").src, loaded: $("left").querySelector("img").naturalWidth};"""
    )


def wait(browser, ready, seconds=15) -> dict:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, seconds, poll_frequency=0.02).until(lambda _: ready(state(browser)))
    return state(browser)


def ready_to_vote(page: dict) -> bool:
    return page["over"] or not page["busy"]


def test_a_study_from_the_first_vote_to_the_last(browser, tmp_path, runs):
    """By mouse and by keys, ties too; the prompt is shown for adherence only; a reload shows the same pair; progress is
    counted; nothing comes from another site."""
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
            assert page["count"].endswith(" of 6")
            seen.append(page["left"])
            if len(seen) % 3 == 1:
                browser.find_element("id", "left").click()
            elif len(seen) % 3 == 2:
                browser.find_element("tag name", "body").send_keys("\ue014")  # arrow to the right
            else:
                browser.find_element("id", "tie").click()
            wait(browser, lambda now, last=page: now["over"] or now["left"] != last["left"])
        loaded = browser.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name);")
    votes = read_votes(tmp_path / "s.sqlite")
    assert len(votes) == len(seen) == len(set(seen))
    assert sum(not vote["is_check"] for vote in votes) == 2 * 3
    assert {vote["participant"] for vote in votes} == {"ann"}
    assert len({vote["voter"] for vote in votes}) == 1
    assert [vote["tie"] for vote in votes] == [number % 3 == 0 for number in range(1, len(votes) + 1)]
    assert (page["count"], page["bar"]) == ("6 of 6", [6, 6])
    assert loaded
    assert all(name.startswith(address) or name.startswith("data:") for name in loaded)


def test_both_pictures_are_enlarged_and_reduced(browser, tmp_path, runs):
    """By button and by key; enlarged, the mouse on one picture shows the same detail of both."""
    from selenium.webdriver import ActionChains

    with serving(tmp_path / "s.sqlite", runs) as port:
        browser.get(f"http://127.0.0.1:{port}/")
        small = wait(browser, ready_to_vote)["large"]
        browser.find_element("id", "zoom").click()
        large = wait(browser, lambda now: now["large"] > 1.05 * small)["large"]
        ActionChains(browser).move_to_element(browser.find_element("css selector", "#right img")).perform()
        wait(browser, lambda now: min(now["shown"]) > 2 * large)
        ActionChains(browser).move_to_element(browser.find_element("id", "tie")).perform()
        wait(browser, lambda now: max(now["shown"]) < 1.01 * large)
        browser.find_element("tag name", "body").send_keys("z")
        wait(browser, lambda now: now["large"] == small)
        browser.find_element("id", "zoom").click()
        browser.find_element("tag name", "body").send_keys("\ue00c")  # escape
        wait(browser, lambda now: now["large"] == small)
    assert read_votes(tmp_path / "s.sqlite") == []


def test_the_page_outlives_the_server(browser, tmp_path, runs):
    """The server goes away and comes back: the page says so, and sends the vote that was given meanwhile, once."""
    with serving(tmp_path / "s.sqlite", runs, check_share=0) as port:
        browser.get(f"http://127.0.0.1:{port}/?voter=bob")
        wait(browser, ready_to_vote)
        browser.find_element("id", "left").click()
        page = wait(browser, lambda now: now["count"] == "1 of 6" and not now["busy"])
    browser.find_element("id", "right").click()
    wait(browser, lambda now: "trying again" in now["problem"])
    assert len(read_votes(tmp_path / "s.sqlite")) == 1
    with serving(tmp_path / "s.sqlite", runs, check_share=0, port=port):
        again = wait(browser, lambda now: now["count"] == "2 of 6" and not now["busy"])
        assert again["left"] != page["left"]
        assert again["problem"] == ""
    assert len(read_votes(tmp_path / "s.sqlite")) == 2


def test_a_voter_without_a_name_is_the_same_voter_again(browser, tmp_path, runs):
    with serving(tmp_path / "s.sqlite", runs, check_share=0) as port:
        for done in range(2):
            browser.get(f"http://127.0.0.1:{port}/")
            wait(browser, ready_to_vote)
            browser.find_element("id", "left").click()
            wait(browser, lambda now, done=done: not now["busy"] and now["count"] == f"{done + 1} of 6")
    voters = [vote["voter"] for vote in read_votes(tmp_path / "s.sqlite")]
    assert len(voters) == 2
    assert len(set(voters)) == 1
    assert len(voters[0]) == 24  # drawn at random
