"""The lock of a run's folder. That it can be written, and that two trainers do not share it, test_pod tests with trainers."""

from __future__ import annotations

import errno

from ns2_jax.runtime import workdir


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys):
    with workdir.claim(str(tmp_path)) as lock:
        assert not lock.closed and capsys.readouterr().err == ""

    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(workdir.fcntl, "flock", flock)
    assert workdir.claim(str(tmp_path)) is None
    said = capsys.readouterr().err
    assert said.startswith(f"--workdir={tmp_path}: its file system gives no locks (No locks available)") and said.count("\n") == 1
