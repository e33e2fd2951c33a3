"""pocketsphinx's English acoustic model told words by our phones: what alignment and the judge of skipped words search with.

The package is part of the `eval` extra and imported at the first call. Pronunciations are the front end's, not its dictionary's.
"""

from __future__ import annotations

import functools
from typing import Any

from ns2_jax.text.phones import ENGLISH

RATE = 16000  # of the acoustic model
_SPOKEN = {"ax": "AH"}  # its phones are CMUdict's 39: no schwa of its own


@functools.cache
def decoder(user: str) -> Any:
    """The decoder of `user` (each has its own searches and words), without a dictionary.

    `bestpath=False` because the lattice search gives `<s>` no frames, and the phone pass then fails (one utterance in seven).
    """
    import pocketsphinx

    model = f"{pocketsphinx.get_model_path()}/en-us/en-us"
    return pocketsphinx.Decoder(hmm=model, dict=None, lm=None, samprate=float(RATE), bestpath=False, loglevel="FATAL")


@functools.cache
def word(user: str, prefix: str, pronunciation: tuple[str, ...]) -> str:
    """The name of a word with this pronunciation for the decoder of `user`. Raises ValueError for a phone the model lacks."""
    for phone in pronunciation:
        if phone not in ENGLISH:
            raise ValueError(f"phone {phone!r} is not in the English acoustic model")
    name = f"{prefix}_" + "_".join(pronunciation)
    decoder(user).add_word(name, " ".join(_SPOKEN.get(phone, phone.upper()) for phone in pronunciation), True)
    return name


def restart() -> None:
    """Forgets every decoder, for one that has given up: fresh ones serve the next utterance."""
    decoder.cache_clear()
    word.cache_clear()
