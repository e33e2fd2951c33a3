"""Scores a run or an export on speakers and sentences it has not seen.

    python -m ns2_jax.evaluate --workdir=runs/naturalspeech2                    the newest checkpoint; runs/.../evaluation/<step>/
    python -m ns2_jax.evaluate --workdir=runs/naturalspeech2 --follow           beside training: every checkpoint, until it has ended
    python -m ns2_jax.evaluate --model=exports/naturalspeech2 --data=data/default --out=scores --limit=60 --save_audio
    python -m ns2_jax.evaluate --model=exports/naturalspeech2 --data=data/default --by_steps=2,4,8,16 --samplers=euler,dpm --out=scores
    python -m ns2_jax.evaluate --model=exports/codec --levels=1,2,4,8,16 --rivals=opus --out=scores      a codec at its rates
    python -m ns2_jax.evaluate --task=convert --model=exports/naturalspeech2 --data=data/default    voices changed; also enhance and sing
    python -m ns2_jax.evaluate --model=runs/aligner --data=data/default --limit=0    an aligner's boundaries against exact ones
    python -m ns2_jax.evaluate --model=runs/gradstyle --data=data/default --evals=boundaries      those of an aligner that it learned on the way
    python -m ns2_jax.evaluate --model=runs/wavegrad2 --evals=schedule_search --out=scores      schedules of 50, 25, 12 and 6 steps (or --by_steps)
    python -m ns2_jax.evaluate --model=SOUNDSTORM,TOKENIZER,WRITER --out=scores     speech by semantic tokens; `true_tokens` are the recordings'
    python -m ns2_jax.evaluate --task=dialogue --model=DIR --data=TALKS --clean=data/default --at_once      conversations: who speaks when
    python -m ns2_jax.evaluate rate scores --out=rates                          the same over kbit/s: rates/rates.md and rates.png
    python -m ns2_jax.evaluate report runs/a results/b --out=report             one page of results, curves, audio: report/index.html
    python -m ns2_jax.evaluate table results/* --out=results/README.md          the same scores as one Markdown table
    python -m ns2_jax.evaluate table FLOAT INT8                                 only by how much they differ, paired; of one, from its codec
    python -m ns2_jax.evaluate listen ours=runs/a/scores theirs=b --kind=mos --out=test         a listening test: test/index.html
    python -m ns2_jax.evaluate answers test/key.json answers-*.json            what the listeners said
    python -m ns2_jax.evaluate --task=recordings --data=data/default            the judges' own floor; needs no model
    python -m ns2_jax.evaluate --wavs=DIR --data=data/default --out=scores      another system's DIR/<utterance>.wav (or .flac ...)
    python -m ns2_jax.evaluate --model=exports/x --list=seed_tts:testset/en/meta.lst --out=scores       a published list

Each utterance is judged as a recording, after the codec, and (where the model speaks) synthesised from its text in
the voice of another utterance of the same speaker. Everything is offline. `--out` gets `scores.jsonl` (a score a line,
with its interval and the fingerprint of what measured it), `items.jsonl` (an utterance a line) and `summary.json`.

Word error is a recogniser's: read it against its error on the recordings, never beside another recogniser's. SECS is the
cosine of GE2E voices, not SIM-o. A missing output counts as all words deleted and as similarity 0.

`--by_steps` judges and times the synthesis with each of these numbers of steps (and of --samplers), all from the same noise, as conditions
`synthesis_SAMPLER_STEPS`; `table` writes them below each other, with the real-time factor. Only one utterance is spoken at a time while the clock
runs, after a call that has compiled it. PESQ, STOI and spectral distances say nothing of speech whose times are its own: with
`--true_times` the phones of the recordings are spoken, each as long as there, and --evals=codec_quality,spectral_distance compare them.

What rounding costs is the difference of two exports of one run, paired by `table` and `report` over the utterances of both:
evaluate each with the same --data, --limit and --seed, then `table FLOAT INT8`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from ns2_jax import inference
from ns2_jax.evals import listening, lists, markdown, rate_distortion, report, rivals, surroundings
from ns2_jax.evaluate import changed, job, judges, talking
from ns2_jax.runtime import cluster

FLAGS = flags.FLAGS
TAKES_WORDS = True  # report RUN..., table RUN..., rate RUN..., listen NAME=DIR..., answers KEY FILE...
SAMPLER = ("steps", "guidance", "temperature")  # flags that are options of the system's program `sample`


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
    flags.DEFINE_list("evals", None, f"Some of {', '.join(judges.EVALS)}; what fits the task if left out.")
    flags.DEFINE_enum("task", None, ["tts", "continue", "codec", "recordings", "dialogue", *changed.TASKS], "What is scored; tts where the model "
                      "speaks, else codec. convert gives every recording the voice of another speaker's prompt, enhance takes a corpus made by "
                      "data_pipelines.rooms (and --clean), sing one made by data_pipelines.singing, dialogue one made by "
                      "data_pipelines.dialogues (and --clean).")
    flags.DEFINE_bool("at_once", False, "All turns of --task=dialogue in one decoding, after the prompts of both speakers.")
    flags.DEFINE_float("seconds", 3.0, "Of every recording, which --task=continue keeps; those that have not a second more are left out.",
                       lower_bound=0.1)
    flags.DEFINE_float("prompt_seconds", 0.0, "Of a prompt from a data set, joined of several recordings where one is shorter; 0 is one recording.",
                       lower_bound=0.0)
    flags.DEFINE_string("clean", None, "The data set that --data was made of, for --task=enhance and dialogue.")
    flags.DEFINE_string("aligner", str(inference.ALIGNER), "Run or export of an aligner, for --task=convert, enhance and dialogue.")
    flags.DEFINE_bool("wiener", False, "Of --task=enhance: the source itself, filtered by what the model makes of it.")
    flags.DEFINE_string("prompt_text", None, "What the prompt of --list=hard:PROMPT says, for a model that goes on from it.")
    flags.DEFINE_integer("rerank", 1, "Takes of which the best, by --recogniser and voice, is scored too, as condition reranked.", lower_bound=1)
    flags.DEFINE_string("prompts", None, "Their surroundings, reverberant:SECONDS or noisy:DB: is that taken over? (--evals=room)")
    flags.DEFINE_multi_string("option", [], "Of the system's own, NAME=VALUE, as in --option=top_p=0.9.")
    flags.DEFINE_string("out", None, "Folder for scores.jsonl, items.jsonl and summary.json; with --model nothing is written without it.")
    flags.DEFINE_integer("limit", None, "At most so many utterances, spread over the speakers; 0 for all. If left out 120 of a data set, "
                         "all of a list, 24 in a report, 20 in a listening test.", lower_bound=0)
    flags.DEFINE_integer("steps", None, "Sampler steps; the system's own number if left out.", lower_bound=1)
    flags.DEFINE_float("guidance", None, "Strength of guidance; the system's own if left out.")
    flags.DEFINE_float("temperature", None, "Scale of the starting noise; the system's own if left out.", lower_bound=0.0)
    flags.DEFINE_integer("seed", 0, "Of the choice of utterances, of the noise and of the intervals.")
    flags.DEFINE_string("recogniser", "pocketsphinx", "Of the word error: pocketsphinx, whisper:DIR (a local folder) or command:CMD "
                        "(reads paths of WAV files, a line each, prints what it hears, a line each).")
    flags.DEFINE_list("by_steps", None, "Numbers of sampler steps, as in 2,4,8: what is said with each is judged and timed beside the synthesis.")
    flags.DEFINE_list("samplers", None, "With --by_steps: every one of these with every number; the system's own if left out.")
    flags.DEFINE_bool("true_times", False, "Speak the phones of the recordings as long as they are there instead of the texts.")
    flags.DEFINE_integer("takes", 3, "Syntheses of an utterance, each with another seed, that diversity compares.", lower_bound=2)
    flags.DEFINE_list("levels", None, "Numbers of a codec's levels to score besides all of them; 8 and 4 if left out.")
    flags.DEFINE_list("rivals", None, f"Codecs to score beside ours at about its rates: {rivals.KINDS} (a folder that transformers reads).")
    flags.DEFINE_string("title", "Scores", "Of the report.")
    flags.DEFINE_enum("kind", "mos", list(listening.KINDS), "Of the listening test.")
    flags.DEFINE_bool("save_audio", False, "Also write OUT/audio/<utterance>-<condition>.flac.")


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
    unknown = [name for name in FLAGS.evals or () if name not in judges.EVALS]
    if unknown:
        raise ValueError(f"--evals: {unknown[0]!r} is not one of {', '.join(judges.EVALS)}")
    if "speed" in (FLAGS.evals or ()) and (len(FLAGS.evals) > 1 or FLAGS.follow or FLAGS.by_steps or FLAGS.true_times or not path):
        raise ValueError("--evals=speed is timed alone, with --model=DIR or --workdir=DIR: nothing else may use the machine")
    if FLAGS["seconds"].present and FLAGS.task != "continue":
        raise ValueError(f"--seconds={FLAGS.seconds:g} goes with --task=continue")
    wrong = [name for name in ("list", "prompts") if FLAGS[name].value] + [name for name in ("speed", "prosody") if name in (FLAGS.evals or ())]
    if FLAGS.prompt_seconds and (wrong or FLAGS.task not in (None, "tts")):
        raise ValueError(f"--prompt_seconds={FLAGS.prompt_seconds:g} is about speech in the voice of a data set's prompts; it does not go with "
                         f"{(wrong or [f'--task={FLAGS.task}'])[0]}")
    beside = [name for name in ("workdir", "list", "wavs", "prompts", "levels", "rivals", "by_steps", "true_times") if FLAGS[name].value]
    beside += ["rerank"] * (FLAGS.rerank > 1)
    if FLAGS.task == "dialogue" and beside:
        raise ValueError(f"--{beside[0]} does not go with --task=dialogue, which takes --model, --data and --clean")
    if FLAGS.at_once and FLAGS.task != "dialogue":
        raise ValueError("--at_once goes with --task=dialogue")
    if FLAGS.wiener and (FLAGS.task != "enhance" or "speed" in (FLAGS.evals or ())):
        raise ValueError("--wiener goes with --task=enhance, and not with --evals=speed")
    if "wiener" in inference.options_of(FLAGS.option):
        raise ValueError("--option=wiener: it is a flag of its own, --wiener")
    if FLAGS.prompts:
        surroundings.read(FLAGS.prompts)
    out = Path(FLAGS.out) if FLAGS.out else Path(FLAGS.workdir) / "evaluation" if FLAGS.workdir else None
    if out and out.exists() and not out.is_dir():
        raise ValueError(f"--out={out} is a file, expected a folder")
    if not all(level.isdecimal() for level in FLAGS.levels or ()):
        raise ValueError(f"--levels={','.join(FLAGS.levels)} are no numbers of levels, as in --levels=1,2,4,8")
    if wrong := [word for word in FLAGS.by_steps or () if not word.isdecimal() or not int(word)]:
        raise ValueError(f"--by_steps={wrong[0]}: expected numbers of steps, as in --by_steps=2,4,8")
    if FLAGS.samplers and not FLAGS.by_steps:
        raise ValueError("--samplers goes with --by_steps; one sampler alone is --option=sampler=NAME")
    if FLAGS.by_steps and (FLAGS.steps or FLAGS.follow):
        raise ValueError(f"--{'steps' if FLAGS.steps else 'follow'} does not go with --by_steps")
    for spec in FLAGS.rivals or ():
        rivals.find(spec)
    if FLAGS.rivals and FLAGS.workdir:
        raise ValueError("--rivals would be made again at every checkpoint and be the same; give the run as --model=DIR")
    if FLAGS.follow and not FLAGS.workdir:
        raise ValueError("--follow needs --workdir=DIR, the run to follow")
    if FLAGS.save_audio and not out:
        raise ValueError("--save_audio needs --out=DIR")
    return path, out


def write_report(folders: Sequence[str]) -> None:
    """`report RUN...`"""
    page, skipped = report.write(folders, FLAGS.out or "report", 24 if FLAGS.limit is None else FLAGS.limit, FLAGS.title)
    print("".join(f"skipped {line}\n" for line in skipped) + f"wrote {page}, {page.stat().st_size / 1e6:.1f} MB")


def write_table(folders: Sequence[str]) -> None:
    """`table RESULT... --out=FILE.md`; without a file, only the paired differences, printed."""
    if not FLAGS.out:
        found, skipped = markdown.differences(folders)
        return print("\n".join([*(f"skipped {line}" for line in skipped), *found]))
    skipped = markdown.write_table(folders, FLAGS.out)
    print("".join(f"skipped {line}\n" for line in skipped) + f"wrote {FLAGS.out}")


def write_rates(folders: Sequence[str]) -> None:
    """`rate RESULT... --out=DIR`"""
    if not FLAGS.out:
        raise ValueError("--out=DIR is missing: the folder to write rates.md and rates.png into")
    skipped = rate_distortion.write(folders, FLAGS.out, FLAGS.seed)
    print("".join(f"skipped {line}\n" for line in skipped) + f"wrote rates.md and rates.png into {FLAGS.out}")


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
    words = {"report": write_report, "table": write_table, "rate": write_rates, "listen": write_test, "answers": read_answers}
    if argv[1:]:
        if argv[1] not in words:
            raise ValueError(f"{argv[1]!r} is not a word of this command: expected {', '.join(words)} or flags (see --help)")
        return words[argv[1]](argv[2:])  # without joining a cluster
    path, out = read_flags()
    ask = job.Ask(
        evals=tuple(FLAGS.evals or ()), rivals=tuple(FLAGS.rivals or ()), samplers=tuple(FLAGS.samplers or ()),
        by_steps=tuple(map(int, FLAGS.by_steps or ())), levels=FLAGS.levels and tuple(map(int, FLAGS.levels)),
        sampler={name: FLAGS[name].value for name in SAMPLER if FLAGS[name].value is not None} | inference.options_of(FLAGS.option) | (
            {"wiener": True} if FLAGS.wiener else {}),
        **{name: FLAGS[name].value for name in ("task", "data", "split", "list", "wavs", "limit", "seed", "recogniser", "takes",
                                              "save_audio", "clean", "aligner", "prompt_text", "prompts", "rerank", "seconds", "prompt_seconds",
                                              "at_once", "true_times")})
    if "speed" in ask.evals:  # in processes of its own: this one must not hold the device
        cluster.configure()
        lines, items = job.time_speed(ask, path)
        return job.write(out, lines, items) if out else None
    cluster.start(lambda line: None)
    if FLAGS.follow:
        job.follow(ask, FLAGS.workdir, out, FLAGS.poll)
    elif FLAGS.workdir:
        job.score_step(ask, FLAGS.workdir, out)
    else:
        score = talking.score if FLAGS.task == "dialogue" else job.score
        lines, items = score(ask, path, inference.load(path) if path else None, out)
        if out:
            job.write(out, lines, items)


if __name__ == "__main__":
    define_flags()
    cluster.run(main)
