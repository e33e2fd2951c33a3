"""Makes the audio of every condition, has it judged, and writes what came out; also beside a training.

Hosts share the items: each makes and judges its own, rows travel (`cluster.gather`), and every host counts the same scores, of
which the first writes. The devices of a host share the rows of a batch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tqdm

from ns2_jax import inference
from ns2_jax.data.dataset import Dataset
from ns2_jax.evals import boundaries, lists, pictures, recognisers, rivals, scores, speed, statistics
from ns2_jax.evals import takes as best_takes
from ns2_jax.evaluate import changed, denoising, judges, sweep
from ns2_jax.evaluate.material import GOES_ON, Material, from_dataset, from_list
from ns2_jax.inference import aligning
from ns2_jax.inference.continuation import SECONDS
from ns2_jax.runtime import checkpoints, cluster, metrics, weights

TAKE = 1_000_000  # between the seeds of two takes of an utterance
LEVELS = (8, 4)  # besides all of them and none, unless --levels says otherwise
SPEED_ITEMS = 12  # utterances of a data set that are timed, unless --limit says otherwise


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
    takes: int = 3
    save_audio: bool = False
    levels: tuple[int, ...] | None = None
    rivals: tuple[str, ...] = ()
    clean: str | None = None
    aligner: str | None = None
    prompt_text: str | None = None
    prompts: str | None = None
    rerank: int = 1
    seconds: float = SECONDS
    prompt_seconds: float = 0.0
    at_once: bool = False
    by_steps: tuple[int, ...] = ()
    samplers: tuple[str, ...] = ()
    true_times: bool = False


def fewer_levels(model: inference.Model, asked: Sequence[int] | None) -> list[int]:
    """Numbers of levels, under all of them, that the codec is heard at. Raises ValueError for levels that it does not have."""
    levels, free = int(model.system.sizes.get("q", 0)), "levels" in model.programs["decode"].options
    wrong = [k for k in asked or () if not 1 <= k <= levels or (k < levels and not free)]
    if wrong:
        raise ValueError(f"--levels={wrong[0]}: {model.name} decodes from {'1 to ' * free}{levels or 'no'} levels")
    return [k for k in dict.fromkeys(LEVELS if asked is None else asked) if k < levels] if free else []


def kbps(model: inference.Model, levels: int) -> float:
    """kbit/s of so many levels of the codec: each is log2(codes) bits a frame."""
    return levels * math.log2(model.system.codes) * model.rate / model.hop / 1000


def resynthesise(model: inference.Model, recordings: Sequence[np.ndarray], task: str,
                 asked: Sequence[int] | None = None) -> dict[str, list[np.ndarray]]:
    """Condition -> audio: `codec`, and where the codec is what is judged, fewer levels and no quantiser too."""
    made: dict[str, list[np.ndarray]] = {"codec": []}
    fewer = fewer_levels(model, asked) if task == "codec" else []
    for k in fewer:
        made[f"codec_{k}"] = []
    if task == "codec" and "decode_latents" in model.programs:
        made["codec_unquantised"] = []
    rows = inference.ROWS * jax.local_device_count()
    for at in tqdm.tqdm(range(0, len(recordings), 4 * rows), "codec", mininterval=2, disable=not cluster.is_first()):
        part = recordings[at : at + 4 * rows]
        codes = model.encode_all(part)
        made["codec"] += model.decode_all(codes)
        for k in fewer:
            made[f"codec_{k}"] += model.decode_all(codes, levels=k)
        if "codec_unquantised" in made:
            made["codec_unquantised"] += [model.decode_latents(model.latents(audio)) for audio in part]
    return made


def make_rivals(specs: Sequence[str], recordings: Sequence[np.ndarray], rate: int, wanted: Sequence[float]) -> list[rivals.Made]:
    """What other codecs make of the recordings at about the `wanted` kbit/s."""
    made = []
    for spec in specs:
        found = rivals.find(spec).make(recordings, rate, wanted, cluster.gather, cluster.is_first())
        if not found:
            cluster.say(f"{spec} reaches none of the rates {', '.join(f'{kbps:g}' for kbps in wanted)} kbit/s")
        made += found
    return made


def synthesise(model: inference.Model, material: Material, seed: int, options: Mapping[str, Any],
               condition: str = "synthesis", continued: float = 0.0) -> tuple[list[inference.Speech | None], float]:
    """The items' texts in the voices of their prompts, or after the first `continued` seconds of their own recordings (None where it failed: its
    item says why), and the seconds it took."""
    made: list[inference.Speech | None] = []
    start, rows, requests = time.monotonic(), inference.ROWS * jax.local_device_count(), material.requests(model)
    for at in tqdm.tqdm(range(0, len(material.items), rows), "speaking", mininterval=2, disable=not cluster.is_first()):
        part = slice(at, at + rows)
        seeds = [seed + place for place in material.places[part]]
        failures: dict[int, str] = {}
        if continued:
            recordings = [(audio, model.rate) for audio in material.recordings[part]]
            made += inference.continue_all(model, list(zip(recordings, material.said[part])), seeds, continued, failures=failures, **options)
        else:
            made += model.speak_batch(requests[part], seeds, failures=failures, **options)
        for place, reason in failures.items():
            fail(material.items[at + place], condition, reason)
    return made, time.monotonic() - start


def fail(item: dict[str, Any], condition: str, reason: str) -> None:
    """Names an output that counts as missing, in the item's row and aloud."""
    item.setdefault("failures", {})[condition] = reason
    print(f"counts as missing: {condition} of {item['id']}: {reason}", flush=True)


