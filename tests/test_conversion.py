"""Speech made into other speech, with the smallest model and the published aligner: times, pitch and words are the source's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from commands import refused, run

from ns2_jax import inference
from ns2_jax.audio import files
from ns2_jax.evals import codec_quality
from ns2_jax.inference import conversion, prompts
from ns2_jax.maths import pitch
from ns2_jax.text import front

NAME = "ns2_jax.synthesize"
HERE = Path(__file__).parent / "data_pipelines"
TEXT = json.loads((HERE / "sentences.json").read_text())[0]["text"]
SOURCE = HERE / "sentence0.flac"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_model("naturalspeech2", tmp_path_factory.mktemp("ns2"))


@pytest.fixture(scope="module")
def aligner():
    return inference.load(Path(__file__).parents[1] / "results" / "aligner" / "model")


def test_a_source_says_when_its_words_are_said_and_at_which_pitch(folder, aligner):
    model, audio = inference.load(folder), files.read(SOURCE, 16000)
    audio = audio[: len(audio) // 200 * 200]
    score = conversion.listen(model, aligner, audio, front.words(TEXT))
    assert [w.text for w in score.words if w.phones != inference.PAUSE] == [w.text for w in front.words(TEXT) if w.phones != inference.PAUSE]
    assert sum(score.seconds) == pytest.approx(len(audio) / 16000, abs=1e-6) and min(score.seconds) > 0
    (f0,) = pitch.track_all([audio], 16000, 200)
    np.testing.assert_allclose(np.concatenate(score.hz), f0, rtol=1e-6)
    voiced = {phone: np.mean([value > 0 for hz, name in zip(score.hz, score.phones) if name == phone for value in hz]) for phone in ("s", "iy", "aa", "ih")
              if phone in score.phones}
    assert all(share > 0.6 if phone != "s" else share < 0.5 for phone, share in voiced.items()), voiced


@pytest.mark.parametrize("kind", inference.PITCHES)
def test_it_lasts_as_long_and_has_the_pitch_that_was_asked_for(folder, aligner, kind):
    small = inference.load(folder)
    config = {**small.config, "data": {**small.config["data"], "buckets": [{"b": 1, "t": 320, "p": 64, "u": 32}]}}  # holds the source
    model = inference.Model(small.system, small.params, small.rest, config)
    (made,) = inference.convert_all(model, aligner, [(str(SOURCE), TEXT, str(tiny.SPEECH))], 0, 2, kind)
    audio = files.match_loudness(files.read(SOURCE, 16000), 16000)
    (f0,) = pitch.track_all([audio[: len(audio) // 200 * 200]], 16000, 200)
    assert len(made.pieces) == 1 and len(made.audio) == len(audio) // 200 * 200
    assert np.isfinite(made.audio).all() and np.abs(made.audio).max() > 0
    if kind == "kept":
        np.testing.assert_allclose(made.f0, f0[: len(made.f0)], rtol=1e-4)
    if kind == "shifted":
        both = (made.f0[: len(f0)] > 0) & (f0[: len(made.f0)] > 0)
        assert np.std(np.log(made.f0[: len(f0)][both] / f0[: len(made.f0)][both])) < 0.1


def test_a_long_source_in_pieces_is_as_long_as_it_was(folder, aligner):
    model, audio = inference.load(folder), files.read(SOURCE, 16000)
    (made,) = inference.convert_all(model, aligner, [((audio, 16000), TEXT, str(tiny.SPEECH))], 0, 2, "kept")
    assert len(made.pieces) > 2 and abs(len(made.audio) - len(audio)) <= 100 * (len(made.pieces) + 2)
    (f0,) = pitch.track_all([files.match_loudness(audio, 16000)[: len(audio) // 200 * 200]], 16000, 200)
    n = min(len(f0), len(made.f0))
    assert np.mean((f0[:n] > 0) == (made.f0[:n] > 0)) > 0.9  # nothing has drifted


def test_the_filter_takes_noise_and_leaves_speech():
    """What was made is the clean speech, half as loud: noise goes, speech stays, 20 dB is the most that goes; silence stays silence."""
    clean, random = files.read(SOURCE, 16000), np.random.default_rng(0)
    clean = np.concatenate([clean, np.zeros(16000)]).astype(np.float32)
    noise = random.normal(size=len(clean)).astype(np.float32) * np.sqrt(np.square(clean).mean() / 10)  # 10 dB
    out = conversion.filtered(clean + noise, clean / 2, 16000)
    assert out.dtype == np.float32 and len(out) == len(clean)
    assert codec_quality.si_sdr(clean, out) > codec_quality.si_sdr(clean, clean + noise) + 4
    fall = 10 * np.log10(np.square(out[-12000:]).mean() / np.square(noise[-12000:]).mean())
    assert -20.5 < fall < -15
    other = conversion.filtered(clean + noise, np.roll(clean, 8000), 16000)  # says other things: speech is lost
    assert codec_quality.si_sdr(clean, other) < codec_quality.si_sdr(clean, out) - 4
    assert codec_quality.si_sdr(clean, conversion.filtered(clean, clean / 2, 16000)) > 15  # where there is no noise
    for length in (1, 300, 512, 16001):
        short = conversion.filtered(noise[:length], clean, 16000)
        assert len(short) == length and np.isfinite(short).all()
    taken = conversion.filtered(noise, np.zeros_like(noise), 16000)  # nothing was said
    assert 10 * np.log10(np.square(taken).mean() / np.square(noise).mean()) < -19
    assert not conversion.filtered(np.zeros(16000, np.float32), np.zeros(16000, np.float32), 16000).any()


def test_text_of_another_recording_is_refused_where_it_cannot_fit(folder, aligner):
    model = inference.load(folder)
    with pytest.raises(ValueError, match="fewer frames than the text has phones"):
        inference.convert_all(model, aligner, [((files.read(SOURCE, 16000)[:8000], 16000), TEXT * 3, str(tiny.SPEECH))], 0, 2)
    with pytest.raises(ValueError, match="target_pitch='high'; expected one of"):
        inference.convert_all(model, aligner, [(str(SOURCE), TEXT, str(tiny.SPEECH))], target_pitch="high")
    with pytest.raises(ValueError, match="target_pitch='shifted' moves .* there is no prompt"):
        inference.convert_all(model, aligner, [(str(SOURCE), TEXT, None)], target_pitch="shifted")
    with pytest.raises(ValueError, match="whose pitch must be kept"):
        inference.convert_all(model, aligner, [(str(SOURCE), TEXT, str(tiny.SPEECH))], wiener=True)
    with pytest.raises(ValueError, match="does not convert"):
        inference.convert_all(aligner, aligner, [(str(SOURCE), TEXT, str(tiny.SPEECH))])


def test_text_of_another_recording_is_doubted(aligner, caplog):
    """The right text, and one of as many words."""
    audio, said = files.read(SOURCE, 16000), "Every morning the old man walks slowly to the quiet river."
    with caplog.at_level("WARNING"):
        prompts.times(aligner, audio, 16000, front.words(TEXT))
    assert not caplog.messages
    with caplog.at_level("WARNING"):
        prompts.times(aligner, audio, 16000, front.words(said))
    assert len(caplog.messages) == 1 and "nats a frame; below 0.60" in caplog.messages[0] and "every morning" in caplog.messages[0]


def test_the_command(folder, tmp_path, monkeypatch):
    pitches, convert_all = [], inference.convert_all
    monkeypatch.setattr(inference, "convert_all", lambda *args, **options: pitches.append(args[5]) or convert_all(*args, **options))
    common = [f"--model={folder}", f"--text={TEXT}", f"--prompt={tiny.SPEECH}", "--steps=2"]
    code, out, err = run(NAME, *common, "--task=convert", f"--source={SOURCE}", f"--out={tmp_path}/a.wav", "--times=srt")
    assert code == 0 and (tmp_path / "a.srt").exists(), err
    assert abs(len(files.read(tmp_path / "a.wav", 16000)) - len(files.read(SOURCE, 16000))) < 2000
    (tmp_path / "list.tsv").write_text(f"{tmp_path}/b.wav\t{TEXT}\t{SOURCE}\t{tiny.SPEECH}\n")
    code, out, err = run(NAME, f"--model={folder}", "--steps=2", "--task=enhance", f"--batch={tmp_path}/list.tsv")
    assert code == 0 and (tmp_path / "b.wav").exists(), err
    assert pitches == ["predicted", "kept"]  # of convert, of enhance
    code, out, err = run(NAME, *common, "--task=enhance", "--wiener", f"--source={SOURCE}", f"--out={tmp_path}/d.wav")
    assert code == 0, err
    heard, plain, source = (files.read(path, 16000) for path in (tmp_path / "d.wav", tmp_path / "b.wav", SOURCE))
    alike = lambda x: np.corrcoef(x[: len(source)], source[: len(x)])[0, 1]
    assert alike(heard) > 0.5 > alike(plain)  # the source, less of it; a model that knows nothing
    before = sorted(tmp_path.iterdir())
    for args, message in (
            (["--task=convert"], "--source is missing"),
            (["--task=convert", "--source=nowhere.wav"], "nowhere.wav: no such audio file (the source for"),
            (["--task=tts", f"--source={SOURCE}"], "--source goes with --task=convert"),
            (["--task=convert", f"--source={SOURCE}", "--speed=2"], "--speed does not go with --task=convert"),
            (["--task=convert", f"--source={SOURCE}", "--wiener"], "--wiener goes with --task=enhance"),
            (["--task=enhance", f"--source={SOURCE}", "--wiener", "--target_pitch=predicted"], "does not go with --wiener"),
            (["--task=enhance", f"--source={SOURCE}", "--option=wiener=True"], "--option=wiener: it is a flag of its own"),
            (["--target_pitch=kept"], "--target_pitch goes with --task=convert")):
        assert message in refused(NAME, *common, f"--out={tmp_path}/c.wav", *args)
    assert sorted(tmp_path.iterdir()) == before
