"""Chromium without a window, driven through its DevTools protocol over two pipes.

Nothing but the browser is needed: messages are JSON, each ended by a zero byte.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
INSTALL = "Chromium is not installed (Debian: apt-get install chromium)"
_ARGUMENTS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--mute-audio"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--remote-debugging-pipe",
)
_PATIENCE = 120.0  # seconds for one answer, on a loaded machine


class Tab:
    """One page of the browser, with what happened in it so far.

    Attributes:
        events: every event as the protocol names it, with its parameters.
    """

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read, self._rest = write, read, b""
        self._numbers = itertools.count(1)
        self._session: dict[str, str] = {}
        self.events: list[tuple[str, dict[str, Any]]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command and wait for its answer.

        Raises:
            RuntimeError: the browser refuses it.
            TimeoutError: no answer came.
        """
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters, **self._session}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != number:
            self.events.append((answer.get("method", ""), answer.get("params", {})))
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return dict(answer["result"])

    def open(self, address: str, *, width: int, height: int = 900) -> None:
        """Show a page at a width in CSS pixels, and wait until it is loaded."""
        phone = width < 600
        size = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1}
        self.call("Emulation.setDeviceMetricsOverride", **size, mobile=phone)
        self.events.clear()
        self.call("Page.navigate", url=address)
        while not any(name == "Page.loadEventFired" for name, _ in self.events):
            message = self._next()
            self.events.append((message.get("method", ""), message.get("params", {})))

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression in the page.

        Raises:
            RuntimeError: it throws.
        """
        told = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in told:
            raise RuntimeError(told["exceptionDetails"]["exception"]["description"])
        return told["result"].get("value")

    def press(self, key: str, text: str = "") -> None:
        """Press and release a key, as a keyboard does."""
        code = {"Tab": 9, "Enter": 13}.get(key, 0)
        pressed = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", **pressed, text=text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **pressed)

    def faults(self) -> list[str]:
        """What the console and the security policy complained about since the page was opened."""
        names = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
        return [json.dumps(content) for name, content in self.events if name in names]

    def requests(self) -> list[str]:
        """Addresses that were asked for since the page was opened."""
        sent = (c for name, c in self.events if name == "Network.requestWillBeSent")
        return [content["request"]["url"] for content in sent]

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + _PATIENCE
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
            found = os.read(self._read, 1 << 20) if ready else b""
            if not found:
                raise TimeoutError(f"Chromium gave no answer within {_PATIENCE:.0f} s, or ended")
            self._rest += found
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Tab]:
    """A running browser with one tab; it ends with the block.

    Args:
        profile: an empty folder for its own files.
    """
    assert CHROMIUM, INSTALL
    theirs_read, ours_write = os.pipe()
    ours_read, theirs_write = os.pipe()
    # The browser reads from descriptor 3 and writes to 4, whatever numbers the pipes have here.
    moved = f'exec "$@" 3<&{theirs_read} 4>&{theirs_write}'
    command = ["bash", "-c", moved, "browser", CHROMIUM, *_ARGUMENTS, f"--user-data-dir={profile}"]
    process = subprocess.Popen(
        command, pass_fds=(theirs_read, theirs_write),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(theirs_read)
    os.close(theirs_write)
    try:
        yield Tab(ours_write, ours_read)
    finally:
        os.close(ours_write)
        os.close(ours_read)
        process.kill()
        process.wait()