def leave_out(items: Sequence[dict[str, Any]], made: Mapping[str, list[np.ndarray | None]]) -> None:
    """Outputs without a signal become missing ones, which every judge treats alike."""
    for condition in made.keys() - {"recording"}:
        for k, (item, audio) in enumerate(zip(items, made[condition])):
            if audio is not None and not recognisers.has_signal(audio):
                fail(item, condition, "not finite" if audio.size and not np.isfinite(audio).all() else "silent or under 0.1 s")
                made[condition][k] = None


def identity(path: str | None, step: int | None) -> dict[str, Any]:
    """What a fingerprint says about the model: the hash of an export, the folder and step of a run."""
    if path is None:
        return {}
    return {"model": weights.weights_hash(path)} if step is None else {"model": os.path.basename(os.path.abspath(path)), "step": step}


def gather(ask: Ask, path: str | None, config: Mapping[str, Any] | None) -> Material:
    """What is asked to be scored, at the rate of the model with this config."""
    rate = int(config["data"]["sample_rate"]) if config else None
    if ask.list:
        return from_list(ask.list, rate or 16000, ask.limit or 0, ask.seed, ask.prompt_text or "")
    dataset = Dataset.open(ask.data or config["data"]["path"])
    dataset.check_split(ask.split)
    if rate not in (None, dataset.sample_rate):
        raise ValueError(f"{path} works at {rate} Hz, {dataset.root} is at {dataset.sample_rate} Hz; give --data at the model's rate")
    least = ask.seconds + GOES_ON if ask.task == "continue" else 0.0
    return from_dataset(dataset, ask.split, 120 if ask.limit is None else ask.limit, ask.seed, least, ask.prompt_seconds)


