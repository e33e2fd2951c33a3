"""What is scored: utterances of a data set's split or of a list, each with the prompt that gives its voice."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from ns2_jax import inference
from ns2_jax.data.dataset import Dataset
from ns2_jax.evals import lists, prosody, statistics, surroundings
from ns2_jax.runtime import cluster

PROMPT_SECONDS = 2.0
GOES_ON = 1.0
"""Seconds that a recording has at least behind the beginning which is kept, where it is to be gone on with (VALL-E, section 5.1: 3 s of 4 to 10)."""


@dataclasses.dataclass
class Material:
    """This host's share of what is scored.

    Its items (rows of items.jsonl), their recordings float32 `[s]` (None where there is none), the prompts; and, the same on every
    host: for the fingerprint what all items are, and those items. `dataset` and `split` are where phones and pitch
    can be read.
    """

    items: list[dict[str, Any]]
    recordings: list[np.ndarray | None]
    prompts: list[np.ndarray]
    rate: int
    about: dict[str, Any]
    every: list[dict[str, Any]]  # the items of all hosts
    dataset: Dataset | None = None
    split: str = ""
    voices: list[Any] = dataclasses.field(default_factory=list)  # the prompts with what they say (one or several `Said`), for models that ask
    timed: bool = False  # whether what is said is to take the times of the recordings
    sources: list[np.ndarray] | None = None  # what a task hears in place of the recordings, which its outputs are to be like

    def surrounded(self, spec: str) -> Material:
        """The same with its prompts in other surroundings (`evals.surroundings`); its fingerprint says which. Their texts stay."""
        change = surroundings.read(spec)
        prompts = [change(prompt, self.rate) for prompt in self.prompts]
        voices = []
        for one in self.voices:
            audio, rate = one.voice if isinstance(one.voice, tuple) else (lists.audio(one.voice, self.rate), self.rate)
            voices.append(dataclasses.replace(one, voice=(change(audio, rate), rate)))
        return dataclasses.replace(self, prompts=prompts, voices=voices, about={**self.about, "prompts": spec})

    @property
    def places(self) -> list[int]:
        """Where this host's items stand among all."""
        return cluster.share(range(len(self.every)))

    def aligned(self, key: str) -> list[dict[str, np.ndarray]]:
        """Phone ids and their ends in samples, of the recordings (`index`) or the prompts (`prompt_index`)."""
        return [self.dataset.read(self.split, "align", item[key]) for item in self.items]

    def counts(self) -> tuple[list[int], list[int]] | None:
        """How many phones are said in the prompts and in the recordings, pauses apart; None where nobody knows."""
        if not self.dataset or "align" not in self.dataset.groups or any("prompt_indices" in i or "prompt_index" not in i for i in self.items):
            return None
        pause = inference.inventory.IDS[inference.inventory.SILENCE]
        prompts, recordings = ([int((a["phones"] != pause).sum()) for a in self.aligned(key)] for key in ("prompt_index", "index"))
        return prompts, recordings

    @property
    def said(self) -> list[str | inference.Score]:
        """What is to be said: the texts, or of `timed` material the phones of the recordings, each as long as there, at a pitch that is left to
        the model. What stands between two pauses is one word, which no model can cut: where that fits no bucket, the output is missing."""
        if not self.timed:
            return [item["text"] for item in self.items]
        there = self.aligned("index")
        lengths = [np.maximum(np.diff(align["ends"], prepend=0), 1) / self.rate for align in there]
        names = [inference.inventory.names(align["phones"]) for align in there]
        return [inference.of_phones(phones, seconds.tolist(), (None,) * len(phones)) for phones, seconds in zip(names, lengths)]

    def requests(self, model: inference.Model) -> list[tuple[str | inference.Score, Any]]:
        """What is to be said, in whose voice, as `Model.speak_batch` takes it."""
        return list(zip(self.said, self.voices if model.continues else [(prompt, model.rate) for prompt in self.prompts]))

    def pitch(self) -> list[np.ndarray]:
        """F0 of the recordings as the data set has it, Hz every ten milliseconds."""
        step, period = self.rate // 100, self.dataset.f0_period
        found = [self.dataset.read(self.split, "f0", item["index"])["f0"].astype(np.float64) for item in self.items]
        return [f0[np.minimum((np.arange(len(f0) * period // step) * step + step // 2) // period, len(f0) - 1)] for f0 in found]

    def spoken(self, key: str) -> list[prosody.Spoken]:
        """Phones, ends and F0 of the recordings (`index`) or the prompts (`prompt_index`)."""
        aligns, audios = self.aligned(key), self.recordings if key == "index" else self.prompts
        return prosody.spoken(audios, [a["phones"] for a in aligns], [a["ends"] for a in aligns], self.rate)


def read_audio(dataset: Dataset, split: str, i: int) -> np.ndarray:
    """Recording `i`, float32 `[s]`."""
    return dataset.read(split, "audio", i)["audio"].astype(np.float32) / 32768


def choose(dataset: Dataset, split: str, limit: int, seed: int, least: float = 0.0, heard: float = 0.0) -> list[dict[str, Any]]:
    """Utterances of at least `least` seconds spread over the speakers in turn, each with its prompt: another one of the same speaker.

    With `heard` the prompt is as many others, one after the other, as hold so many seconds (`prompt_indices`). The choice depends on the names of
    the utterances and the seed, not on their order. Speakers with a single utterance, or too little for a prompt, are left out. Raises ValueError
    when nobody is left.
    """
    people: dict[str, list[tuple[str, int, dict]]] = {}
    for i in range(dataset.records(split)):
        meta = dataset.read(split, "meta", i)
        rank = hashlib.sha256(f"{seed}/{meta['utt_id']}".encode()).hexdigest()
        people.setdefault(meta["speaker"], []).append((rank, i, meta))
    queues = {speaker: sorted(mine) for speaker, mine in sorted(people.items()) if len(mine) > 1}
    if not queues:
        raise ValueError(f"{dataset.root}: no speaker of split {split!r} has two utterances, so there is no prompt; pick another --split")
    enough = PROMPT_SECONDS * dataset.sample_rate
    seconds = lambda some: sum(o[2]["num_samples"] for o in some) / dataset.sample_rate
    items = []
    for turn in range(max(map(len, queues.values()))):
        for speaker, mine in queues.items():
            if turn < len(mine) and (not limit or len(items) < limit) and mine[turn][2]["num_samples"] >= least * dataset.sample_rate:
                others = mine[turn + 1 :] + mine[:turn]  # from the next on, round the circle
                prompt = next((o for o in others if o[2]["num_samples"] >= enough), max(others, key=lambda o: o[2]["num_samples"]))
                several = [prompt]
                for other in (o for o in others if o is not prompt):
                    if seconds(several) < heard:
                        several.append(other)
                if seconds(several) < heard:
                    continue
                name = "+".join(o[2]["utt_id"] for o in several)
                items.append({"id": mine[turn][2]["utt_id"], "index": mine[turn][1], "speaker": speaker, "voice": mine[turn][2]["voice"],
                              "text": mine[turn][2]["text"], "prompt": name, "prompt_index": prompt[1],
                              "source": mine[turn][2]["utt_id"], "prompt_source": name}
                             | ({"prompt_indices": [o[1] for o in several]} if heard else {}))
    if not items:
        raise ValueError(f"{dataset.root}: no utterance of split {split!r} has {least:g} s (--seconds) and {heard:g} s by its speaker beside it "
                         "(--prompt_seconds); pick another --split, or ask for less")
    return items


def from_dataset(dataset: Dataset, split: str, limit: int, seed: int, least: float = 0.0, heard: float = 0.0) -> Material:
    """Utterances of a split, `choose` has which; with `heard` prompts have so many seconds, and a fingerprint that says so."""
    items, rate = choose(dataset, split, limit, seed, least, heard), dataset.sample_rate
    mine = [dict(item) for item in cluster.share(items)]
    recordings, prompts, voices = [read_audio(dataset, split, item["index"]) for item in mine], [], []
    for item in mine:
        parts, said = [], []
        for i in item.get("prompt_indices", [item["prompt_index"]]):
            audio, left = read_audio(dataset, split, i), heard - sum(map(len, parts)) / rate
            said.append(inference.Said((audio, rate), dataset.read(split, "meta", i)["text"], left * (0 < left < len(audio) / rate)))
            parts.append(audio[: round(left * rate)] if heard else audio)
        prompts.append(np.concatenate(parts))
        voices.append(said if heard else said[0])
    about = {"data": dataset.fingerprint, "split": split, "items": digest(items)} | ({"prompt": f"{heard:g} s"} if heard else {})
    return Material(mine, recordings, prompts, rate, about, items, dataset, split, voices)


def from_list(spec: str, rate: int, limit: int, seed: int, prompt_text: str = "") -> Material:
    """The items of a list (of a `limit`, spread over the speakers). Prompts and recordings are named by their files' bytes; `prompt_text` is what
    prompts say whose text the list does not know.

    Raises AudioError for a file that can't be used.
    """
    chosen = lists.spread(lists.load(spec, seed), limit)
    names = {path: hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12] for one in chosen for path in (one.prompt, one.audio) if path}
    items = [{"id": one.id, "speaker": one.speaker, "voice": one.speaker, "text": one.text,
              "prompt": f"{Path(one.prompt).stem} {names[one.prompt]} {one.prompt_seconds:g}",
              "source": names.get(one.audio, ""), "prompt_source": names[one.prompt]} for one in chosen]
    mine = cluster.share(chosen)
    recordings = [lists.audio(one.audio, rate) if one.audio else None for one in mine]
    prompts = [lists.audio(one.prompt, rate, one.prompt_seconds) for one in mine]
    about = {"source": spec.split(":")[0], "items": digest(items)}
    voices = [inference.Said(one.prompt, one.prompt_text or prompt_text, one.prompt_seconds) for one in mine]
    return Material([dict(item) for item in cluster.share(items)], recordings, prompts, rate, about, items, voices=voices)


def digest(items: list[dict[str, Any]]) -> str:
    """Names the list of all items: ids, speakers, prompts, recordings and texts."""
    return statistics.digest([item[key] for key in ("id", "speaker", "prompt", "source", "text")] for item in items)
