"""Recordings <-> code files, through a trained codec, or <-> mels, through a vocoder.

    python -m ns2_jax.codec encode speech.wav speech.ns2                  WAV, FLAC, OGG or MP3 of any rate and channel count
    python -m ns2_jax.codec encode speech.wav speech.ns2 --levels=8       half the bits of a codec with 16 levels
    python -m ns2_jax.codec decode speech.ns2 speech.wav                  or .flac, at the codec's rate; --levels=4 from fewer levels
    python -m ns2_jax.codec encode recordings codes                       a folder: every recording in it, the tree mirrored
    python -m ns2_jax.codec info speech.ns2                               what it holds, every checksum read
    python -m ns2_jax.codec decode mel.npy speech.wav --model=results/vocoder/model       log-mels: float32 [frames, bands] in nats, of
                                                                          80 bands, 16 kHz and hop 200 for that one (maths.spectral.log_mel)

A code file names its codec by hash and is decoded by that codec only (`--model`). Channels are coded one by one. Hours of audio take the
memory of minutes. A file is written whole or not at all, and one that exists is not replaced without `--overwrite`; in a folder, those that
are made already (as long as what they are made of) are left as they are. A recording in a folder that can't be used is named, the others are
done, and the exit code is 2.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from absl import flags
from tqdm import tqdm

from ns2_jax import inference
from ns2_jax.inference import recordings
from ns2_jax.runtime import cluster

FLAGS = flags.FLAGS
TAKES_WORDS = True  # encode IN OUT | decode IN OUT | info IN
MODEL = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "results", "codec", "model")
BAR = "{percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s of audio [{elapsed}<{remaining}, {rate_fmt}]"
Job = tuple[Path, Path]
Measure = Callable[[Path], float]


def listed(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files below `folder` that end in one of `suffixes`, in order, but hidden ones; links to nothing too. Raises ValueError when there are none."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes and not path.is_dir() and path.name[0] != ".")
    if not found:
        raise ValueError(f"{folder}: no file in it ends in {' '.join(suffixes)}")
    return found


def check_name(path: Path) -> None:
    """Raises ValueError for a name that audio libraries and terminals can't be told."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{ascii(str(path))}: its name is not UTF-8; rename it") from error


def plan(source: Path, out: Path, reads: tuple[str, ...], measure: Measure, suffix: str, writes: tuple[str, ...]) -> list[Job]:
    """What is made of what; raises ValueError or FileNotFoundError for names that can't be, before anything is made."""
    if source.is_dir():
        if out.exists() and not out.is_dir():
            raise ValueError(f"{out} is a file; {source} is a folder, and its tree needs a folder")
        if suffix in recordings.WRITTEN and out.resolve() == source.resolve():
            raise ValueError(f"{out}: decoded there, recordings that lie beside their codes would be taken for decoded copies; give another folder")
        return [(path, (out / path.relative_to(source)).with_suffix(suffix)) for path in listed(source, reads)]
    check_name(source)
    target = out / (source.stem + suffix) if out.is_dir() else out
    measure(source)
    if target.suffix.lower() not in writes:
        raise ValueError(f"{target}: the name of the output must end in {' or '.join(writes)}")
    if target.is_dir():
        raise ValueError(f"{target} is a folder, expected the name of a file to write")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target}: the folder {target.parent} does not exist")
    if target.exists() and not FLAGS.overwrite:
        raise ValueError(f"{target} exists; --overwrite replaces it")
    return [(source, target)]


def length(path: Path, measure: Measure) -> float:
    """Seconds of audio in a file; 0 for one that can't be used, which is told when its turn comes."""
    try:
        return measure(path)
    except (ValueError, OSError):
        return 0.0


def run_all(jobs: list[Job], measure: Measure, work: Callable[..., None], made: Callable[[Path, Path], bool]) -> tuple[float, int, list[str]]:
    """(seconds of audio done, files that were there already, what is wrong with each of the others)."""
    skipped, failed, done = 0, [], 0.0
    sources: dict[Path, Path] = {}
    lengths = [length(source, measure) for source, _ in jobs]
    with tqdm(total=sum(lengths), unit="s", mininterval=2, bar_format=BAR) as bar:
        for (source, target), seconds in zip(jobs, lengths):
            try:
                check_name(source)
                if target in sources:
                    raise ValueError(f"{source}: {target} is made of {sources[target]}; give one of them another name")
                sources[target] = source
                if target.exists() and not FLAGS.overwrite:
                    if not made(source, target):
                        raise ValueError(f"{source}: {target} exists and is something else; --overwrite replaces it")
                    skipped += 1
                    bar.update(seconds)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                work(source, target, lambda more: bar.update(min(more, bar.total - bar.n)))
                done += seconds
            except (ValueError, OSError) as error:
                if len(jobs) == 1 or not cluster.is_user_error(error):
                    raise
                failed.append(cluster.one_line(error))
    return done, skipped, failed


