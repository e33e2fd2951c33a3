"""Scores a run or an export on speakers and sentences it has not seen.

    python -m ns2_jax.evaluate --workdir=runs/naturalspeech2                    the newest checkpoint; runs/.../evaluation/<step>/
    python -m ns2_jax.evaluate --workdir=runs/naturalspeech2 --follow           beside training: every checkpoint, until it has ended
    python -m ns2_jax.evaluate --model=exports/naturalspeech2 --data=data/default --out=scores --limit=60 --save_audio
    python -m ns2_jax.evaluate --model=exports/codec --evals=word_error,codec_quality,predictability
    python -m ns2_jax.evaluate report runs/a results/b --out=report             one page of results, curves, audio: report/index.html
    python -m ns2_jax.evaluate listen ours=runs/a/scores theirs=b --kind=mos --out=test         a listening test: test/index.html
    python -m ns2_jax.evaluate answers test/key.json answers-*.json            what the listeners said
    python -m ns2_jax.evaluate --task=recordings --data=data/default            the judges' own floor; needs no model
    python -m ns2_jax.evaluate --wavs=DIR --data=data/default --out=scores      another system's DIR/<utterance>.wav (or .flac ...)
    python -m ns2_jax.evaluate --model=exports/x --list=seed_tts:testset/en/meta.lst --out=scores       a published list

Each utterance is judged as a recording, after the codec, and (where the model speaks) synthesised from its text in
the voice of another utterance of the same speaker. Everything is offline. `--out` gets `scores.jsonl` (a score a line,
with its interval and the fingerprint of what measured it), `items.jsonl` (an utterance a line) and `summary.json`.

Word error is pocketsphinx's: read it against its error on the recordings, never beside another recogniser's. SECS is the
cosine of GE2E voices, not SIM-o. A missing output counts as all words deleted and as similarity 0.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tqdm
from absl import flags

from ns2_jax import inference
from ns2_jax.data.dataset import Dataset
from ns2_jax.data.frames import frame_ends
from ns2_jax.evals import acoustic_distance, codec_quality, dnsmos, drift, ge2e, listening, lists, predictability, prosody, report
from ns2_jax.evals import robustness, scores, speaker_similarity, statistics, word_error
from ns2_jax.runtime import checkpoints, cluster, metrics, weights

FLAGS = flags.FLAGS
TAKES_WORDS = True  # report RUN..., listen NAME=DIR..., answers KEY FILE...
EVALS = (
    "word_error", "speaker_similarity", "robustness", "acoustic_distance", "prosody", "dnsmos", "drift", "codec_quality", "predictability")
DEFAULTS = {"recordings": EVALS[:2], "codec": (*EVALS[:2], *EVALS[7:]), "tts": EVALS[:2]}
LEVELS = (8, 4)  # besides all of them and none
PROMPT_SECONDS = 2.0
TABLE_FILL, TABLE_TEST = 240, 80  # utterances of the predictability table


def read_audio(dataset: Dataset, split: str, i: int) -> np.ndarray:
    """Recording `i`, float32 `[s]`."""
    return dataset.read(split, "audio", i)["audio"].astype(np.float32) / 32768


def choose(dataset: Dataset, split: str, limit: int, seed: int) -> list[dict[str, Any]]:
    """Utterances spread over the speakers in turn, each with its prompt: another one of the same speaker.

    The choice depends on the names of the utterances and the seed, not on their order. Speakers with a single utterance are left
    out. Raises ValueError when nobody is left.
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
    items = []
    for turn in range(max(map(len, queues.values()))):
        for speaker, mine in queues.items():
            if turn < len(mine) and (not limit or len(items) < limit):
                others = mine[turn + 1 :] + mine[:turn]  # from the next on, round the circle
                prompt = next((o for o in others if o[2]["num_samples"] >= enough), max(others, key=lambda o: o[2]["num_samples"]))
                items.append({"id": mine[turn][2]["utt_id"], "index": mine[turn][1], "speaker": speaker, "voice": mine[turn][2]["voice"],
                              "text": mine[turn][2]["text"], "prompt": prompt[2]["utt_id"], "prompt_index": prompt[1]})
    return items


