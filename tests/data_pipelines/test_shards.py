"""The shard engine: fresh processes, idempotence, kill -9, and a manifest that refuses what does not belong together."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from data_pipelines import shards
from ns2_jax.data import atomic, records

ROOT = pathlib.Path(__file__).parents[2]
META = dict(speaker="s", source="noise", voice="v", text="t", text_norm="t")
STAGE = """
import functools, os, pathlib, sys, time
sys.path.insert(0, {root!r})
import numpy as np
from data_pipelines import shards

def stage(out, delay, k):
    if shards.committed(out, ["meta", "audio"], "train", k, 6):
        return os.getpid()
    rng = np.random.default_rng(k)
    with shards.ShardWriter(out, "meta", "train", k, 6) as meta, shards.ShardWriter(out, "audio", "train", k, 6) as audio:
        for i in range(20):
            time.sleep(delay)
            n = int(rng.integers(400, 4000))
            meta.write({{"utt_id": f"{{k}}-{{i}}", **{meta!r}}}, n)
            audio.write({{"audio": rng.integers(-9, 9, n).astype(np.int16)}}, n)
    return os.getpid()

if __name__ == "__main__":
    out, delay = sys.argv[1], float(sys.argv[2])
    print(sorted(shards.run_shards(functools.partial(stage, out, delay), 6, 2)))
    shards.write_manifest(out, name="noise")
