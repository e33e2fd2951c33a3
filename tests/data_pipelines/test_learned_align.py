"""The group `align` by a learned aligner: records that fit, pauses dropped, resumed and replaced, and what cannot be aligned is listed."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from configs import aligner as aligner_config
from data_pipelines import learned_align, shards, voice
from ns2_jax import inference
from ns2_jax.audio import files
from ns2_jax.data import feed, frames
from ns2_jax.data.dataset import Dataset
from ns2_jax.evaluate import job
from ns2_jax.inference import aligning
from ns2_jax.systems import system as systems
from ns2_jax.text import espeak, phones
from tests import tiny

TEXTS = ["go on", "we sing", "an old and heavy thing that nobody could ever say in so little time"]
SAMPLES = [9000, 12150, 4900]


def make_model(seed: int) -> inference.Model:
    config = json.loads(aligner_config.get_config("smoke").to_json())
    system = systems.make("aligner", config["model"])
    shapes = systems.shapes(system.fields, {"b": 1, "t": 8, "s": 1600, "p": 4})
    params, rest = jax.eval_shape(system.init, jax.random.key(0), shapes)
    rng = np.random.default_rng(seed)
    return inference.Model(system, jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype(np.float32), params), rest, config)


MODELS = {f"aligner{seed}": make_model(seed) for seed in (0, 1)}


@pytest.fixture
def model(monkeypatch):
    """An untrained aligner that takes every text for what was said; `aligner0` is its name."""
    monkeypatch.setattr(learned_align, "load", MODELS.__getitem__)
    monkeypatch.setattr(learned_align, "WORST", -100.0)
    monkeypatch.setattr(learned_align, "HURRIED", 1000)
    return MODELS["aligner0"]


@pytest.fixture
def data_set(tmp_path):
    """Three utterances of noise in one shard; the last has fewer frames than phones."""
    rng = np.random.default_rng(0)
    for group in ("meta", "audio"):
        with shards.ShardWriter(tmp_path, group, "train", 0, 1) as writer:
            for i, (text, n) in enumerate(zip(TEXTS, SAMPLES)):
                meta = {"utt_id": f"u{i}", "speaker": "s", "source": "noise", "voice": "v", "text": text, "text_norm": text}
                writer.write(meta if group == "meta" else {"audio": (3000 * rng.normal(size=n)).astype(np.int16)}, n)
    shards.write_manifest(tmp_path, name="noise", phones=phones.inventory_hash())
    return tmp_path


def rows(root) -> list[dict]:
    dataset = Dataset.open(root)
    return [dataset.read("train", "align", i) for i in range(3)]


def test_provisional_times_offer_pauses_and_add_up(data_set):
    assert learned_align.align(data_set) == {"in": 3}
    for row, n in zip(rows(data_set), SAMPLES):
        assert row["ends"][-1] == n and (np.diff(row["ends"], prepend=0) > 0).all() and np.ptp(np.diff(row["ends"], prepend=0)) <= 1
    assert phones.names(rows(data_set)[0]["phones"]) == ["sil", "g", "ow", "sil", "aa", "n", "sil"]


def test_provisional_times_are_for_aligners_alone(data_set):
    learned_align.align(data_set)
    made = lambda config, **fields: feed.make_feed(
        config.data, {name: systems.Field(axes, "int32") for name, axes in fields.items()}, {}, seed=0, start_step=0, epochs=1)
    config = aligner_config.get_config("smoke")
    config.data.path, config.data.buckets = str(data_set), (dict(b=1, t=64, p=64),)
    assert next(iter(made(config, phones="bp", frames="b", weight="b")))["phones"].any()
    with pytest.raises(ValueError, match="evenly spaced phone times.*make real ones: python -m data_pipelines.learned_align"):
        made(config, durations="bp", frames="b", weight="b")


def test_of_a_text_without_times_no_prompt_is_cut(data_set):
    """Where would it be cut? A speaker's only utterance stays whole and has no prompt."""
    with shards.ShardWriter(data_set, "meta", "train", 0, 1) as writer:
        for i, (text, n) in enumerate(zip(TEXTS, SAMPLES)):
            writer.write({"utt_id": f"u{i}", "speaker": f"s{min(i, 1)}", "source": "noise", "voice": "v", "text": text, "text_norm": text}, n)
    shards.write_manifest(data_set, name="noise", phones=phones.inventory_hash())
    learned_align.align(data_set)
    config = aligner_config.get_config("smoke")
    config.data.update(path=str(data_set), buckets=(dict(b=3, t=64, p=64, u=16),), transform="speaker_prompt")
    axes = {"audio": "bs", "phones": "bp", "frames": "b", "prompt_audio": "bv", "prompt_frames": "b", "weight": "b"}
    fields = {name: systems.Field(axis, "float32" if "audio" in name else "int32") for name, axis in axes.items()}
    batch = next(iter(feed.make_feed(config.data, fields, {}, seed=0, start_step=0, epochs=1)))
    alone = batch["frames"] == SAMPLES[0] // 200
    assert alone.sum() == 1 and batch["prompt_frames"][alone] == 0 and not batch["prompt_audio"][alone].any()
    assert (batch["prompt_frames"][~alone] == 16).all() and batch["weight"].all()
    np.testing.assert_array_equal((batch["phones"] > 0).sum(1)[alone], len(rows(data_set)[0]["phones"]))


