"""The chat page in a browser, as the tests use it."""

import base64
import re

from playwright.sync_api import expect

from tests.serve.page.page_server import PageServer, scene

MARKUP = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


def png(name: str, index: int = 0) -> dict:
    return {"name": name, "mimeType": "image/png", "buffer": scene(index)}


def data_uri(index: int) -> str:
    return "data:image/png;base64," + base64.b64encode(scene(index)).decode()


class Chat:
    """The page of `server`, newly loaded; every server has an origin of its own, where nothing is stored yet.

    log: console errors, uncaught exceptions, and requests to other hosts.
    """

    def __init__(self, page, server: PageServer):
        self.page, self.server, self.log = page, server, []
        self.listeners = {"console": self.on_console, "pageerror": self.on_page_error, "request": self.on_request}
        for event, listener in self.listeners.items():
            page.on(event, listener)
        page.set_viewport_size({"width": 1280, "height": 800})
        page.goto(server.url)

    def on_console(self, message):
        if message.type == "error" and not message.text.startswith("Failed to load resource: the server responded"):
            self.log.append(message.text)

    def on_page_error(self, error):
        self.log.append(str(error))

    def on_request(self, request):
        if not request.url.startswith((self.server.url + "/", "data:")):
            self.log.append(request.url)

    def close(self):
        for event, listener in self.listeners.items():
            self.page.remove_listener(event, listener)

    def is_ready(self):
        expect(self.page.locator(".example img")).to_have_count(4)
        return self

    def attach(self, *files: dict):
        self.page.set_input_files("#files", list(files))
        return self

    def attached(self, count: int):
        expect(self.page.locator("#attached li")).to_have_count(count)

    def ask(self, text: str):
        self.page.fill("#question", text)
        self.page.press("#question", "Enter")
        return self

    def turn(self, index: int):
        return self.page.locator(".turn").nth(index)

    def finished(self, count: int) -> list[str]:
        """Waits until `count` answers are there and none is running. Returns the texts of all answers."""
        expect(self.page.locator(".turn")).to_have_count(count)
        expect(self.page.locator(".turn.running")).to_have_count(0)
        return self.page.locator("[data-part=answer]").all_text_contents()

    def click(self, name: str, within=None, **options):
        (within or self.page).get_by_role("button", name=name, **options).click()

    def notice(self, text: str | re.Pattern):
        expect(self.page.locator("#notice")).to_have_text(text)
