"""One browser for all tests of the chat page, and a server for each."""

import os
import shutil

import pytest
from playwright.sync_api import expect, sync_playwright

from tests.serve.page.chat import Chat
from tests.serve.page.page_server import PageServer


@pytest.fixture(scope="package")
def page():
    """A tab of Chromium. Skips where there is no browser."""
    browsers = filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    path = next(browsers, None)
    if path is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on PATH")
    # Not for the session: an open Playwright keeps an event loop running, where asyncio.run of other tests fails.
    with sync_playwright() as driver:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = driver.chromium.launch(executable_path=path, args=arguments)
        context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
        context.set_default_timeout(20_000)  # milliseconds; a busy machine is slow
        expect.set_options(timeout=20_000)
        yield context.new_page()
        browser.close()


@pytest.fixture
def server():
    with PageServer() as page_server:
        yield page_server


@pytest.fixture
def chat(page, server):
    opened = Chat(page, server).is_ready()
    yield opened
    opened.close()
    assert opened.log == []


@pytest.fixture
def locked_chat(page, server):
    """The page of a server that requires a key."""
    server.key = "secret-1"
    yield from opened_chat(page, server)


@pytest.fixture
def loading_chat(page, server):
    """The page of a server whose model is loading."""
    server.is_loading = True
    yield from opened_chat(page, server)


def opened_chat(page, server):
    opened = Chat(page, server)
    yield opened
    opened.close()
    assert opened.log == []
