"""The live page in a real browser. Needs gradio, chromium, chromedriver and selenium; skipped aloud where absent."""

import io
import urllib.request

import numpy as np
import pytest
import torch
from PIL import Image

from examples.tiny.models import make_scheduler
from pipelines import student_scheduler
from tests.browser import needs_browser, open_browser
from tests.pipelines.families import SD

gradio = pytest.importorskip("gradio", reason="the live page is made with gradio")
pytestmark = needs_browser("the live page")

from examples.live import __main__ as live  # noqa: E402
from examples.live.page import FIRST_CAPTION, SIDE, Drawer, make_page  # noqa: E402


@pytest.fixture(scope="module")
def pipe():
    """An untrained student."""
    scheduler = student_scheduler(make_scheduler().config, "epsilon")
    pipe = SD.ours(**SD.components(), scheduler=scheduler, **SD.options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def address(pipe, tmp_path_factory):
    """Of the page, served from this process on a free port."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        page = make_page(Drawer(pipe))
        _, address, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, share=False)
        yield address
        page.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


def expected(pipe, caption: str, steps: int = 1, seed: int = 0) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    return np.asarray(pipe(caption, num_inference_steps=steps, generator=generator).images[0])


def shown(browser) -> np.ndarray | None:
    """The picture on the page, `(32, 32, 3)`, taken back to its own size."""
    found = browser.execute_script("return document.querySelector('#picture img')?.src")
    if not found:
        return None
    with urllib.request.urlopen(found) as answer:
        picture = np.asarray(Image.open(io.BytesIO(answer.read())).convert("RGB"))
    assert picture.shape == (SIDE, SIDE, 3)
    return picture[:: SIDE // 32, :: SIDE // 32]


def wait_for(browser, picture: np.ndarray) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    def there(_):
        found = shown(browser)
        return found is not None and np.abs(found.astype(int) - picture).max() <= 1

    WebDriverWait(browser, 60, poll_frequency=0.1).until(there)


def write(browser, field: str, text: str) -> None:
    from selenium.webdriver.common.keys import Keys

    element = browser.find_element("css selector", f"#{field} textarea, #{field} input[type=number]")
    element.send_keys(Keys.CONTROL, "a")
    element.send_keys(text)


def test_type_and_the_picture_follows(pipe, address, browser):
    """The page opens with a picture; a caption, steps and a seed each bring the student's own picture for them."""
    browser.get(address)
    wait_for(browser, expected(pipe, FIRST_CAPTION))
    write(browser, "caption", "an eight, small")
    wait_for(browser, expected(pipe, "an eight, small"))
    write(browser, "seed", "7")
    wait_for(browser, expected(pipe, "an eight, small", seed=7))
    write(browser, "steps", "4")
    wait_for(browser, expected(pipe, "an eight, small", steps=4, seed=7))
    assert browser.execute_script("return document.querySelector('#took').textContent.trim()").startswith("4 steps, ")
    assert browser.execute_script("return document.querySelector('#picture img').naturalWidth") == SIDE
    assert not np.array_equal(expected(pipe, "an eight, small"), expected(pipe, FIRST_CAPTION))


def test_the_command_wants_a_model(tmp_path, monkeypatch, capsys):
    """Before the demo has made one, it says how to."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        live.main([])
    assert "make demo" in capsys.readouterr().err
