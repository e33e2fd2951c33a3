"""The feed: one stream whatever the hosts, workers and restarts; errors that say what to do."""

from __future__ import annotations

import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from noise_corpus import CODEC, Field, write_corpus

from ns2_jax.data import feed, frames, records
from ns2_jax.data.dataset import Dataset
from ns2_jax.runtime import cluster
from tests import sessions

CROP = {"audio": Field("bs", "float32"), "frames": Field("b", "int32"), "weight": Field("b", "float32")}
SPEECH = {
    "phones": Field("bp", "int32"), "durations": Field("bp", "int32"), "f0": Field("bt", "float32"),
    "codes": Field("btq", "uint16"), "frames": Field("b", "int32"), "prompt_codes": Field("buq", "uint16"),
    "prompt_frames": Field("b", "int32"), "weight": Field("b", "float32"),
}  # fmt: skip


def crop_data(root, **changes):
    data = dict(path=root, split="train", transform="crop", buckets=[dict(b=8, t=64)], sample_rate=16000, hop=200, codes="", workers=0)
    return data | changes


def speech_data(root, **changes):
    buckets = [dict(b=8, t=160, p=24, u=60), dict(b=4, t=320, p=48, u=80)]
    return crop_data(root, transform="cut_prompt", buckets=buckets, codes=CODEC) | changes


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b):
        assert x.keys() == y.keys()
        for name in x:
            np.testing.assert_array_equal(x[name], y[name], err_msg=name)


def test_a_shard_that_is_gone_is_named(corpus, tmp_path):
    """By an error that is the user's, not a bug's."""
    shutil.copytree(corpus, tmp_path / "data")
    lost = tmp_path / "data" / "audio" / "train-00001-of-00003.tfrecord"
    batches = feed.make_feed(crop_data(str(tmp_path / "data")), CROP, {}, 0, 0)
    lost.unlink()
    with pytest.raises(FileNotFoundError) as wrong:
        take(iter(batches), 20)
    assert cluster.is_user_error(wrong.value) and cluster.one_line(wrong.value) == f"{lost}: No such file or directory"


def test_exactly_the_fields_in_their_shapes(corpus):
    batch = next(feed.make_feed(speech_data(corpus), SPEECH, {"q": 6}, 0, 0))
    shape = {"b": 8, "t": 160, "p": 24, "u": 60} if batch["phones"].shape[1] == 24 else {"b": 4, "t": 320, "p": 48, "u": 80}
    assert batch.keys() == SPEECH.keys()
    for name, field in SPEECH.items():
        assert batch[name].shape == tuple({**shape, "q": 6}[axis] for axis in field.axes) and batch[name].dtype == field.dtype
    audio = next(feed.make_feed(crop_data(corpus), CROP, {}, 0, 0))
    assert {name: value.shape for name, value in audio.items()} == {"audio": (8, 12800), "frames": (8,), "weight": (8,)}


def test_rows_are_the_records_cut(corpus):
    """Codes, phones and F0 of every row, put together with the prompt, are those of one utterance of the data set."""
    dataset = Dataset.open(corpus)
    codes = [dataset.read("train", f"codes-{CODEC}", i)["codes"] for i in range(dataset.records("train"))]
    by_bag = {hashlib.sha256(np.sort(c[:, 0]).tobytes()).digest(): i for i, c in enumerate(codes)}
    found = []
    for batch in feed.make_feed(speech_data(corpus), SPEECH, {"q": 8}, 0, 0, epochs=1):
        assert (batch["durations"].sum(1) == batch["frames"]).all()
        assert (batch["durations"][batch["phones"] == 0] == 0).all()
        for row in np.flatnonzero(batch["weight"]):
            target, prompt = batch["codes"][row, : batch["frames"][row]], batch["prompt_codes"][row, : batch["prompt_frames"][row]]
            assert not batch["codes"][row, batch["frames"][row] :].any()
            assert not batch["prompt_codes"][row, batch["prompt_frames"][row] :].any()
            i = by_bag[hashlib.sha256(np.sort(np.concatenate([target, prompt])[:, 0]).tobytes()).digest()]
            found.append(i)
            align = dataset.read("train", "align", i)
            full = frames.durations(align["ends"], align["num_samples"], 16000, 200)
            assert full.sum() == len(codes[i]) == batch["frames"][row] + batch["prompt_frames"][row]
            kept = batch["phones"][row][batch["phones"][row] > 0]
            assert len(kept) < len(full)
            pitch = batch["f0"][row, : batch["frames"][row]]
            assert np.allclose(pitch[pitch > 0], pitch.max(), rtol=1e-3)  # one pitch per utterance in this corpus
    fits = (dataset.frames("train") <= 320) & (dataset.phones("train") <= 48)
    assert sorted(found) == np.flatnonzero(fits).tolist()


