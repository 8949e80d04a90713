"""A headless Chromium, driven by its DevTools protocol through pipes: real clicks and keys, no other package."""

import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from base64 import b64decode

PROGRAM = next((name for name in ("chromium", "chromium-browser", "google-chrome") if shutil.which(name)), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-extensions",
         "--no-first-run", "--disable-dev-shm-usage", "--remote-debugging-pipe"]  # fmt: skip
PIPED = "import os, sys; a, b, *c = sys.argv[1:]; os.dup2(int(a), 3); os.dup2(int(b), 4); os.execvp(c[0], c)"
"""Chromium reads commands from 3 and answers on 4."""
KEYS = {"Tab": 9, "Enter": 13, " ": 32}


class Browser:
    """One page of a browser; what went wrong on it is in `errors`."""

    def __init__(self, profile, patience=60):
        self._patience, self._number, self.errors = patience, 0, []
        there, self._out = os.pipe()
        self._in, back = os.pipe()
        self._buffer = b""
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (there, back)]
        command = [PROGRAM, *FLAGS, f"--user-data-dir={profile}"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", PIPED, *map(str, ends), *command], pass_fds=ends, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for end in (there, back, *ends):
            os.close(end)
        self._session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        """The result of a command."""
        self._number += 1
        session = {} if self._session is None else {"sessionId": self._session}
        told = {"id": self._number, "method": method, "params": params, **session}
        os.write(self._out, json.dumps(told).encode() + b"\0")
        while True:
            message = self._read()
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]

    def _read(self):
        end = time.monotonic() + self._patience
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0, end - time.monotonic()))
            assert ready, "Chromium does not answer"
            chunk = os.read(self._in, 1 << 20)
            assert chunk, "Chromium is gone"
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(line)
        told = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(told["exceptionDetails"])
        elif message.get("method") == "Runtime.consoleAPICalled" and told["type"] in {"error", "warning", "assert"}:
            self.errors.append(told["args"])
        elif message.get("method") == "Log.entryAdded":
            self.errors.append(told["entry"])
        elif message.get("method") == "Network.requestWillBeSent":
            url = told["request"]["url"]
            if not url.startswith(("file:", "data:", "about:")):
                self.errors.append(url)
        return message

    def open(self, path, width=1200, height=900, dark=False, scripts=True):
        """Show a file."""
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media="", features=[scheme])
        self.call("Page.navigate", url=path.resolve().as_uri())
        end = time.monotonic() + self._patience
        while self.run("location.href + document.readyState") != path.resolve().as_uri() + "complete":
            assert time.monotonic() < end, "the page is not loaded"
            time.sleep(0.02)

    def run(self, script):
        """The value of an expression."""
        got = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in got, got
        return got["result"].get("value")

    def click(self, element):
        """Click into the middle of an element, told as an expression."""
        x, y = self.run(
            f"(() => {{ const e = {element}; e.scrollIntoView({{block: 'center', inline: 'center'}}); "
            "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key):
        """Press a key."""
        text = {"text": "\r"} if key == "Enter" else {"text": key} if key == " " else {}
        told = {"key": key, "windowsVirtualKeyCode": KEYS[key]}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **told, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **told)

    def write(self, text):
        """Type into what has the focus."""
        self.call("Input.insertText", text=text)

    def picture(self, path, whole=True):
        """A screenshot as PNG."""
        got = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(b64decode(got["data"]))

    def close(self):
        """End it."""
        self._session = None
        try:
            self.call("Browser.close")
        except (AssertionError, OSError):
            self._process.kill()
        self._process.wait(self._patience)
        os.close(self._out)
        os.close(self._in)
