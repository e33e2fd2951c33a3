"""Who judges: what every evaluator needs to begin, which audio it is given, and how its rows become scores."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tqdm

from ns2_jax import inference
from ns2_jax.data.dataset import Dataset
from ns2_jax.data.frames import frame_ends
from ns2_jax.evals import acoustic_distance, codec_quality, diversity, dnsmos, drift, ge2e, intonation, predictability, prosody, robustness, room
from ns2_jax.evals import speaker_similarity, spectral_distance, statistics, style, voice_change, word_error
from ns2_jax.evaluate.material import Material, read_audio
from ns2_jax.runtime import cluster

EVALS = (
    "word_error", "speaker_similarity", "robustness", "acoustic_distance", "prosody", "dnsmos", "drift", "room", "style", "diversity",
    "codec_quality", "spectral_distance", "predictability", "voice_change", "intonation", "turns", "speed", "schedule_search",
    "window_mismatch", "boundaries")
DEFAULTS = {"recordings": EVALS[:2], "codec": (*EVALS[:2], "codec_quality", "spectral_distance", "predictability"), "tts": EVALS[:2],
            "convert": (*EVALS[:2], "voice_change"), "enhance": (*EVALS[:2], "codec_quality"), "sing": (*EVALS[:2], "intonation")}
TABLE_FILL, TABLE_TEST = 240, 80  # utterances of the predictability table


def check(evals: Sequence[str], task: str, model: inference.Model | None, dataset: Dataset | None,
          items: Sequence[Mapping[str, Any]], wavs: str | None = None, recogniser: str = "pocketsphinx") -> None:
    """Raises before hours of synthesis what the judges would raise after it: ImportError and FileNotFoundError for what is
    not installed, ValueError for what the task, the model or the data set lacks."""
    names = [item["id"].replace("/", "_") for item in items]
    if len(set(names)) < len(names):
        raise ValueError(f"two utterances would share the file {next(n for n in names if names.count(n) > 1)}.flac; give them other ids")
    copied = [name for name in ("codec_quality", "spectral_distance") if name in evals and task == "recordings"]
    if copied:
        raise ValueError(f"--evals={copied[0]} compares a codec with the recordings; --task=recordings has none. Give --model")
    made = [name for name in ("robustness", "acoustic_distance") if name in evals and task == "recordings" and not wavs]
    if made:
        raise ValueError(f"--evals={made[0]} compares with the recordings; --task=recordings has nothing else. Give --model or --wavs")
    if "prosody" in evals and (task != "tts" or dataset is None):
        raise ValueError("--evals=prosody needs a model that speaks, and --data with phone times to compare with")
    if "diversity" in evals and task != "tts":
        raise ValueError("--evals=diversity compares syntheses of one text; it needs a model that speaks")
    if "predictability" in evals and (dataset is None or model is None or "latents" not in model.programs["encode"].outputs):
        raise ValueError("--evals=predictability needs a codec, whose latents it explains; give its run or export as --model")
    if "voice_change" in evals and task != "convert":
        raise ValueError("--evals=voice_change compares with the voice that was converted; it needs --task=convert")
    if "intonation" in evals and task != "sing":
        raise ValueError("--evals=intonation compares with a score; it needs --task=sing")
    if "turns" in evals:
        raise ValueError("--evals=turns is about conversations; it needs --task=dialogue")
    if "boundaries" in evals:
        raise ValueError("--evals=boundaries is scored alone, of a model that aligns: an aligner's, or one with an aligner learned on the way")
    for group in ("align", "f0") if task == "sing" else ("align",) if "prosody" in evals else ():
        dataset.check_group(group)
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
    if {"speaker_similarity", "drift", "diversity", "voice_change"} & set(evals):
        ge2e.find_weights()
    if "predictability" in evals:
        dataset.check_group("align")


def table_of_means(model: inference.Model, dataset: Dataset, seed: int, common: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Lines `predictability_*`, with every channel at unit deviation, and `predictability_power_*`, of all variance: of the latents
    before and after quantisation, of those that an acoustic model is given (coarse; `coarse_latents` before quantisation) and, for scale, of
    log-mel. On train speakers: the table holds their means."""
    split = "train" if "train" in dataset.splits else dataset.splits[0]
    order = sorted(range(dataset.records(split)), key=lambda i: hashlib.sha256(f"{seed}/{i}".encode()).digest())
    picks = order[: TABLE_FILL + TABLE_TEST]
    speakers: dict[str, int] = {}
    columns: dict[str, list[tuple]] = {"latents": [], "quantised": [], "coarse": [], "coarse_latents": [], "log_mel": []}
    for i in tqdm.tqdm(picks, "predictability", mininterval=2):
        audio, align = read_audio(dataset, split, i), dataset.read(split, "align", i)
        ends = frame_ends(align["ends"], len(audio), dataset.sample_rate, model.hop)
        found = {name: model.latents(audio, name) for name in ("latents", "quantised", "coarse")}
        found["coarse_latents"] = found["latents"][:, : found["coarse"].shape[-1]]  # they come first
        found["log_mel"] = predictability.log_mel(audio, model.rate, model.hop)
        frames = len(found["latents"])
        phone, third = predictability.thirds(ends, frames)
        speaker = dataset.read(split, "meta", i)["speaker"]
        keys = (align["phones"][phone].astype(np.int64), third, speakers.setdefault(speaker, len(speakers)))
        for name, z in found.items():
            columns[name].append((z[:frames], *keys))
    fill = max(len(picks) * TABLE_FILL // (TABLE_FILL + TABLE_TEST), 1)
    lines = []
    for name, items in columns.items():
        result = predictability.explained(items[:fill], items[fill:])
        about = dict(unit="share", seed=seed, evaluator=predictability.name(), **common, split=split, fill=fill,
                     test=len(items) - fill, picks=statistics.digest(picks))
        explained, variances = result["channels"], result["variances"]
        line = statistics.score(f"predictability_{name}", explained, averaging="mean over channels at unit deviation", **about)
        lines += [line | {key: result[key] for key in ("power", "best", "neighbours", "rank90")},
                  statistics.score(f"predictability_power_{name}", explained * variances, variances,
                                   averaging="of the variance of all channels", **about)]
        for line in lines[-2:]:
            line["fingerprint"]["interval"] = line["fingerprint"]["interval"].replace("items", "channels")
    return lines


def judge(recogniser: str, seed: int, evals: Sequence[str], material: Material, made: Mapping[str, Sequence[np.ndarray | None]],
          speeches: Sequence[inference.Speech | None], takes: Sequence[Sequence[np.ndarray | None]],
          about: Callable[[str], Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Score lines of every condition of `made`; each item gets its own rows under the evaluator's name. `takes` are more syntheses of
    the items, each with other seeds; `about` gives what a condition's fingerprint says besides the judge."""
    items, prompts, rate, recordings = material.items, material.prompts, material.rate, material.recordings
    texts, said = ([item["text"] for item in some] for some in (items, material.every))
    quiet = dict(rate=rate, progress=cluster.is_first())
    parallel = material.sources is not None or material.timed  # then the outputs are to be like the recordings frame by frame
    resynthesised = lambda name: name not in ("recording", "wavs", "reranked", "true_tokens") and (parallel or not name.startswith("synthesis"))
    lines: list[dict[str, Any]] = []

    if "speaker_similarity" in evals:
        voices = cluster.gather([voice.tolist() for voice in cluster.together(speaker_similarity.references, prompts, rate)])
    judges: dict[str, tuple[Callable[[Sequence], list], Callable[..., list], Callable[[str], bool]]] = {
        # name: (rows of this host's audio, lines of all rows, conditions that it fits)
        "word_error": (lambda audios: word_error.measure(texts, audios, recogniser=recogniser, processes=cluster.cores(), **quiet),
                       lambda *args, **more: word_error.summarise(*args, said, recogniser, **more), bool),
        "speaker_similarity": (lambda audios: speaker_similarity.measure(audios, np.float32(voices), material.every, material.places, **quiet),
                               speaker_similarity.summarise, bool),
        "robustness": (lambda audios: robustness.measure(texts, audios, recordings, **quiet),
                       robustness.summarise, lambda name: name != "recording"),
        "acoustic_distance": (lambda audios: acoustic_distance.measure(recordings, audios, **quiet), acoustic_distance.summarise,
                              lambda name: name != "recording"),
        "dnsmos": (lambda audios: dnsmos.measure(audios, **quiet), dnsmos.summarise, bool),
        "drift": (lambda audios: drift.measure(audios, **quiet), drift.summarise, bool),
        "style": (lambda audios: style.measure(prompts, audios, phones=material.counts(), **quiet), style.summarise, bool),
        "room": (lambda audios: room.measure(prompts, audios, **quiet), room.summarise, bool),
        "diversity": (lambda audios: diversity.measure(list(zip(audios, *takes)), **quiet), diversity.summarise, lambda name: name == "synthesis"),
        "codec_quality": (lambda audios: codec_quality.measure(recordings, audios, **quiet), codec_quality.summarise, resynthesised),
        "spectral_distance": (lambda audios: spectral_distance.measure(recordings, audios, **quiet), spectral_distance.summarise,
                              resynthesised),
        "voice_change": (lambda audios: voice_change.measure(prompts, recordings, audios, **quiet), voice_change.summarise, bool),
        "intonation": (lambda audios: intonation.measure(material.pitch(), audios, rate), intonation.summarise, bool),
        "prosody": (lambda _: prosody.measure(material.spoken("prompt_index"), material.spoken("index"), spoken(speeches, rate)),
                    prosody.summarise, lambda name: name == "synthesis")}
    for condition, audios in made.items():
        for name, (measure, summarise, fits) in judges.items():
            if name in evals and fits(condition):
                cluster.say(f"{name.replace('_', ' ')} of {condition}")
                rows = measure(audios)
                for item, row in zip(items, rows, strict=True):
                    item.setdefault(name, {})[condition] = row
                found = summarise(condition, cluster.gather(rows), rate=rate, seed=seed, **about(condition))
                lines += found
                if not found:
                    cluster.say(f"no score: {name} found nothing to measure in the {len(material.every)} outputs of {condition}")
    return lines


def spoken(speeches: Sequence[inference.Speech | None], rate: int) -> list[prosody.Spoken | None]:
    """Phones, ends and F0 of what was synthesised."""
    there = [k for k, speech in enumerate(speeches) if speech is not None]
    parts = ([getattr(speeches[k], name) for k in there] for name in ("audio", "phones", "ends"))
    found = dict(zip(there, prosody.spoken(*parts, rate)))
    return [found.get(k) for k in range(len(speeches))]
