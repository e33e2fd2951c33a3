"""Text and a voice prompt -> a WAV file, from a run or an export.

    python -m ns2_jax.synthesize --model=results/naturalspeech2/model --text="Good morning." --prompt=voice.wav --out=out.wav
    python -m ns2_jax.synthesize --model=DIR --batch=list.tsv          lines of: out <tab> text <tab> prompt

The prompt is 2 to 10 seconds of the voice to imitate: WAV, FLAC, OGG or MP3 at any rate, mono or not. The same
command with the same seed writes the same samples. A text longer than the model speaks at once is spoken sentence
by sentence, and the command says so. The format of the output follows its name: .wav, .flac or .ogg.
"""

from __future__ import annotations

import time
from pathlib import Path

from absl import flags

from ns2_jax import inference
from ns2_jax.runtime import cluster

FLAGS = flags.FLAGS
SUFFIXES = (".wav", ".flac", ".ogg")


def read_list(path: str) -> list[tuple[str, str, str]]:
    """(out, text, prompt) of every line. Raises ValueError naming the line that is wrong, FileNotFoundError for no file."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"--batch={path}: no such file")
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"--batch={path}: not a UTF-8 text file") from error
    jobs = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        parts = line.split("\t")
        if len(parts) != 3:
            raise ValueError(f"{path}:{number}: {len(parts)} columns, expected 3 with tabs between: out, text, prompt")
        jobs.append(tuple(part.strip() for part in parts))
    if not jobs:
        raise ValueError(f"--batch={path}: no lines")
    return jobs


def read_jobs() -> list[tuple[str, str, str]]:
    """What the flags ask for, checked before anything slow starts."""
    if not FLAGS.model:
        raise ValueError("--model=DIR is missing: a run or an export")
    if FLAGS.batch:
        given = [name for name in ("text", "prompt", "out") if FLAGS[name].value is not None]
        if given:
            raise ValueError(f"--{given[0]} does not go with --batch, whose lines hold out, text and prompt")
        jobs = read_list(FLAGS.batch)
    else:
        missing = [name for name in ("text", "prompt", "out") if FLAGS[name].value is None]
        if missing:
            raise ValueError(f"--{missing[0]} is missing (or give --batch=list.tsv)")
        jobs = [(FLAGS.out, FLAGS.text, FLAGS.prompt)]
    seen, read = set(), {Path(prompt).resolve() for _, _, prompt in jobs} | {Path(FLAGS.batch).resolve() if FLAGS.batch else None}
    for out, text, prompt in jobs:
        if Path(out).resolve() in read:
            raise ValueError(f"{out} is also read (as a prompt or a list): it would be overwritten; choose another name")
        if not text.strip():
            raise ValueError(f"the text for {out} is empty")
        if not Path(prompt).is_file():
            raise FileNotFoundError(f"{prompt}: no such audio file (the prompt for {out})")
        if Path(out).suffix.lower() not in SUFFIXES:
            raise ValueError(f"{out}: the name of the output must end in one of {' '.join(SUFFIXES)}")
        if not Path(out).parent.is_dir():
            raise FileNotFoundError(f"{out}: the folder {Path(out).parent} does not exist")
        if Path(out).is_dir():
            raise ValueError(f"{out} is a folder, expected the name of a file to write")
        if Path(out).resolve() in seen:
            raise ValueError(f"{out} is written by two lines")
        seen.add(Path(out).resolve())
    return jobs


def define_flags() -> None:
    """Flags belong to the command: a program that imports this module keeps its own."""
    flags.DEFINE_string("model", None, "A run (its latest checkpoint is read) or an export.")
    flags.DEFINE_string("text", None, "What to say.")
    flags.DEFINE_string("prompt", None, "Audio file with the voice to imitate.")
    flags.DEFINE_string("out", None, "Audio file to write.")
    flags.DEFINE_string("batch", None, "Instead of text, prompt and out: a file of lines `out<tab>text<tab>prompt`; # starts a comment.")
    flags.DEFINE_enum("task", "tts", ["tts"], "What to do with text and prompt.")
    flags.DEFINE_integer("seed", 0, "Seed of the noise.")
    flags.DEFINE_integer("steps", None, "Sampler steps; the system's own number if left out.", lower_bound=1, upper_bound=10000)
    flags.DEFINE_float("guidance", None, "Strength of classifier-free guidance; the system's own if left out.")
    flags.DEFINE_float("temperature", None, "Scale of the starting noise; the system's own if left out.", lower_bound=0.0)
    flags.DEFINE_float("speed", None, "Tempo, as a factor; 1.2 speaks faster.", lower_bound=0.25, upper_bound=4.0)
    flags.DEFINE_string("sampler", None, "Name of the sampler; the system's own if left out.")
    flags.DEFINE_string("lexicon", None, "File of pronunciations that win over every other source.")
    flags.DEFINE_string("language", "en", "Language of the text, in espeak-ng's naming; English needs no espeak-ng.")


def main(argv: list[str]) -> None:
    del argv
    jobs = read_jobs()
    cluster.start(lambda line: None)
    model = inference.load(FLAGS.model)
    options = {name: FLAGS[name].value for name in ("guidance", "temperature", "sampler", "speed") if FLAGS[name].value is not None}
    for begin in range(0, len(jobs), inference.ROWS):  # a few at a time, so that files appear while later ones are made
        part = jobs[begin : begin + inference.ROWS]
        start = time.monotonic()
        requests = [(text, prompt) for _, text, prompt in part]
        speeches = model.speak_batch(requests, FLAGS.seed, steps=FLAGS.steps, lexicon=FLAGS.lexicon, language=FLAGS.language, **options)
        seconds = time.monotonic() - start
        for (out, _, _), speech in zip(part, speeches):
            inference.write(out, speech)
            pieces = f", in {len(speech.pieces)} pieces: longer than the model speaks at once" if len(speech.pieces) > 1 else ""
            print(f"{out}: {speech.seconds:.2f} s of speech{pieces}")
        print(f"made {sum(s.seconds for s in speeches):.1f} s of speech in {seconds:.1f} s, compilation included")


if __name__ == "__main__":
    define_flags()
    cluster.run(main)
