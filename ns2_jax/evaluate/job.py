"""Makes the audio of every condition, has it judged, and writes what came out; also beside a training.

Hosts share the items: each makes and judges its own, rows travel (`cluster.gather`), and every host counts the same scores, of
which the first writes. The devices of a host share the rows of a batch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tqdm

from ns2_jax import inference
from ns2_jax.data.dataset import Dataset
from ns2_jax.data.frames import frame_ends
from ns2_jax.evals import acoustic_distance, codec_quality, diversity, dnsmos, drift, ge2e, lists, pictures, predictability, prosody, robustness
from ns2_jax.evals import room, scores, speaker_similarity, speed, statistics, word_error
from ns2_jax.evaluate.material import Material, from_dataset, from_list, read_audio
from ns2_jax.runtime import checkpoints, cluster, metrics, weights

EVALS = (
    "word_error", "speaker_similarity", "robustness", "acoustic_distance", "prosody", "dnsmos", "drift", "room", "diversity", "codec_quality",
    "predictability", "speed")
DEFAULTS = {"recordings": EVALS[:2], "codec": (*EVALS[:2], "codec_quality", "predictability"), "tts": EVALS[:2]}
TAKE = 1_000_000  # between the seeds of two takes of an utterance
LEVELS = (8, 4)  # besides all of them and none
SPEED_ITEMS = 12  # utterances of a data set that are timed, unless --limit says otherwise
TABLE_FILL, TABLE_TEST = 240, 80  # utterances of the predictability table


@dataclasses.dataclass(frozen=True)
class Ask:
    """What is asked for; the flags of the command of the same names say what each is."""

    evals: tuple[str, ...] = ()
    task: str | None = None
    data: str | None = None
    split: str = "test"
    list: str | None = None
    wavs: str | None = None
    limit: int | None = None
    seed: int = 0
    sampler: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    recogniser: str = "pocketsphinx"
    processes: int = 2
    takes: int = 3
    save_audio: bool = False


def check(evals: Sequence[str], task: str, model: inference.Model | None, dataset: Dataset | None,
          items: Sequence[Mapping[str, Any]], wavs: str | None = None, recogniser: str = "pocketsphinx") -> None:
    """Raises before hours of synthesis what the judges would raise after it: ImportError and FileNotFoundError for what is
    not installed, ValueError for what the task, the model or the data set lacks."""
    if "codec_quality" in evals and task == "recordings":
        raise ValueError("--evals=codec_quality compares a codec with the recordings; --task=recordings has none. Give --model")
    made = [name for name in ("robustness", "acoustic_distance") if name in evals and task == "recordings" and not wavs]
    if made:
        raise ValueError(f"--evals={made[0]} compares with the recordings; --task=recordings has nothing else. Give --model or --wavs")
    if "prosody" in evals and (task != "tts" or dataset is None):
        raise ValueError("--evals=prosody needs a model that speaks, and --data with phone times to compare with")
    if "diversity" in evals and task != "tts":
        raise ValueError("--evals=diversity compares syntheses of one text; it needs a model that speaks")
    if "predictability" in evals and (dataset is None or model is None or "latents" not in model.programs["encode"].outputs):
        raise ValueError("--evals=predictability needs a codec, whose latents it explains; give its run or export as --model")
    if "word_error" in evals:
        word_error.check(recogniser)
        for item in items:
            if not word_error.words(item["text"]):
                raise ValueError(f"utterance {item['id']} has no words in its text {item['text']!r}; leave word_error out")
    if "codec_quality" in evals:
        codec_quality.check()
    if "dnsmos" in evals:
        dnsmos.check()
    if "robustness" in evals:
        robustness.check()
        for item in items:
            robustness.spoken_words(item["text"])
    if {"speaker_similarity", "drift", "diversity"} & set(evals):
        ge2e.find_weights()
    if {"predictability", "prosody"} & set(evals):
        dataset.check_group("align")


def resynthesise(model: inference.Model, recordings: Sequence[np.ndarray], task: str) -> dict[str, list[np.ndarray]]:
    """Condition -> audio: `codec`, and where the codec is what is judged, fewer levels and no quantiser too."""
    made: dict[str, list[np.ndarray]] = {"codec": []}
    levels = int(model.system.sizes["q"])
    fewer = [k for k in LEVELS if k < levels] if task == "codec" and "levels" in model.programs["decode"].options else []
    for k in fewer:
        made[f"codec_{k}"] = []
    if task == "codec" and "decode_latents" in model.programs:
        made["codec_unquantised"] = []
    for audio in tqdm.tqdm(recordings, "codec", mininterval=2, disable=not cluster.is_first()):
        codes = model.encode(audio)
        made["codec"].append(model.decode(codes))
        for k in fewer:
            made[f"codec_{k}"].append(model.decode(codes, levels=k))
        if "codec_unquantised" in made:
            made["codec_unquantised"].append(model.decode_latents(model.latents(audio)))
    return made


def synthesise(model: inference.Model, material: Material, seed: int, options: Mapping[str, Any]) -> tuple[list[inference.Speech | None], float]:
    """The items' texts in the voices of their prompts (None where it failed), and the seconds it took."""
    made: list[inference.Speech | None] = []
    start, rows = time.monotonic(), inference.ROWS * jax.local_device_count()
    for at in tqdm.tqdm(range(0, len(material.items), rows), "speaking", mininterval=2, disable=not cluster.is_first()):
        part = slice(at, at + rows)
        requests = [(item["text"], (prompt, model.rate)) for item, prompt in zip(material.items[part], material.prompts[part])]
        made += model.speak_batch(requests, [seed + place for place in material.places[part]], strict=False, **options)
    return made, time.monotonic() - start


