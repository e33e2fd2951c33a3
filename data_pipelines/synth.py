"""Makes the default corpus, without a download: `python -m data_pipelines.synth --out=DIR --hours=H [--seed=S]`.

Speech of flite (four voices built from recordings) and espeak-ng, each spoken by many speakers (`voices.py`), with the
exact end of every phone in samples and F0. Groups meta, audio, align, f0; splits train, valid, test and heldout share no
speaker and no sentence, and all but train read natural sentences (`text/`). The same flags on the same machine with the
same versions give the same bytes, whatever `--workers` is. Stopped halfway, the same command goes on where it was.

    python -m data_pipelines.synth --out=data/default --hours=1
    python -m data_pipelines.synth --out=data/default --hours=1 --check     what a recogniser makes of the result

Beside the groups there are `corpus.json` (what was asked for) and `speakers.json` (voice, warp, pitch and rate by name).
Without flite the corpus is espeak-ng's alone: good for trying things, too buzzy for intelligibility scores.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import pathlib
import re
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import numpy as np
from absl import flags

from data_pipelines import espeak, flite, segments, sentences, shards, voices
from ns2_jax.audio import files
from ns2_jax.data import frames, records
from ns2_jax.text import phones as inventory
from ns2_jax.text.normalise import normalise

RATE = 16000
GROUPS = ("meta", "audio", "align")
LONGEST, SHORTEST = 20.0, 0.5  # seconds
SHARD_SECONDS = 600.0  # of a train shard; a split that is read from a list has one shard
EVAL_SHARE = 0.25  # of a small corpus goes to valid, test and heldout, until these hold as many sentences as:
EVAL_COUNTS = {"valid": 70, "test": 125, "heldout": 90}
MEAN_SECONDS = 3.0  # of a natural sentence, to turn the share into counts
FLITE_SHARE = 0.75  # of train utterances, when both sources are there: these voices are the natural ones
SILENCE = (0.1, 0.2)  # seconds left at either end


@dataclasses.dataclass(frozen=True)
class Corpus:
    """What was asked for; `corpus.json`. `sources` are those that are really used."""

    hours: float
    seed: int
    sources: tuple[str, ...]

    def counts(self) -> dict[str, int]:
        """Sentences of the splits that are read from lists."""
        total = sum(EVAL_COUNTS.values())
        scale = min(1.0, self.hours * 3600 * EVAL_SHARE / (total * MEAN_SECONDS))
        return {split: max(3, math.floor(count * scale)) for split, count in EVAL_COUNTS.items()}

    def train_seconds(self) -> float:
        return max(self.hours * 3600 - sum(self.counts().values()) * MEAN_SECONDS, 60.0)

    def shards(self, split: str) -> int:
        return max(1, round(self.train_seconds() / SHARD_SECONDS)) if split == "train" else 1

    def tasks(self) -> list[tuple[str, int]]:
        """(split, shard) of the whole corpus."""
        return [(split, shard) for split in voices.SPLITS for shard in range(self.shards(split))]


@functools.lru_cache
def natural(split: str) -> tuple[str, ...]:
    """The sentences that valid, test or heldout reads; heldout has the end of the test list, test its beginning."""
    if split == "valid":
        return sentences.load_list("valid")
    listed = sentences.load_list("test")
    middle = len(listed) * EVAL_COUNTS["test"] // (EVAL_COUNTS["test"] + EVAL_COUNTS["heldout"])
    return listed[:middle] if split == "test" else listed[middle:]


def utterance(speaker: voices.Speaker, synthesiser: voices.Synthesiser, spoken: str, rng: np.random.Generator):
    """(audio int16 `[s]` at 16 kHz, phone ids uint8 `[p]`, ends int32 `[p]`) of normalised text, at the house's level."""
    audio, rate, names, ends = synthesiser.speak(speaker, spoken)
    translate = inventory.from_flite if speaker.source == "flite" else inventory.from_espeak
    names, ends = segments.to_inventory(names, ends, translate, rate)
    audio, ends = segments.warp(audio, ends, rate, RATE, speaker.warp)
    lead, tail = (int(seconds * RATE) for seconds in rng.uniform(*SILENCE, 2))
    audio, names, ends = segments.set_silence(audio, names, ends, lead, tail)
    audio = files.match_loudness(audio, RATE)
    durations = frames.durations(ends, len(audio), RATE, records.BASE_HOP)
    if durations.sum() != len(audio) // records.BASE_HOP:
        raise AssertionError(f"{durations.sum()} frames of phones in {len(audio) // records.BASE_HOP} frames of {spoken!r}")
    pcm = np.rint(audio * 32767).astype(np.int16)
    return pcm, inventory.ids(names).astype(np.uint8), ends.astype(np.int32)