def info(words: list[str]) -> None:
    if len(words) != 1 or not words[0]:
        raise ValueError(f"info takes one code file or folder, not {' '.join(words) or '(nothing)'}")
    failed = []
    paths = listed(Path(words[0]), (recordings.SUFFIX,)) if Path(words[0]).is_dir() else [Path(words[0])]
    for path in paths:
        try:
            check_name(path)
            about = recordings.describe(path)
        except (ValueError, OSError) as error:
            if len(paths) == 1:
                raise
            failed.append(cluster.one_line(error))
            continue
        plural = "s" * (about["channels"] > 1)
        print(f"{path}: {about['seconds']:.2f} s, {about['channels']} channel{plural}, {about['kbit/s']:.2f} kbit/s, "
              f"{about['levels']} levels of {about['codes']} codes, codec {about['codec']} at {about['rate']} Hz and hop {about['hop']}, "
              f"recorded at {about['source_rate']} Hz, {about['bytes']} bytes")
    finish(failed, len(paths))


def finish(failed: list[str], files: int) -> None:
    if failed:
        raise ValueError(f"{len(failed)} of {files} files can't be used:" + "".join(f"\n  - {reason}" for reason in failed))


def define_flags() -> None:
    """Flags belong to the command: a program that imports this module keeps its own."""
    flags.DEFINE_string("model", None, "The codec or vocoder: a run or an export; results/codec/model of the repository if left out.")
    flags.DEFINE_integer("levels", None, "How many of the codec's levels to store, or to decode from; all if left out.", lower_bound=1)
    flags.DEFINE_enum("format", "wav", ["wav", "flac"], "What decoding a folder writes.")
    flags.DEFINE_bool("overwrite", False, "Replace files that exist.")


def main(argv: list[str]) -> None:
    verb, *words = argv[1:] or [""]
    if verb == "info":
        return info(words)
    if verb not in ("encode", "decode"):
        raise ValueError(f"{verb or '(nothing)'} is not a word of this command: expected encode, decode or info (see --help)")
    if len(words) != 2 or not all(words):
        raise ValueError(f"{verb} takes IN and OUT, not {' '.join(word or '(an empty word)' for word in words) or '(nothing)'}")
    cluster.start(lambda line: None)
    cluster.end_tidily()
    model = inference.load(FLAGS.model or MODEL)
    files = (recordings.MelFiles if model.config["system"] == "vocoder" else recordings.CodeFiles)(model, FLAGS.levels)
    kinds = {recordings.CodeFiles.suffix: "a code file, which its codec decodes", recordings.MelFiles.suffix: "a mel, which a vocoder decodes"}
    if verb == "decode" and (kind := Path(words[0]).suffix.lower()) in kinds and kind != files.suffix:
        raise ValueError(f"{words[0]} is named as {kinds[kind]}, and {model.name} is no such model: give it with --model=DIR")
    if verb == "encode":
        measure = recordings.seconds_of_audio
        jobs = plan(Path(words[0]), Path(words[1]), recordings.READ, measure, files.suffix, (files.suffix,))
    else:
        measure = files.seconds
        jobs = plan(Path(words[0]), Path(words[1]), (files.suffix,), measure, f".{FLAGS.format}", recordings.WRITTEN)
    if Path(words[0]).is_dir():
        Path(words[1]).mkdir(parents=True, exist_ok=True)  # where that can't be, it is told once
    work, made = (files.encode, files.encoded) if verb == "encode" else (files.decode, files.decoded)
    done, skipped, failed = run_all(jobs, measure, work, made)
    there = f", {skipped} were there already" if skipped else ""
    print(f"{verb}d {len(jobs) - skipped - len(failed)} of {len(jobs)} files, {done:.1f} s of audio{there}")
    return finish(failed, len(jobs))


if __name__ == "__main__":
    define_flags()
    cluster.run(main)
