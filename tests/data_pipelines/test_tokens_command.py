"""Semantic tokens of a data set: those of the program, under the tokenizer's name, and read at the frames of a codec."""

from __future__ import annotations

import numpy as np
import pytest
import tiny

from data_pipelines import token_check, tokens, verify
from ns2_jax import inference
from ns2_jax.data import feed, frames
from ns2_jax.data.dataset import Dataset
from tests.data import noise_corpus

FIELDS = {"codes": noise_corpus.Field("btq", "uint16"), "semantic": noise_corpus.Field("bt", "int32"), "frames": noise_corpus.Field("b", "int32"),
          "phones": noise_corpus.Field("bp", "int32")}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return inference.load(tiny.write_model("semantic", tmp_path_factory.mktemp("tokenizer"), size="smoke,kmeans"))


@pytest.fixture(scope="module")
def data_set(tmp_path_factory, model):
    root = tmp_path_factory.mktemp("data")
    noise_corpus.write_corpus(root, utterances=6, shard_count=1)
    assert tokens.tokenise(root, model, batch_seconds=8) == f"semantic-{inference.codec_hash(model)}"
    return root


def test_tokens_are_the_programs_and_a_second_run_writes_nothing(data_set, model):
    dataset = Dataset.open(data_set)
    (group,) = (group for group in dataset.groups if group.startswith("semantic-"))
    about = dataset.manifest["groups"][group]
    assert (about["hop"], about["tokens"], f"semantic-{about['tokenizer']}") == (640, 16, group)
    for i in range(2):
        audio = dataset.read("valid", "audio", i)["audio"].astype(np.float32) / 32768
        n = len(audio) // 640
        row = {"audio": np.pad(audio[: n * 640], (0, (110 - n) * 640)), "frames": n}
        (alone,) = model.run("tokenise", [row], sizes={"s": 110 * 640, "t": 110})
        np.testing.assert_array_equal(dataset.read("valid", group, i)["tokens"], alone["tokens"][:n])
    before = {path: path.stat().st_mtime_ns for path in (data_set / group).iterdir()}
    tokens.tokenise(data_set, model, batch_seconds=8)
    assert {path: path.stat().st_mtime_ns for path in (data_set / group).iterdir()} == before


def test_the_stage_of_run_writes_the_same(data_set, model):
    root, (group,) = str(data_set), [group for group in Dataset.open(data_set).groups if group.startswith("semantic-")]
    kept = {path.name: path.read_bytes() for path in (data_set / group).glob("train-*.tfrecord")}
    for path in (data_set / group).glob("train-*"):
        path.unlink()
    assert tokens.tokens_shard(root, (model.path, 8.0), "train", 0, 1) == 6
    assert {path.name: path.read_bytes() for path in (data_set / group).glob("train-*.tfrecord")} == kept


def test_a_feed_holds_each_token_at_the_centres_of_its_frames(data_set):
    data = dict(path=data_set, split="train", transform="whole", buckets=[dict(b=2, t=320, p=48)], sample_rate=16000, hop=200,
                codes=noise_corpus.CODEC, workers=0)
    batch = next(feed.make_feed(data, FIELDS, {"q": 4}, 0, 0))
    dataset = Dataset.open(data_set)
    group = feed.tokens_group(data, dataset)
    stored = [dataset.read("train", group, i)["tokens"] for i in range(dataset.records("train"))]
    for row, n in zip(batch["semantic"], batch["frames"]):
        wanted = [[own[min(int((t + 0.5) * 200 / 640), len(own) - 1)] for t in range(n)] for own in stored]
        assert row[:n].tolist() in wanted and (row[n:] == 0).all()
    with pytest.raises(ValueError, match="no group 'semantic-000000000000'.*data_pipelines.tokens"):
        next(feed.make_feed(data | {"tokenizer": "0" * 12}, FIELDS, {"q": 4}, 0, 0))


def test_tokens_at_frames_are_those_of_the_fact_sheet():
    """floor((t + 0.5) f_semantic / f_codec), clipped; at half the rate each is said twice."""
    assert frames.tokens_at_frames(np.arange(3), 640, 320, 7).tolist() == [0, 0, 1, 1, 2, 2, 2]
    t = np.arange(1000)
    np.testing.assert_array_equal(frames.tokens_at_frames(np.arange(320), 640, 200, 1000), np.minimum((t + 0.5) * 25 / 80, 319).astype(int))


def test_what_tokens_know_of_phones_and_speakers():
    rng = np.random.default_rng(0)
    phones = rng.integers(0, 8, 4000)
    assert token_check.agreement(phones, (phones + 3) % 8) == pytest.approx({"phone_purity": 1.0, "token_purity": 1.0, "pnmi": 1.0})
    nothing = token_check.agreement(phones, rng.integers(0, 8, 4000))
    assert nothing["pnmi"] < 0.02 and nothing["phone_purity"] < 0.2
    pairs = token_check.agreement(phones, phones // 2)  # two phones of each token
    assert pairs["pnmi"] == pytest.approx(2 / 3, abs=0.01) and pairs["phone_purity"] == pytest.approx(0.5, abs=0.03)
    speakers = [f"s{i % 4}" for i in range(40)]
    own = [rng.integers(4 * (i % 4), 4 * (i % 4) + 4, 50) for i in range(40)]
    assert token_check.speaker_probe(own, speakers, 16) == {"speaker": 1.0, "chance": 0.25}
    assert token_check.speaker_probe([rng.integers(0, 16, 50) for _ in range(40)], speakers, 16)["speaker"] < 0.6


def test_a_check_compares_with_mfccs(data_set):
    dataset = Dataset.open(data_set)
    (group,) = (group for group in dataset.groups if group.startswith("semantic-"))
    found = token_check.check(dataset, group, "valid", 16, 640)
    assert set(found) == {"tokens", "MFCC k-means"} and all(0 <= found[name]["pnmi"] <= 1 and found[name]["phone_purity"] > 0 for name in found)


def test_verify_counts_tokens():
    marker = {"info": {"hop": 640}}
    wrong = lambda n: verify._invariants("semantic-0", {"tokens": np.zeros(n, np.uint16), "num_samples": 6400}, marker)
    assert not wrong(10) and "9 tokens for 6400 samples" in wrong(9)


def test_a_model_that_makes_no_tokens_is_refused(data_set, tmp_path):
    with pytest.raises(ValueError, match="makes no tokens"):
        tokens.tokenise(data_set, inference.load(tiny.write_model("semantic", tmp_path)))