def _requests(corpus: Corpus, split: str, shard: int, rng: np.random.Generator):
    """Yields (speaker, text) of a shard: endless for train, as many as the list has for the other splits."""
    speakers = voices.table(corpus.sources, corpus.hours)[split]
    if split != "train":
        (people,) = speakers.values()
        listed, count = natural(split), corpus.counts()[split]
        for i in range(count):  # the same sentences whatever the seed; a longer list than the corpus needs is cut
            yield people[i % len(people)], listed[i % len(listed)]
        return
    while True:
        source = "flite" if "flite" in speakers and ("espeak" not in speakers or rng.random() < FLITE_SHARE) else "espeak"
        yield speakers[source][int(rng.integers(len(speakers[source])))], sentences.sentences(rng, 1)[0]


def make_shard(root: str, corpus: Corpus, task: int) -> dict[str, dict[str, float]]:
    """Writes meta, audio and align of shard `task` of `corpus.tasks()`; returns what it cost, by source.

    Meant to run in a process of its own. A pure function of its arguments and the installed versions.
    """
    split, shard = corpus.tasks()[task]
    total = corpus.shards(split)
    cost: dict[str, dict[str, float]] = {}
    if shards.committed(root, GROUPS, split, shard, total):
        return cost
    sequence = np.random.SeedSequence([corpus.seed, voices.SPLITS.index(split), shard])
    rng = np.random.Generator(np.random.Philox(sequence))
    synthesiser = voices.Synthesiser(corpus.sources, int(sequence.generate_state(1)[0]))
    tools = {"numpy": np.__version__, "soxr": metadata.version("soxr"), **synthesiser.tools()}
    if "flite" in corpus.sources:
        tools["flite"] = flite.version()
    asked = {"sources": " ".join(corpus.sources), "seed": corpus.seed, "hours": corpus.hours}
    info = {"meta": asked, "align": {"phones": inventory.inventory_hash()}}
    writers = {group: shards.ShardWriter(root, group, split, shard, total, info=info.get(group), tools=tools) for group in GROUPS}
    try:
        left = corpus.train_seconds() / total if split == "train" else math.inf
        for place, (speaker, text) in enumerate(_requests(corpus, split, shard, rng)):
            began, busy = time.perf_counter(), _cpu()
            spoken = normalise(text)
            pcm, ids, ends = utterance(speaker, synthesiser, spoken, rng)
            seconds = len(pcm) / RATE
            spent = cost.setdefault(speaker.source, {"audio": 0.0, "wall": 0.0, "cpu": 0.0})
            spent["audio"] += seconds
            spent["wall"] += time.perf_counter() - began
            spent["cpu"] += _cpu() - busy
            if not SHORTEST <= seconds <= LONGEST:
                writers["meta"].reject("too_long" if seconds > LONGEST else "too_short")
                continue
            about = {"utt_id": f"{split}-{shard:05d}-{place:05d}", "speaker": speaker.name, "source": speaker.source,
                     "voice": speaker.voice, "text": text, "text_norm": spoken}
            values = {"meta": about, "audio": {"audio": pcm}, "align": {"phones": ids, "ends": ends}}
            for group, writer in writers.items():
                writer.write(values[group], len(pcm))
            left -= seconds
            if left <= 0:
                break
    except BaseException:
        for writer in writers.values():
            writer.discard()
        raise
    for writer in writers.values():
        writer.commit()
    return cost


