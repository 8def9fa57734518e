"""Headless Chromium, for the pages that the project serves. Tests that need it are skipped aloud where it is absent."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
FLAGS = ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
         "disable-component-update", "disable-sync", "window-size=1200,900")  # fmt: skip


def needs_browser(page: str) -> pytest.MarkDecorator:
    """Skips a module whose `page` cannot be opened."""
    pytest.importorskip("selenium.webdriver", reason=f"{page} is tested with selenium")
    return pytest.mark.skipif(not (CHROMIUM and DRIVER), reason=f"{page} needs chromium and chromedriver")


@contextmanager
def open_browser(profile: Path) -> Iterator:
    """A browser with its profile in the folder `profile`."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"user-data-dir={profile}"):
        options.add_argument(f"--{flag}")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()
