"""A recording whose words are changed, or that goes on: what stays is known, before and behind, to what is made anew (program `infill`).

An aligner finds the words in the recording. New phones get the lengths and the pitch that the system predicts for the voice; the codes of
the frames that stay are given, and outside of what is new the recording's own samples are heard.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from ns2_jax.inference import conversion, provenance, speech
from ns2_jax.inference.score import Score
from ns2_jax.text import front

if TYPE_CHECKING:
    from ns2_jax.inference.model import Model

MARGIN = 0.03  # seconds on either side of new words that are made anew too: neighbours sound of each other
BLEND = 0.01  # seconds over which the recording and what is new are mixed


def spoken(words: front.Words) -> list[int]:
    """Places of the words that are no pauses."""
    return [i for i, word in enumerate(words) if word.phones != speech.PAUSE]


def changed(before: front.Words, after: front.Words) -> tuple[int, int, front.Words]:
    """How many words of `before` stay at the beginning and at the end, pauses included, and the words of `after` that stand between them.

    Words are the same when they are said the same; from the first that differs to the last all are new. Raises ValueError when none does.
    """
    was, is_ = spoken(before), spoken(after)
    same = lambda i, j: before[was[i]].phones == after[is_[j]].phones
    most = min(len(was), len(is_))
    first = next((i for i in range(most) if not same(i, i)), most)
    if first == len(was) == len(is_):
        raise ValueError("the text says what the recording says: there is nothing to change")
    last = next((i for i in range(most - first) if not same(-1 - i, -1 - i)), most - first)
    start = was[first - 1] + 1 if first else was[0]  # the pauses at the ends stay
    end = was[-last] if last else was[-1] + 1
    new = after[is_[first - 1] + 1 if first else is_[0] : is_[-last] if last else is_[-1] + 1]
    return start, len(before) - end, new


def fill(
    model: Model, audio: np.ndarray, score: Score, first: int, last: int, new: front.Words, seed: int = 0, **options: Any,
) -> speech.Speech:
    """`first` words of the recording `audio [s]` (which says `score`), then `new`, then its `last` words.

    Raises ValueError for a model that cannot fill in, or when all is longer than its largest bucket.
    """
    if "infill" not in model.programs or "phones" not in model.programs["infill"].inputs or not model.speaks:
        raise ValueError(f"{model.name} does not fill in words; it offers {sorted(model.programs)}")
    count = lambda words: sum(len(word.phones) for word in words)
    total, codes = len(score.words), model.encode(audio)
    head, tail = count(score.words[:first]), count(score.words[total - last :])
    middle = (None,) * count(new)
    join = lambda given: tuple(given[:head]) + middle + tuple(given[len(given) - tail :])
    words = score.words[:first] + new + score.words[total - last :]
    piece = speech.Piece(0, words, seed, codes[: model.longest_prompt], join(score.seconds), join(score.hz))

    def attempt(request: int, function, *args):
        most = model.buckets[-1]["t"] * model.hop / model.rate
        raise ValueError(f"{piece.text!r} is longer than this model fills in at once ({most:.1f} s)")

    early = {name: options.pop(name) for name in list(options) if name in model.programs["durations"].options}
    speech.place_in_buckets(model, [piece], early, attempt)
    speech.predict_pitch(model, [piece], 0.0)
    frames = int(piece.durations.sum())
    before, behind = int(piece.durations[:head].sum()), int(piece.durations[len(piece.durations) - tail :].sum())
    margin, period = max(1, round(MARGIN * model.rate / model.hop)), model.hop
    begin, end = max(before - margin, 0) if head else 0, min(frames - behind + margin, frames) if tail else frames
    at = np.arange(frames)
    place = np.where(at < before, at, np.maximum(len(codes) - frames + at, 0))  # what is new may stand for anything
    place = np.clip(place, 0, len(codes) - 1)
    bucket = model.buckets[piece.bucket]
    room = model.room(len(piece.prompt))
    shared, options = speech.scheduled(model, "infill", options)
    row = speech.inputs_of(model, piece, bucket, room) | shared | {
        "codes": np.pad(codes[place], ((0, bucket["t"] - frames), (0, 0))), "frames": np.int32(frames), "begin": np.int32(begin),
        "end": np.int32(end)}
    sizes = {"t": bucket["t"], "p": bucket["p"], "s": bucket["t"] * model.hop}
    (out,) = model.run("infill", [row], [piece.key(1)], sizes, **options)
    own = audio[(place[:, None] * period + np.arange(period)).reshape(-1)]
    sample = np.arange(frames * period)
    blend = BLEND * model.rate
    rise = (sample - begin * period) / blend + 1 if begin else 1.0
    inside = np.clip(np.minimum(rise, (end * period - sample) / blend + 1 if end < frames else 1.0), 0, 1)
    speech.accept(piece, {"audio": (inside * out["audio"][: len(own)] + (1 - inside) * own).astype(np.float32), "codes": out["codes"]})
    return speech.join(model, [piece])


def edit(
    model: Model, aligner: Model, source: speech.Voice, said: str, text: str, seed: int = 0, lexicon: Any = None, language: str = "en",
    consent: provenance.Consent | None = None, **options: Any,
) -> speech.Speech:
    """`source`, which says `said`, saying `text`: what the two have in common at their beginnings and ends stays, what lies between is new.

    `options` are those of `infill` (steps, guidance, ...) and `durations` (speed). Raises ValueError as `changed` and `fill`, and for a text
    that cannot be that of the source, or a source that the `consent` is not about.
    """
    table, audio = model.pronunciations(lexicon), conversion.source_audio(model, source)
    origin = provenance.origin(model, provenance.allowed([source], consent), seed, options, consent)
    score = conversion.listen(model, aligner, audio, front.words(said, table, language))
    made = fill(model, audio, score, *changed(score.words, front.words(text, table, language)), seed, **options)
    return dataclasses.replace(made, origin=origin)


def go_on(
    model: Model, aligner: Model, source: speech.Voice, said: str, text: str, seed: int = 0, lexicon: Any = None, language: str = "en",
    consent: provenance.Consent | None = None, **options: Any,
) -> speech.Speech:
    """`source`, which says `said`, going on with `text`. Of a source over the longest prompt only the last words that fit are heard and given
    back. Raises as `edit`."""
    table, audio = model.pronunciations(lexicon), conversion.source_audio(model, source)
    origin = provenance.origin(model, provenance.allowed([source], consent), seed, options, consent)
    score = conversion.listen(model, aligner, audio, front.words(said, table, language))
    lengths = np.asarray([len(word.phones) for word in score.words])
    starts = np.concatenate([[0], np.cumsum(lengths)])[:-1]
    begins = np.concatenate([[0.0], np.cumsum(score.seconds)])[starts]
    cut = int(np.argmax(begins >= len(audio) / model.rate - model.longest_prompt * model.hop / model.rate - 1e-6))
    score = Score(score.words[cut:], score.seconds[starts[cut] :], score.hz[starts[cut] :])
    audio = audio[round(begins[cut] * model.rate / model.hop) * model.hop :]
    words = front.words(text, table, language)
    made = fill(model, audio, score, len(score.words), 0, words[words[0].phones == speech.PAUSE :], seed, **options)
    return dataclasses.replace(made, origin=origin)