def _cpu() -> float:
    """Processor seconds of this process and its finished children."""
    import resource

    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def plan(hours: float, seed: int, sources: Sequence[str]) -> Corpus:
    """The corpus that can be made here: of two sources a missing one is left out and stderr says so.

    Raises ValueError for bad numbers or sources, FileNotFoundError when none of the sources is installed.
    """
    if not 0 < hours <= 10_000:
        raise ValueError(f"--hours={hours:g} must be above 0 and at most 10000")
    if not 0 <= seed < 2**31:
        raise ValueError(f"--seed={seed} must be 0 to {2**31 - 1}")
    unknown = [source for source in sources if source not in ("flite", "espeak")]
    if unknown or not sources:
        raise ValueError(f"--sources={','.join(sources)}: {unknown[0] if unknown else 'nothing'!r} is no source; known: flite, espeak")
    here = {"flite": (flite.available(), flite.INSTALL), "espeak": (espeak.available(), espeak.INSTALL)}
    used = tuple(source for source in ("flite", "espeak") if source in sources and here[source][0])
    missing = [source for source in ("flite", "espeak") if source in sources and not here[source][0]]
    if not used:
        raise FileNotFoundError("; ".join(f"{source} is not installed: {here[source][1]}" for source in missing))
    for source in missing:
        print(f"synth: {source} is not installed, going on with {used[0]} alone; {here[source][1]}", file=sys.stderr)
    if "flite" not in used:
        print("synth: without flite every speaker, the test speakers too, is an espeak-ng voice: buzzy, and too hard for the recogniser",
              file=sys.stderr)
    return Corpus(float(hours), seed, used)


def _claim(root: pathlib.Path, corpus: Corpus) -> None:
    """Writes `corpus.json`, or checks that the folder already holds this corpus. Raises ValueError otherwise."""
    wanted = {**dataclasses.asdict(corpus), "sources": list(corpus.sources), "format": 1}
    path = root / "corpus.json"
    if path.exists():
        found = json.loads(path.read_text())
        if found != wanted:
            raise ValueError(f"{root} holds another corpus ({_brief(found)}; now {_brief(wanted)}); choose another --out or delete it")
        return
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ValueError(f"{root} exists and is not a corpus made by this command; choose another --out")
    root.mkdir(parents=True, exist_ok=True)
    people = {
        speaker.name: {**dataclasses.asdict(speaker), "split": split}
        for split, by_source in voices.table(corpus.sources, corpus.hours).items() for group in by_source.values() for speaker in group
    }
    records.write_atomic(root / "speakers.json", json.dumps(people, indent=1).encode() + b"\n")
    records.write_atomic(path, json.dumps(wanted).encode() + b"\n")


def _brief(found: dict[str, Any]) -> str:
    return f"hours {found.get('hours', '?')} seed {found.get('seed', '?')} sources {','.join(found.get('sources', ['?']))}"


def build(root: str, corpus: Corpus, workers: int = 1) -> dict[str, Any]:
    """Makes the corpus, or what is missing of it, and returns its manifest; prints speeds as it goes."""
    folder = pathlib.Path(root)
    _claim(folder, corpus)
    began = time.perf_counter()
    costs = shards.run_shards(functools.partial(make_shard, str(folder), corpus), len(corpus.tasks()), max(workers, 1), "speaking")
    for source in corpus.sources:
        spent = {key: sum(cost.get(source, {}).get(key, 0.0) for cost in costs) for key in ("audio", "wall", "cpu")}
        if spent["audio"]:
            print(f"synth: {source} {spent['audio'] / 3600:.2f} h of speech, {spent['audio'] / spent['wall']:.0f}x real time per worker, "
                  f"{spent['audio'] / max(spent['cpu'], 1e-9):.0f}x per processor second")
    middle = time.perf_counter()
    if not (folder / "manifest.json").exists():
        shards.write_manifest(root, name="default", phones=inventory.inventory_hash(), needed=["align"])
    from data_pipelines import features  # imports jax, which the workers do without

    manifest = features.add_f0(root)
    seconds = sum(split["seconds"] for split in manifest["splits"].values())
    print(f"synth: {seconds / 3600:.2f} h in all, speaking took {middle - began:.0f} s, F0 {time.perf_counter() - middle:.0f} s "
          f"({seconds / (time.perf_counter() - middle):.0f}x real time)")
    for split, counts in manifest["splits"].items():
        people = len(manifest["speakers"][split])
        print(f"synth: {split:8s} {counts['records']:6d} utterances {counts['seconds'] / 3600:7.3f} h {people:4d} speakers")
    return manifest


