"""A headless Chromium driven by its own protocol: open a page, run a line of JavaScript in it, read what its console said."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import websocket

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WHY_NOT = "no Chromium on this machine: apt-get install chromium"
OPTIONS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--remote-debugging-port=0",
]
START_S, ANSWER_S = 120, 120


class Page:
    """One tab."""

    def __init__(self, address: str):
        self._socket = websocket.create_connection(address, timeout=ANSWER_S, suppress_origin=True)
        self._number = itertools.count()
        self.errors: list[str] = []  # exceptions and console errors of the pages opened so far
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")

    def open(self, address: str) -> None:
        """Go to an address."""
        self._call("Page.navigate", url=address)

    def run(self, script: str) -> Any:
        """The value of an expression, awaited."""
        answer = self._call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"].get("exception", answer["exceptionDetails"]))
        return answer["result"].get("value")

    def wait_for(self, script: str, seconds: float) -> Any:
        """The first value of an expression that is true; what it was last is told where none is in time."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"after {seconds} s {script} is {value!r}; the console said {self.errors}"
            time.sleep(0.5)
        return value

    def resize(self, width: int, height: int) -> None:
        """Give the page so many pixels."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def _call(self, method: str, **params: Any) -> dict:
        number = next(self._number)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while (message := json.loads(self._socket.recv())).get("id") != number:
            self._note(message.get("method"), message.get("params", {}))
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']}")
        return message["result"]

    def _note(self, event: str | None, told: dict) -> None:
        if event == "Runtime.exceptionThrown":
            details = told["exceptionDetails"]
            self.errors.append(str(details.get("exception", {}).get("description") or details["text"]))
        elif event == "Runtime.consoleAPICalled" and told["type"] == "error":
            self.errors.append(" ".join(str(part.get("value", part.get("description"))) for part in told["args"]))
        elif event == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.errors.append(f"{told['entry']['text']} ({told['entry'].get('url', '')})")


@contextlib.contextmanager
def opened(path: Path, folder: Path, width: int, ready: str = "true") -> Iterator[Page]:
    """A file in a tab so many pixels wide, loaded, and as far as an expression says that it is ready."""
    with chromium(folder) as page:
        page.resize(width, 900)
        page.open(path.as_uri())
        page.wait_for(f"document.readyState === 'complete' && {ready}", 60)
        yield page


@contextlib.contextmanager
def chromium(folder: Path) -> Iterator[Page]:
    """A tab of a Chromium of its own, whose profile lies in the folder."""
    command = [CHROMIUM, *OPTIONS, f"--user-data-dir={folder}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port_file, end = folder / "DevToolsActivePort", time.monotonic() + START_S
        while not (port_file.is_file() and len(port_file.read_text().split()) == 2):
            assert process.poll() is None and time.monotonic() < end, "Chromium did not start"
            time.sleep(0.2)
        port = port_file.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=ANSWER_S) as answer:
            tab = next(target for target in json.load(answer) if target["type"] == "page")
        yield Page(tab["webSocketDebuggerUrl"])
    finally:
        process.terminate()
        process.wait(30)
