"""What a recording says, in another voice, through semantic tokens: neither text nor aligner (SoundStorm's own use, section 4.1).

A tokenizer says what is said, a token every few frames; the prompt's codes and tokens stand before those of the recording, whose codes are then
filled in by a model that was trained with `condition="semantic"`. Times stay the recording's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ns2_jax.audio import files
from ns2_jax.inference import chain, conversion, provenance, speech

if TYPE_CHECKING:
    from ns2_jax.inference.model import Model


def tokens_of(tokenizer: Model, audio: np.ndarray, rate: int, hop: int) -> np.ndarray:
    """The tokens that hold at the centres of the frames of `hop` samples of `audio [s]` at `rate`: int32 `[s // hop]`.

    As a data set has them: of the tokenizer's whole frames, the last one to the end.
    """
    heard = files.resample(audio, rate, tokenizer.rate)
    t = max(len(heard) // tokenizer.hop, 1)
    row = {"audio": np.pad(heard, (0, max(t * tokenizer.hop - len(heard), 0)))[: t * tokenizer.hop].astype(np.float32), "frames": np.int32(t)}
    (out,) = tokenizer.run("tokenise", [row], sizes={"s": t * tokenizer.hop, "t": t})
    at = (np.arange(len(audio) // hop) + 0.5) * hop / rate * tokenizer.rate / tokenizer.hop
    return out["tokens"][np.minimum(at.astype(int), t - 1)].astype(np.int32)


def revoice(
    model: Model, tokenizer: Model, source: speech.Voice, prompt: speech.Voice | None, seed: int = 0,
    consent: provenance.Consent | None = None, **options: Any,
) -> speech.Speech:
    """`source` in the voice of `prompt` (None: a voice by chance); nobody knows its words. A source longer than a bucket is done in pieces, each
    after the prompt. `options` are those of `infill`.

    Raises ValueError for models that do not do this, for unusable recordings, and for a prompt that the `consent` is not about.
    """
    if not chain.tokens_alone(model):
        raise ValueError(f"{model.name} does not speak from semantic tokens; train configs/soundstorm.py:SIZE,semantic")
    if "tokenise" not in tokenizer.programs:
        raise ValueError(f"{tokenizer.name} makes no tokens; give the run or export of configs/semantic.py:SIZE,kmeans")
    audio, seed = conversion.source_audio(model, source), provenance.whole(seed)
    voice = np.zeros(0, np.float32) if prompt is None else conversion.source_audio(model, prompt)[: model.longest_prompt * model.hop]
    heard = provenance.allowed([] if prompt is None else [prompt], consent)
    origin = provenance.origin(model, (provenance.digest(source), *heard), seed, options, consent)
    known = model.encode(voice) if len(voice) else np.zeros((0, int(model.system.sizes["q"])), np.int32)
    spoken = np.concatenate([tokens_of(tokenizer, part, model.rate, model.hop) for part in (voice, audio) if len(part)])
    said, rest = spoken[: len(known)], spoken[len(known) :]
    largest = model.buckets[-1]["t"]
    if (room := largest - len(known)) < 1:
        raise ValueError(f"the prompt of {len(known)} frames fills the largest bucket ({largest} frames) alone")
    shared, options = speech.scheduled(model, "infill", options)
    made = []
    for number, begin in enumerate(range(0, len(rest), room)):
        part = np.concatenate([said, rest[begin : begin + room]])
        t = next(bucket["t"] for bucket in model.buckets if bucket["t"] >= len(part))
        row = shared | {"semantic": np.pad(part, (0, t - len(part))), "codes": np.pad(known, ((0, t - len(known)), (0, 0))),
                        "frames": np.int32(len(part)), "begin": np.int32(len(known)), "end": np.int32(len(part))}
        (out,) = model.run("infill", [row], [seed + number], {"t": t, "s": t * model.hop}, **options)
        made.append(out["audio"][len(known) * model.hop : len(part) * model.hop])
    return speech.Speech(np.concatenate(made).astype(np.float32), model.rate, (), np.zeros(0, np.int64), (), np.zeros(0, np.float32), model.hop, (),
                         None, origin)