def time_speed(ask: Ask, path: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """How fast the model at `path` speaks (of a run the newest checkpoint), in fresh processes: (score lines, rows of the items)."""
    material = gather(dataclasses.replace(ask, limit=SPEED_ITEMS if ask.limit is None else ask.limit), path, checkpoints.read_config(path))
    texts, step = [item["text"] for item in material.items], (checkpoints.steps(path) or [None])[-1]
    prompts = [one.voice[0] if isinstance(one.voice, tuple) else lists.audio(one.voice, material.rate) for one in material.voices]
    said = [(one.text, one.seconds) for one in material.voices]
    rows = speed.measure(path, texts, prompts, material.rate, step, options=ask.sampler, said=said)
    alone = [row for row in rows if row["phase"] == "item"]
    for item, row in zip(material.items, alone, strict=True):
        item["speed"] = {"synthesis": row}
    lines = speed.summarise("synthesis", rows, ask.seed, rate=material.rate, **material.about, **identity(path, step))
    print("\n" + scores.table(lines))
    return lines, material.items


def prepare(ask: Ask, path: str | None, model: inference.Model | None, out: Path | None) -> tuple[str, tuple[str, ...], Material]:
    """(task, evaluators, what is scored), after everything has been looked at that could fail later."""
    task = "tts" if ask.task == "continue" else ask.task or ("recordings" if model is None else "tts" if model.speaks else "codec")
    if task != "recordings" and model is None:
        raise ValueError(f"--task={task} needs --model=DIR (a run or an export) or --workdir=DIR")
    if task == "codec" and "encode" not in model.programs:
        raise ValueError(f"--task=codec: system {model.config['system']!r} has no codec; use --task=tts")
    if task in ("tts", *changed.TASKS) and not model.speaks:
        raise ValueError(f"--task={task}: system {model.config['system']!r} does not speak; use --task=codec")
    check_audio(ask, out)
    evals = tuple(ask.evals or judges.DEFAULTS[task])
    if not ask.evals and task == "codec" and "latents" not in model.programs["encode"].outputs:
        evals = tuple(name for name in evals if name != "predictability")
    if (ask.levels or ask.rivals) and task != "codec":
        raise ValueError(f"--{'levels' if ask.levels else 'rivals'} is about codecs; give a codec as --model, or --task=codec")
    if task == "codec":
        fewer_levels(model, ask.levels)
        if ask.rivals and "q" not in model.system.sizes:
            raise ValueError(f"--rivals compares at equal rates, and {model.name} has none: it makes no codes")
    for spec in ask.rivals:
        rivals.find(spec).check()
    if task in changed.TASKS:
        changed.check(task, model, ask.clean)
        if ask.list or ask.wavs:
            raise ValueError(f"--{'list' if ask.list else 'wavs'} does not go with --task={task}; give --data")
    elif ask.clean:
        raise ValueError("--clean goes with --task=enhance")
    if (ask.by_steps or ask.true_times) and (task != "tts" or ask.task == "continue"):
        raise ValueError(f"--{'by_steps' if ask.by_steps else 'true_times'} is about texts that a model speaks; it does not go with "
                         f"--task={ask.task or task}")
    if ask.by_steps:
        sweep.conditions(model, ask.by_steps, ask.samplers, ask.sampler)
    material = gather(ask, path, model and model.config)
    if ask.true_times:
        sweep.check_times(model, material)
        material = dataclasses.replace(material, timed=True)
    if task == "convert":
        material = changed.exchanged(material)
    elif task == "enhance":
        material = changed.cleaned(material, ask.clean)
    if ask.prompts:
        material = material.surrounded(ask.prompts)
    if ask.task == "continue" and any(not item["source"] for item in material.every):
        raise ValueError(f"--task=continue needs recordings to go on from; {ask.list} has none")
    voices = [] if ask.prompt_seconds or ask.task == "continue" else material.voices
    if task == "tts" and model.continues and (mute := next((one for one in voices if not one.text), None)):
        raise ValueError(f"{model.name} must be told what its prompts say: {mute.voice} has no text in --list={ask.list} (--prompt_text gives one)")
    if ask.rerank > 1 and task != "tts":
        raise ValueError(f"--rerank={ask.rerank} chooses among syntheses; it needs a model that speaks")
    judges.check((*evals, "word_error", "speaker_similarity") if ask.rerank > 1 else evals, task, model, material.dataset, material.every, ask.wavs, ask.recogniser)
    return task, evals, material


def score(ask: Ask, path: str | None, model: inference.Model | None, out: Path | None) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """All that is asked for, on one model: (score lines, rows of the items), printed and not yet written. Audio is written to
    OUT/audio where it is asked for, by the host that made it."""
    if model and "align" in model.programs and not ask.task and (not model.speaks or ask.evals == ("boundaries",)):
        return score_alignment(ask, path, model)
    if denoising.EVALS.keys() & set(ask.evals):
        return score_denoising(ask, path, model, out)
    task, evals, material = cluster.together(prepare, ask, path, model, out)
    continued = ask.seconds if ask.task == "continue" else 0.0
    if task == "tts" and (continued or model.continues):
        model.aligner = inference.load(inference.ALIGNER)
    items, rate = material.items, material.rate
    people = len({item["speaker"] for item in material.every})
    cluster.say(f"{len(material.every)} utterances of {people} speakers, {ask.list or f'split {material.split} of {material.dataset.root}'}")
    made: dict[str, list[np.ndarray | None]] = {}
    unrecorded = [item["id"] for item in material.every if not item["source"]]
    if not unrecorded:
        made["recording"] = material.recordings
    elif task == "codec" or {"acoustic_distance", "codec_quality", "spectral_distance"} & set(evals):
        raise ValueError(
            f"--list={ask.list} has no recordings to compare with ({unrecorded[0]}, for one); score speech, without acoustic_distance, "
            "codec_quality and spectral_distance")
    else:
        cluster.say(f"{len(unrecorded)} utterances have no recording ({unrecorded[0]}, for one): recordings and codec are not scored")
    ours: dict[str, Any] = {"model": model.hash} if model and "," in model.path else identity(model and model.path, model and model.step)
    theirs: dict[str, Any] = {}
    spoken_with = {}
    if task in ("tts", *changed.TASKS):
        program = model.programs["convert" if task in ("convert", "enhance") else "sample"]
        spoken_with = {"sampler": {**program.options, **ask.sampler}, "seeds": f"{ask.seed} + index"}
    if task in ("convert", "enhance"):
        spoken_with["aligner"] = weights.weights_hash(ask.aligner)
    if task in changed.TASKS:
        spoken_with["task"] = task
    spoken_with |= {"continued": f"after {continued:g} s of the recording"} if continued else {}
    times = {"times": "the recording's"} if ask.true_times else {}
    spoken_with |= times
    swept = sweep.conditions(model, ask.by_steps, ask.samplers, ask.sampler) if ask.by_steps else {}
    pace = []
    if swept:
        pace = sweep.timed(model, material, {"synthesis": ask.sampler, **swept}, ask.seed, {"rate": rate, **material.about, **ours, **times})
    if ask.wavs:
        made["wavs"], failures = lists.wavs(ask.wavs, [item["id"] for item in items], rate)
        if not any(cluster.gather([audio is not None for audio in made["wavs"]])):
            raise FileNotFoundError(f"{ask.wavs} has none of the {len(material.every)} files; the first one sought is "
                                    f"{next(iter(failures.values()), 'on another host')}")
        for item in items:
            if item["id"] in failures:
                fail(item, "wavs", failures[item["id"]])
        shas = [audio is not None and hashlib.sha256(audio.tobytes()).hexdigest() for audio in made["wavs"]]
        theirs = {"system": os.path.basename(os.path.abspath(ask.wavs)), "wavs": statistics.digest(cluster.gather(shas))}
    if model and task != "recordings" and "recording" in made and "encode" in model.programs:  # else it has no codec
        made |= resynthesise(model, made["recording"], task, ask.levels)
    if model and model.tokenizer and task != "recordings" and "recording" in made:
        made["true_tokens"] = changed.revoice(model, material, ask.seed, ask.sampler, lambda item, reason: fail(item, "true_tokens", reason))
    rates, others = {}, {}
    if task == "codec" and "q" in model.system.sizes:  # a vocoder has no bits
        levels = {"codec": int(model.system.sizes["q"])} | {f"codec_{k}": k for k in fewer_levels(model, ask.levels)}
        rates = {condition: kbps(model, k) for condition, k in levels.items()}
        for one in make_rivals(ask.rivals, made["recording"], rate, sorted(rates.values())):
            made[one.condition], rates[one.condition], others[one.condition] = one.audios, one.kbps, one.about
    if material.dataset and "align" in material.dataset.groups:
        for item, align in zip(items, material.aligned("index")):
            item["alignment"] = {"recording": pictures.aligned(align["phones"], align["ends"], rate)}
    speeches: list[inference.Speech | None] = []
    takes: list[list[np.ndarray | None]] = []
    origins: dict[str, list[inference.Origin | None]] = {}
    if task == "tts":
        speeches, spent = synthesise(model, material, ask.seed, ask.sampler, continued=continued)
        made["synthesis"] = [speech and speech.audio for speech in speeches]
        origins["synthesis"] = [speech and speech.origin for speech in speeches]
        lengths = cluster.gather([len(audio) / rate if audio is not None else 0.0 for audio in made["synthesis"]])
        cluster.say(f"spoke {sum(lengths):.0f} s in {spent:.0f} s, compilation included")
        for condition, options in swept.items():
            found, _ = synthesise(model, material, ask.seed, options, condition)
            made[condition] = [speech and speech.audio for speech in found]
            origins[condition] = [speech and speech.origin for speech in found]
        for take in range(1, max(ask.takes if "diversity" in evals else 1, ask.rerank)):
            again, _ = synthesise(model, material, ask.seed + take * TAKE, ask.sampler, f"take_{take}", continued)
            takes.append([speech and speech.audio for speech in again])
            origins[f"take_{take}"] = [speech and speech.origin for speech in again]
        if ask.rerank > 1:
            every = [made["synthesis"], *takes[: ask.rerank - 1]]
            texts = [item["text"] for item in items]
            chosen = best_takes.best(texts, material.prompts, every, rate, ask.recogniser, cluster.cores(), cluster.is_first())
            made["reranked"] = [every[k][i] for i, k in enumerate(chosen)]
            origins["reranked"] = [origins[f"take_{k}" if k else "synthesis"][i] for i, k in enumerate(chosen)]
            takes = takes[: ask.takes - 1] if "diversity" in evals else []
    elif task in changed.TASKS:
        aligner = None if task == "sing" else inference.load(ask.aligner)
        if material.sources is not None:
            made["noisy"] = material.sources
        speeches, spent = changed.make(task, model, aligner, material, ask.seed, ask.sampler, lambda item, reason: fail(item, "synthesis", reason))
        made["synthesis"] = [speech and speech.audio for speech in speeches]
        origins["synthesis"] = [speech and speech.origin for speech in speeches]
        cluster.say(f"{task} took {spent:.0f} s, compilation included")
    if not made:
        raise ValueError("nothing to score: there are no recordings, and neither --model nor --wavs is given")
    leave_out(items, made)
    speeches = [speech if audio is not None else None for speech, audio in zip(speeches, made.get("synthesis", ()))]
    for item, speech in zip(items, speeches):
        if speech:
            item.setdefault("alignment", {})["synthesis"] = pictures.aligned(speech.phones, speech.ends, rate, speech.words)

    def about(condition: str) -> dict[str, Any]:
        """What a fingerprint says of the system that made the audio, and on what; every line of a checkpoint's evaluation has its step."""
        maker = {"wavs": theirs, "recording": {}, "noisy": {}, **others}.get(condition, ours)
        mine = {k: v for k, v in ours.items() if k == "step"} | maker
        spoken = spoken_with if condition in ("synthesis", "reranked") else {}
        if condition in swept:
            spoken = spoken_with | {"sampler": {**program.options, **swept[condition]}}
        if condition == "true_tokens":
            spoken = {"tokenizer": inference.codec_hash(model.tokenizer), "sampler": ask.sampler, "seeds": f"{ask.seed} + index"}
        ranked = {"of_takes": ask.rerank, "ranked_by": f"word errors by {ask.recogniser}, then GE2E cosine"} if condition == "reranked" else {}
        return {**material.about, **mine, **spoken, **ranked}

    lines = judges.judge(ask.recogniser, ask.seed, evals, material, made, speeches, takes, about) + pace
    for line in lines:
        if (condition := scores.split(line["name"])[1]) in rates:
            line["kbps"] = round(rates[condition], 3)
    if "predictability" in evals and cluster.is_first():
        lines += judges.table_of_means(model, material.dataset, ask.seed, {**ours, "data": material.about["data"]})
    if out and ask.save_audio:
        save_audio(out / "audio", items, made, origins, rate)
    items = cluster.gather(items)
    cluster.say("\n" + scores.table(lines))
    return lines, items


def score_denoising(ask: Ask, path: str | None, model: inference.Model | None, out: Path | None) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What a model that denoises waveforms says of its own loss: (score lines, rows of the items), printed. One host."""
    if jax.process_count() > 1:
        raise ValueError(f"--evals={','.join(ask.evals)} runs on one host; {jax.process_count()} were started")
    denoising.check(ask.evals, model, out)
    material = gather(dataclasses.replace(ask, limit=denoising.ITEMS if ask.limit is None else ask.limit), path, model.config)
    about = material.about | identity(path, model.step)
    steps = ask.by_steps or ((int(ask.sampler["steps"]),) if "steps" in ask.sampler else denoising.STEPS)
    lines = denoising.score(ask.evals, model, material, steps, ask.seed, out, about)
    return lines, material.items


def score_alignment(ask: Ask, path: str, model: inference.Model) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The phone boundaries that an aligner finds, against those of the data set: (score lines, rows of the items), printed."""
    other = [name for name in ask.evals if name != "boundaries"]
    if other:
        raise ValueError(f"--evals={other[0]} judges audio, and {model.name} makes none: leave it out, and its phone boundaries are scored")
    material = cluster.together(gather, ask, path, model.config)
    if not material.dataset or "align" not in material.dataset.groups:
        raise ValueError(f"{ask.list or material.dataset.root} has no phone times to compare with; give a --data with the group 'align'")
    exact = material.aligned("index")
    found = aligning.align_all(model, material.recordings, [one["phones"] for one in exact])
    rows = boundaries.measure([one.ends for one in found], [one["ends"] for one in exact], material.rate)
    for item, row, one in zip(material.items, rows, found, strict=True):
        item["boundaries"] = {"aligner": row | {"score": one.score}}
    lines = boundaries.summarise("aligner", cluster.gather(rows), ask.seed, **material.about, **identity(path, model.step))
    items = cluster.gather(material.items)
    cluster.say("\n" + scores.table(lines))
    return lines, items


def check_audio(ask: Ask, out: Path | None) -> None:
    """Raises ValueError where old audio would stay."""
    if out and (out / "audio").exists() and not ask.save_audio:
        raise ValueError(f"{out} holds the audio of an earlier evaluation, which would stand beside other scores; add --save_audio, or give "
                         "another --out")


def save_audio(folder: Path, items: Sequence[Mapping[str, Any]], made: Mapping[str, Sequence[np.ndarray | None]],
               origins: Mapping[str, Sequence[inference.Origin | None]], rate: int) -> None:
    """FOLDER/<id>-<condition>.flac of this host's items as they were judged, what was synthesised with its origin beside it; where there is no
    output, none is left of an earlier evaluation. What went through a codec is a recording still."""
    folder.mkdir(parents=True, exist_ok=True)
    spoken = {*origins, "true_tokens", "wavs"}
    for condition, audios in made.items():
        for item, audio, origin in zip(items, audios, origins.get(condition) or [None] * len(audios)):
            file = folder / f"{item['id'].replace('/', '_')}-{condition}.flac"
            if audio is None:
                file.unlink(missing_ok=True)
                inference.sidecar_of(file).unlink(missing_ok=True)
            else:
                inference.write(file, (audio, rate), recorded=condition not in spoken, origin=origin)


def write(out: Path, lines: Sequence[Mapping[str, Any]], items: Sequence[Mapping[str, Any]]) -> None:
    """The scores, by the first host."""
    if cluster.is_first():
        scores.write(out, lines, items)
        print(f"\nscores.jsonl, items.jsonl and summary.json are in {out}")


def score_step(ask: Ask, workdir: str, out: Path, step: int | None = None) -> None:
    """Scores checkpoint `step` (default the newest) into OUT/<step>/, OUT/scores.jsonl (of all steps) and TensorBoard."""
    if (out / "items.jsonl").exists():
        raise ValueError(f"{out} holds an evaluation of one model, which the scores of this run's checkpoints would replace; give another --out")
    model = cluster.together(inference.load, workdir, step)
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
    waiting = False
    while True:
        there, fresh, ended = look(workdir, out)
        for step in fresh:
            if not all(cluster.gather([step in checkpoints.steps(workdir)])):
                continue  # dropped meanwhile, or not to be seen yet from one of the hosts, which must read it together
            cluster.say(f"\n== checkpoint {step} of {workdir}")
            try:
                score_step(ask, workdir, out, step)
            except (FileNotFoundError, ValueError) as error:
                if step in checkpoints.steps(workdir):
                    raise
                print(f"checkpoint {step} is gone: {error}")
        if ended and not fresh:
            cluster.say(f"{workdir} has reached its last step {there[-1]}: done")
            return
        if not fresh:
            if not waiting:
                cluster.say(f"waiting for the next checkpoint of {workdir}")
            time.sleep(poll)
        waiting = not fresh
