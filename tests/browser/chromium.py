"""A headless Chromium for the tests of the search page, and why there may be none."""

import os
import shutil
from contextlib import contextmanager
from importlib.util import find_spec

NAMES = ("chromium", "chromium-browser", "google-chrome")


def missing():
    """Why there can be no browser here; '' if there can."""
    if find_spec("playwright") is None:
        return "playwright is not installed (pip install -e '.[browser]')"
    return "" if _program() else "no Chromium is installed (apt-get install chromium)"


def _program():
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def browser():
    """Chromium, driven by Playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        # Its sandbox needs a user of its own, which root in a container has not.
        own = ["--no-sandbox"] if os.geteuid() == 0 else []
        started = driver.chromium.launch(executable_path=_program(), args=own)
        try:
            yield started
        finally:
            started.close()
