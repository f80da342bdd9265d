"""A headless Chromium, controlled by the part of the DevTools protocol that these tests need."""

import base64
import itertools
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from websockets.sync.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium")
SECONDS = 60.0  # until something is given up: a busy machine is slow
KEYS = {"Enter": ("Enter", 13, "\r"), "Tab": ("Tab", 9, ""), "ArrowRight": ("ArrowRight", 39, "")}


NAVIGATED = ("Inspected target navigated or closed", "Not attached to an active page")


class NavigatedError(Exception):
    """The page was replaced by another one while a command ran."""


class Browser:
    """One tab of a fresh Chromium; a context manager.

    `hosts` are all hosts that the page has asked for anything, `errors` what its scripts have thrown or the
    browser has complained of.
    """

    def __init__(self, width: int = 1280, height: int = 900, dark: bool = False, *flags: str) -> None:
        assert CHROMIUM is not None
        self.hosts: set[str] = set()
        self.errors: list[str] = []
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._process = subprocess.Popen(
            [
                CHROMIUM,
                *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
                *("--no-first-run", "--disable-background-networking", "--remote-debugging-port=0"),
                f"--user-data-dir={self._folder.name}",
                *flags,
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._ids = itertools.count(1)
        port = self._port()
        self._socket = self._attach(port)
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.resize(width, height)
        self.scheme(dark)

    def _port(self) -> int:
        path = Path(self._folder.name) / "DevToolsActivePort"
        return self._eventually(lambda: int(path.read_text().split()[0]), "Chromium did not start")

    def _attach(self, port: int) -> ClientConnection:
        from urllib.request import urlopen

        def page() -> str:
            with urlopen(f"http://127.0.0.1:{port}/json") as answer:
                targets = json.load(answer)
            return next(target["webSocketDebuggerUrl"] for target in targets if target["type"] == "page")

        address = self._eventually(page, "Chromium has no page")
        # no pings: their answers are not read while a test waits for something else
        return connect(address, max_size=None, proxy=None, ping_interval=None)

    @staticmethod
    def _eventually(look: Callable[[], Any], complaint: str) -> Any:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            try:
                return look()
            except (OSError, ValueError, IndexError, StopIteration):
                time.sleep(0.05)
        raise TimeoutError(complaint)

    def __enter__(self) -> "Browser":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait(SECONDS)
        self._folder.cleanup()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the protocol; return its result."""
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=SECONDS))
            if message.get("id") == number:
                if message.get("error", {}).get("message") in NAVIGATED:
                    raise NavigatedError
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result
            self._note(message)

    def _note(self, event: dict[str, Any]) -> None:
        details = event.get("params", {})
        if event["method"] == "Network.requestWillBeSent":
            address = urlsplit(details["request"]["url"])
            if address.scheme not in ("data", "blob"):
                self.hosts.add(address.netloc)
        elif event["method"] == "Runtime.exceptionThrown":
            self.errors.append(str(details["exceptionDetails"].get("exception", {}).get("description")))
        elif event["method"] == "Log.entryAdded" and details["entry"]["level"] == "error":
            self.errors.append(f"{details['entry']['text']} {details['entry'].get('url', '')}")

    def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression; promises are awaited."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, script: str, seconds: float = SECONDS) -> Any:
        """Wait until an expression is true, and return its value."""
        end = time.monotonic() + seconds
        while not (value := self._value_now(script)):
            if time.monotonic() > end:
                raise TimeoutError(f"{script} was never true; the page says: {self.text()[:2000]}")
            time.sleep(0.05)
        return value

    def _value_now(self, script: str) -> Any:
        """Return the expression's value; None while another page is loading."""
        try:
            return self.run(script)
        except NavigatedError:
            return None

    def text(self) -> str:
        return str(self.run("document.body.innerText"))

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait("document.querySelector('[role=tab]') !== null")

    def resize(self, width: int, height: int) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def scheme(self, dark: bool) -> None:
        value = "dark" if dark else "light"
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": value}])

    def press(self, key: str) -> None:
        name, code, text = KEYS[key]
        for kind in ("keyDown", "keyUp"):
            said = {"text": text} if text and kind == "keyDown" else {}
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code, **said
            )

    def type(self, text: str) -> None:
        """Type into the focused element."""
        self.call("Input.insertText", text=text)

    def screenshot(self, path: Path, whole: bool = True) -> None:
        taken = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(taken["data"]))
