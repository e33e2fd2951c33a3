"""Data sets behind URLs: the same bytes as from the folder, many reads under way at once, errors that name what is missing."""

from __future__ import annotations

import pathlib
import pickle
import shutil
import sys
import threading
import time

import numpy as np
import pytest
from noise_corpus import CODEC, write_corpus
from test_data_feed import CROP, SPEECH, crop_data, same, speech_data, take

from ns2_jax.data import feed, range_server, storage
from ns2_jax.data.dataset import Dataset


@pytest.fixture(scope="module")
def url(corpus):
    with range_server.running(corpus) as url:
        yield url


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(storage, "RETRIES", 1)
    monkeypatch.setattr(storage, "FEW_RETRIES", 1)


def test_a_feed_from_a_url_is_the_feed_of_the_folder(corpus, url):
    for data, fields in ((speech_data, SPEECH), (crop_data, CROP)):
        remote = feed.make_feed(data(url), fields, {"q": 8}, 4, 2)
        same(take(feed.make_feed(data(corpus), fields, {"q": 8}, 4, 2), 12), take(remote, 12))
        remote.close()


def test_a_copy_in_another_process_reads_on(corpus, url):
    dataset = pickle.loads(pickle.dumps(Dataset.open(url)))
    np.testing.assert_array_equal(dataset.read("train", "audio", 7)["audio"], Dataset.open(corpus).read("train", "audio", 7)["audio"])


def test_waiting_is_hidden(corpus):
    """240 reads of 50 ms each, under way together: in far less than a tenth of the twelve seconds they take one by one."""
    with range_server.running(corpus, 50) as url:
        dataset = Dataset.open(url)
        wanted = {group: list(range(40)) * 2 for group in ("align", "f0", f"codes-{CODEC}")}
        dataset.read_many("train", {group: [0] for group in wanted})  # the index
        seconds = []
        for _ in range(3):
            begin = time.perf_counter()
            dataset.read_many("train", wanted)
            seconds.append(time.perf_counter() - begin)
    assert 0.05 <= min(seconds) < 1.2


def test_only_the_bytes_of_a_record_are_asked_for(corpus, monkeypatch):
    dataset = Dataset.open(corpus)
    dataset.index("train", "audio")
    asked = []
    monkeypatch.setattr(storage.Folder, "ranges", lambda self, wanted, real=storage.Folder.ranges: asked.extend(wanted) or real(self, wanted))
    record = dataset.read("train", "audio", 20)
    (name, _, length), = asked
    assert name == "audio/train-00001-of-00003.tfrecord" and 0 < length - 2 * len(record["audio"]) < 120


def test_what_is_not_there(url, impatient):
    with pytest.raises(FileNotFoundError, match=f"no data set at {url}nothing"):
        Dataset.open(url + "nothing")
    with pytest.raises(FileNotFoundError, match="no data set at http://127.0.0.1:9/x: http://127.0.0.1:9/x/manifest.json cannot be read"):
        Dataset.open("http://127.0.0.1:9/x")
    with pytest.raises(ValueError, match="ftp://host/x: data sets are read from folders and from gs://"):
        Dataset.open("ftp://host/x")


def test_damage_behind_a_url_is_found(tmp_path):
    write_corpus(tmp_path, utterances=6, shard_count=1, splits=("train",))
    shard = next((tmp_path / "audio").glob("*.tfrecord"))
    whole = shard.read_bytes()
    with range_server.running(tmp_path) as url:
        shard.write_bytes(whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 4]) + whole[len(whole) // 2 + 1 :])
        with pytest.raises(ValueError, match=f"{url}audio/.*checksum"):
            Dataset.open(url).read_many("train", {"audio": range(6)})
    shard.write_bytes(whole[:-5])
    with range_server.running(tmp_path) as url:
        with pytest.raises(ValueError, match="truncated"):
            Dataset.open(url).read("train", "audio", 5)
    shutil.rmtree(tmp_path / "audio")
    with range_server.running(tmp_path) as url:
        with pytest.raises(FileNotFoundError, match="audio/train-00000-of-00001.json does not exist: the shard was never finished"):
            Dataset.open(url).read("train", "audio", 5)


def test_the_server_keeps_to_its_folder(corpus):
    root = pathlib.Path(corpus).resolve()
    assert range_server.found(root, "manifest.json")[1] > 100
    with pytest.raises(FileNotFoundError):
        range_server.found(root, "../" * 20 + "etc/hostname")


def test_threads_share_a_folder(tmp_path, monkeypatch):
    """A descriptor is not closed, nor given to another file, while somebody reads from it."""
    monkeypatch.setattr(storage, "OPEN_FILES", 8)
    for i in range(100):
        (tmp_path / f"{i}").write_bytes(bytes([i]) * 4096)
    folder, wrong = storage.Folder(tmp_path), []

    def read(seed: int) -> None:
        try:
            for i in np.random.default_rng(seed).integers(0, 100, 3000).tolist():
                assert next(folder.ranges([(f"{i}", 5, 64)])) == bytes([i]) * 64
        except BaseException as error:
            wrong.append(error)

    often = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    sys.setswitchinterval(often)
    assert not wrong


def test_few_files_stay_open(corpus, monkeypatch):
    monkeypatch.setattr(storage, "OPEN_FILES", 2)
    dataset = Dataset.open(corpus)
    before = len(list(pathlib.Path("/proc/self/fd").iterdir()))
    for i in np.random.default_rng(0).integers(0, 40, 60).tolist():
        dataset.read("train", ["audio", "f0", "meta"][i % 3], i)
    assert len(list(pathlib.Path("/proc/self/fd").iterdir())) <= before + 2
    del dataset
    assert len(list(pathlib.Path("/proc/self/fd").iterdir())) <= before
