"""Makes conversations of a corpus: `python -m data_pipelines.dialogues --data=DIR --out=DIR --turns=2,5 --gap=0.1,0.6`.

Two speakers of a split take turns, each with whole utterances of theirs and silence between (SoundStorm, section 4.2, learns from recorded
conversations; here nobody talks while another does). Times and pitch are those of the utterances, a pause belongs to the phone before it.

The record says who speaks when: `text` is a transcript as `ns2_jax.synthesize --task=dialogue` reads it, a line `SPEAKER: what they say` for
every turn, and `speaker` are both (`anna+ben`). In the phones a turn ends where two silences meet (`text.phones.turns`): every utterance begins
and ends with one, and inside of it neighbours are made one. So a model that reads phones is told, without a phone of its own.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from absl import flags

from data_pipelines import batches, remade
from data_pipelines.remade import Place, Utterance
from ns2_jax.data import speakers
from ns2_jax.text import phones

TRIES = 20  # draws for somebody else, and for an utterance that was not said yet


@functools.lru_cache(maxsize=8)
def _speakers(root: str, split: str) -> speakers.Speakers:
    return speakers.load(batches.open_dataset(root), split)


def takes_a_turn(utterance: Utterance) -> bool:
    """Whether it begins and ends with silence; what no aligner could align does not."""
    return len(utterance.phones) > 2 and {*utterance.phones[[0, -1]].tolist()} == {phones.IDS[phones.SILENCE]}


def joined(parts: list[Utterance], gaps: list[int], period: int) -> Utterance:
    """The turns one after the other, so many samples of silence behind each but the last: rounded up, so that pitch stays on its grid."""
    audio, ids, ends, f0, at = [], [], [], [], 0
    for part, gap in zip(parts, [*gaps, 0]):
        long = len(part.audio) if part is parts[-1] else -(-(len(part.audio) + gap) // period) * period
        kept = ~phones.doubled(part.phones)
        own, own_ends = part.phones[kept], np.asarray(part.ends, np.int64)[kept]
        audio.append(np.pad(part.audio, (0, long - len(part.audio))))
        f0.append(np.pad(part.f0, (0, max(long // period - len(part.f0), 0)))[: long // period])
        ids.append(own)
        ends.append(np.append(own_ends[:-1], long) + at)
        at += long
    text = "\n".join(f"{part.meta['speaker']}: {' '.join(part.meta['text'].split())}" for part in parts)
    both = lambda key: "+".join(dict.fromkeys(part.meta[key] for part in parts))
    said = " ".join(part.meta["text_norm"] for part in parts)
    meta = parts[0].meta | {"speaker": both("speaker"), "voice": both("voice"), "text": text, "text_norm": said}
    meta |= {"source": f"{both('utt_id')}: {both('source')}"}
    return Utterance(meta, np.concatenate(audio), np.concatenate(ids), np.concatenate(ends), np.concatenate(f0))


@dataclasses.dataclass(frozen=True)
class Dialogues:
    """Numbers of turns and seconds of silence between two, fewest and most; the longest conversation in seconds."""

    turns: tuple[int, int]
    gap: tuple[float, float]
    seconds: float
    command: str = "dialogues"
    word: str = "dialogue"
    refused: str = "nobody_answers"

    def __call__(self, utterance: Utterance, place: Place, rng: np.random.Generator) -> Utterance | None:
        """Another speaker answers with an utterance, the first goes on with another of theirs, and so on; none is said twice."""
        everyone, first = _speakers(place.dataset.root, place.split), place.position
        number = int(rng.integers(self.turns[0], self.turns[1] + 1))
        gaps = [round(float(gap) * place.rate) for gap in rng.uniform(*self.gap, size=number - 1)]
        draws = rng.integers(place.dataset.records(place.split), size=TRIES).tolist()
        second = next((i for i in draws if everyone.speaker[i] != everyone.speaker[first]), None)
        if second is None or not takes_a_turn(utterance):
            return None
        parts, said = [utterance], [first]
        for turn in range(1, number):
            whose = (first, second)[turn % 2]
            tried = [second] if turn == 1 else [everyone.another(whose, rng) for _ in range(TRIES)]
            new = next((i for i in tried if i is not None and i not in said), None)
            if new is None:
                break
            part = remade.read(Place(place.dataset, place.split, new))
            total = sum(len(one.audio) for one in [*parts, part]) + sum(gaps[:turn])
            if not takes_a_turn(part) or total > self.seconds * place.rate:
                break
            parts, said = [*parts, part], [*said, new]
        return joined(parts, gaps[: len(parts) - 1], place.period) if len(parts) > 1 else None


def main(argv: list[str]) -> None:
    del argv
    least, most = remade.between("turns", 2, 50)
    remade.command(Dialogues((int(least), int(most)), remade.between("gap", 0, 5), flags.FLAGS.seconds))


if __name__ == "__main__":
    from ns2_jax.runtime import cluster  # here, because it imports jax, which the workers do without

    remade.define_flags()
    flags.adopt_module_key_flags(remade)  # in --help
    flags.DEFINE_list("turns", ["2", "5"], "LOW,HIGH: how many turns a conversation has")
    flags.DEFINE_list("gap", ["0.1", "0.6"], "LOW,HIGH: seconds of silence between two")
    flags.DEFINE_float("seconds", 15.0, "of the longest conversation", lower_bound=1.0)
    cluster.run(main)
