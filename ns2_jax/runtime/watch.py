"""Whether the other processes still live and this one still moves: a thread beside the training.

Every process puts a sign of life into JAX's coordination service; the first looks whether all signs change, by its own steady clock (no
two machines' clocks are compared), and writes down who is gone. All read that, say it in one line and end with LOST, within `lost_after`
seconds of a host's death and a few looks (the first last: the service ends with it); otherwise they would wait in a collective for ever, or
until JAX ends them with a stack dump. A process that fails by itself writes that down before it goes; when starting again would not help, the
others end with its code instead of LOST, so that no launcher starts them again, whichever code it looks at. When the first host itself dies, JAX's
client aborts the others at once, with words of its own (exit code 134). A process whose phase does not change for `stuck_after` seconds dumps
the stacks of its threads to stderr, says what it was doing, and goes on waiting: a person decides.
"""

from __future__ import annotations

import faulthandler
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jax

PREFIX, VERDICT, DONE = "ns2_jax/life/", "ns2_jax/verdict/", "done"
LOST = 75  # of sysexits.h: temporary failure, try again
STATUS = r"(ABORTED|CANCELLED|DATA_LOSS|DEADLINE_EXCEEDED|INTERNAL|UNAVAILABLE|UNKNOWN): "
UNREACHABLE = 3  # looks in a row without an answer from the first host


def client() -> Any:
    """JAX's client of the coordination service; None for a process alone. Orbax takes it from the same place."""
    from jax._src import distributed  # no public name exists

    return distributed.global_state.client


def is_runtime(error: BaseException) -> bool:
    """Whether an error is of JAX's runtime; some of those of a collective arrive as a ValueError that begins with a status."""
    return isinstance(error, jax.errors.JaxRuntimeError) or bool(re.match(STATUS, str(error)))


class Watch:
    """`with Watch(...) as watch:` around a training; `watch.phase("data")` whenever something begins.

    Args:
      process, processes: which this is, of how many; alone it only watches its own phases.
      lost_after: seconds without a sign of life after which a process counts as gone; 0 does not look.
      stuck_after: seconds in one phase after which stacks are dumped; 0 never.
      service: of key_value_set, key_value_dir_get, as JAX's client has them.
      code: what the others end with when an exception ends this process.
      leave: ends the process with a code; nothing can be waited for when a host is gone.
    """

    def __init__(self, process: int = 0, processes: int = 1, lost_after: float = 30.0, stuck_after: float = 900.0, service: Any = None,
                 code: Callable[[BaseException], int] = lambda error: LOST, leave: Callable[[int], Any] = os._exit,
                 period: float | None = None, say: Callable[[str], None] | None = None):
        self.process, self.processes, self.lost_after, self.stuck_after = process, processes, lost_after, stuck_after
        self.service = service if processes > 1 and lost_after else None
        self._code, self._leave, self._say = code, leave, say or (lambda text: print(text, file=sys.stderr, flush=True))
        self.period = period or min([lost_after / 10] * bool(self.service) + [stuck_after / 4] * bool(stuck_after) + [2.0])
        self._phase, self._since, self._dumped = "start", time.monotonic(), 0
        self._beat, self._seen, self._silent = 0, {}, 0
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        if self.service or self.stuck_after:
            self._thread.start()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is not None and self.service is not None and not isinstance(error, SystemExit):
            if is_runtime(error):  # most likely a collective whose other end is gone: the thread will say whose
                self._say(f"process {self.process + 1} of {self.processes}: {' '.join(str(error).split())[:200]}; looking whether another is gone")
                self._ending.wait(self.lost_after + 10 * self.period)  # as long as the first may take to say so, and some
            self.fail(str(error) or repr(error), self._code(error))
            if self.process == 0:
                self._ending.wait(3 * self.period)  # the service ends with this process: the others read it first
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(self.period + 5)
        if error is None and self.service is not None:
            try:
                self.service.key_value_set(f"{PREFIX}{self.process}", DONE, allow_overwrite=True)
            except Exception:  # pylint: disable=broad-except
                pass  # nobody is left to read it

    def phase(self, name: str) -> None:
        """What this process does from now on."""
        self._phase, self._since, self._dumped = name, time.monotonic(), 0

    def fail(self, reason: str, code: int = LOST) -> None:
        """Tells the others that this process ends, why, and with which code they should; the first reason stays."""
        self._write({"process": self.process, "reason": " ".join(reason.split())[:500], "code": code})

    def _write(self, verdict: dict[str, Any]) -> None:
        try:
            self.service.key_value_set(VERDICT + "first", json.dumps(verdict))
        except Exception:  # pylint: disable=broad-except
            pass  # somebody was first, or nobody can be told

    def _run(self) -> None:
        while not self._ending.wait(self.period):
            self.look()

    def look(self) -> None:
        """One look at the others and at this process."""
        now = time.monotonic()
        if self.stuck_after and now - self._since > self.stuck_after * (self._dumped + 1):
            self._dumped += 1
            self._say(f"stuck: process {self.process + 1} of {self.processes} is in phase {self._phase!r} for {now - self._since:.0f} s; "
                      "its threads:")
            faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
        if self.service is None:
            return
        try:
            self._beat += 1
            self.service.key_value_set(f"{PREFIX}{self.process}", str(self._beat), allow_overwrite=True)
            if self.process == 0:
                self._judge(dict(self.service.key_value_dir_get(PREFIX)), now)
            verdict = [value for key, value in self.service.key_value_dir_get(VERDICT)]
            self._silent = 0
        except Exception as error:  # pylint: disable=broad-except
            self._silent += 1
            if self._silent < UNREACHABLE:
                return
            verdict = [json.dumps({"process": 0, "reason": f"it does not answer ({' '.join(str(error).split())[:120]})"})]
        said = json.loads(verdict[0]) if verdict else {"process": self.process}
        if said["process"] != self.process and not self._ending.is_set():
            code = said.get("code", LOST)
            again = "start the same command again on all hosts, or on fewer" if code == LOST else "put that right and start the same command again"
            self._say(f"error: process {said['process'] + 1} of {self.processes} is gone: {said['reason']}. Process {self.process + 1} ends too "
                      f"(code {code}); nothing that was saved is lost: {again}")
            if self.process == 0:
                self._ending.wait(3 * self.period)  # the service ends with this process: the others read it first
            self._leave(code)

    def _judge(self, beats: dict[str, str], now: float) -> None:
        """The first process: who has given no new sign for too long."""
        for process in range(self.processes):
            beat = next((value for key, value in beats.items() if key.rsplit("/", 1)[-1] == str(process)), "")
            if self._seen.get(process, (None,))[0] != beat:
                self._seen[process] = (beat, now)
            elif now - self._seen[process][1] > self.lost_after and beat not in ("", DONE):
                silent = f"{now - self._seen[process][1]:.0f} s"
                self._write({"process": process, "reason": f"no sign of life for {silent} (killed, or its machine is gone)"})
