"""Says a corpus livelier, flatter, faster and slower: `python -m data_pipelines.expressive --data=DIR --out=DIR --range=0.4,2 --rate=0.75,1.35`.

Every speaker has STYLES manners. A manner is a factor on how far the pitch goes from the speaker's median, in semitones, and a tempo;
speaker and manner make a new speaker (`anna~2`), so that a prompt from another recording of the same speaker is said in the same way. Pitch and
length are changed by TD-PSOLA (`data_pipelines.singing`); phone times and F0 are what was imposed.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from absl import flags

from data_pipelines import remade, singing
from data_pipelines.remade import Place, Utterance

STYLES = 4
FARTHEST = 12.0  # semitones from the median, up and down


@dataclasses.dataclass(frozen=True)
class Expressive:
    """Factors on the range of pitch and on the tempo, lowest and highest."""

    range: tuple[float, float]
    rate: tuple[float, float]
    command: str = "expressive"
    word: str = "expressive"
    refused: str = "nothing_voiced"

    def manner(self, speaker: str, number: int) -> tuple[float, float]:
        """(factor on the range, factor on the tempo), even in their logarithms; the same for the same speaker and number."""
        rng = remade.drawn("manner", speaker, number)
        return tuple(float(np.exp(rng.uniform(*np.log(bounds)))) for bounds in (self.range, self.rate))

    def __call__(self, utterance: Utterance, place: Place, rng: np.random.Generator) -> Utterance | None:
        f0 = utterance.f0
        if not (f0 > 0).any():
            return None
        speaker, number = utterance.meta["speaker"], int(rng.integers(STYLES))
        wider, faster = self.manner(speaker, number)
        timed = len(utterance.ends) > 0  # what no aligner could align is stretched as a whole
        old = np.array([0, *(utterance.ends if timed else [len(utterance.audio)])], float)
        new = remade.rounded(old / faster)
        centre = (np.arange(int(new[-1]) // place.period) + 0.5) * place.period
        source = f0[np.minimum((np.interp(centre, new, old) // place.period).astype(int), len(f0) - 1)]
        middle = np.median(f0[f0 > 0])
        tone = np.clip(12 * np.log2(np.maximum(source, 1.0) / middle) * wider, -FARTHEST, FARTHEST)
        target = np.where(source > 0, middle * 2 ** (tone / 12), 0.0)
        if not (target > 0).any():
            return None
        audio = singing.psola(utterance.audio, place.rate, f0, place.period, old, new, target)
        about = f"range x{wider:.2f}, tempo x{faster:.2f}: {utterance.meta['source']}"
        return Utterance(utterance.meta | {"speaker": f"{speaker}~{number}", "source": about}, audio, utterance.phones,
                         new[1:].astype(np.int64) if timed else utterance.ends, target)  # fmt: skip


def main(argv: list[str]) -> None:
    del argv
    remade.command(Expressive(remade.between("range", 0.1, 4), remade.between("rate", 0.4, 2.5)))


if __name__ == "__main__":
    from ns2_jax.runtime import cluster  # here, because it imports jax, which the workers do without

    remade.define_flags()
    flags.adopt_module_key_flags(remade)  # in --help
    flags.DEFINE_list("range", ["0.4", "2"], "LOW,HIGH: factor on how far the pitch goes from its median")
    flags.DEFINE_list("rate", ["0.75", "1.35"], "LOW,HIGH: factor on the tempo")
    cluster.run(main)
