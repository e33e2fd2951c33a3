"""The trainer's own story with a toy for a system and rows made on the spot: every process is `ns2_jax.train` as people run it, but for
what takes long (reading data, compiling a network). A parent imports everything once and forks each process, so that twenty cost little.

    with Trainers(folder) as trainers:
        hosts = trainers.cluster(2, workdir, steps=20)
        assert trainers.wait(hosts) == [0, 0]
"""

from __future__ import annotations

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent.parent


class Trainers:
    """Starts and watches trainers. Logs are `<folder>/<name>-<process>.log`."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self._count = folder, 0

    def __enter__(self) -> Trainers:
        env = {**os.environ, "JAX_PLATFORMS": "cpu", "NS2_JAX_CACHE": "off", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'runtime'}"}
        env.pop("JAX_NUM_CPU_DEVICES", None)
        self._parent = subprocess.Popen([sys.executable, __file__], cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: Any) -> None:
        self._parent.stdin.close()
        self._parent.wait(60)

    def _ask(self, **request: Any) -> Any:
        self._parent.stdin.write(json.dumps(request) + "\n")
        self._parent.stdin.flush()
        answer = self._parent.stdout.readline()
        assert answer, "the parent of the trainers is gone"
        return json.loads(answer)

    def start(self, workdir: pathlib.Path, *words: str, name: str = "run", devices: int = 1, fault: str = "", **env: str) -> tuple[int, pathlib.Path]:
        """(process, its log) of one trainer."""
        self._count += 1
        log = self.folder / f"{name}-{self._count}.log"
        return self._ask(do="start", words=[f"--workdir={workdir}", *words], devices=devices, fault=fault, env=env, log=str(log)), log

    def cluster(self, count: int, workdir: pathlib.Path, *words: str, faults: Sequence[str] = (), devices: int = 1) -> list[tuple[int, pathlib.Path]]:
        """`count` processes on loopback."""
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            address = f"localhost:{probe.getsockname()[1]}"
        about = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
        return [self.start(workdir, *words, name=f"{workdir.name}-host", devices=devices, fault=faults[i] if i < len(faults) else "",
                           JAX_PROCESS_ID=str(i), **about) for i in range(count)]

    def save_sharded(self, folder: pathlib.Path, devices: int) -> str:
        """The smallest codec saved from so many fake devices; how many parameters were cut."""
        folder.mkdir()
        log = self.folder / "sharded.log"
        assert self.wait([(self._ask(do="start", folder=str(folder), devices=devices, log=str(log)), log)]) == [0]
        return log.read_text()

    def poll(self, process: tuple[int, pathlib.Path]) -> int | None:
        """Exit code (negative: the signal), None while it runs."""
        return self._ask(do="poll", pid=process[0])

    def wait(self, processes: Sequence[tuple[int, pathlib.Path]], seconds: float = 300.0) -> list[int]:
        end = time.monotonic() + seconds
        codes: list[int | None] = [None] * len(processes)
        while None in codes:
            codes = [self.poll(p) if code is None else code for p, code in zip(processes, codes)]
            if time.monotonic() > end:
                for pid, _ in processes:
                    os.kill(pid, signal.SIGKILL)
                raise AssertionError(f"no end after {seconds} s, codes {codes}:\n" + "\n".join(log.read_text()[-3000:] for _, log in processes))
            time.sleep(0.05)
        return codes


def _serve() -> None:
    """The parent: one request a line, one answer a line."""
    import run_toy

    codes: dict[int, int] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "start":
            pid = os.fork()
            if pid == 0:
                try:
                    (run_toy.save_sharded if "folder" in request else run_toy.run)(**{k: v for k, v in request.items() if k != "do"})
                except BaseException:  # never back into the parent's loop
                    traceback.print_exc()
                finally:
                    os._exit(1)
            answer: Any = pid
        else:
            pid = request["pid"]
            if pid not in codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[pid] = os.waitstatus_to_exitcode(status)
            answer = codes.get(pid)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