@dataclasses.dataclass
class Material:
    """What is scored: items (rows of items.jsonl), their recordings (None where there is none), the prompts, and for the
    fingerprint what they are. `dataset` and `split` are where phones and pitch can be read."""

    items: list[dict[str, Any]]
    recordings: list[np.ndarray | None]
    prompts: list[np.ndarray]
    rate: int
    about: dict[str, Any]
    dataset: Dataset | None = None
    split: str = ""

    def spoken(self, key: str) -> list[prosody.Spoken]:
        """Phones, ends and F0 of the recordings (`index`) or the prompts (`prompt_index`)."""
        audios = self.recordings if key == "index" else self.prompts
        aligns = [self.dataset.read(self.split, "align", item[key]) for item in self.items]
        return prosody.spoken(audios, [a["phones"] for a in aligns], [a["ends"] for a in aligns], self.rate)


def from_dataset(dataset: Dataset, split: str, limit: int, seed: int) -> Material:
    """Utterances of a split, `choose` has which."""
    items = choose(dataset, split, limit, seed)
    recordings, prompts = ([read_audio(dataset, split, item[key]) for item in items] for key in ("index", "prompt_index"))
    return Material(items, recordings, prompts, dataset.sample_rate, {"data": dataset.fingerprint, "split": split}, dataset, split)


def from_list(spec: str, rate: int, limit: int, seed: int) -> Material:
    """The items of a list (of a `limit`, spread over the speakers). A prompt is named by its file's bytes too."""
    chosen = lists.spread(lists.load(spec, seed), limit)
    items = [{"id": one.id, "speaker": one.speaker, "voice": one.speaker, "text": one.text,
              "prompt": f"{Path(one.prompt).stem} {hashlib.sha256(Path(one.prompt).read_bytes()).hexdigest()[:12]} {one.prompt_seconds:g}"}
             for one in chosen]
    recordings = [lists.audio(one.audio, rate) if one.audio else None for one in chosen]
    prompts = [lists.audio(one.prompt, rate, one.prompt_seconds) for one in chosen]
    return Material(items, recordings, prompts, rate, {"source": spec.split(":")[0]})


def check(evals: Sequence[str], task: str, model: inference.Model | None, dataset: Dataset | None,
          items: Sequence[Mapping[str, Any]], wavs: str | None = None) -> None:
    """Raises before hours of synthesis what the judges would raise after it: ImportError and FileNotFoundError for what is
    not installed, ValueError for what the task, the model or the data set lacks."""
    if "codec_quality" in evals and task == "recordings":
        raise ValueError("--evals=codec_quality compares a codec with the recordings; --task=recordings has none. Give --model")
    made = [name for name in ("robustness", "acoustic_distance") if name in evals and task == "recordings" and not wavs]
    if made:
        raise ValueError(f"--evals={made[0]} compares with the recordings; --task=recordings has nothing else. Give --model or --wavs")
    if "prosody" in evals and (task != "tts" or dataset is None):
        raise ValueError("--evals=prosody needs a model that speaks, and --data with phone times to compare with")
    if "predictability" in evals and (dataset is None or model is None or "latents" not in model.programs["encode"].outputs):
        raise ValueError("--evals=predictability needs a codec, whose latents it explains; give its run or export as --model")
    if "word_error" in evals:
        word_error.check()
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
    if {"speaker_similarity", "drift"} & set(evals):
        ge2e.find_weights()
    if {"predictability", "prosody"} & set(evals):
        dataset.check_group("align")


def resynthesise(model: inference.Model, recordings: Sequence[np.ndarray], task: str) -> dict[str, list[np.ndarray]]:
    """Condition -> audio: `codec`, and where the codec is what is judged, fewer levels and no quantiser too."""
    made: dict[str, list[np.ndarray]] = {"codec": []}
    levels = int(model.system.sizes["q"])
    fewer = [k for k in LEVELS if k < levels] if task == "codec" and "levels" in model.programs["decode"].options else []
    for audio in tqdm.tqdm(recordings, "codec", mininterval=2):
        codes = model.encode(audio)
        made["codec"].append(model.decode(codes))
        for k in fewer:
            made.setdefault(f"codec_{k}", []).append(model.decode(codes, levels=k))
        if task == "codec" and "decode_latents" in model.programs:
            made.setdefault("codec_unquantised", []).append(model.decode_latents(model.latents(audio)))
    return made


