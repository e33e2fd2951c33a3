"""The F0 tracker against known tones, a known glide, silence, noise, librosa's pyin and the phones of flite."""

from __future__ import annotations

import shutil
import subprocess

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
import soundfile

from ns2_jax.maths import pitch

RATE = 16000
TEXTS = (
    "The quick brown fox jumps over the lazy dog, and then she sells sea shells by the sea shore.",
    "My mother usually remembers where we were. Why would anyone measure seventeen yellow lemons?",
)
VOICED = frozenset("aa ae ah ao aw ax ay eh er ey ih iy ow oy uh uw l r w y m n ng".split())
VOICELESS = frozenset("s f sh th ch t k p pau".split())


def harmonics(f0_s: np.ndarray, rate: int = RATE, count: int = 12, seed: int = 0) -> np.ndarray:
    """A voice-like tone: harmonics falling 6 dB an octave with random phases, below 0.45 of the rate."""
    phase = 2 * np.pi * np.cumsum(f0_s) / rate
    offsets = np.random.default_rng(seed).uniform(0, 2 * np.pi, count)
    parts = [np.where(f0_s * h < 0.45 * rate, np.sin(h * phase + offsets[h - 1]) / h, 0) for h in range(1, count + 1)]
    return (0.2 * sum(parts)).astype(np.float32)


def cents(a: np.ndarray, b: np.ndarray | float) -> np.ndarray:
    return 1200 * np.log2(np.asarray(a) / b)


def test_known_tones_within_five_cents():
    hz = np.array([62, 80, 110, 155.3, 220, 333.3, 440, 523, 590])
    tones = np.stack([0.3 * np.sin(2 * np.pi * f * np.arange(RATE) / RATE) for f in hz])
    voices = np.stack([harmonics(np.full(RATE, f)) for f in hz])
    f0 = np.asarray(pitch.track(np.concatenate([tones, voices]), RATE))[:, 5:-5]
    assert (f0 > 0).all()
    assert np.abs(cents(f0, np.tile(hz, 2)[:, None])).max() < 5


