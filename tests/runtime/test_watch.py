"""Who is noticed gone and after how long, by clocks that the test moves; what a stuck process says."""

from __future__ import annotations

import json

import jax
import pytest

from ns2_jax.runtime import watch


class Service:
    """The coordination service in a dictionary."""

    def __init__(self):
        self.kept, self.broken = {}, False

    def key_value_set(self, key, value, allow_overwrite=False):
        if self.broken or (key in self.kept and not allow_overwrite):
            raise RuntimeError("ALREADY_EXISTS" if not self.broken else "UNAVAILABLE")
        self.kept[key] = value

    def key_value_dir_get(self, prefix):
        if self.broken:
            raise RuntimeError("UNAVAILABLE")
        return [(key, value) for key, value in self.kept.items() if key.startswith(prefix)]


@pytest.fixture
def hosts(monkeypatch):
    now, service, left, said = [0.0], Service(), [], []
    monkeypatch.setattr(watch.time, "monotonic", lambda: now[0])

    def host(i):
        return watch.Watch(i, 3, lost_after=10.0, stuck_after=0.0, service=service, leave=lambda code: left.append((i, code)), say=said.append,
                           period=0.01)

    return now, service, left, said, [host(i) for i in range(3)]


def test_a_silent_host_is_gone_after_lost_after_and_not_before(hosts):
    now, _, left, said, (first, second, third) = hosts
    for now[0] in (0.0, 5.0, 9.0):
        for host in (first, second, third):
            host.look()
    for now[0] in (14.0, 19.0, 24.0):  # the third has given its last sign, which the first sees at 14
        first.look(), second.look()
    assert not left
    now[0] = 24.1
    first.look(), second.look()
    assert left == [(0, 75), (1, 75)]
    assert said[0].startswith("error: process 3 of 3 is gone: no sign of life for 10 s (killed, or its machine is gone). "
                              "Process 1 ends too (code 75)")


def test_the_first_host_leaves_when_the_others_have_read(hosts):
    """With it ends the service, and JAX's client would end them without a word."""
    _, _, left, _, (first, second, third) = hosts
    first._ending.wait = lambda seconds: left.append(f"waits {seconds / first.period:.0f} looks")
    third.fail("its disk is full")
    first.look()
    second.look()
    assert left == ["waits 3 looks", (0, 75), (1, 75)]


def test_one_that_has_not_begun_or_has_done_is_not_gone(hosts):
    now, service, left, _, (first, second, _) = hosts
    second.look()
    service.kept[f"{watch.PREFIX}1"] = watch.DONE
    for now[0] in (0.0, 20.0, 40.0):
        first.look()
    assert not left


def test_the_first_reason_stays_and_is_not_told_to_its_own(hosts):
    _, service, left, said, (first, second, third) = hosts
    third.fail("the disk\n is full")
    first.fail("a collective broke")  # a consequence
    for host in (first, second, third):
        host.look()
    assert json.loads(service.kept[watch.VERDICT + "first"]) == {"process": 2, "reason": "the disk is full", "code": 75}
    assert left == [(0, 75), (1, 75)] and "process 3 of 3 is gone: the disk is full" in said[0]


@pytest.mark.parametrize("error, guilty", [
    (jax.errors.JaxRuntimeError("UNAVAILABLE: connection reset"), 2), (ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer"), 2),
    (FileNotFoundError("a shard"), 1)])
def test_a_broken_collective_waits_for_who_broke_it(hosts, error, guilty):
    """Whatever JAX raises it as; an error of its own a host says at once."""
    _, service, _, _, (_, second, third) = hosts
    second._ending.wait = lambda seconds: third.fail("killed")  # what happens meanwhile
    second.__exit__(type(error), error, None)
    assert json.loads(service.kept[watch.VERDICT + "first"])["process"] == guilty


def test_all_end_with_the_code_of_what_starting_again_does_not_help(hosts):
    """srun returns the highest code, and 75 would start the job again."""
    _, _, left, said, (first, second, third) = hosts
    third._code = lambda error: 2
    error = FileNotFoundError("a shard")
    third.__exit__(type(error), error, None)
    first.look(), second.look()
    assert left == [(0, 2), (1, 2)]
    assert "process 3 of 3 is gone: a shard. Process 1 ends too (code 2)" in said[0] and "put that right" in said[0]


def test_without_the_first_host_nothing_answers(hosts):
    _, service, left, said, (_, second, _) = hosts
    second.look()
    service.broken = True
    for _ in range(watch.UNREACHABLE - 1):
        second.look()
    assert not left
    second.look()
    assert left == [(1, 75)] and "process 1 of 3 is gone: it does not answer (UNAVAILABLE)" in said[0]


def test_a_phase_that_does_not_end_is_shown_once_each_time(monkeypatch, capfd):
    now, said = [0.0], []
    monkeypatch.setattr(watch.time, "monotonic", lambda: now[0])
    alone = watch.Watch(stuck_after=100.0, say=said.append)
    alone.phase("compile")
    for now[0] in (50.0, 99.0, 101.0, 150.0, 199.0, 201.0):
        alone.look()
    assert [line.split(";")[0] for line in said] == [f"stuck: process 1 of 1 is in phase 'compile' for {n} s" for n in (101, 201)]
    assert "test_watch.py" in capfd.readouterr().err  # stacks
    alone.phase("step")
    now[0] = 250.0
    alone.look()
    assert len(said) == 2
