"""A headless Chromium, driven over its DevTools protocol; no network but the file it is given."""

import contextlib
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from websocket import create_connection

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page:
    """One tab."""

    def __init__(self, address: str):
        self.socket = create_connection(address, timeout=120, suppress_origin=True)
        self.number, self.loaded = 0, False
        self.call("Page.enable")

    def call(self, method: str, **parameters) -> dict:
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while (message := json.loads(self.socket.recv())).get("id") != self.number:
            self.loaded |= message.get("method") == "Page.loadEventFired"
        assert "error" not in message, message
        return message["result"]

    def open(self, path: Path, width: int) -> None:
        size = dict(width=width, height=800, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.loaded = False
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not self.loaded:
            self.loaded = json.loads(self.socket.recv()).get("method") == "Page.loadEventFired"

    def run(self, expression: str):
        """The JSON value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A tab of a fresh browser whose every host name leads nowhere; `folder` is its scratch folder."""
    flags = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-background-networking"
    arguments = [
        *(CHROMIUM, *flags.split(), "--no-first-run", "--remote-debugging-port=0", "about:blank"),
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--user-data-dir={folder / 'browser'}",
    ]
    with open(folder / "browser.log", "wb") as log:
        process = subprocess.Popen(arguments, stdout=log, stderr=log)
    try:
        yield Page(_address(folder / "browser" / "DevToolsActivePort"))
    finally:
        process.terminate()
        process.wait(30)


def _address(port_file: Path, patience: float = 60) -> str:
    until = time.monotonic() + patience
    while time.monotonic() < until:
        with contextlib.suppress(OSError, IndexError, StopIteration):
            port = port_file.read_text().splitlines()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=10) as answer:
                tabs = json.load(answer)
            return next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
        time.sleep(0.2)
    raise TimeoutError("the browser did not start")
