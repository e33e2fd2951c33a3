"""Conversations scored: transcripts of a corpus that `data_pipelines.dialogues` made, spoken in the voices of the corpus it was made of.

Everybody's prompt is another utterance of theirs, which nobody says in the conversation. A turn is what the aligner hears as one
(`evals.turns`), in the recordings too; its speaker is asked for by `evals.speaker_similarity` among all prompts of the list.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tqdm

from ns2_jax import inference
from ns2_jax.data.dataset import Dataset
from ns2_jax.evals import ge2e, scores, speaker_similarity, turns
from ns2_jax.evaluate import job, judges
from ns2_jax.evaluate.material import PROMPT_SECONDS, Material, digest, read_audio
from ns2_jax.inference.dialogue import Dialogue

EVALS = ("word_error", "turns", "dnsmos")
DEFAULTS = EVALS[:2]
ITEMS = 40  # conversations, unless --limit says otherwise


@dataclasses.dataclass
class Talks:
    """Of every item: its turns (speaker, text), its speakers' prompts and what names those, and when in the recording who says what."""

    material: Material
    turns: list[list[tuple[str, str]]]
    prompts: list[dict[str, inference.Said]]
    names: list[dict[str, str]]
    scripts: list[turns.Script]


def gather(data: str, clean: str, split: str, rate: int, limit: int, seed: int) -> Talks:
    """Conversations of `data` whose speakers have another utterance in `clean`, which depend on names and seed alone.

    Raises ValueError for data sets that are not of this kind, or leave nothing.
    """
    dataset, source = Dataset.open(data), Dataset.open(clean)
    for one in (dataset, source):
        one.check_split(split)
        if one.sample_rate != rate:
            raise ValueError(f"{one.root} is at {one.sample_rate} Hz, the model works at {rate} Hz")
    dataset.check_group("align")
    plain, rank = lambda text: " ".join(text.split()), lambda name: hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()
    people: dict[str, list[tuple[str, str, int, str]]] = {}
    for i in range(source.records(split)):
        meta = source.read(split, "meta", i)
        if meta["num_samples"] >= PROMPT_SECONDS * rate:
            people.setdefault(meta["speaker"], []).append((rank(meta["utt_id"]), meta["utt_id"], i, plain(meta["text"])))
    metas = [dataset.read(split, "meta", i) for i in range(dataset.records(split))]
    talks = Talks(Material([], [], [], rate, {}, [], dataset, split), [], [], [], [])
    for i in sorted(range(len(metas)), key=lambda i: rank(metas[i]["utt_id"])):
        said = inference.read_dialogue(metas[i]["text"])
        free = {who: [one for one in people.get(who, ()) if (who, one[3]) not in said] for who in dict.fromkeys(who for who, _ in said)}
        if len(free) < 2 or not all(free.values()) or limit and len(talks.turns) == limit:
            continue
        chosen = {who: min(some) for who, some in free.items()}
        name = "+".join(one[1] for one in chosen.values())
        talks.material.items.append({
            "id": metas[i]["utt_id"], "index": i, "speaker": metas[i]["speaker"], "voice": metas[i]["voice"],
            "text": " ".join(text for _, text in said), "prompt": name, "source": metas[i]["utt_id"], "prompt_source": name})
        talks.material.recordings.append(read_audio(dataset, split, i))
        talks.turns.append(said)
        talks.prompts.append({who: inference.Said((read_audio(source, split, one[2]), rate), one[3]) for who, one in chosen.items()})
        talks.names.append({who: f"{who}: {one[3]}" for who, one in chosen.items()})
        align = dataset.read(split, "align", i)
        last = inference.inventory.turns(align["phones"])
        if len(last) != len(said):
            raise ValueError(f"{metas[i]['utt_id']} has {len(said)} turns and its phones {len(last)}; was {data} made by data_pipelines.dialogues?")
        talks.scripts.append(turns.script(align["phones"], align["ends"], [0, *align["ends"][last[:-1]].tolist()]))
    if not talks.turns:
        raise ValueError(f"no conversation of split {split!r} of {data} has two speakers of whom {clean} has another {PROMPT_SECONDS:g} s")
    about = {"data": dataset.fingerprint, "clean": source.fingerprint, "split": split, "items": digest(talks.material.items)}
    talks.material = dataclasses.replace(talks.material, about=about, every=talks.material.items)
    return talks


def speak(model: inference.Model, talks: Talks, seed: int, at_once: bool, options: Mapping[str, Any]) -> list[Dialogue | None]:
    """The conversations, None where the model cannot (its item says why)."""
    hold, made = inference.converse_at_once if at_once else inference.converse, []
    for k, (said, prompts) in enumerate(tqdm.tqdm(list(zip(talks.turns, talks.prompts)), "conversations", mininterval=2)):
        voices = prompts if model.continues else {who: one.voice for who, one in prompts.items()}
        try:
            made.append(hold(model, said, voices, seed + k, **options))
        except ValueError as error:
            job.fail(talks.material.items[k], "synthesis", str(error))
            made.append(None)
    return made