def table_of_means(model: inference.Model, dataset: Dataset, seed: int, common: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Lines `predictability_*`: of the latents and, for scale, of log-mel. On train speakers: the table holds their means."""
    split = "train" if "train" in dataset.splits else dataset.splits[0]
    order = sorted(range(dataset.records(split)), key=lambda i: hashlib.sha256(f"{seed}/{i}".encode()).digest())
    picks = order[: TABLE_FILL + TABLE_TEST]
    speakers: dict[str, int] = {}
    latents, mels = [], []
    for i in tqdm.tqdm(picks, "predictability", mininterval=2):
        audio, align = read_audio(dataset, split, i), dataset.read(split, "align", i)
        ends = frame_ends(align["ends"], len(audio), dataset.sample_rate, model.hop)
        z = model.latents(audio)
        phone, third = predictability.thirds(ends, len(z))
        speaker = dataset.read(split, "meta", i)["speaker"]
        keys = (align["phones"][phone].astype(np.int64), third, speakers.setdefault(speaker, len(speakers)))
        latents.append((z, *keys))
        mels.append((predictability.log_mel(audio, model.rate, model.hop)[: len(z)], *keys))
    fill = max(len(latents) * TABLE_FILL // (TABLE_FILL + TABLE_TEST), 1)
    lines = []
    for name, items in (("latents", latents), ("log_mel", mels)):
        result = predictability.explained(items[:fill], items[fill:])
        line = statistics.score(
            f"predictability_{name}", result["channels"], unit="share", seed=seed, averaging="mean over channels at unit deviation",
            evaluator="table of means per phone, third and voice", **common, split=split, fill=fill, test=len(items) - fill,
            picks=statistics.digest(picks))
        lines.append(line | {key: result[key] for key in ("power", "best", "neighbours", "rank90")})
    return lines


def identity(path: str | None, step: int | None) -> dict[str, Any]:
    """What a fingerprint says about the model: the hash of an export, the folder and step of a run."""
    if path is None:
        return {}
    return {"model": weights.weights_hash(path)} if step is None else {"model": os.path.basename(os.path.abspath(path)), "step": step}


def judge(ask: Ask, evals: Sequence[str], material: Material, made: Mapping[str, Sequence[np.ndarray | None]],
          speeches: Sequence[inference.Speech | None], takes: Sequence[Sequence[np.ndarray | None]],
          common: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Score lines of every condition of `made`; each item gets its own rows under the evaluator's name. `takes` are more syntheses of
    the items, each with other seeds."""
    items, prompts, rate, recordings = material.items, material.prompts, material.rate, made.get("recording")
    texts, said, speakers = [item["text"] for item in items], *([item[key] for item in material.every] for key in ("text", "speaker"))
    quiet = dict(rate=rate, progress=cluster.is_first())
    lines: list[dict[str, Any]] = []

    if "speaker_similarity" in evals:
        voices = cluster.gather([voice.tolist() for voice in speaker_similarity.references(prompts, rate)])
    reference = {**common, "rate": rate, "seed": ask.seed}
    judges: dict[str, tuple[Callable[[Sequence], list], Callable[..., list], Callable[[str], bool]]] = {
        # name: (rows of this host's audio, lines of all rows, conditions that it fits)
        "word_error": (lambda audios: word_error.measure(texts, audios, recogniser=ask.recogniser, processes=ask.processes, **quiet),
                       lambda *args, **about: word_error.summarise(*args, said, ask.recogniser, **about), bool),
        "speaker_similarity": (lambda audios: speaker_similarity.measure(audios, np.float32(voices), speakers, material.places, **quiet),
                               speaker_similarity.summarise, bool),
        "robustness": (lambda audios: robustness.measure(texts, audios, recordings, **quiet),
                       robustness.summarise, lambda name: name != "recording"),
        "acoustic_distance": (lambda audios: acoustic_distance.measure(material.recordings, audios, **quiet), acoustic_distance.summarise,
                              lambda name: name != "recording"),
        "dnsmos": (lambda audios: dnsmos.measure(audios, **quiet), dnsmos.summarise, bool),
        "drift": (lambda audios: drift.measure(audios, **quiet), drift.summarise, bool),
        "room": (lambda audios: room.measure(prompts, audios, **quiet), room.summarise, bool),
        "diversity": (lambda audios: diversity.measure(list(zip(audios, *takes)), **quiet), diversity.summarise, lambda name: name == "synthesis"),
        "codec_quality": (lambda audios: codec_quality.measure(recordings, audios, **quiet), codec_quality.summarise,
                          lambda name: name.startswith("codec")),
        "prosody": (lambda _: prosody.measure(material.spoken("prompt_index"), material.spoken("index"), spoken(speeches, rate)),
                    prosody.summarise, lambda name: name == "synthesis")}
    for condition, audios in made.items():
        for name, (measure, summarise, fits) in judges.items():
            if name in evals and fits(condition):
                say(f"{name.replace('_', ' ')} of {condition}")
                rows = measure(audios)
                for item, row in zip(items, rows, strict=True):
                    item.setdefault(name, {})[condition] = row
                lines += summarise(condition, cluster.gather(rows), **reference)
    return lines


def spoken(speeches: Sequence[inference.Speech | None], rate: int) -> list[prosody.Spoken | None]:
    """Phones, ends and F0 of what was synthesised."""
    there = [k for k, speech in enumerate(speeches) if speech is not None]
    parts = ([getattr(speeches[k], name) for k in there] for name in ("audio", "phones", "ends"))
    found = dict(zip(there, prosody.spoken(*parts, rate)))
    return [found.get(k) for k in range(len(speeches))]


def say(text: str) -> None:
    """A line of progress, from the first host only."""
    if cluster.is_first():
        print(text, flush=True)


def gather(ask: Ask, path: str | None, config: Mapping[str, Any] | None) -> Material:
    """What is asked to be scored, at the rate of the model with this config."""
    rate = int(config["data"]["sample_rate"]) if config else None
    if ask.list:
        return from_list(ask.list, rate or 16000, ask.limit or 0, ask.seed)
    dataset = Dataset.open(ask.data or config["data"]["path"])
    dataset.check_split(ask.split)
    if rate not in (None, dataset.sample_rate):
        raise ValueError(f"{path} works at {rate} Hz, {dataset.root} is at {dataset.sample_rate} Hz; give --data at the model's rate")
    return from_dataset(dataset, ask.split, 60 if ask.limit is None else ask.limit, ask.seed)


def time_speed(ask: Ask, path: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """How fast the model at `path` speaks (of a run the newest checkpoint), in fresh processes: (score lines, rows of the items)."""
    material = gather(dataclasses.replace(ask, limit=SPEED_ITEMS if ask.limit is None else ask.limit), path, checkpoints.read_config(path))
    texts = [item["text"] for item in material.items]
    step = (checkpoints.steps(path) or [None])[-1]
    rows = speed.measure(path, texts, material.prompts, material.rate, options=ask.sampler)
    alone = [row for row in rows if row["phase"] == "item"]
    for item, row in zip(material.items, alone, strict=True):
        item["speed"] = {"synthesis": row}
    lines = speed.summarise("synthesis", rows, ask.seed, **material.about, **identity(path, step))
    print("\n" + scores.table(lines))
    return lines, material.items


def score(ask: Ask, path: str | None, model: inference.Model | None, out: Path | None) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """All that is asked for, on one model: (score lines, rows of the items), printed and not yet written. Audio is written to
    OUT/audio where it is asked for, by the host that made it."""
    task = ask.task or ("recordings" if model is None else "tts" if model.speaks else "codec")
    if task != "recordings" and model is None:
        raise ValueError(f"--task={task} needs --model=DIR (a run or an export) or --workdir=DIR")
    if task == "tts" and not model.speaks:
        raise ValueError(f"--task=tts: system {model.config['system']!r} does not speak; use --task=codec")
    evals = tuple(ask.evals or DEFAULTS[task])
    material = gather(ask, path, model and model.config)
    items, rate = material.items, material.rate
    check(evals, task, model, material.dataset, items, ask.wavs, ask.recogniser)
    made: dict[str, list[np.ndarray | None]] = {}
    if all(cluster.gather([audio is not None for audio in material.recordings])):
        made["recording"] = material.recordings
    elif task == "codec" or {"acoustic_distance", "codec_quality"} & set(evals):
        raise ValueError(
            f"--list={ask.list} has no recordings to compare with; score speech, without acoustic_distance and codec_quality")
    people = len({item["speaker"] for item in material.every})
    say(f"{len(material.every)} utterances of {people} speakers, {ask.list or f'split {material.split} of {material.dataset.root}'}")
    common: dict[str, Any] = {**material.about, **identity(path, model and model.step)}
    if ask.wavs:
        made["wavs"], failures = lists.wavs(ask.wavs, [item["id"] for item in items], rate)
        for item in items:
            if item["id"] in failures:
                item["failure"] = failures[item["id"]]
                print(f"counts as missing: {item['failure']}")
    if model and task != "recordings" and "recording" in made:
        made |= resynthesise(model, made["recording"], task)
    if material.dataset and "align" in material.dataset.groups:
        for item, align in zip(items, material.aligned("index")):
            item["alignment"] = {"recording": pictures.aligned(align["phones"], align["ends"], rate)}
    speeches: list[inference.Speech | None] = []
    takes: list[list[np.ndarray | None]] = []
    if task == "tts":
        common |= {"sampler": {**model.programs["sample"].options, **ask.sampler}, "seeds": f"{ask.seed} + index"}
        speeches, spent = synthesise(model, material, ask.seed, ask.sampler)
        made["synthesis"] = [speech and speech.audio for speech in speeches]
        for item, speech in zip(items, speeches):
            if speech:
                item.setdefault("alignment", {})["synthesis"] = pictures.aligned(speech.phones, speech.ends, rate, speech.words)
        spoken = sum(len(audio) for audio in made["synthesis"] if audio is not None) / rate
        say(f"spoke {spoken:.0f} s in {spent:.0f} s, compilation included")
        for take in range(1, ask.takes if "diversity" in evals else 1):
            again, _ = synthesise(model, material, ask.seed + take * TAKE, ask.sampler)
            takes.append([speech and speech.audio for speech in again])
    if out and ask.save_audio:
        (out / "audio").mkdir(parents=True, exist_ok=True)
        for condition, audios in made.items():
            for item, audio in zip(items, audios):
                file = out / "audio" / f"{item['id'].replace('/', '_')}-{condition}.flac"
                if audio is None:
                    file.unlink(missing_ok=True)  # of an earlier evaluation into this folder
                else:
                    inference.write(file, (audio, rate))
    lines = judge(ask, evals, material, made, speeches, takes, common)
    if "predictability" in evals and cluster.is_first():
        lines += table_of_means(model, material.dataset, ask.seed, {k: v for k, v in common.items() if k not in ("split", "items")})
    items = cluster.gather(items)
    say("\n" + scores.table(lines))
    return lines, items


def write(out: Path, lines: Sequence[Mapping[str, Any]], items: Sequence[Mapping[str, Any]]) -> None:
    """The scores, by the first host."""
    if cluster.is_first():
        scores.write(out, lines, items)
        print(f"\nscores.jsonl, items.jsonl and summary.json are in {out}")


def score_step(ask: Ask, workdir: str, out: Path, step: int | None = None) -> None:
    """Scores checkpoint `step` (default the newest) into OUT/<step>/, OUT/scores.jsonl (of all steps) and TensorBoard."""
    model = inference.load(workdir, step)
    folder = out / str(model.step)
    lines, items = score(ask, workdir, model, folder)
    if cluster.is_first():
        with metrics.board(str(out / "tensorboard"), model.step) as board:
            for line in lines:
                board.add_scalar(line["name"], line["value"], model.step)
        write(folder, lines, items)  # last: with its summary.json a step is done
        scores.gather(out)
        print(f"the scores of all steps are in {out / 'scores.jsonl'}")


def look(workdir: str, out: Path) -> tuple[list[int], list[int], bool]:
    """(checkpoints there, those without scores, whether the last one of the training is there), as the first host sees them."""
    there = checkpoints.steps(workdir)
    fresh = [step for step in there if not (out / str(step) / "summary.json").exists()]
    ended = bool(there) and there[-1] >= checkpoints.read_config(workdir)["train"]["steps"]
    return cluster.gather([(there, fresh, ended)])[0]


def follow(ask: Ask, workdir: str, out: Path, poll: float) -> None:
    """Scores every checkpoint as it appears until the run's last step is scored (a run that died is waited for). What a killed job
    has scored is not scored again; a checkpoint that training has dropped meanwhile is passed over."""
    out.mkdir(parents=True, exist_ok=True)
    if cluster.is_first():
        scores.gather(out)
    waiting = False
    while True:
        there, fresh, ended = look(workdir, out)
        for step in fresh:
            say(f"\n== checkpoint {step} of {workdir}")
            try:
                score_step(ask, workdir, out, step)
            except (FileNotFoundError, ValueError) as error:
                if step in checkpoints.steps(workdir):
                    raise
                print(f"checkpoint {step} is gone: {error}")
        if ended and not fresh:
            say(f"{workdir} has reached its last step {there[-1]}: done")
            return
        if not fresh:
            if not waiting:
                say(f"waiting for the next checkpoint of {workdir}")
            time.sleep(poll)
        waiting = not fresh
