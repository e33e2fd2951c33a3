"""Speech made into other speech: another voice says it (conversion), or the same one without its noise (enhancement).

NaturalSpeech 2, section 5.7: the diffusion's ODE carries the source to noise under its own conditions, and back under the target's
prompt. What was said must be known: its text, whose phones an aligner finds in the source.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.signal

from ns2_jax.audio import files
from ns2_jax.inference import prompts, provenance, speech
from ns2_jax.inference.score import Score
from ns2_jax.maths import pitch
from ns2_jax.text import front

if TYPE_CHECKING:
    from ns2_jax.inference.model import Model

PITCHES = ("predicted", "shifted", "kept")
"""Of the target: what the system predicts for its prompt (the paper's), the source's contour moved to the prompt's mean, or the source's."""


def source_audio(model: Model, source: speech.Voice) -> np.ndarray:
    """A recording that is to be changed: float32 `[s]` at the model's rate and loudness, whole frames."""
    if isinstance(source, (str, os.PathLike)):
        audio = files.read(source, model.rate)
    else:
        audio = files.resample(files.check(*source, "source"), source[1], model.rate)
    audio = files.match_loudness(audio, model.rate)
    return audio[: len(audio) // model.hop * model.hop]


def listen(model: Model, aligner: Model, audio: np.ndarray, words: front.Words) -> Score:
    """When the phones of `words` are said in `audio` float32 `[s]` at the model's rate, and at which pitch, a frame at a time."""
    kept, ends = prompts.times(aligner, audio, model.rate, words)
    edges = np.concatenate([[0.0], ends])
    (f0,) = pitch.track_all([audio], model.rate, model.hop)
    frames = np.rint(edges / model.hop).astype(int)
    hz = [tuple(float(value) for value in f0[a:b]) or (0.0,) for a, b in zip(frames[:-1], frames[1:])]
    return Score(kept, tuple((np.diff(edges) / model.rate).tolist()), tuple(hz))


def convert_all(
    model: Model, aligner: Model, requests: Sequence[tuple[speech.Voice, str, speech.Prompt]], seeds: int | Sequence[int] = 0,
    steps: int | None = None, target_pitch: str = "predicted", lexicon: Any = None, language: str = "en", wiener: bool = False, **options: Any,
) -> list[speech.Speech]:
    """Every (source, its text, prompt of the target) -> the source's words at the source's times in the sound of the prompt.

    `wiener` gives the source itself, `filtered` by what was made of it: for enhancement, where both are the same voice.
    Raises ValueError for a model that does not convert, text that cannot be that of its source, `target_pitch` that is none of PITCHES.
    """
    if "convert" not in model.programs:
        raise ValueError(f"{model.name} does not convert; it offers {sorted(model.programs)}")
    if wiener and target_pitch != "kept":
        raise ValueError(f"wiener filters the source, whose pitch must be kept: target_pitch={target_pitch!r}; expected 'kept'")
    if target_pitch not in PITCHES:
        raise ValueError(f"target_pitch={target_pitch!r}; expected one of {PITCHES}")
    seeds = speech.each_seed(seeds, len(requests))
    table, pieces, means, origins = model.pronunciations(lexicon), [], {}, []
    codes: dict[int, np.ndarray] = {}
    audios: list[np.ndarray] = []
    for i, ((source, text, prompt), seed) in enumerate(zip(requests, seeds, strict=True)):
        audio = source_audio(model, source)
        score = listen(model, aligner, audio, front.words(text, table, language))
        codes[i] = model.encode(audio)
        audios.append(audio)
        heard, given = model.hear(prompt), {**options, "target_pitch": target_pitch, "steps": steps, "wiener": wiener}
        if target_pitch == "shifted" and not len(heard.codes):
            raise ValueError("target_pitch='shifted' moves the source's pitch to the prompt's, and there is no prompt; give one, or another of "
                             f"{PITCHES}")
        origins.append(provenance.origin(model, (provenance.digest(source), *heard.digests), seed, given, heard.consent))
        pieces += speech.pieces_of(model, i, score, seed, heard.codes)
        if target_pitch == "shifted":
            means[i] = _mean_pitch(model, model.decode(pieces[-1].prompt)), _mean_pitch(model, audio)

    def attempt(request: int, function, *args):
        del request
        return function(*args)

    placed = speech.place_in_buckets(model, pieces, {}, attempt)
    for i in range(len(requests)):  # what each piece says of its source, frame by frame
        seconds = 0.0
        for piece in (p for p in placed if p.request == i):
            at = round(seconds * model.rate / model.hop) + piece.gap[0]
            piece.source = codes[i][np.clip(np.arange(at, at + int(piece.durations.sum())), 0, len(codes[i]) - 1)]
            seconds += sum(piece.seconds) + sum(piece.gap) * model.hop / model.rate
    speech.predict_pitch(model, placed, 0.0)
    own = [piece.f0 for piece in placed]
    if target_pitch == "predicted":
        for piece in placed:
            piece.hz = (None,) * len(piece.phones)
        speech.predict_pitch(model, placed, 0.0)
    elif target_pitch == "shifted":
        for piece in placed:
            target, source = means[piece.request]
            piece.f0 = piece.f0 * np.float32(target / source if target and source else 1.0)
    hears: dict[int, np.ndarray] = {i: whole[: model.longest_prompt] for i, whole in codes.items()}
    source_pitch = {id(piece): f0 for piece, f0 in zip(placed, own)}
    for (index, room), group in speech.grouped(model, placed):
        bucket = model.buckets[index]
        sizes = {"t": bucket["t"], "p": bucket["p"], "u": room, "s": bucket["t"] * model.hop}
        rows = []
        for piece in group:
            row = speech.inputs_of(model, piece, bucket, room)
            row |= {"target_codes": row["prompt_codes"], "target_frames": row["prompt_frames"], "target_f0": row["f0"]}
            heard, f0 = hears[piece.request], source_pitch[id(piece)]
            row["prompt_codes"] = np.pad(heard, ((0, room - len(heard)), (0, 0)))
            row["prompt_frames"] = np.int32(len(heard))
            row["f0"] = np.pad(f0, (0, bucket["t"] - len(f0))).astype(np.float32)
            row["codes"] = np.pad(piece.source, ((0, bucket["t"] - len(piece.source)), (0, 0)))
            rows.append(row)
        keys = [piece.key(1) for piece in group]
        for piece, out in zip(group, model.run("convert", rows, keys, sizes, steps=steps, **options, **speech.windows(model, room))):
            speech.accept(piece, out)
    mine = lambda i: [piece for piece in placed if piece.request == i]
    made = [dataclasses.replace(speech.join(model, mine(i)), origin=origins[i]) for i in range(len(requests))]
    if wiener:
        made = [dataclasses.replace(one, audio=filtered(audio, one.audio, model.rate)) for one, audio in zip(made, audios)]
    return made


def filtered(noisy: np.ndarray, made: np.ndarray, rate: int) -> np.ndarray:
    """`noisy` `[s]` without what is not in `made` `[s']`, the same speech generated clean: float32 `[s]`.

    A Wiener filter, `(S / (S + N)) ^ 1/2` of power spectra (Lim and Oppenheim 1979, "power spectrum filtering"), not of the paper: it keeps the
    source's own sound where generated latents would replace it. S is `made`, as loud as the source where it is loudest; N, one spectrum for
    all of the recording, the source's in the fifth of the frames where there is least of S. At most 20 dB are taken.
    """
    size, hop = round(0.032 * rate), round(0.008 * rate)
    room = max(len(noisy), size)
    spectra = lambda x: scipy.signal.stft(np.pad(x[:room], (0, max(room - len(x), 0))), rate, nperseg=size, noverlap=size - hop)[2]
    heard = spectra(noisy)
    power, voice = np.square(np.abs(heard)) + 1e-12, np.square(np.abs(spectra(made)))
    loud = (voice >= np.quantile(voice, 0.9)) & (voice > 1e-12)
    voice = voice * np.exp(np.median(np.log(power[loud] / voice[loud]))) if loud.any() else voice
    quiet = voice <= np.quantile(voice, 0.2, axis=1, keepdims=True)
    noise = (quiet * power).sum(1, keepdims=True) / quiet.sum(1, keepdims=True)
    gain = np.sqrt(voice / (voice + noise)).clip(0.1)
    return scipy.signal.istft(gain * heard, rate, nperseg=size, noverlap=size - hop)[1][: len(noisy)].astype(np.float32)


def _mean_pitch(model: Model, audio: np.ndarray) -> float:
    """Geometric mean of the pitch in Hz; 0 where nothing is voiced."""
    (f0,) = pitch.track_all([audio], model.rate, model.hop)
    return float(np.exp(np.log(f0[f0 > 0]).mean())) if (f0 > 0).any() else 0.0
