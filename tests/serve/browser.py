"""A headless Chromium, driven through chromedriver's own HTTP interface."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from typing import Any

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key that WebDriver gives an element under
HERE = bool(shutil.which("chromium") and shutil.which("chromedriver"))


class NoBrowser(Exception):
    """Chromium or its driver is here and does not start."""


class Browser:
    """A context manager; what is downloaded goes to a folder, `options` are Chromium's. Entering it raises NoBrowser."""

    def __init__(self, downloads: Any, *options: str):
        self._downloads = str(downloads)
        self._options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", *options]

    def __enter__(self) -> Browser:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self._process = subprocess.Popen([shutil.which("chromedriver"), f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._url = f"http://127.0.0.1:{port}/session"
        chrome = {"browserName": "chrome", "goog:chromeOptions": {"binary": shutil.which("chromium"), "args": self._options,
                                         "prefs": {"download.default_directory": self._downloads}},
                  "goog:loggingPrefs": {"browser": "ALL"}}
        reason = "chromedriver did not answer"
        for _ in range(150):
            try:
                self._url += "/" + self._call("", {"capabilities": {"alwaysMatch": chrome}})["sessionId"]
                return self
            except AssertionError as error:  # what chromedriver says: another version, a missing library
                reason = str(error)[:300]
                break
            except OSError:  # not yet
                time.sleep(0.2)
        self._end()
        raise NoBrowser(reason)

    def __exit__(self, *error: Any) -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(self._url, method="DELETE"), timeout=60)
        finally:
            self._end()

    def _end(self) -> None:
        self._process.terminate()
        self._process.wait(30)

    def _call(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        ask = urllib.request.Request(self._url + path, data, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(ask, timeout=300) as answer:
                return json.loads(answer.read())["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error

    def open(self, url: str) -> None:
        self._call("/url", {"url": url})

    def run(self, script: str) -> Any:
        """What a script returns."""
        return self._call("/execute/sync", {"script": script, "args": []})

    def click(self, name: str) -> None:
        self._call(f"/element/{self._find(name)}/click", {})

    def type(self, name: str, text: str) -> None:
        """Into an emptied field, or the name of a file into a field for files."""
        element = self._find(name)
        if not self.run(f"return document.getElementById('{name}').type === 'file'"):
            self._call(f"/element/{element}/clear", {})
        self._call(f"/element/{element}/value", {"text": text})

    def _find(self, name: str) -> str:
        return self._call("/element", {"using": "css selector", "value": f"#{name}"})[ELEMENT]

    def log(self) -> list[str]:
        """What the console was told of errors."""
        return [line["message"] for line in self._call("/se/log", {"type": "browser"}) if line["level"] == "SEVERE"]

    def until(self, script: str, seconds: float = 90) -> Any:
        """The first true value of a script."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := self.run(script):
                return found
            time.sleep(0.2)
        raise AssertionError(f"not within {seconds} s: {script}\n{self.run('return document.body.innerText')}\n{self.log()}")