def test_padding_rows_are_empty(corpus):
    batches = list(feed.make_feed(crop_data(corpus), CROP, {}, 0, 0, epochs=1))
    assert sum(batch["weight"].sum() for batch in batches) == 40
    for batch in feed.make_feed(speech_data(corpus), SPEECH, {"q": 8}, 0, 0, epochs=2):
        for name, value in batch.items():
            assert not value[batch["weight"] == 0].any(), name


def test_audio_is_the_recording(corpus):
    dataset = Dataset.open(corpus)
    batch = next(feed.make_feed(crop_data(corpus, buckets=[dict(b=2, t=400)]), CROP, {}, 3, 0))
    recordings = [dataset.read("train", "audio", i)["audio"] / np.float32(32768) for i in range(40)]
    for audio, count in zip(batch["audio"], batch["frames"]):
        matches = [r for r in recordings if len(r) // 200 == count and np.array_equal(r[: count * 200], audio[: count * 200])]
        assert len(matches) == 1 and not audio[count * 200 :].any()


@pytest.mark.parametrize("kind", ["crop", "cut_prompt"])
def test_hosts_share_one_stream(corpus, kind):
    """Hosts that hold the parts of a batch in runs, or interleaved as on a torus: the rows are the same rows."""
    data, fields = (crop_data(corpus), CROP) if kind == "crop" else (speech_data(corpus), SPEECH)
    alone = take(feed.make_feed(data, fields, {"q": 8}, 1, 0), 12)
    eight = tuple((part,) for part in range(8)) if kind == "crop" else ()  # the longest bucket of the other has four rows
    for owned in filter(None, (((0,), (1,)), ((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0,), (1,), (2,), (3,)), eight)):
        total = sum(map(len, owned))
        made = [take(feed.make_feed(data, fields, {"q": 8}, 1, 0, parts=(mine, total)), 12) for mine in owned]
        for k, whole in enumerate(alone):
            for name, value in whole.items():
                cut = np.split(value, total)
                for mine, batches in zip(owned, made):
                    np.testing.assert_array_equal(batches[k][name], np.concatenate([cut[part] for part in mine]), err_msg=f"{name} {mine}")


def test_resume_is_the_same_stream(corpus):
    data = speech_data(corpus)
    straight = take(feed.make_feed(data, SPEECH, {"q": 8}, 5, 0), 15)
    pieces = []
    for start, stop, hosts in ((0, 4, 1), (4, 9, 2), (9, 15, 4)):
        hosts_batches = [take(feed.make_feed(data, SPEECH, {"q": 8}, 5, start, parts=((h,), hosts)), stop - start) for h in range(hosts)]
        pieces += [{name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]} for batches in zip(*hosts_batches)]
    same(straight, pieces)