@pytest.mark.parametrize(("rate", "period"), [(22050, 256), (24000, 300), (16000, 200)])
def test_other_rates_and_periods(rate, period):
    audio = harmonics(np.full(rate, 187.0), rate)[None]
    f0 = np.asarray(pitch.track(audio, rate, period=period))
    assert f0.shape == (1, rate // period)
    assert np.abs(cents(f0[:, 5:-5], 187.0)).max() < 5


@pytest.mark.parametrize("direction", [1, -1])
def test_a_glide_is_followed_at_the_centre_of_each_frame(direction):
    hz = np.geomspace(80, 500, 2 * RATE)[::direction]
    f0 = np.asarray(pitch.track(harmonics(hz)[None], RATE))[0, 5:-5]
    error = cents(f0, hz[80::160][5:-5])
    assert np.abs(np.median(error)) < 1  # a shift by half a frame would be 8 cents
    assert np.abs(error).max() < 15


def test_silence_noise_and_hum_below_the_floor_are_unvoiced():
    rng = np.random.default_rng(0)
    noise = 0.1 * rng.normal(size=RATE)
    hum = 1e-5 * np.sin(2 * np.pi * 100 * np.arange(RATE) / RATE)  # -103 dBFS
    constant = np.full(RATE, 0.3)
    f0 = np.asarray(pitch.track(np.stack([np.zeros(RATE), noise, hum, constant]).astype(np.float32), RATE))
    assert (f0[:, 4:-4] == 0).all(), (f0 > 0).mean(1)


def test_tone_between_silences_is_voiced_where_it_sounds():
    audio = np.zeros(RATE, np.float32)
    audio[4000:12000] = harmonics(np.full(8000, 140.0))
    f0 = np.asarray(pitch.track(audio[None], RATE))[0]
    voiced = np.flatnonzero(f0)
    assert abs(voiced[0] - 25) <= 2 and abs(voiced[-1] - 74) <= 2
    assert (f0[voiced[0] : voiced[-1] + 1] > 0).all()


def test_padding_and_batch_do_not_change_a_row():
    rng = np.random.default_rng(1)
    length = 12_345
    one = harmonics(np.full(length, 171.0)) + 0.01 * rng.normal(size=length).astype(np.float32)
    other = harmonics(np.geomspace(300, 100, 20_000))
    both = np.stack([np.pad(one, (0, 20_000 - length)), other])
    alone = pitch.track(one[None], RATE, samples_b=jnp.array([length]))[0]
    padded = pitch.track(both, RATE, samples_b=jnp.array([length, 20_000]))
    frames = length // 160
    np.testing.assert_allclose(padded[0, :frames], alone, rtol=1e-5)
    assert (np.asarray(padded[0, frames:]) == 0).all()
    np.testing.assert_allclose(padded[1], pitch.track(other[None], RATE)[0], rtol=1e-5)


def test_the_path_is_the_cheapest_one():
    """Viterbi against all 4^4 paths on random costs."""
    rng = np.random.default_rng(2)
    cost, octave = rng.uniform(0, 1, (3, 4, 3)).astype(np.float32), rng.uniform(0, 3, (3, 4, 3)).astype(np.float32)
    states = np.asarray(pitch.best_path(jnp.asarray(cost), jnp.asarray(octave), 1.0))

    def price(row, path):
        total, before = 0.0, 3
        for i, state in enumerate(path):
            total += pitch.UNVOICED if state == 3 else cost[row, i, state]
            if (state == 3) != (before == 3):
                total += pitch.VOICING_CHANGE
            elif state != 3:
                total += pitch.JUMP * abs(octave[row, i, state] - octave[row, i - 1, before])
            before = state
        return total + (pitch.VOICING_CHANGE if before != 3 else 0.0)

    for row in range(3):
        every = [price(row, np.unravel_index(n, (4,) * 4)) for n in range(4**4)]
        assert price(row, states[row]) == pytest.approx(min(every), abs=1e-5)


def test_difference_is_yins():
    """The FFT form against the sums of its definition."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=900).astype(np.float32)
    period, window, longest = 160, 100, 60
    d = np.asarray(pitch.difference(jnp.asarray(x)[None], 5, period, window, longest))[0]
    padded = np.pad(x.astype(np.float64), 400)
    for frame in range(5):
        first = 400 + frame * period + (period - window) // 2
        centre = padded[first : first + window]
        for tau in (1, 7, 60):
            forward = centre - padded[first + tau : first + tau + window]
            backward = centre - padded[first - tau : first - tau + window]
            want = ((forward**2).mean() + (backward**2).mean()) / 2
            assert d[frame, tau] == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("window", [1, 2, 3, 64, 400, 401, 551])
def test_sliding_sums_are_exact_behind_a_loud_beginning(window):
    """What a difference of running sums would lose: the quiet end of a row that begins loud."""
    rng = np.random.default_rng(5)
    x = rng.uniform(size=(2, 2000)).astype(np.float32) * np.repeat([1e4, 1e-4], 1000).astype(np.float32)
    got = np.asarray(pitch.sliding_sum(jnp.asarray(x), window))
    want = np.lib.stride_tricks.sliding_window_view(x.astype(np.float64), window, axis=1).sum(-1)
    assert got.shape == (2, 2001 - window)
    np.testing.assert_allclose(got, want, rtol=1e-6)


def pyin(audio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """librosa's pyin on our frame centres: (f0 where both neighbours are voiced else 0, both neighbours unvoiced)."""
    f0, flag, _ = librosa.pyin(audio, fmin=60, fmax=600, sr=RATE, frame_length=1024, hop_length=160)
    f0 = np.where(flag, f0, 0)
    a, b = f0[:-1], f0[1:]  # at i * 160 and (i + 1) * 160; ours is in the middle
    return np.sqrt(a * b), (a == 0) & (b == 0)


def test_agrees_with_pyin_on_vibrato_in_noise():
    t = np.arange(2 * RATE) / RATE
    hz = 180 * 2 ** (0.2 * np.sin(2 * np.pi * 3 * t))
    audio = harmonics(hz) + 0.005 * np.random.default_rng(4).normal(size=len(t)).astype(np.float32)
    audio[: RATE // 4] = 0
    f0 = np.asarray(pitch.track(audio[None], RATE))[0]
    ref, silent = (a[: len(f0)] for a in pyin(audio))
    both = (f0 > 0) & (ref > 0)
    assert both.mean() > 0.8
    assert np.median(np.abs(cents(f0[both], ref[both]))) < 10
    truth = hz[80::160][: len(f0)]
    ours, theirs = (np.median(np.abs(cents(x[both], truth[both]))) for x in (f0, ref))
    assert ours < min(theirs + 1, 5)
    assert ((f0 > 0) & silent).mean() < 0.02


def flite(tmp_path, voice: str, text: str) -> tuple[np.ndarray, list[tuple[str, float]]]:
    """(audio, [(phone, end in seconds)]) from the flite binary."""
    path = tmp_path / "x.wav"
    out = subprocess.run(["flite", "-voice", voice, "-psdur", "-t", text, "-o", path], capture_output=True, text=True, check=True)
    audio, rate = soundfile.read(path, dtype="float32")
    assert rate == RATE
    return audio, [(p, float(end)) for p, end in (item.split(":") for item in out.stdout.split())]


if shutil.which("flite"):  # the independent voices of the default corpus, where the machine has them

    @pytest.mark.parametrize(("voice", "least"), [("slt", 0.97), ("rms", 0.95), ("awb", 0.92), ("kal16", 0.75)])
    def test_voicing_follows_the_phones_of_flite(tmp_path, voice, least):
        inside = {"voiced": [], "voiceless": []}
        for text in TEXTS:
            audio, segments = flite(tmp_path, voice, text)
            f0 = np.asarray(pitch.track(audio[None], RATE))[0]
            middle, start = (np.arange(len(f0)) + 0.5) * 0.01, 0.0
            for phone, end in segments:
                inner = (middle > start + 0.015) & (middle < min(end, len(audio) / RATE) - 0.015)
                start = end
                for kind, phones in (("voiced", VOICED), ("voiceless", VOICELESS)):
                    if phone in phones:
                        inside[kind].extend((f0[inner] > 0).tolist())
        assert np.mean(inside["voiced"]) > least
        assert np.mean(inside["voiceless"]) < 0.1

    @pytest.mark.slow
    @pytest.mark.parametrize("voice", ["slt", "rms", "awb", "kal16"])
    def test_agrees_with_pyin_on_flite(tmp_path, voice):
        audio, _ = flite(tmp_path, voice, TEXTS[0])
        f0 = np.asarray(pitch.track(audio[None], RATE))[0]
        ref, silent = (a[: len(f0)] for a in pyin(audio))
        f0 = f0[: len(ref)]
        both = (f0 > 0) & (ref > 0)
        error = np.abs(cents(f0[both], ref[both]))
        assert np.median(error) < 15
        assert (error > 600).mean() < 0.01  # octaves
        disagree = ((f0 == 0) & (ref > 0)).mean() + ((f0 > 0) & silent).mean()
        assert disagree < 0.15, disagree


def test_interpolation_is_linear_in_the_logarithm_and_holds_the_ends():
    f0 = jnp.array([[0, 0, 100, 0, 400, 0], [0, 0, 0, 0, 0, 0], [150, 0, 0, 0, 0, 0]], jnp.float32)
    want = [[100, 100, 100, 200, 400, 400], [0] * 6, [150] * 6]
    np.testing.assert_allclose(pitch.interpolate(f0), want, rtol=1e-5)


def test_interpolation_gives_finite_gradients_on_silence():
    grad = jax.grad(lambda x: pitch.interpolate(x).sum())(jnp.zeros((1, 5)))
    assert np.isfinite(grad).all()


@pytest.mark.parametrize(("fmin", "fmax"), [(0, 600), (600, 60), (60, 4000)])
def test_an_impossible_range_is_refused(fmin, fmax):
    with pytest.raises(ValueError, match="pitch range"):
        pitch.track(jnp.zeros((1, 1600)), RATE, fmin=fmin, fmax=fmax)


def test_shorter_than_a_frame_is_no_frames():
    assert pitch.track(jnp.zeros((2, 100)), RATE).shape == (2, 0)
