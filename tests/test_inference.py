"""Speaking with a toy whose output is known in advance, and with an untrained NaturalSpeech 2."""

from __future__ import annotations

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import soundfile
import tiny
from hypothesis import given
from hypothesis import strategies as st

from ns2_jax import inference
from ns2_jax.audio import files
from ns2_jax.inference import provenance, revoicing
from ns2_jax.inference import speech as speaking
from ns2_jax.runtime import mesh as meshes
from ns2_jax.text import front
from ns2_jax.text.phones import IDS

LONG = ("The sun came up over the hills, and the birds began to sing. She walked to the market with her brother; they bought "
        "bread, apples and a little fish. In the evening it rained!")
VOICE = (np.sin(np.arange(400)).astype(np.float32), 800)


@pytest.fixture(scope="module")
def toy():
    return tiny.toy()


@pytest.fixture(scope="module")
def ns2(tmp_path_factory):
    return inference.load(tiny.write_model("naturalspeech2", tmp_path_factory.mktemp("ns2")))


def expected_durations(phones):
    return [2 + IDS[phone] % 3 for phone in phones]


# Lengths and halves.


@given(st.integers(1, 100_000))
def test_ladder_holds_and_wastes_at_most_half(frames):
    size = inference.ladder(frames)
    assert size >= frames and (size == 64 or size < 1.5 * frames + 1)


def test_ladder_has_few_rungs():
    assert sorted({inference.ladder(n) for n in range(1, 1025)}) == [64, 96, 128, 192, 256, 384, 512, 768, 1024]


def spoken(words):
    return [word.text for word in words if word.phones != inference.PAUSE]


@pytest.mark.parametrize("text,first,second", [
    ("One two three. Four, five six seven eight.", "one two three", "four five six seven eight"),  # a sentence end before a comma
    ("One. Two three four. Five six.", "one two three four", "five six"),  # the sentence end nearest to the middle
    ("One, two three four, five.", "one two three four", "five"),
    ("One two three four.", "one two", "three four"),
])
def test_split_prefers_sentences_then_pauses_then_words(text, first, second):
    halves = inference.split(front.words(text))
    assert [" ".join(spoken(half)) for half in halves] == [first, second]
    for half in halves:
        assert half[0].phones == half[-1].phones == inference.PAUSE


def test_one_word_is_not_split():
    with pytest.raises(ValueError, match="'incomprehensibilities' is one word"):
        inference.split(front.words("Incomprehensibilities."))


# Speaking.