def check(root: str, per_voice: int = 8) -> list[dict[str, Any]]:
    """Word error of pocketsphinx on up to `per_voice` recordings of every voice and split, as rows; prints them as a table.

    Splits are told apart because only mild warps are in valid, test and heldout. Both sides are normalised the same way.
    Raises ImportError when the packages of the `eval` extra are missing.
    """
    try:
        import jiwer
        import pocketsphinx
    except ImportError as error:
        raise ImportError(f"--check needs the package {error.name}: pip install -e '.[eval]'") from error
    import tqdm

    from ns2_jax.data.dataset import Dataset

    dataset = Dataset.open(root)
    picked: dict[tuple[str, str], list[tuple[str, np.ndarray]]] = {}
    for split in dataset.manifest["splits"]:
        for i in range(dataset.manifest["splits"][split]["records"]):
            meta = dataset.read(split, "meta", i)
            place = ("mild" if split != "train" else "train", meta["voice"] if meta["source"] == "flite" else "espeak")
            if len(picked.setdefault(place, [])) < per_voice:
                picked[place].append((meta["text_norm"], dataset.read(split, "audio", i)["audio"]))
    words = lambda text: " ".join(re.findall(r"[a-z]+(?:'[a-z]+)*", text.lower()))
    decoder = pocketsphinx.Decoder(samprate=RATE, loglevel="FATAL")
    rows = []
    with tqdm.tqdm(total=sum(map(len, picked.values())), desc="recognising", mininterval=2) as progress:
        for (kind, voice), items in sorted(picked.items()):
            said, heard = [], []
            for text, pcm in items:
                said.append(words(text))
                try:
                    decoder.start_utt()
                    decoder.process_raw(np.asarray(pcm, "<i2").tobytes(), no_search=False, full_utt=True)
                    decoder.end_utt()
                    heard.append(words(decoder.hyp().hypstr) if decoder.hyp() else "")
                except RuntimeError:  # it gives up on some recordings: nothing heard, and a fresh one hears the next
                    decoder = pocketsphinx.Decoder(samprate=RATE, loglevel="FATAL")
                    heard.append("")
                progress.update()
            error = jiwer.wer(said, heard)
            count = sum(len(text.split()) for text in said)
            rows.append({"speakers": kind, "voice": voice, "utterances": len(items), "words": count, "wer": 100 * error})
    print(f"{'speakers':10s}{'voice':10s}{'utterances':>11s}{'words':>7s}{'word error %':>14s}")
    for row in rows:
        print(f"{row['speakers']:10s}{row['voice']:10s}{row['utterances']:11d}{row['words']:7d}{row['wer']:14.1f}")
    return rows


def main(argv: list[str]) -> None:
    del argv
    given = flags.FLAGS
    if not given.out:
        raise ValueError("--out is missing: the folder for the corpus, e.g. --out=data/default")
    if given.workers < 1:
        raise ValueError(f"--workers={given.workers} must be at least 1")
    from ns2_jax.runtime import cluster  # imports jax, which the workers do without

    cluster.start(lambda line: None)
    corpus = plan(given.hours, given.seed, [source for source in given.sources if source])
    build(given.out, corpus, given.workers)
    if given.check:
        check(given.out)


if __name__ == "__main__":
    from ns2_jax.runtime import cluster  # here, because it imports jax and every worker imports this module

    flags.DEFINE_string("out", "", "folder to write the corpus into")
    flags.DEFINE_float("hours", 1.0, "hours of speech, all splits together")
    flags.DEFINE_integer("seed", 0, "of the train texts and of who says what")
    flags.DEFINE_list("sources", ["flite", "espeak"], "flite, espeak or both; of two, one that is not installed is left out")
    flags.DEFINE_integer("workers", 2, "processes; the result does not depend on it")
    flags.DEFINE_bool("check", False, "also score a sample of the recordings with pocketsphinx and print the word error per voice")
    cluster.run(main)
