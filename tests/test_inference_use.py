"""The model as a function: calls, streams, batches, threads, warm-up, and what is compiled for them."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import re
import threading

import jax
import numpy as np
import pytest
import tiny

from ns2_jax import inference
from ns2_jax.audio import files
from ns2_jax.inference import sentences
from ns2_jax.inference.model import Call
from ns2_jax.systems.system import Program
from ns2_jax.text import front
from ns2_jax.text.phones import IDS

VOICE = ((0.3 * np.sin(np.arange(2400) * 0.05)).astype(np.float32), 800)
TEXT = "The river was quiet this morning. Nobody walked along it. Yes. Where were the boats?"


@pytest.fixture(scope="module")
def model():
    return tiny.toy()


def test_a_call_is_speak_and_a_batch_is_many_of_them(model):
    one = model("Hello there.", prompt=VOICE, seed=3)
    np.testing.assert_array_equal(one.audio, model.speak("Hello there.", VOICE, 3).audio)
    both = model.batch([("Hello there.", VOICE), ("Good night.", VOICE)], seed=3, steps=2)
    np.testing.assert_array_equal(both[1].audio, model("Good night.", VOICE, 3, steps=2).audio)


@pytest.mark.parametrize("gain", [0.01, 1.0, 30.0])
def test_speech_is_as_loud_as_prompts_are_made(gain):
    """However softly or loudly a model speaks, in one piece or sentence by sentence."""
    model = tiny.toy(gain=gain, rate=16000)
    for speech in (model("Hello there.", VOICE), *model.stream(TEXT, VOICE)):
        level, peak = files.active_rms(speech.audio, 16000), np.abs(speech.audio).max()
        assert level == pytest.approx(files.LEVEL, rel=0.01) or (level < files.LEVEL and peak == pytest.approx(files.PEAK))


@pytest.mark.parametrize("options, message", [
    (dict(temperature=-1.0), "temperature=-1.0; expected 0 or more"), (dict(temperature="hot"), "temperature='hot'; expected a number"),
    (dict(temperature=float("nan")), "temperature=nan"), (dict(speed=[1]), r"speed=\[1\]"), (dict(window=3), "unknown option 'window'"),
    (dict(pitch_shift=[1]), r"pitch_shift=\[1\]"), (dict(lexicon={"there": 3}), "'there': 3 are no phones"), (dict(lexicon=["a"]), "this is list")])
def test_options_that_make_no_sense_are_named(model, options, message):
    with pytest.raises(ValueError, match=message):
        model("Hello there.", VOICE, **options)
    assert len(model("Hello there.", VOICE, pitch_shift=None).audio)


@pytest.mark.parametrize("name, value, message", [
    ("best_of", 1.5, "a whole number"), ("best_of", 0, "from 1 on"), ("top_p", -1.0, "from 0 to 1"), ("top_p", "hot", "a number"),
    ("steps", True, "a whole number"), ("cache", 1, "true or false"), ("trigger", 2, "text"), ("temperature", float("inf"), "a finite number"),
    ("chunk", -1, "0 (the whole)"), ("overlap", -2, "-1 (as far as it can hear)")])
def test_a_program_looks_at_its_options(name, value, message):
    """Whoever runs it: speaking, continuing, editing, converting."""
    defaults = {"best_of": 1, "top_p": 0.9, "steps": 3, "cache": True, "trigger": "alone", "temperature": 1.0, "k": None, "chunk": 0, "overlap": -1}
    program = Program(lambda *_, **__: {}, {}, {}, defaults)
    program.bind({}, **{**program.options, "top_p": np.float32(1), "steps": np.int64(3), "temperature": 0, "k": [1]})
    with pytest.raises(ValueError, match=re.escape(f"{name}={value!r}; expected ") + ".*" + re.escape(message)):
        program.bind({}, **{name: value})


def test_a_seed_is_a_whole_number_of_any_kind(model):
    """So that the one in the sidecar says the same again."""
    one = model("Hello there.", VOICE, seed=3)
    for seed in (np.int64(3), np.uint32(3), np.array(3)[()]):
        again = model("Hello there.", VOICE, seed=seed)
        np.testing.assert_array_equal(one.audio, again.audio)
        assert again.origin == one.origin and type(again.origin.seed) is int
    for seed in (3.0, 3.7, "3", None):
        with pytest.raises(ValueError, match=f"seed={seed!r}; expected a whole number"):
            model("Hello there.", VOICE, seed=seed)
        with pytest.raises(ValueError, match=f"seed={seed!r}"):
            model.stream("Hello there.", VOICE, seed)  # at once, not when it is read
    with pytest.raises(ValueError, match="2 seeds for 1 requests"):
        model.speak_batch([("Hello there.", VOICE)], [1, 2])


def test_the_result_carries_words_phones_and_pitch_in_seconds(model):
    speech = model("Hello, you.", VOICE)
    assert [word for word, _, _ in speech.word_times] == ["hello", "you"]
    for (word, begin, end), (same, first, last) in zip(speech.word_times, speech.words):
        assert word == same and begin == first / 800 and end == last / 800
    phones = speech.phone_times
    assert [phone for phone, _, _ in phones] == list(speech.phones) and phones[0][1] == 0 and phones[-1][2] == pytest.approx(speech.seconds)
    assert all(a[2] == b[1] for a, b in itertools.pairwise(phones))
    assert speech.rate == 800 and len(speech.f0) * speech.hop == len(speech.audio)


def test_sentences_keep_every_word_and_short_ones_go_with_the_next():
    parts = sentences.scores(TEXT)
    assert [" ".join(word.text for word in part.words if word.phones != inference.PAUSE) for part in parts] == [
        "the river was quiet this morning", "nobody walked along it", "yes where were the boats"]
    assert all(part.phones[0] == part.phones[-1] == "sil" for part in parts)
    (all_in_one,) = sentences.scores("Hello there, you over there")
    assert all_in_one.phones.count("sil") == 3
    assert [len(sentences.scores(text)) for text in ("Go.", "Go. Go.", "Go on to the next station. Go.", "Dr. Smith paid 3.50 at once.")] == [1] * 4


def test_a_stream_gives_each_sentence_as_it_is_alone(model):
    parts = list(model.stream(TEXT, VOICE, seed=5))
    assert len(parts) == 3
    np.testing.assert_array_equal(parts[0].audio, model("The river was quiet this morning.", VOICE, 5).audio)
    np.testing.assert_array_equal(parts[1].audio, model("Nobody walked along it.", VOICE, 6).audio)
    whole = inference.joined(parts)
    assert len(whole.audio) == sum(len(part.audio) for part in parts) and whole.ends[-1] == len(whole.audio)
    assert [word for word, _, _ in whole.words][:2] == ["the", "river"] and len(whole.score.phones) == len(whole.phones)
    (again,) = [words for words in [whole.words] if all(a[2] <= b[1] for a, b in itertools.pairwise(words))]
    assert again[len(parts[0].words)][1] >= len(parts[0].audio)
    other = dataclasses.replace(parts[0], rate=16000)
    for wrong in ([], [parts[0], other]):
        with pytest.raises(ValueError, match="can't be joined"):
            inference.joined(wrong)


def test_a_stream_speaks_no_further_than_it_is_read_and_refuses_at_once(model, monkeypatch):
    said = []
    monkeypatch.setattr(model, "speak", lambda part, voice, seed: said.append(part))
    stream = model.stream(TEXT, VOICE)
    assert not said
    next(stream)
    assert len(said) == 1
    for text, prompt in (("", VOICE), ("Hello there.", (np.zeros(800, np.float32), 800))):
        with pytest.raises(ValueError):
            model.stream(text, prompt)
    for options, message in (({"steps": 0}, "steps=0; expected"), ({"bogus": 1}, "unknown option 'bogus'")):
        with pytest.raises(ValueError, match=message):
            model.stream(TEXT, VOICE, **options)


def test_a_voice_is_heard_once_and_named(model):
    heard = model.hear([VOICE, VOICE])
    assert len(heard.digests) == 2 and heard.digests[0] == heard.digests[1] and len(heard.digests[0]) == 64
    assert "3.00 s at 800 Hz" in heard.notes[0] and "dB" in heard.notes[0]
    assert model.hear(heard) is heard
    np.testing.assert_array_equal(model.prompt([VOICE, VOICE]), heard.codes)
    np.testing.assert_array_equal(model("Hello there.", heard).audio, model("Hello there.", [VOICE, VOICE]).audio)


@pytest.mark.parametrize("prompt, message", [
    (5, "a int is no prompt"), (b"voice.wav", "a bytes is no prompt"), ([VOICE[0], 800], "a ndarray is no prompt"), (VOICE[0], "a ndarray is no"),
    ((VOICE[0], 0), "sample rate 0 Hz"), ((VOICE[0], -8), "sample rate -8 Hz"), ((VOICE[0], float("nan")), "sample rate nan Hz"),
    ((np.stack([VOICE[0]] * 2), 800), "transpose it"), ([], "no prompt is given")])
def test_what_is_no_prompt_is_said(model, prompt, message):
    with pytest.raises(files.AudioError, match=message):
        model("Hello there.", prompt)


def test_samples_may_be_of_any_kind(model):
    wave, expected = np.round(VOICE[0] * 100) / 128, None
    for samples in (wave.astype(np.float32), wave.tolist(), jax.numpy.asarray(wave), (wave * 128 + 128).astype(np.uint8),
                    (wave * 128).astype(np.int8), np.stack([wave, wave], 1)):
        codes = model.hear((samples, 800)).codes
        expected = codes if expected is None else expected
        np.testing.assert_array_equal(codes, expected)


@pytest.mark.parametrize("options", [
    {"speed": -1.0}, {"speed": 0}, {"speed": float("nan")}, {"speed": "fast"}, {"speed": float("inf")}, {"steps": 0}, {"steps": 2.5}, {"steps": "x"},
    {"steps": [1]}])
def test_options_that_make_no_sense_are_refused(model, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}=.*expected a"):
        model("Hello there.", VOICE, **options)


def test_threads_share_a_model_and_get_what_each_would_alone():
    model, texts = tiny.toy(), [f"Number {n} is here." for n in range(12)]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda k: model(texts[k], VOICE, seed=k), range(12)))
    for k, speech in enumerate(together):
        np.testing.assert_array_equal(speech.audio, model(texts[k], VOICE, k).audio)


def test_many_threads_compile_once():
    running, at_once, order = threading.Barrier(4), [], []

    def slow(x):
        order.append(("in", x))
        at_once.append(sum(1 for what, _ in order if what == "in") - sum(1 for what, _ in order if what == "out"))
        threading.Event().wait(0.02)
        order.append(("out", x))
        return x

    call = Call(slow)

    def ask(x):
        running.wait()
        return call(x)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(ask, range(4))) == [0, 1, 2, 3]
    assert at_once[0] == 1 and order[1][0] == "out"  # nobody came in before the first was out


def test_a_warm_up_compiles_all_that_speaking_needs():
    model = tiny.toy()
    made = model.warm_up(rows=(1, 2))
    assert [(bucket, rows) for bucket, rows, _ in made] == [(0, 1), (0, 2), (1, 1), (1, 2)] and all(seconds > 0 for *_, seconds in made)
    before = {tag for tag in model._compiled if tag[0] in ("durations", "contour", "sample")}
    sizes = {dict(pair for pair in tag[2:] if isinstance(pair, tuple)).get("p") for tag in before}
    assert sizes == {bucket["p"] for bucket in model.buckets}
    model.batch([("Hello there.", VOICE), ("The river was quiet this morning.", VOICE)])
    model("Yes.", VOICE)
    usual = [2 + IDS[phone] % 3 for phone in front.phonemise("Yes.")]
    for speed in (0.5, 1.3, 2):
        assert model("Yes.", VOICE, speed=speed).ends[-1] == 4 * sum(max(round(n / speed), 1) for n in usual)
    assert {tag for tag in model._compiled if tag[0] in ("durations", "contour", "sample")} == before
    with pytest.raises(ValueError, match="does not speak"):
        sentences.warm_up(type("Mute", (), {"speaks": False, "name": "it", "programs": {}})(), (1,), None, {})


def test_what_a_program_compiles_is_kept_unless_it_says_where(tmp_path, monkeypatch):
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before, path = {name: getattr(jax.config, name) for name in names}, tiny.write_model("codec", tmp_path)
    try:
        for variable, chosen, kept in (("off", None, None), ("here", None, "here"), ("here", "there", "there")):
            monkeypatch.setenv("NS2_JAX_CACHE", variable)
            jax.config.update("jax_compilation_cache_dir", chosen)
            inference.load(path)
            assert jax.config.jax_compilation_cache_dir == kept
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def test_an_export_brings_its_lexicon_and_the_users_wins(model, monkeypatch):
    monkeypatch.setattr(model, "lexicon", {"gif": ("jh", "ih", "f"), "ns": ("eh", "n")})
    assert model("A gif.", VOICE).phones[2:5] == ("jh", "ih", "f")
    assert model("A gif.", VOICE, lexicon={"gif": "g ih f"}).phones[2:5] == ("g", "ih", "f")
    assert next(model.stream("A gif is here now.", VOICE)).phones[2:5] == ("jh", "ih", "f")