def test_times_are_those_of_the_predicted_durations(toy):
    speech = toy.speak("Hello, you!", VOICE)
    assert list(speech.phones) == front.phonemise("Hello, you!")
    frames = expected_durations(speech.phones)
    np.testing.assert_array_equal(speech.ends, np.cumsum(frames) * 4)
    assert len(speech.audio) == speech.ends[-1] == sum(frames) * 4 and len(speech.f0) == sum(frames)
    assert speech.rate == 800 and speech.seconds == sum(frames) * 4 / 800
    assert [word for word, _, _ in speech.words] == ["hello", "you"]
    starts = [0, *speech.ends]
    assert speech.words[0][1:] == (starts[1], starts[5]) and speech.words[1][1:] == (starts[6], starts[8])
    # The audio hums at the level of each phone, all scaled alike: sample in the middle of every one.
    middles = speech.audio[(np.array(starts[:-1]) + speech.ends) // 2]
    wanted = np.array([IDS[phone] / 100 + toy.prompt(VOICE).mean() / 1000 for phone in speech.phones])
    np.testing.assert_allclose(middles, wanted * (middles @ wanted) / (wanted @ wanted), atol=0.005)


def test_long_text_is_spoken_whole_in_pieces(toy):
    speech = toy.speak(LONG, VOICE)
    assert len(speech.pieces) > 2
    silent = lambda phones: [phone for phone in phones if phone != "sil"]
    assert silent(speech.phones) == silent(front.phonemise(LONG))
    assert [word for word, _, _ in speech.words] == spoken(front.words(LONG))
    assert " ".join(speech.pieces).replace(",", "").split()[:4] == ["the", "sun", "came", "up"]
    np.testing.assert_array_equal(speech.ends, np.cumsum(expected_durations(speech.phones)) * 4)
    assert len(speech.audio) == speech.ends[-1]
    assert all(begin < end for _, begin, end in speech.words)
    assert [b for _, b, _ in speech.words] == sorted(b for _, b, _ in speech.words)


def joint(levels, gaps=((0, 0), (0, 0)), frames=(3, 4)):
    """Two pieces at constant levels, "a" and "b" between silences, as one speech of the toy: 4 samples a frame, faded over 4 samples."""
    pieces = []
    for word, level, gap, last in zip("ab", levels, gaps, frames):
        words = [front.Word("", inference.PAUSE), front.Word(word, ("aa",)), front.Word("", inference.PAUSE)]
        durations = np.array([2, 3, last])
        made = {"audio": np.full(200, level, np.float32)}  # of the whole bucket: what follows the piece is nobody's
        made["audio"][4 * durations.sum() :] = 99.0
        pieces.append(speaking.Piece(0, words, 0, np.zeros((0, 2), np.int32), gap=gap, durations=durations, f0=np.full(durations.sum(), level), out=made))
    return speaking.join(tiny.toy(), pieces)


def test_pieces_are_cross_faded_where_they_meet():
    made, end = joint((0.2, 0.6)), 4 * 8
    rise = np.sin(np.pi / 4 * (np.arange(8) + 0.5) / 4) ** 2  # over 5 ms on either side of the joint
    np.testing.assert_allclose(made.audio[end - 4 : end + 4], 0.2 + 0.4 * rise, atol=1e-6)
    np.testing.assert_array_equal(made.audio[: end - 4], np.float32(0.2))
    np.testing.assert_array_equal(made.audio[end + 4 :], np.float32(0.6))
    np.testing.assert_allclose(joint((1.0, 1.0)).audio, 1.0, atol=1e-6)  # no dip: the gains are 1 in sum
    for one, where in (((1.0, 0.0), np.s_[:]), ((0.0, 1.0), np.s_[::-1])):  # each goes on past the joint
        np.testing.assert_allclose(joint(one).audio[end - 4 : end + 4][where], 1 - rise, atol=1e-6)
    left, right = np.arange(9.0, dtype=np.float32), 20 + np.arange(7.0, dtype=np.float32)
    one, two = speaking.joints([left, right], [False], 2)
    rise = np.sin(np.pi / 4 * (np.arange(4) + 0.5) / 2) ** 2
    np.testing.assert_allclose(np.concatenate([one[-2:], two[:2]]), (1 - rise) * [7, 8, 8, 7] + rise * [21, 20, 20, 21], rtol=1e-6)
    assert left[-1] == 8  # what was given is what it was


def test_pieces_fade_into_a_rest_between_them():
    made, end = joint((0.2, 0.6), gaps=((0, 5), (0, 0))), 4 * 8
    np.testing.assert_array_equal(made.audio[end : end + 20], 0.0)
    out, into = made.audio[end - 4 : end], made.audio[end + 20 : end + 24]
    assert (np.diff(out) < 0).all() and (np.diff(into) > 0).all() and out[-1] < 0.03 and into[0] < 0.06
    np.testing.assert_allclose(into / 0.6, out[::-1] / 0.2, rtol=1e-5)


def test_a_joint_moves_nothing():
    """Lengths, ends of phones, words and pitch are those of the pieces one after the other."""
    for gap in (0, 5):
        made = joint((0.2, 0.6), gaps=((0, gap), (0, 0)))
        np.testing.assert_array_equal(made.ends, 4 * np.cumsum([2, 3, 3 + gap, 2, 3, 4]))
        begin = 4 * (8 + gap)
        assert made.words == (("a", 8, 20), ("b", begin + 8, begin + 20)) and len(made.audio) == begin + 36 == 4 * len(made.f0)
        assert made.score.seconds == pytest.approx([n / 200 for n in (2, 3, 3 + gap, 2, 3, 4)])
        np.testing.assert_allclose(made.f0, np.repeat([0.2, 0, 0.6], [8, gap, 9]), rtol=1e-6)


def test_total_over_the_largest_bucket_is_split_even_if_the_phones_fit():
    model = tiny.toy(buckets=(dict(b=1, t=30, p=100, u=10),))
    speech = model.speak("One two three four five six.", VOICE)
    assert len(speech.pieces) > 1 and [w for w, _, _ in speech.words] == "one two three four five six".split()


def test_a_word_over_the_largest_bucket_is_refused():
    model = tiny.toy(buckets=(dict(b=1, t=20, p=100, u=10),))
    with pytest.raises(ValueError, match=r"'incomprehensibilities'.*largest bucket.*20 frames"):
        model.speak("Incomprehensibilities.", VOICE)


def test_smallest_bucket_that_holds_is_taken(toy):
    seen = []
    run = toy.run

    def watched(name, rows, keys=None, sizes=None, **options):
        seen.append((name, sizes.get("t")))
        return run(name, rows, keys, sizes, **options)

    toy.run = watched
    try:
        toy.speak_batch([("Hello.", (VOICE[0], 800))])
        toy.speak_batch([("The sun came up over the hills now.", (VOICE[0], 800))])
    finally:
        del toy.run
    assert [t for name, t in seen if name == "sample"] == [60, 140]


def test_same_seed_same_samples_alone_and_in_a_batch(toy):
    alone = toy.speak("Hello, you!", VOICE, seed=5)
    np.testing.assert_array_equal(alone.audio, toy.speak("Hello, you!", VOICE, seed=5).audio)
    assert np.abs(alone.audio - toy.speak("Hello, you!", VOICE, seed=6).audio).max() > 1e-4
    batch = toy.speak_batch([(LONG, VOICE), ("Hello, you!", VOICE), ("Yes.", VOICE)], [1, 5, 2])
    np.testing.assert_allclose(batch[1].audio, alone.audio, atol=1e-7)
    assert [speech.words[0][0] for speech in batch] == ["the", "hello", "yes"]


def test_more_requests_than_rows_stay_in_order(toy):
    numbers = "one two three four five six seven eight nine ten eleven".split()
    batch = toy.speak_batch([(number, VOICE) for number in numbers])
    assert [speech.words[0][0] for speech in batch] == numbers


def test_options_go_to_their_programs(toy):
    plain = toy.speak("Hello, you!", VOICE)
    assert len(toy.speak("Hello, you!", VOICE, speed=0.5).audio) > 1.8 * len(plain.audio)
    quiet = toy.speak("Hello, you!", VOICE, temperature=0.0)
    np.testing.assert_array_equal(quiet.audio, toy.speak("Hello, you!", VOICE, seed=9, temperature=0.0).audio)
    with pytest.raises(ValueError, match="unknown option 'colour'"):
        toy.speak("Hello", VOICE, colour="red")


def test_lexicon_wins(toy):
    assert list(toy.speak("Tomato.", VOICE, lexicon={"tomato": "t ow"}).phones) == ["sil", "t", "ow", "sil"]


@pytest.mark.parametrize("text,prompt,message", [
    ("", VOICE, "empty"),
    ("...", VOICE, "pronounce"),
    ("Hello", (np.zeros(800, np.float32), 800), "silent"),
    ("Hello", (np.full(800, np.nan, np.float32), 800), "NaN"),
    ("Hello", (np.zeros(0, np.float32), 800), "no audio"),
    ("Hello", (np.ones(20, np.float32), 800), "at least"),
    ("Hello", "nowhere.wav", "no such audio file"),
])
def test_bad_input_is_refused_or_left_out(toy, text, prompt, message):
    with pytest.raises(ValueError, match=message):
        toy.speak(text, prompt)
    if text:
        good = ("Hello, you!", VOICE)
        failures: dict[int, str] = {}
        made = toy.speak_batch([good, (text, prompt), good], [1, 2, 3], failures=failures)
        assert list(failures) == [1] and message in failures[1]
        assert made[1] is None and made[0] is not None and made[2] is not None


def test_a_recording_that_is_too_long_is_refused_before_it_is_hashed(toy, tmp_path, monkeypatch):
    """Its header says so; of gigabytes the hash takes a minute."""
    path = str(tmp_path / "long.wav")
    soundfile.write(path, np.zeros(1801 * 800, np.int16), 800)
    monkeypatch.setattr(provenance, "digest", lambda voice: pytest.fail("it was hashed"))
    monkeypatch.setattr(revoicing.chain, "tokens_alone", lambda model: True)
    for use in (lambda: toy.hear(path), lambda: inference.edit(toy, None, path, "A.", "B."), lambda: inference.go_on(toy, None, path, "A.", "B."),
                lambda: revoicing.revoice(toy, SimpleNamespace(programs=["tokenise"]), path, None)):
        with pytest.raises(ValueError, match="1801 s long, at most"):
            use()


def test_nan_from_a_model_is_not_given_out():
    with pytest.raises(ValueError, match="NaN"):
        tiny.toy(gain=float("nan")).speak("Hello", VOICE)


def test_prompt_from_a_file_at_another_rate_is_the_prompt_from_samples(toy, tmp_path):
    rng = np.random.default_rng(0)
    audio = files.resample(rng.normal(0, 0.1, 4000).astype(np.float32), 4000, 16000)
    files.write(tmp_path / "a.wav", audio, 16000)
    from_file, from_samples = toy.prompt(str(tmp_path / "a.wav")), toy.prompt((audio, 16000))
    assert from_file.shape == (50, 2)  # 200 frames, cut to the longest prompt bucket
    assert np.abs(from_file - from_samples).max() <= 1
    short = toy.prompt((audio[:8000], 16000))  # half a second: 100 frames, cut too; a quarter: 50
    np.testing.assert_allclose(short.shape, (50, 2))
    assert toy.prompt((audio[:2400], 16000)).shape == (30, 2)


def test_the_level_of_a_prompt_does_not_matter(toy):
    np.testing.assert_array_equal(toy.prompt(VOICE), toy.prompt((VOICE[0] * np.float32(0.02), 800)))


# Codes.


@pytest.mark.parametrize("samples", [4, 7, 256, 257, 1001])
def test_codes_have_a_row_for_every_whole_frame(toy, samples):
    audio = np.linspace(0.1, 0.9, samples).astype(np.float32)
    codes = toy.encode(audio)
    assert codes.shape == (samples // 4, 2)
    np.testing.assert_array_equal(codes[:, 0], np.round(audio[: samples // 4 * 4].reshape(-1, 4).mean(1) * 100))
    decoded = toy.decode(codes)
    assert decoded.shape == (samples // 4 * 4,) and np.abs(decoded - audio[: len(decoded)]).max() < 0.5


def test_codes_of_nothing_are_refused(toy):
    with pytest.raises(ValueError, match="shorter than one frame"):
        toy.encode(np.ones(3, np.float32))
    with pytest.raises(ValueError, match="no codes"):
        toy.decode(np.zeros((0, 2), np.int32))
    with pytest.raises(ValueError, match="has no program 'decode_latents'"):
        toy.decode_latents(np.zeros((5, 1), np.float32))


def test_a_codec_does_not_speak(tmp_path):
    codec = inference.load(tiny.write_model("codec", tmp_path))
    assert not codec.speaks
    with pytest.raises(ValueError, match="'codec'.*does not speak"):
        codec.speak("Hello", str(tiny.SPEECH))
    audio = files.read(tiny.SPEECH, 16000)
    codes, latents = codec.encode(audio), codec.latents(audio)
    assert codes.shape == (len(audio) // 200, 4) and latents.shape == (len(audio) // 200, 16)
    assert codec.decode(codes).shape == codec.decode_latents(latents).shape == (len(audio) // 200 * 200,)
    assert np.abs(codec.decode(codes, levels=1) - codec.decode(codes)).max() > 1e-4
    with pytest.raises(ValueError, match="codes of .* levels at once"):
        codec.decode_all([codes, codes[:, :1]])
    assert len(codec.decode_all([codes, codes[:, :1]], levels=1)) == 2
    for audio in (np.zeros((3000, 2), np.float32), np.float32(0.1)):
        with pytest.raises(files.AudioError, match="of one channel"):
            codec.encode(audio)


# NaturalSpeech 2, untrained.


def test_ns2_listens_to_long_prompts_and_to_several(ns2):
    """Up to 30 s, in windows; a prompt that fits is heard as in training, alone and beside a long one."""
    audio = np.concatenate([files.read(tiny.SPEECH, 16000)] * 3)
    limit, heard = ns2.longest_prompt, int(30 * 80)
    assert len(ns2.prompt((audio, 16000))) > limit and len(ns2.prompt((np.tile(audio, 9), 16000))) == heard
    first, second = (audio[:24000], 16000), (audio[30000:60000], 16000)
    both = ns2.prompt([first, second])
    np.testing.assert_array_equal(both, np.concatenate([ns2.prompt(first), ns2.prompt(second)]))
    short = (audio[:4000], 16000)
    assert len(ns2.prompt(short)) <= limit
    requests = [("Yes.", short), ("Yes.", (audio, 16000)), ("Yes.", [first, second])]
    made = ns2.speak_batch(requests, 3, steps=2)
    np.testing.assert_allclose(made[0].audio, ns2.speak("Yes.", short, seed=3, steps=2).audio, atol=1e-5)
    length = min(len(speech.audio) for speech in made)
    assert np.abs(made[0].audio[:length] - made[1].audio[:length]).max() > 1e-4
    with pytest.raises(ValueError, match="no prompt is given"):
        ns2.speak("Yes.", [])


def test_ns2_speaks_the_same_alone_and_in_a_batch(ns2):
    alone = ns2.speak("Hello, you.", str(tiny.SPEECH), seed=3, steps=2)
    assert np.isfinite(alone.audio).all() and len(alone.audio) == alone.ends[-1] and np.abs(alone.audio).max() > 0
    assert [word for word, _, _ in alone.words] == ["hello", "you"]
    batch = ns2.speak_batch([("Yes.", str(tiny.SPEECH)), ("Hello, you.", str(tiny.SPEECH))], [1, 3], steps=2)
    np.testing.assert_allclose(batch[1].audio, alone.audio, atol=1e-4)
    assert np.abs(ns2.speak("Hello, you.", str(tiny.SPEECH), seed=4, steps=2).audio - alone.audio).max() > 1e-4


def test_rows_are_the_same_on_one_device_and_on_eight(ns2):
    requests = [(text, str(tiny.SPEECH)) for text in ("A quiet morning.", "Two old friends met.", "Yes.")]
    several = ns2.speak_batch(requests, 7, steps=2)
    assert ns2._mesh.size == 8
    one_device = inference.Model(ns2.system, ns2.params, ns2.rest, ns2.config, mesh=meshes.local_mesh({"data": 1}))
    alone = one_device.speak_batch(requests, 7, steps=2)
    for one, other in zip(alone, several):
        assert one.phones == other.phones and np.array_equal(one.ends, other.ends)
        assert np.allclose(one.audio, other.audio, atol=2e-4)


def test_ns2_hears_its_prompt(ns2):
    audio = files.read(tiny.SPEECH, 16000)
    a, b = (ns2.speak("Hello.", (part, 16000), steps=2).audio for part in (audio[:24000], audio[40000:64000]))
    assert len(a) != len(b) or np.abs(a - b).max() > 1e-5


# Loading and writing.


def test_load_refuses_what_is_no_model(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        inference.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="config.json"):
        inference.load(tmp_path)


def test_load_refuses_another_phone_inventory(tmp_path):
    folder = tiny.write_model("naturalspeech2", tmp_path)
    (tmp_path / "phones.json").write_text(json.dumps({"phones": ["_", "sil", "other"], "hash": "x"}))
    with pytest.raises(ValueError, match="inventory"):
        inference.load(folder)


def test_write_scales_down_what_is_too_loud(tmp_path):
    sound = np.linspace(-4, 2, 16000).astype(np.float32)
    inference.write(tmp_path / "a.wav", (sound, 16000))
    audio = files.read(tmp_path / "a.wav", 16000)
    np.testing.assert_allclose(audio, sound * files.PEAK / 4, atol=1e-4)
    inference.write(tmp_path / "b.flac", (sound / 8, 16000))
    np.testing.assert_allclose(files.read(tmp_path / "b.flac", 16000), sound / 8, atol=1e-4)


def test_no_prompt_is_a_voice_by_chance(tmp_path):
    """Nothing was heard, in the unit of the model: what it says then is in the style that it learned for nobody."""
    one = inference.load(tiny.write_model("grad_stylespeech", tmp_path))
    heard = one.hear(None)
    assert heard.codes.shape == (0, 20) and heard.codes.dtype == np.float32
    audio = one.speak("Hi.", None, steps=2).audio
    assert len(audio) and np.isfinite(audio).all()