def test_epochs_end_and_differ(corpus):
    data = crop_data(corpus)
    first = list(feed.make_feed(data, CROP, {}, 0, 0, epochs=1))
    both = list(feed.make_feed(data, CROP, {}, 0, 0, epochs=2))
    assert len(first) == 5 and len(both) == 10
    same(first, both[:5])
    assert any(not np.array_equal(a["audio"], b["audio"]) for a, b in zip(both[:5], both[5:]))
    assert len(list(feed.make_feed(data, CROP, {}, 0, 3, epochs=1))) == 2


def test_a_split_of_its_own(corpus):
    train = next(feed.make_feed(crop_data(corpus), CROP, {}, 0, 0))
    valid = next(feed.make_feed(crop_data(corpus), CROP, {}, 0, 0, split="valid"))
    assert not np.array_equal(train["audio"], valid["audio"])


def test_workers_give_the_same_stream(corpus, tmp_path):
    """None to three processes, one to eight hosts; in a program of its own, because a worker imports the main module."""
    script = f"""
import hashlib, numpy, sys
sys.path.insert(0, {str(pathlib.Path(__file__).parents[2])!r})
sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})
if __name__ == "__main__":
    from test_data_feed import SPEECH, speech_data, take
    from ns2_jax.data import feed
    for workers, hosts in ((0, 1), (2, 1), (3, 1), (1, 2), (0, 8)):
        of_hosts = []
        for host in range(hosts):
            data = speech_data({corpus!r}, workers=workers, buckets=[dict(b=8, t=160, p=24, u=60), dict(b=16, t=320, p=48, u=80)])
            iterator = feed.make_feed(data, SPEECH, {{"q": 8}}, 2, 3, parts=((host,), hosts))
            of_hosts.append(take(iterator, 9))
            iterator.close()
        batches = [{{n: numpy.concatenate([b[n] for b in rows]) for n in rows[0]}} for rows in zip(*of_hosts)]
        print(hashlib.sha256(b"".join(b[n].tobytes() for b in batches for n in sorted(b))).hexdigest())
"""
    path = tmp_path / "run.py"
    path.write_text(script)
    out = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=300)
    digests = out.stdout.split()
    assert len(digests) == 5 and len(set(digests)) == 1, out.stderr[-2000:]


def test_workers_serve_on_when_their_group_is_asked_to_end(corpus, tmp_path):
    """SLURM and `timeout` signal every process; a trainer goes on to the step that all hosts agree on."""
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(pathlib.Path(__file__).parents[2])!r})
sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})
if __name__ == "__main__":
    from test_data_feed import SPEECH, speech_data, take
    from ns2_jax.data import feed
    iterator = feed.make_feed(speech_data({corpus!r}, workers=1), SPEECH, {{"q": 8}}, 2, 3)
    take(iterator, 1)
    signal.signal(signal.SIGTERM, lambda *_: print("asked", flush=True))
    os.killpg(0, signal.SIGTERM)
    print(len(take(iterator, 12)), flush=True)
"""
    path = tmp_path / "run.py"
    path.write_text(script)
    out = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=120, start_new_session=True)
    assert out.returncode == 0 and out.stdout.split() == ["asked", "12"], out.stderr[-2000:]


def test_a_killed_trainer_leaves_no_worker_and_no_shared_memory(corpus, tmp_path):
    script = f"""
import os, sys, time
sys.path.insert(0, {str(pathlib.Path(__file__).parents[2])!r})
sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})
if __name__ == "__main__":
    from test_data_feed import SPEECH, speech_data, take
    from ns2_jax.data import feed
    iterator = feed.make_feed(speech_data({corpus!r}, workers=2), SPEECH, {{"q": 8}}, 2, 3)
    take(iterator, 2)
    print("fed", flush=True)
    time.sleep(600)
