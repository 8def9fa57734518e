"""The live page in a real browser. Needs gradio, chromium, chromedriver and selenium; skipped aloud where absent."""

import io
import json
import urllib.request

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image, ImageOps

from examples.tiny.models import make_scheduler
from pipelines import ADDPipeline, student_scheduler
from tests.evaluation.commands import exit_status
from tests.pipelines.families import SD
from tests.support.browser import needs_browser, open_browser

gradio = pytest.importorskip("gradio", reason="the live page is made with gradio")
pytestmark = needs_browser("the live page")

from examples.live import __main__ as live  # noqa: E402
from examples.live.page import FIRST_CAPTION, SIDE, Drawer, make_page  # noqa: E402
from examples.live.student import load_student  # noqa: E402


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


def wait_until(browser, ready) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 60, poll_frequency=0.1).until(lambda _: ready())


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


def test_a_random_seed_draws_anew(pipe, address, browser):
    """The button fills the seed's field, and the picture is that seed's."""
    browser.get(address)
    wait_for(browser, expected(pipe, FIRST_CAPTION))
    browser.find_element("css selector", "#random").click()

    def seed() -> int:
        return int(browser.find_element("css selector", "#seed input[type=number]").get_attribute("value") or 0)

    wait_until(browser, lambda: seed() != 0)
    wait_for(browser, expected(pipe, FIRST_CAPTION, seed=seed()))


def test_a_picture_to_start_from(pipe, address, browser, tmp_path):
    """An uploaded picture of any shape, brought to the student's size: image-to-image at the chosen timesteps."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "source.png")
    browser.get(address)
    wait_for(browser, expected(pipe, FIRST_CAPTION))
    browser.find_element("css selector", "#from_picture button").click()
    browser.find_element("css selector", "#source input[type=file]").send_keys(str(tmp_path / "source.png"))
    source = ImageOps.fit(Image.fromarray(noise), (32, 32), Image.Resampling.LANCZOS)
    generator = torch.Generator().manual_seed(0)
    image = pipe(FIRST_CAPTION, image=source, timesteps=[499], strength=1.0, generator=generator).images[0]
    wait_for(browser, np.asarray(image))


def test_steps_from_a_picture_are_those_that_may_change_it(pipe):
    """Of the default student's 249, 499, 749 and 999: the noisiest that is allowed comes first."""
    choose = Drawer(pipe).choose_timesteps
    assert choose(1, 1) == [249]
    assert choose(4, 1) == [249]
    assert choose(1, 3) == [749]
    assert choose(2, 4) == [999, 499]
    assert choose(4, 4) == [999, 749, 499, 249]


def test_the_command_wants_a_model(tmp_path, monkeypatch, capsys):
    """Before the demo has made one, it says how to."""
    monkeypatch.chdir(tmp_path)
    assert exit_status(live.main, []) == 2
    error = capsys.readouterr().err
    assert "make demo" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no/where"], "MODEL no/where: there is no such folder, and HF_HUB_OFFLINE is set"),
        (["/no/where/at/all"], "MODEL /no/where/at/all: there is no such folder"),
        (["{empty}"], "MODEL {empty}: the folder cannot be loaded"),
        (["{adapter}"], "MODEL {adapter}: it is an adapter; give the folder of its base, my-teacher, with --base"),
        (["{adapter}", "--base", "no/where"], "--base no/where: there is no such folder"),
        (["x", "--port", "70000"], "--port 70000"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    places = {"empty": tmp_path / "empty", "adapter": tmp_path / "adapter"}
    for place in places.values():
        place.mkdir()
    (places["adapter"] / "pytorch_lora_weights.safetensors").touch()
    run = {"base_model": "my-teacher", "base_model_on_hub": False}
    (places["adapter"] / "add_run.json").write_text(json.dumps(run))
    assert exit_status(live.main, [word.format(**places) for word in words]) == 2
    error = capsys.readouterr().err
    assert message.format(**places) in error
    assert error.count("\n") == 1


def test_an_adapter_draws_on_its_base(pipe, tmp_path):
    """The adapter's weights and the student's own timesteps, on the base's pipeline."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    stock = StableDiffusionPipeline(**SD.components(), scheduler=make_scheduler(), **SD.options)
    stock.save_pretrained(base)
    stock.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q"], init_lora_weights=False))
    StableDiffusionPipeline.save_lora_weights(adapter, unet_lora_layers=get_peft_model_state_dict(stock.unet))
    scheduler = student_scheduler(make_scheduler().config, "epsilon", [199, 999])
    scheduler.save_pretrained(adapter / "scheduler")
    student = load_student(str(adapter), base=str(base))
    assert student.student_timesteps == (199, 999)
    stock.scheduler = scheduler
    stock.set_progress_bar_config(disable=True)
    whole = ADDPipeline.from_pipe(stock)
    np.testing.assert_array_equal(expected(student, "a two"), expected(whole, "a two"))
    assert np.abs(expected(student, "a two").astype(int) - expected(load_student(str(base)), "a two")).max() > 0