def script_of(made: Dialogue) -> turns.Script:
    """When a conversation that was made has who say what."""
    return turns.script(inference.inventory.ids(made.speech.phones), made.speech.ends, [begin for _, begin, _ in made.turns])


def judge(talks: Talks, made: Mapping[str, Sequence[np.ndarray | None]], scripts: Mapping[str, Sequence[turns.Script] | None],
          aligner: inference.Model, seed: int, about: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Score lines of every condition: `turn_within_*` where its script says when (else None), `secs_*` over turns."""
    rate, every, lines = talks.material.rate, [], []
    for said, names in zip(talks.turns, talks.names):
        every += [{"speaker": who, "source": f"{who}: {text}", "prompt_source": names[who]} for who, text in said]
    prompts = {names[who]: one.voice[0] for names, some in zip(talks.names, talks.prompts) for who, one in some.items()}
    voices = dict(zip(prompts, speaker_similarity.references(list(prompts.values()), rate)))
    table = np.stack([voices[one["prompt_source"]] for one in every])
    for condition, audios in made.items():
        timed = scripts[condition] is not None
        told = list(scripts[condition] or talks.scripts)
        found = turns.heard(aligner, audios, told, rate)
        common = dict(rate=rate, seed=seed, aligner=aligner.hash, **about[condition])
        rows = turns.measure(found, told, rate) if timed else [{} for _ in audios]
        lines += turns.summarise(condition, rows, **common) if timed else []
        parts = []
        for audio, spans, said in zip(audios, found, talks.turns, strict=True):
            parts += [None] * len(said) if spans is None else [audio[int(begin) : int(np.ceil(end))] for begin, end in spans]
        voiced = speaker_similarity.measure(parts, table, every, range(len(every)), rate)
        lines += speaker_similarity.summarise(condition, voiced, of="turns", **common)
        for item, row, said in zip(talks.material.items, rows, talks.turns):
            mine, voiced = voiced[: len(said)], voiced[len(said) :]
            item.setdefault("turns", {})[condition] = row | {"voices": mine}
    return lines


def score(ask: job.Ask, path: str, model: inference.Model, out: Path | None) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What is asked for: (score lines, rows of the items), printed and not yet written. One host."""
    if jax.process_count() > 1:
        raise ValueError(f"--task=dialogue runs on one host; {jax.process_count()} were started")
    if model is None or not model.speaks:
        raise ValueError("--task=dialogue needs a model that speaks: --model=DIR")
    if not ask.clean or not ask.data:
        raise ValueError("--task=dialogue needs --data=DIR, made by data_pipelines.dialogues, and --clean=DIR, the data set that was made of")
    job.check_audio(ask, out)
    evals = ask.evals or DEFAULTS
    if wrong := next((name for name in evals if name not in EVALS), None):
        raise ValueError(f"--evals={wrong} does not go with --task=dialogue: expected {', '.join(EVALS)}")
    if "turns" in evals:
        ge2e.find_weights()
    aligner = inference.load(ask.aligner or inference.ALIGNER)
    if model.continues:
        model.aligner = aligner
    talks = gather(ask.data, ask.clean, ask.split, model.rate, ITEMS if ask.limit is None else ask.limit, ask.seed)
    material = talks.material
    rest = tuple(name for name in evals if name != "turns")
    judges.check(rest, "tts", model, material.dataset, material.every, recogniser=ask.recogniser)
    print(f"{len(talks.turns)} conversations of {len({who for said in talks.turns for who, _ in said})} speakers, {sum(map(len, talks.turns))} turns")
    made: dict[str, list[np.ndarray | None]] = {"recording": material.recordings}
    if "encode" in model.programs:
        made |= job.resynthesise(model, material.recordings, "tts")
    spoken = speak(model, talks, ask.seed, ask.at_once, ask.sampler)
    made["synthesis"] = [one and one.speech.audio for one in spoken]
    job.leave_out(material.items, made)
    own = [script_of(one) if one else exact for one, exact in zip(spoken, talks.scripts)]
    scripts = {name: talks.scripts for name in made} | {"synthesis": None if ask.at_once and model.paces else own}
    ours = material.about | ({"model": model.hash} if "," in model.path else job.identity(path, model.step))
    told = {"sampler": {**model.programs["sample"].options, **ask.sampler}, "seeds": f"{ask.seed} + index", "at_once": ask.at_once}
    about = {name: ours for name in made} | {"recording": material.about, "synthesis": ours | told}
    lines = judges.judge(ask.recogniser, ask.seed, rest, material, made, [], [], about.__getitem__)
    lines += judge(talks, made, scripts, aligner, ask.seed, about) if "turns" in evals else []
    if out and ask.save_audio:
        origins = {"synthesis": [one and one.speech.origin for one in spoken]}
        job.save_audio(out / "audio", material.items, made, origins, material.rate)
    print("\n" + scores.table(lines))
    return lines, material.items