"""


def parent(k: int) -> tuple[int, int]:
    return k, os.getpid()


def fails(k: int) -> int:
    if k == 2:
        raise KeyError("no such voice")
    return k


def refuses(k: int) -> int:
    raise FileNotFoundError(f"no voice {k}")


def dies(k: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return k


def digests(root: pathlib.Path) -> dict[str, str]:
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_every_shard_has_a_process_of_its_own():
    results = shards.run_shards(parent, 4, 2)
    assert [k for k, _ in results] == [0, 1, 2, 3]
    pids = {pid for _, pid in results}
    assert len(pids) == 4 and os.getpid() not in pids
    assert shards.run_shards(parent, 2, 0) == [(0, os.getpid()), (1, os.getpid())]


def test_a_failing_shard_is_named_with_its_traceback():
    with pytest.raises(RuntimeError, match="(?s)shard 2 failed.*no such voice"):
        shards.run_shards(fails, 3, 1)
    with pytest.raises(FileNotFoundError, match="^no voice 0$"):  # what the user can mend needs no traceback
        shards.run_shards(refuses, 1, 1)


def test_a_killed_worker_is_an_error_not_a_hang():
    with pytest.raises(RuntimeError, match="exit code -9"):
        shards.run_shards(dies, 1, 1)


def test_sigkill_and_again_gives_the_same_bytes(tmp_path):
    """The builder is killed three times; what it makes in the end is what an undisturbed one makes, byte for byte."""
    script = tmp_path / "stage.py"
    script.write_text(STAGE.format(root=str(ROOT), meta=META))
    run = lambda out, delay: [sys.executable, str(script), str(out), str(delay)]
    subprocess.run(run(tmp_path / "calm", 0), check=True, capture_output=True, timeout=120)
    out = tmp_path / "killed"
    finished = 0
    for _ in range(3):
        process = subprocess.Popen(run(out, 0.01), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60  # until one more shard is finished, and then in the middle of the next
        while process.poll() is None and len(list(out.glob("audio/*.json"))) <= finished and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
        process.wait()
        time.sleep(0.3)  # the workers die with it
        finished = len(list(out.glob("audio/*.json")))
    assert 0 < finished and not (out / "manifest.json").exists()
    subprocess.run(run(out, 0), check=True, capture_output=True, timeout=120)
    calm, killed = digests(tmp_path / "calm"), digests(out)
    assert calm == killed and len(calm) == 2 * 6 * 3 + 1


def test_only_what_a_killed_writer_left_is_cleared(tmp_path):
    """Another command may be making a finished group again: its temporary file stays."""
    writing = "import sys, time; from data_pipelines import shards; w = shards.ShardWriter(sys.argv[1], 'f0', 'train', 0, 1); print(flush=True); "
    data_set(tmp_path, ((400,),))
    with shards.ShardWriter(tmp_path, "f0", "train", 0, 1) as writer:
        writer.write({"f0": np.zeros(2, np.float16)}, 400)
    command = [sys.executable, "-c", writing + "time.sleep(600)", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)
    process.stdout.readline()
    (held,) = (tmp_path / "f0").glob(".*.tmp-*")
    other = [held.with_name(held.name.rpartition("-")[0] + f"-elsewhere{i}") for i in range(2)]
    for path, age in zip(other, (100, 100_000)):
        path.write_bytes(b"x")
        os.utime(path, (time.time() - age,) * 2)
    shards.write_manifest(tmp_path)
    assert {*(tmp_path / "f0").glob(".*.tmp-*")} == {held, other[0]}
    process.kill()  # and not waited for: a zombie
    for _ in range(1000):
        if atomic.abandoned(held):
            break
        time.sleep(0.01)
    shards.write_manifest(tmp_path)
    assert [*(tmp_path / "f0").glob(".*.tmp-*")] == [other[0]]
    process.wait()


def test_whose_a_temporary_file_is(tmp_path):
    """A process that lives, one that has ended, its number in use again; a name that says nothing counts by age, as on other machines."""
    ours, host = atomic.beside(tmp_path / "a"), socket.gethostname()
    assert ours.parent == tmp_path and ours.name.startswith(".a.tmp-") and ours != atomic.beside(tmp_path / "a")
    began = ours.name.split(f"-{os.getpid()}.")[1].removesuffix(f"-{host}")
    assert began == pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    ended = subprocess.Popen(["true"])
    ended.wait()
    for who, left in ((f"{os.getpid()}.{began}", False), (f"{os.getpid()}", False), (f"{os.getpid()}.1", True), (f"{ended.pid}.5", True),
                      ("1", False), ("1.99999999999999", True)):  # fmt: skip
        temp = tmp_path / f".a.tmp-ff-{who}-{host}"
        temp.mkdir()
        assert atomic.abandoned(temp) == left, who
    for name in (f"ff-0-{host}", f"ff--1-{host}", f"ff-99999999999999999999-{host}", f"ff-x-{host}", "ff", "ff-12-elsewhere", "ff-12.5-elsewhere", ""):
        temp = tmp_path / f".a.tmp-{name}"
        temp.write_bytes(b"")
        assert not atomic.abandoned(temp)
        os.utime(temp, (time.time() - 100_000,) * 2)
        assert atomic.abandoned(temp)
    assert atomic.abandoned(tmp_path / ".a.tmp-ff-12-elsewhere-gone")


def write(root, group, split, shard, count, lengths, **kwargs):
    with shards.ShardWriter(root, group, split, shard, count, **kwargs) as writer:
        for i, n in enumerate(lengths):
            values = {"utt_id": f"{shard}-{i}", **META} if group == "meta" else {"audio": np.full(n, i, np.int16)}
            writer.write(values, n)


def data_set(root, lengths=((500, 600), (700,))):
    for group in ("meta", "audio"):
        for shard, part in enumerate(lengths):
            write(root, group, "train", shard, len(lengths), part)


def test_manifest_counts(tmp_path):
    data_set(tmp_path)
    manifest = shards.write_manifest(tmp_path, name="n", phones="abc")
    assert manifest == json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["splits"] == {"train": {"shards": 2, "records": 3, "seconds": 1800 / 16000}}
    assert manifest["speakers"] == {"train": ["s"]} and manifest["phones"] == "abc" and manifest["format"] == 1
    assert list(manifest["groups"]) == ["audio", "meta"] and len(manifest["fingerprint"]) == 64


def test_a_derived_group_does_not_change_the_fingerprint(tmp_path):
    data_set(tmp_path)
    before = shards.write_manifest(tmp_path, name="n", phones="abc")
    for shard, lengths in enumerate(((500, 600), (700,))):
        with shards.ShardWriter(tmp_path, "codes-1", "train", shard, 2, info={"hop": 200}) as writer:
            for n in lengths:
                writer.write({"codes": np.zeros((n // 200, 4), np.uint16)}, n)
    after = shards.write_manifest(tmp_path)
    assert after["fingerprint"] == before["fingerprint"] and after["name"] == "n" and after["phones"] == "abc"
    assert after["groups"]["codes-1"]["hop"] == 200
    write(tmp_path, "audio", "train", 1, 2, (701,))
    write(tmp_path, "meta", "train", 1, 2, (701,))
    with pytest.raises(ValueError, match="codes-1.*does not hold the same utterances"):
        shards.write_manifest(tmp_path)


def test_an_unfinished_derived_group_is_left_out_until_it_is_finished(tmp_path, caplog):
    data_set(tmp_path)
    with shards.ShardWriter(tmp_path, "f0", "train", 0, 2) as writer:
        for n in (500, 600):
            writer.write({"f0": np.zeros(n // 160, np.float16)}, n)
    assert list(shards.write_manifest(tmp_path)["groups"]) == ["audio", "meta"] and "1 of 2 shards" in caplog.text
    with pytest.raises(ValueError, match="f0: split 'train' has 1 of 2 shards; run its command again"):
        shards.write_manifest(tmp_path, needed=["f0"])
    with shards.ShardWriter(tmp_path, "f0", "train", 1, 2) as writer:
        writer.write({"f0": np.zeros(700 // 160, np.float16)}, 700)
    assert "f0" in shards.write_manifest(tmp_path)["groups"]


def test_rejects_are_added_up(tmp_path):
    data_set(tmp_path)
    writer = shards.ShardWriter(tmp_path, "meta", "train", 1, 2)
    writer.write({"utt_id": "1-0", **META}, 700)
    writer.reject("silent")
    writer.reject("short", 2)
    writer.commit()
    assert shards.write_manifest(tmp_path)["groups"]["meta"]["rejects"] == {"short": 2, "silent": 1}


@pytest.mark.parametrize(
    "damage,words",
    [
        (lambda root: records.marker_path(records.shard_path(root, "audio", "train", 1, 2)).unlink(), "1 of 2 shards"),
        (lambda root: write(root, "audio", "valid", 0, 1, (500,)), "no split 'valid'"),
        (lambda root: write(root, "audio", "train", 0, 2, (500,)), "does not hold the same utterances"),
        (lambda root: write(root, "audio", "train", 0, 2, (500, 600), info={"rate": 1}), "different settings"),
        (lambda root: [path.unlink() for path in root.glob("audio/*")], "at least 'meta' and 'audio'"),
    ],
)
def test_manifest_refuses(tmp_path, damage, words):
    data_set(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=words):
        shards.write_manifest(tmp_path)


def test_nothing_is_not_a_data_set(tmp_path):
    with pytest.raises(ValueError, match="no finished shard"):
        shards.write_manifest(tmp_path)


def test_shards_for():
    assert [shards.shards_for(n, 10) for n in (0, 1, 10, 11)] == [1, 1, 1, 2]