def synthesise(model: inference.Model, items: Sequence[Mapping[str, Any]], prompts: Sequence[np.ndarray], seed: int,
               options: Mapping[str, Any]) -> tuple[list[inference.Speech | None], float]:
    """The items' texts in the voices of their prompts (None where it failed), and the seconds it took."""
    made: list[inference.Speech | None] = []
    start = time.monotonic()
    for at in tqdm.tqdm(range(0, len(items), inference.ROWS), "speaking", mininterval=2):
        part = slice(at, at + inference.ROWS)
        requests = [(item["text"], (prompt, model.rate)) for item, prompt in zip(items[part], prompts[part])]
        made += model.speak_batch(requests, [seed + at + k for k in range(len(requests))], strict=False, **options)
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


def identity(model: inference.Model | None) -> dict[str, Any]:
    """What a fingerprint says about the model: the hash of an export, the folder and step of a run."""
    if model is None:
        return {}
    if model.step is None:
        return {"model": weights.weights_hash(model.path)}
    return {"model": os.path.basename(os.path.abspath(model.path)), "step": model.step}


def judge(evals: Sequence[str], material: Material, made: Mapping[str, Sequence[np.ndarray | None]],
          speeches: Sequence[inference.Speech | None], seed: int, processes: int, common: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Score lines of every condition of `made`; each item gets its own rows under the evaluator's name."""
    lines: list[dict[str, Any]] = []
    items, prompts, rate = material.items, material.prompts, material.rate
    texts, speakers = [item["text"] for item in items], [item["speaker"] for item in items]
    common = {"rate": rate, "seed": seed, **common}
    call: dict[str, Callable[[str, Sequence[np.ndarray | None]], tuple[list, Sequence]]] = {
        "word_error": lambda name, audios: word_error.evaluate(name, texts, audios, processes=processes, **common),
        "speaker_similarity": lambda name, audios: speaker_similarity.evaluate(name, audios, prompts, speakers, **common),
        "robustness": lambda name, audios: robustness.evaluate(name, texts, audios, made.get("recording"), **common),
        "acoustic_distance": lambda name, audios: acoustic_distance.evaluate(name, material.recordings, audios, **common),
        "dnsmos": lambda name, audios: dnsmos.evaluate(name, audios, **common),
        "drift": lambda name, audios: drift.evaluate(name, audios, **common),
        "codec_quality": lambda name, audios: codec_quality.evaluate(name, material.recordings, audios, **common)}
    fits = {"robustness": lambda name: name != "recording", "acoustic_distance": lambda name: name != "recording",
            "codec_quality": lambda name: name.startswith("codec")}

    def keep(evaluator: str, condition: str, found: tuple[list, Sequence]) -> None:
        lines.extend(found[0])
        for item, row in zip(items, found[1], strict=True):
            item.setdefault(evaluator, {})[condition] = row

    for condition, audios in made.items():
        for evaluator in (name for name in call if name in evals and fits.get(name, bool)(condition)):
            print(f"{evaluator.replace('_', ' ')} of {condition}", flush=True)
            keep(evaluator, condition, call[evaluator](condition, audios))
    if "prosody" in evals:
        said = [k for k, speech in enumerate(speeches) if speech is not None]
        found = dict(zip(said, prosody.spoken(
            [speeches[k].audio for k in said], [speeches[k].phones for k in said], [speeches[k].ends for k in said], rate)))
        del common["rate"]
        keep("prosody", "synthesis", prosody.evaluate("synthesis", material.spoken("prompt_index"), material.spoken("index"),
                                                      [found.get(k) for k in range(len(items))], **common))
    return lines


def read_flags() -> tuple[str | None, Path | None]:
    """(path of the model, folder to write to), with every flag checked that needs no model."""
    if FLAGS.model and FLAGS.workdir:
        raise ValueError("--model and --workdir are both given; --workdir is for a run that is being written")
    path = FLAGS.model or FLAGS.workdir
    if not path and not FLAGS.wavs and FLAGS.task != "recordings":
        raise ValueError("--model=DIR (a run or an export) or --workdir=DIR is missing")
    if FLAGS.data and FLAGS.list:
        raise ValueError("--data and --list are both given; score the one or the other")
    if not path and not FLAGS.data and not FLAGS.list:
        raise ValueError("--data=DIR is missing: the recordings to score")
    unknown = [name for name in FLAGS.evals or () if name not in EVALS]
    if unknown:
        raise ValueError(f"--evals: {unknown[0]!r} is not one of {', '.join(EVALS)}")
    out = Path(FLAGS.out) if FLAGS.out else Path(FLAGS.workdir) / "evaluation" if FLAGS.workdir else None
    if out and out.exists() and not out.is_dir():
        raise ValueError(f"--out={out} is a file, expected a folder")
    if FLAGS.follow and not FLAGS.workdir:
        raise ValueError("--follow needs --workdir=DIR, the run to follow")
    if FLAGS.save_audio and not out:
        raise ValueError("--save_audio needs --out=DIR")
    return path, out


def define_flags() -> None:
    """Flags belong to the command: a program that imports this module keeps its own."""
    flags.DEFINE_string("model", None, "A run or an export to read.")
    flags.DEFINE_string("workdir", None, "A run being written: its newest checkpoint is scored, into WORKDIR/evaluation/<step>.")
    flags.DEFINE_bool("follow", False, "Score every checkpoint of --workdir as it appears, until training has ended.")
    flags.DEFINE_float("poll", 20.0, "Seconds between two looks for a checkpoint, with --follow.", lower_bound=0.1)
    flags.DEFINE_string("data", None, "The data set; the one the model was trained on if left out.")
    flags.DEFINE_string("split", "test", "Which split of it.")
    flags.DEFINE_string("list", None, "Instead of a data set: tsv:FILE, seed_tts:FILE, librispeech_pc:FILE:CORPUS, hard:PROMPT[:RECORDINGS] "
                        f"or PROTOCOL:CORPUS with PROTOCOL one of {', '.join(lists.PROTOCOLS)}.")
    flags.DEFINE_string("wavs", None, "Folder of another system's outputs, <utterance>.wav: scored beside what else there is.")
    flags.DEFINE_list("evals", None, f"Some of {', '.join(EVALS)}; what fits the task if left out.")
    flags.DEFINE_enum("task", None, ["tts", "codec", "recordings"], "What is scored; tts where the model speaks, else codec.")
    flags.DEFINE_string("out", None, "Folder for scores.jsonl, items.jsonl and summary.json; with --model nothing is written without it.")
    flags.DEFINE_integer("limit", None, "At most so many utterances, spread over the speakers; 0 for all. If left out 60 of a data set, "
                         "all of a list, 24 in a report, 20 in a listening test.", lower_bound=0)
    flags.DEFINE_integer("steps", None, "Sampler steps; the system's own number if left out.", lower_bound=1)
    flags.DEFINE_float("guidance", None, "Strength of guidance; the system's own if left out.")
    flags.DEFINE_float("temperature", None, "Scale of the starting noise; the system's own if left out.", lower_bound=0.0)
    flags.DEFINE_integer("seed", 0, "Of the choice of utterances, of the noise and of the intervals.")
    flags.DEFINE_integer("processes", 2, "Recognisers at work.", lower_bound=1)
    flags.DEFINE_string("title", "Scores", "Of the report.")
    flags.DEFINE_enum("kind", "mos", list(listening.KINDS), "Of the listening test.")
    flags.DEFINE_bool("save_audio", False, "Also write OUT/audio/<utterance>-<condition>.flac.")


def gather(path: str | None, model: inference.Model | None) -> Material:
    """What the flags ask to score, at the model's rate."""
    if FLAGS.list:
        return from_list(FLAGS.list, model.rate if model else 16000, FLAGS.limit or 0, FLAGS.seed)
    dataset = Dataset.open(FLAGS.data or model.config["data"]["path"])
    dataset.check_split(FLAGS.split)
    if model and model.rate != dataset.sample_rate:
        raise ValueError(f"{path} works at {model.rate} Hz, {dataset.root} is at {dataset.sample_rate} Hz; give --data at the model's rate")
    return from_dataset(dataset, FLAGS.split, 60 if FLAGS.limit is None else FLAGS.limit, FLAGS.seed)


def score(path: str | None, model: inference.Model | None, out: Path | None) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Everything that the flags ask for, on one model: (score lines, rows of the items), printed and not yet written. Audio is
    written to OUT/audio where it is asked for."""
    task = FLAGS.task or ("recordings" if model is None else "tts" if model.speaks else "codec")
    if task != "recordings" and model is None:
        raise ValueError(f"--task={task} needs --model=DIR (a run or an export) or --workdir=DIR")
    if task == "tts" and not model.speaks:
        raise ValueError(f"--task=tts: system {model.config['system']!r} does not speak; use --task=codec")
    evals = tuple(FLAGS.evals or DEFAULTS[task])
    material = gather(path, model)
    items, rate = material.items, material.rate
    check(evals, task, model, material.dataset, items, FLAGS.wavs)
    made: dict[str, list[np.ndarray | None]] = {}
    if all(audio is not None for audio in material.recordings):
        made["recording"] = material.recordings
    elif task == "codec" or {"acoustic_distance", "codec_quality"} & set(evals):
        raise ValueError(
            f"--list={FLAGS.list} has no recordings to compare with; score speech, without acoustic_distance and codec_quality")
    people = len({item["speaker"] for item in items})
    print(f"{len(items)} utterances of {people} speakers, {FLAGS.list or f'split {material.split} of {material.dataset.root}'}")
    common: dict[str, Any] = {**material.about, **identity(model)}
    common["items"] = statistics.digest([item["id"], item["prompt"], item["text"]] for item in items)
    if FLAGS.wavs:
        made["wavs"], failures = lists.wavs(FLAGS.wavs, [item["id"] for item in items], rate)
        for item in items:
            if item["id"] in failures:
                item["failure"] = failures[item["id"]]
                print(f"counts as missing: {item['failure']}")
    if model and task != "recordings" and "recording" in made:
        made |= resynthesise(model, made["recording"], task)
    speeches: list[inference.Speech | None] = []
    if task == "tts":
        options = {name: FLAGS[name].value for name in ("steps", "guidance", "temperature") if FLAGS[name].value is not None}
        common |= {"sampler": {**{k: v for k, v in model.programs["sample"].options.items()}, **options}, "seeds": f"{FLAGS.seed} + index"}
        speeches, spent = synthesise(model, items, material.prompts, FLAGS.seed, options)
        made["synthesis"] = [speech and speech.audio for speech in speeches]
        spoken = sum(len(audio) for audio in made["synthesis"] if audio is not None) / rate
        print(f"spoke {spoken:.0f} s in {spent:.0f} s, compilation included")
    if out and FLAGS.save_audio:
        (out / "audio").mkdir(parents=True, exist_ok=True)
        for condition, audios in made.items():
            for item, audio in zip(items, audios):
                file = out / "audio" / f"{item['id'].replace('/', '_')}-{condition}.flac"
                if audio is None:
                    file.unlink(missing_ok=True)  # of an earlier evaluation into this folder
                else:
                    inference.write(file, (audio, rate))
    lines = judge(evals, material, made, speeches, FLAGS.seed, FLAGS.processes, common)
    if "predictability" in evals:
        lines += table_of_means(model, material.dataset, FLAGS.seed, {k: v for k, v in common.items() if k not in ("split", "items")})
    print("\n" + scores.table(lines))
    return lines, items


def score_step(workdir: str, out: Path, step: int | None = None) -> None:
    """Scores checkpoint `step` (default the newest) into OUT/<step>/, OUT/scores.jsonl (of all steps) and TensorBoard."""
    model = inference.load(workdir, step)
    folder = out / str(model.step)
    lines, items = score(workdir, model, folder)
    with metrics.board(str(out / "tensorboard"), model.step) as board:
        for line in lines:
            board.add_scalar(line["name"], line["value"], model.step)
    scores.write(folder, lines, items)  # last: with its summary.json a step is done
    scores.gather(out)
    print(f"\nscores.jsonl, items.jsonl and summary.json are in {folder}, the scores of all steps in {out / 'scores.jsonl'}")


def follow(workdir: str, out: Path) -> None:
    """Scores every checkpoint as it appears until the run's last step is scored (a run that died is waited for). What a killed job
    has scored is not scored again; a checkpoint that training has dropped meanwhile is passed over."""
    out.mkdir(parents=True, exist_ok=True)
    scores.gather(out)
    waiting = False
    while True:
        there = checkpoints.steps(workdir)
        fresh = [step for step in there if not (out / str(step) / "summary.json").exists()]
        for step in fresh:
            print(f"\n== checkpoint {step} of {workdir}", flush=True)
            try:
                score_step(workdir, out, step)
            except (FileNotFoundError, ValueError) as error:
                if step in checkpoints.steps(workdir):
                    raise
                print(f"checkpoint {step} is gone: {error}")
        if there and there[-1] >= checkpoints.read_config(workdir)["train"]["steps"] and not fresh:
            print(f"{workdir} has reached its last step {there[-1]}: done")
            return
        if not fresh:
            if not waiting:
                print(f"waiting for the next checkpoint of {workdir}", flush=True)
            time.sleep(FLAGS.poll)
        waiting = not fresh


def write_report(folders: Sequence[str]) -> None:
    """`report RUN...`"""
    page, skipped = report.write(folders, FLAGS.out or "report", 24 if FLAGS.limit is None else FLAGS.limit, FLAGS.title)
    print("".join(f"skipped {line}\n" for line in skipped) + f"wrote {page}")


def write_test(systems: Sequence[str]) -> None:
    """`listen NAME=DIR...`"""
    pairs = [word.partition("=") for word in systems]
    if not pairs or not all(name and folder for name, _, folder in pairs) or len({name for name, _, _ in pairs}) < len(pairs):
        raise ValueError(f"listen {' '.join(systems)}: expected NAME=DIR for every system, with names of their own")
    limit = 20 if FLAGS.limit is None else FLAGS.limit
    page = listening.make({name: folder for name, _, folder in pairs}, FLAGS.out or "listening", FLAGS.kind, limit, FLAGS.seed)
    print(f"wrote {page} for the listeners and {page.with_name('key.json')} for you")


def read_answers(paths: Sequence[str]) -> None:
    """`answers KEY FILE...`"""
    if len(paths) < 2:
        raise ValueError("answers needs the key of the test and at least one file of answers: answers test/key.json answers-*.json")
    key = json.loads(Path(paths[0]).read_text(encoding="utf8"))
    for row in listening.analyse(key, listening.read_answers(key, paths[1:]), FLAGS.seed):
        low, high = row["interval"]
        more = "".join(f", {name} {row[name]:.3g}" for name in ("p", "screened") if name in row)
        print(f"{row['system']}: {row['mean']:.2f} ({low:.2f} to {high:.2f}), {row['ratings']} ratings of {row['listeners']} listeners{more}")


def main(argv: list[str]) -> None:
    words = {"report": write_report, "listen": write_test, "answers": read_answers}
    if argv[1:]:
        if argv[1] not in words:
            raise ValueError(f"{argv[1]!r} is not a word of this command: expected {', '.join(words)} or flags (see --help)")
        return words[argv[1]](argv[2:])  # without joining a cluster
    path, out = read_flags()
    cluster.start(lambda line: None)
    if FLAGS.follow:
        follow(FLAGS.workdir, out)
    elif FLAGS.workdir and not FLAGS.out:
        score_step(FLAGS.workdir, out)
    else:
        lines, items = score(path, inference.load(path) if path else None, out)
        if out:
            scores.write(out, lines, items)
            print(f"\nscores.jsonl, items.jsonl and summary.json are in {out}")


if __name__ == "__main__":
    define_flags()
    cluster.run(main)