"""
    path = tmp_path / "run.py"
    path.write_text(script)
    memory = pathlib.Path("/dev/shm")
    before = set(memory.iterdir())
    with subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout.readline() == "fed\n"
        mine = sessions.living(process.pid)
        held = set(memory.iterdir()) - before
        assert len(mine) >= 3 and held  # itself and two workers; batches travel through shared memory
        process.kill()
    deadline = time.monotonic() + 30
    while (sessions.living(process.pid) or held & set(memory.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not sessions.living(process.pid) and not held & set(memory.iterdir())


@pytest.fixture(scope="module")
def several(corpus, tmp_path_factory):
    """Three data sets, of 40, 12 and 20 utterances."""
    folder = tmp_path_factory.mktemp("several")
    for name, utterances, seed in (("b", 12, 1), ("c", 20, 2)):
        write_corpus(folder / name, utterances=utterances, seed=seed)
    return [corpus, str(folder / "b"), str(folder / "c")]


def owners(batch, roots):
    """Which data sets the rows of a batch of audio come from."""
    starts = {Dataset.open(root).read("train", "audio", i)["audio"][:50].tobytes(): k for k, root in enumerate(roots)
              for i in range(Dataset.open(root).records("train"))}  # fmt: skip
    rows = (np.rint(row[:50] * 32768).astype(np.int16).tobytes() for row, weight in zip(batch["audio"], batch["weight"]) if weight)
    return {starts[row] for row in rows}


def test_several_data_sets_take_turns(several):
    data = crop_data(",".join(several), buckets=[dict(b=4, t=400)])
    turns = [owners(batch, several) for batch in feed.make_feed(data, CROP, {}, 0, 0, epochs=1)]
    assert sorted(map(tuple, turns)) == [(0,)] * 10 + [(1,)] * 3 + [(2,)] * 5  # ten batches of one, ...
    weighted = data | dict(weights=((0, (1, 0, 1)), (6, (0, 1, 3))))
    turns = [owners(batch, several) for batch in take(feed.make_feed(weighted, CROP, {}, 0, 0), 14)]
    assert [sum(who == {k} for who in turns[:6]) for k in range(3)] == [3, 0, 3]
    assert [sum(who == {k} for who in turns[6:]) for k in range(3)] == [0, 2, 6]
    same(take(feed.make_feed(weighted, CROP, {}, 0, 5), 4), take(feed.make_feed(weighted, CROP, {}, 0, 0), 9)[5:])
    alone = feed.make_feed(crop_data(several[0], buckets=[dict(b=4, t=400)]), CROP, {}, 0, 0)
    np.testing.assert_array_equal(next(alone)["audio"], next(feed.make_feed(weighted, CROP, {}, 0, 0))["audio"])


def test_several_data_sets_have_several_fingerprints(several):
    ids = [Dataset.open(root).fingerprint for root in several]
    assert feed.fingerprint({"path": ",".join(several)}) == feed.fingerprint({"path": several}) == " ".join(ids)


@pytest.mark.parametrize("changes, words", [
    (dict(weights=((0, (1, 1)),)), "2 weights from step 0 on, config.data.path names 3 data sets"),
    (dict(weights=(3, 1, 1)), r"config.data.weights=\(3, 1, 1\); expected \(\(0, \(3, 1\)\)"),
    (dict(weights=((0, (1, 1, 1)),), epochs=1), "has no common epoch"),
])  # fmt: skip
def test_mixture_errors(several, changes, words):
    changes = dict(changes)
    epochs = changes.pop("epochs", None)
    with pytest.raises(ValueError, match=words):
        feed.make_feed(crop_data(",".join(several), **changes), CROP, {}, 0, 0, epochs=epochs)


def test_the_order_leaves_out_weights_that_may_still_change():
    data = crop_data("x", weights=((0, (1, 1)), (50, (2, 1))))
    assert feed.order(data)(50)["config.data.weights"] == [[0, [1.0, 1.0]]]
    assert feed.order(data)(51)["config.data.weights"] == [[0, [1.0, 1.0]], [50, [2.0, 1.0]]]
    assert feed.order(data)(1)["config.data.buckets"] == [{"b": 8, "t": 64}]
    later = crop_data("x", weights=((0, ()), (50, (2, 1))))
    assert feed.order(later)(50)["config.data.weights"] == feed.order(crop_data("x"))(50)["config.data.weights"] == []


def test_the_alignment_belongs_to_the_order(tmp_path):
    """How many phones an utterance has decides on its bucket: another alignment is another order, for who reads phones."""
    write_corpus(tmp_path / "a")
    before = feed.order(speech_data(tmp_path / "a"), SPEECH)(5), feed.order(crop_data(tmp_path / "a"), CROP)(5)
    dataset = Dataset.open(tmp_path / "a")
    rows = [dataset.read("train", "align", i) for i in range(dataset.records("train"))]
    splits = dataset.manifest["splits"]
    at = np.cumsum([0, *(len(np.load(path)) for path in sorted((tmp_path / "a" / "align").glob("train*.npy")))])
    for shard in range(splits["train"]["shards"]):
        with records.ShardWriter(tmp_path / "a", "align", "train", shard, splits["train"]["shards"]) as writer:
            for i in range(at[shard], at[shard + 1]):
                empty = i == 3
                writer.write({"phones": rows[i]["phones"][:0] if empty else rows[i]["phones"],
                              "ends": rows[i]["ends"][:0] if empty else rows[i]["ends"]}, rows[i]["num_samples"])  # fmt: skip
    after = feed.order(speech_data(tmp_path / "a"), SPEECH)(5), feed.order(crop_data(tmp_path / "a"), CROP)(5)
    assert before[1] == after[1] and [name for name in before[0] if before[0][name] != after[0][name]] == ["the alignment of config.data.path"]


def test_prompts_by_the_same_speaker(corpus):
    """The target is a whole utterance; the prompt a run of at most u frames of another one by the same speaker."""
    dataset = Dataset.open(corpus)
    codes = [dataset.read("train", f"codes-{CODEC}", i)["codes"] for i in range(40)]
    speaker = [dataset.read("train", "meta", i)["speaker"] for i in range(40)]
    whole = {c.tobytes(): i for i, c in enumerate(codes)}
    pairs = []
    for batch in feed.make_feed(speech_data(corpus, transform="speaker_prompt"), SPEECH, {"q": 8}, 0, 0, epochs=2):
        u = batch["prompt_codes"].shape[1]
        for row in np.flatnonzero(batch["weight"]):
            i = whole[batch["codes"][row, : batch["frames"][row]].tobytes()]
            prompt = batch["prompt_codes"][row, : batch["prompt_frames"][row]]
            found = [j for j, c in enumerate(codes) if any((c[at : at + len(prompt)] == prompt).all() for at in range(len(c) - len(prompt) + 1))]
            assert len(found) == 1 and found[0] != i and speaker[found[0]] == speaker[i]
            assert len(prompt) == min(u, len(codes[found[0]])) and not batch["prompt_codes"][row, len(prompt) :].any()
            pairs.append((i, found[0]))
    fits = (dataset.frames("train") <= 320) & (dataset.phones("train") <= 48)
    assert len(pairs) == 2 * fits.sum() and len(set(pairs)) > 1.5 * fits.sum()  # another prompt in the next epoch


def test_a_prompt_may_be_audio(corpus):
    """Its samples are u * hop, letter v: a run of whole frames of another recording by the same speaker, zeros after it."""
    fields = {"audio": Field("bs", "float32"), "frames": Field("b", "int32"), "prompt_audio": Field("bv", "float32"),
              "prompt_frames": Field("b", "int32"), "weight": Field("b", "float32")}  # fmt: skip
    dataset = Dataset.open(corpus)
    audios = [dataset.read("train", "audio", i)["audio"].astype(np.float32) / 32768 for i in range(40)]
    speaker = [dataset.read("train", "meta", i)["speaker"] for i in range(40)]
    for batch in feed.make_feed(speech_data(corpus, transform="speaker_prompt"), fields, {}, 0, 0, epochs=1):
        assert batch["prompt_audio"].shape[1] in (60 * 200, 80 * 200)
        for row in np.flatnonzero(batch["weight"]):
            n = 200 * batch["prompt_frames"][row]
            prompt, target = batch["prompt_audio"][row, :n], batch["audio"][row, : 200 * batch["frames"][row]]
            assert not batch["prompt_audio"][row, n:].any()
            (i,) = [j for j, audio in enumerate(audios) if len(audio) >= len(target) and (audio[:9] == target[:9]).all()]
            (source,) = [j for j, audio in enumerate(audios) if any((audio[at : at + n] == prompt).all() for at in range(0, len(audio) - n + 1, 200))]
            assert source != i and speaker[source] == speaker[i]


def test_an_only_utterance_is_its_own_prompt(tmp_path):
    write_corpus(tmp_path, utterances=4, shard_count=1, splits=("train",))  # s0 has two, s1 and s2 one each
    buckets = [dict(b=4, t=320, p=48, u=400)]
    batch = next(feed.make_feed(speech_data(tmp_path, transform="speaker_prompt", buckets=buckets), SPEECH, {"q": 8}, 0, 0))
    lengths = Dataset.open(tmp_path).frames("train").tolist()
    shared = [int(batch["frames"][row] + batch["prompt_frames"][row]) for row in range(4)]
    assert sum(length in shared for length in (lengths[1], lengths[2])) == 2  # cut: target and prompt are the utterance together
    assert shared.count(lengths[0] + lengths[3]) == 2  # whole, prompted by the other


def test_damage_stops_the_feed(tmp_path):
    write_corpus(tmp_path, utterances=6, shard_count=1, splits=("train",))
    path = next((tmp_path / "audio").glob("*.tfrecord"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(ValueError, match="checksum"):
        list(feed.make_feed(crop_data(tmp_path), CROP, {}, 0, 0, epochs=1))


def test_groups_that_disagree_are_refused(tmp_path):
    write_corpus(tmp_path / "a", utterances=6, shard_count=1, seed=0, splits=("train",))
    write_corpus(tmp_path / "b", utterances=6, shard_count=1, seed=1, splits=("train",))
    shutil.rmtree(tmp_path / "a" / "align")
    shutil.copytree(tmp_path / "b" / "align", tmp_path / "a" / "align")
    with pytest.raises(ValueError, match="disagree on the length"):
        list(feed.make_feed(speech_data(tmp_path / "a"), SPEECH, {"q": 8}, 0, 0, epochs=1))


@pytest.mark.parametrize(
    "changes,error,words",
    [
        (dict(path="/nowhere/at/all"), FileNotFoundError, "no data set at /nowhere/at/all.*data_pipelines"),
        (dict(path=""), ValueError, "config.data.path is empty"),
        (dict(split="dev"), ValueError, "no split 'dev'"),
        (dict(sample_rate=22050), ValueError, "sample_rate=22050.*16000"),
        (dict(hop=320), ValueError, "hop=320.*hop 200"),
        (dict(codes=""), ValueError, f"config.data.codes is empty.*codes-{CODEC}"),
        (dict(codes="ffffffffffff"), ValueError, "no group 'codes-ffffffffffff'.*data_pipelines.encode"),
        (dict(transform="mix"), ValueError, "transform='mix'"),
        (dict(transform="crop"), ValueError, "'phones' does not come out of transform 'crop'"),
        (dict(buckets=[dict(b=8, t=100, u=50)]), ValueError, "has no 'p'"),
        (dict(buckets=[dict(b=8, t=2, p=2, u=1)]), ValueError, "no utterance fits"),
    ],
)
def test_errors(corpus, changes, error, words):
    with pytest.raises(error, match=words):
        feed.make_feed(speech_data(corpus, **changes), SPEECH, {"q": 8}, 0, 0)


def test_more_errors(corpus):
    with pytest.raises(ValueError, match="has 8 codebooks, the system needs 12"):
        feed.make_feed(speech_data(corpus), SPEECH, {"q": 12}, 0, 0)
    with pytest.raises(ValueError, match="phone inventory 'inventory', this code has 'other'"):
        feed.make_feed(speech_data(corpus), SPEECH, {"q": 8}, 0, 0, inventory="other")
    next(feed.make_feed(speech_data(corpus), SPEECH, {"q": 8}, 0, 0, inventory="inventory"))
    with pytest.raises(ValueError, match="does not divide into 3 parts"):
        feed.make_feed(crop_data(corpus), CROP, {}, 0, 0, parts=((1,), 3))


def test_a_codec_that_is_not_the_groups(corpus, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(corpus, root)
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["groups"][f"codes-{CODEC}"]["codec"] = "another"
    (root / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="was written by codec 'another'"):
        feed.make_feed(speech_data(root), SPEECH, {"q": 8}, 0, 0)


def test_what_is_left_out_is_reported(corpus, caplog):
    with caplog.at_level("WARNING"):
        feed.make_feed(speech_data(corpus, buckets=[dict(b=2, t=280, p=64, u=40)]), SPEECH, {"q": 8}, 0, 0)
    with pytest.raises(ValueError, match="utterances of train .* fit no bucket.*add a longer bucket"):
        feed.make_feed(speech_data(corpus, buckets=[dict(b=2, t=60, p=12, u=40)]), SPEECH, {"q": 8}, 0, 0)
    longer = int(((Dataset.open(corpus).frames("train") > 280) | (Dataset.open(corpus).phones("train") > 64)).sum())
    assert longer > 0 and f"{longer} of 40 utterances of train" in caplog.text


def test_fingerprint_is_of_the_recordings(corpus, tmp_path):
    before = feed.fingerprint({"path": corpus})
    write_corpus(tmp_path / "same")
    write_corpus(tmp_path / "other", seed=1)
    assert feed.fingerprint({"path": tmp_path / "same"}) == before != feed.fingerprint({"path": tmp_path / "other"})


def test_dataset_by_position(corpus):
    dataset = Dataset.open(corpus)
    assert dataset.groups == ("align", "audio", f"codes-{CODEC}", "f0", "meta") and dataset.speakers["train"] == ["s0", "s1", "s2"]
    for i in (0, 13, 14, 39):
        meta, audio = dataset.read("train", "meta", i), dataset.read("train", "audio", i)
        assert meta["text"] == "É." and meta["num_samples"] == audio["num_samples"] == len(audio["audio"])
        assert dataset.frames("train")[i] == len(audio["audio"]) // 200
        assert dataset.phones("train")[i] == len(dataset.read("train", "align", i)["phones"])
        assert 0 <= dataset.frames("train", 320)[i] - len(audio["audio"]) // 320 <= 1
    with pytest.raises(IndexError):
        dataset.read("train", "meta", 40)
    with pytest.raises(ValueError, match="no group 'semantic'"):
        dataset.read("train", "semantic", 0)


def test_opening_what_is_no_data_set(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="not a manifest"):
        Dataset.open(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 9}')
    with pytest.raises(ValueError, match="format 9"):
        Dataset.open(tmp_path)


def test_feeding_is_not_a_burden_on_memory(corpus):
    """Grain buffers 500 elements unless told otherwise; ours are whole batches, so only a few may be made ahead."""
    source_reads = []
    original = feed.StepSource.__getitem__

    def counting(self, index):
        source_reads.append(index)
        return original(self, index)

    feed.StepSource.__getitem__ = counting
    try:
        iterator = feed.make_feed(crop_data(corpus), CROP, {}, 0, 0)
        next(iterator)
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(source_reads) <= 8
    finally:
        feed.StepSource.__getitem__ = original