def test_a_voice_keeps_what_its_times_are(data_set, tmp_path):
    """Of a corpus whose times are made up, so are those of one of its voices."""
    learned_align.align(data_set)
    with shards.ShardWriter(data_set, "f0", "train", 0, 1, info={"period": 160}) as writer:
        for n in SAMPLES:
            writer.write({"f0": np.zeros(n // 160, np.float16)}, n)
    shards.write_manifest(data_set, name="noise", phones=phones.inventory_hash(), f0_period=160)
    made = voice.build(data_set, "train", "s", 1, tmp_path / "voice")
    assert made["groups"]["align"]["aligner"] == "none" and made["groups"]["f0"]["period"] == 160


def test_times_of_an_aligner(data_set, model):
    learned_align.align(data_set)
    before = rows(data_set)
    assert learned_align.align(data_set, "aligner0") == {"in": 3, "too_few_frames": 1}
    found = rows(data_set)
    for old, new, n in zip(before[:2], found, SAMPLES):
        spoken = lambda row: [phone for phone in phones.names(row["phones"]) if phone != "sil"]
        assert spoken(old) == spoken(new) and new["ends"][-1] == n
        durations = frames.durations(new["ends"], n, 16000, 200)
        assert durations.sum() == n // 200 and (durations > 0).all()
        np.testing.assert_array_equal(new["ends"][:-1] % 200, 0)
    assert len(found[2]["phones"]) == len(found[2]["ends"]) == 0
    listed = [json.loads(line) for line in (data_set / "rejects" / "align" / "train-00000.jsonl").read_text().splitlines()]
    assert [(row["item"], row["reason"]) for row in listed] == [("u2", "too_few_frames")] and "24 frames" in listed[0]["detail"]
    assert Dataset.open(data_set).manifest["groups"]["align"]["aligner"] == inference.codec_hash(model)


def test_it_goes_on_where_it_stopped_and_another_aligner_replaces(data_set, model):
    learned_align.align(data_set, "aligner0")
    path = next((data_set / "align").glob("*.tfrecord"))
    once, when = path.read_bytes(), path.stat().st_mtime_ns
    learned_align.align(data_set, "aligner0")
    assert path.stat().st_mtime_ns == when
    learned_align.align(data_set, "aligner1")
    assert path.read_bytes() != once
    learned_align.align(data_set, "aligner0")
    assert path.read_bytes() == once


def test_a_lexicon_says_a_word_otherwise(data_set, tmp_path):
    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_text("go  B AH1 K\n")
    learned_align.align(data_set, lexicon=str(lexicon))
    assert phones.names(rows(data_set)[0]["phones"]) == ["sil", "b", "ah", "k", "sil", "aa", "n", "sil"]


def test_other_languages_are_phonemised_in_their_own():
    if not espeak.available():
        pytest.skip("needs espeak-ng")
    german, english = (phones.names(learned_align.offered("die Zeit", lang)) for lang in ("de", "en"))
    assert german != english and german[0] == german[-1] == "sil" and [name for name in german if name != "sil"][:2] == ["d", "/iː/"]


def test_a_text_that_was_not_said_is_listed(data_set, model, monkeypatch):
    monkeypatch.setattr(learned_align, "WORST", 1e9)
    assert learned_align.align(data_set, "aligner0") == {"in": 3, "align_failed": 2, "too_few_frames": 1}


def test_evaluation_compares_with_the_times_of_the_data_set(data_set, model):
    """The aligner against its own times, and against even ones."""
    run, values = inference.Model(model.system, model.params, model.rest, model.config, "runs/toy", 7), {}
    for name, times in (("own", "aligner0"), ("even", "")):
        learned_align.align(data_set, times)
        lines, items = job.score(job.Ask(data=str(data_set), split="train", limit=2, seed=1), "runs/toy", run, None)
        values[name] = {line["name"]: line["value"] for line in lines}
        assert len(items) == 2 and "score" in items[0]["boundaries"]["aligner"]
    assert values["own"] == {"boundary_median_aligner": 0.0, "boundary_within_20_aligner": 1.0, "boundary_within_50_aligner": 1.0}
    assert values["even"]["boundary_median_aligner"] > 10 and values["even"]["boundary_within_20_aligner"] < 1


def test_so_do_the_boundaries_of_a_speaker_whose_aligner_was_learned_on_the_way(data_set, model, tmp_path):
    learned_align.align(data_set, "")
    path = tiny.write_model("grad_stylespeech", tmp_path / "speaker", size="smoke,align")
    ask = job.Ask(data=str(data_set), split="train", limit=2, seed=1, evals=("boundaries",))
    lines, items = job.score(ask, path, inference.load(path), None)
    assert {line["name"] for line in lines} >= {"boundary_median_aligner", "boundary_within_20_aligner"} and len(items) == 2
    with pytest.raises(ValueError, match="--evals=word_error judges audio"):
        job.score(dataclasses.replace(ask, evals=("word_error",)), "runs/toy", model, None)
    with pytest.raises(ValueError, match="alone, of a model that aligns"):
        job.score(ask, "runs/toy", tiny.toy(rate=16000), None)


@pytest.mark.parametrize(("row", "longest"), [("", 0), ("0", 0), ("1", 1), ("0110111", 3), ("1101", 2), ("111", 3)])
def test_longest_run(row, longest):
    assert learned_align.longest_run(np.array([c == "1" for c in row], bool)) == longest


def test_a_text_that_says_more_than_the_recording_is_listed():
    """The published aligner on a recording cut short, on its text with another one behind it, and on what was said."""
    model, audio = inference.load("results/aligner/model"), files.read("tests/data_pipelines/sentence0.flac", 16000)
    said = json.loads(pathlib.Path("tests/data_pipelines/sentences.json").read_text())[0]["text"]
    rows = [(audio, said), (audio[: len(audio) * 6 // 10], said), (audio, f"{said} {said}"), (audio, "Nobody ever said such a thing here.")]
    found = learned_align.align_rows(model, [audio for audio, _ in rows], [learned_align.offered(text) for _, text in rows])
    assert [getattr(one, "reason", "") for one in found] == ["", "align_failed", "align_failed", "align_failed"]
    assert "says more than the recording" in str(found[1]) and "not what was said" in str(found[3])


def test_exact_times_are_not_lost(data_set):
    """Times that no aligner made are kept until their owner moves them."""
    with shards.ShardWriter(data_set, "align", "train", 0, 1) as writer:
        for n in SAMPLES:
            writer.write({"phones": np.ones(1, np.uint8), "ends": np.array([n], np.int32)}, n)
    shards.write_manifest(data_set)
    with pytest.raises(ValueError, match="move or delete that folder"):
        learned_align.align(data_set)


def test_a_row_has_the_times_that_it_has_alone(model):
    rng = np.random.default_rng(2)
    audios = [rng.normal(size=n).astype(np.float32) for n in (9000, 15000, 13300, 23999)]
    ids = [rng.integers(1, 40, n).astype(np.uint8) for n in (5, 12, 9, 20)]
    for one, audio, row in zip(aligning.align_all(model, audios, ids), audios, ids):
        alone = aligning.align(model, audio, row)
        np.testing.assert_array_equal(one.durations, alone.durations)
        np.testing.assert_array_equal(one.ends, alone.ends)
        assert one.durations.sum() == len(audio) // 200 and one.ends[-1] == len(audio)


def test_wrong_requests_are_explained(data_set, model):
    with pytest.raises(ValueError, match="phone ids from 0 to 3"):
        aligning.align(model, np.zeros(1600, np.float32), np.asarray([0, 3]))
    with pytest.raises(ValueError, match="0 whole frames"):
        aligning.align(model, np.zeros(160, np.float32), np.asarray([3]))
    other = inference.Model(model.system, model.params, model.rest, model.config)
    other.rate = 22050
    with pytest.raises(ValueError, match="works at 22050 Hz"):
        learned_align.check(Dataset.open(data_set), other)
    other.programs = {}
    with pytest.raises(ValueError, match="does not align"):
        aligning.align(other, np.zeros(1600, np.float32), np.asarray([3]))


def test_the_command_with_another_model(data_set):
    with pytest.raises(ValueError, match="results/codec/model does not align"):
        learned_align.align(data_set, "results/codec/model")
