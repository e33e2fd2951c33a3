"""Text and a voice prompt -> a WAV file, from a run or an export.

    python -m ns2_jax.synthesize --model=results/naturalspeech2/model --text="Good morning." --prompt=voice.wav --out=out.wav
    python -m ns2_jax.synthesize --model=DIR --batch=list.tsv          lines of: out <tab> text <tab> prompt [<tab> prompt ...]

The prompt is 2 to 30 seconds of the voice to imitate: WAV, FLAC, OGG or MP3 at any rate, mono or not; give `--prompt` several times for
several recordings of it. The same command with the same seed writes the same samples. A text longer than the model speaks at once is
cut at the sentence end nearest to its middle until each piece fits, and the command says so; the pieces are cross-faded.
The format of the output follows its name: .wav, .flac or .ogg.

    python -m ns2_jax.synthesize --model=DIR --batch=DATA --out=CORPUS         a data set's texts, each in the voice of another of its recordings

DATA is a folder of records as `data_pipelines` makes them, and so is CORPUS. Stopped, the same command goes on; on several hosts, each takes
its share of the shards, and cuts the rows of a batch over all its devices, or over those of `--mesh=data=4`.

Beside every output lies `NAME.json`: hashes of model and prompts, seed; the audio itself is marked as synthetic. `--consent=FILE` adds the
words with which the speaker allows it, and holds for the recordings whose SHA-256 stand in FILE.

    python -m ns2_jax.synthesize --say --text="Dr. Smith paid $3.50."

`--say` prints what will be spoken, a word and its phones a line, without loading a model; with `--model` the pronunciations that came with it
count. Its lines, changed, are a lexicon: `--lexicon=FILE`, or one word on the command line, `--word="gif=JH IH F"`.

`--times=json,TextGrid,srt` writes beside the audio when each word and phone is said, and at which pitch. Change `seconds` or `hz` in the
JSON and give it back with `--score=out.json` instead of `--text`.

    python -m ns2_jax.synthesize --task=convert --source=me.wav --text="What I say." --prompt=voice.wav --model=DIR --out=out.wav

`--verify` looks for every word in the result with an aligner, speaks once more (up to `--takes`) what lacks one, and reports both.

    python -m ns2_jax.synthesize --task=sing --score=song.musicxml --prompt=voice.wav --model=DIR --out=out.wav

A model that goes on from its prompt (VALL-E) must know what that says: `--prompt_text`, once for each prompt, or `prompt.wav|its text` in a list.
`--task=continue` keeps the first `--seconds` of the prompt, a recording whose whole text is `--text`, and says the rest. Options of the system's
own are given as `--option=NAME=VALUE` (VALL-E: top_p, best_of, repetition_window and others).

`sing` takes notes and lyrics from MusicXML or MIDI (`--text` where the file has no lyrics). `convert` keeps the source's words and times in
the voice of the prompt; `enhance` its pitch too, in the sound of a clean prompt, or with `--wiener` its sound as well: only what the model
does not say again is taken away. The text is what the source says: an aligner finds its phones there. Lines of `--batch` have the source
before the prompts.

    python -m ns2_jax.synthesize --task=edit --source=me.wav --said="I like tea." --text="I like coffee." --model=DIR --out=out.wav

`edit` makes anew what the text has different and keeps the rest of the recording; `continue` with a `--source` goes on with the text after it.
Both are for models that fill in (SoundStorm), where an empty `--prompt=` gives a voice by chance.

    python -m ns2_jax.synthesize --task=dialogue --text=talk.txt --prompt=Ann=ann.wav --prompt=Ben=ben.wav --model=DIR --out=out.wav

`dialogue` speaks the lines of a file, `SPEAKER: what they say`, each in its speaker's voice; with `--at_once` all of them in one decoding, of a
SoundStorm that was trained on conversations (`data_pipelines.dialogues`).

    python -m ns2_jax.synthesize --model=SOUNDSTORM,TOKENIZER,WRITER --text="Good morning." --prompt=voice.wav --out=out.wav
    python -m ns2_jax.synthesize --model=SOUNDSTORM,TOKENIZER --task=revoice --source=me.wav --prompt=voice.wav --out=out.wav

A SoundStorm that speaks from semantic tokens is given with the other models of its chain: the tokenizer, and to speak a text the writer
(`configs/text_to_semantic.py`). `revoice` says what the source says in the voice of the prompt; nobody knows the words.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

from ns2_jax import corpus, inference
from ns2_jax.runtime import cluster

FLAGS = flags.FLAGS
SUFFIXES = (".wav", ".flac", ".ogg")


@dataclasses.dataclass(frozen=True)
class Job:
    """What becomes of a text (or a score, or a `source` that says the text) in the voice of some prompts: `out`, and beside it files of its
    `times`."""

    out: str
    text: str | inference.Score
    prompts: tuple[str, ...]
    times: tuple[str, ...] = ()
    source: str = ""
    said: str = ""  # by the source, where the text is another
    speakers: tuple[str, ...] = ()  # of a dialogue, whose prompts those are
    texts: tuple[str, ...] = ()  # of the prompts

    @property
    def voices(self) -> tuple[str | inference.Said, ...]:
        """The prompts, with their texts where these are given."""
        return tuple(inference.Said(prompt, text) if text else prompt for prompt, text in zip(self.prompts, self.texts or ("",) * len(self.prompts)))

    @property
    def beside(self) -> dict[str, Path]:
        return {kind: Path(self.out).with_suffix(f".{kind}") for kind in self.times}

    @property
    def written(self) -> tuple[Path, ...]:
        return (Path(self.out), inference.sidecar_of(self.out), *self.beside.values())


def lexicon() -> dict[str, tuple[str, ...]]:
    """--lexicon with the words of --word over it. Raises ValueError for a --word without phones, FileNotFoundError for no file."""
    if FLAGS.lexicon and not Path(FLAGS.lexicon).is_file():
        raise FileNotFoundError(f"--lexicon={FLAGS.lexicon}: no such file")
    words = {}
    for given in FLAGS.word or ():
        word, equals, phones = given.partition("=")
        if not equals or not word.strip() or not phones.strip():
            raise ValueError(f'--word={given}: expected a word and its phones, as in --word="gif=JH IH F"')
        words[word.strip()] = phones
    return {**inference.read_lexicon(FLAGS.lexicon or None), **inference.read_lexicon(words)}


def came_along() -> dict[str, tuple[str, ...]]:
    """The pronunciations in the folders of --model, as loading it would give them. Raises FileNotFoundError for a folder that is not there."""
    given = FLAGS.model or ""
    folders = [Path(folder.strip()) for folder in ([given] if given and Path(given).exists() else given.split(",")) if folder.strip()]
    if missing := next((folder for folder in folders if not folder.is_dir()), None):
        raise FileNotFoundError(f"--model={missing}: no such folder")
    found = [folder / inference.LEXICON for folder in folders]
    return {word: phones for path in found if path.is_file() for word, phones in inference.read_lexicon(path).items()}


def mesh() -> Any:
    """The devices of --mesh, all of this host's where it is left out. Raises ValueError naming the flag."""
    try:
        pairs = [part.partition("=") for part in FLAGS.mesh]
        if wrong := next((part for part, (_, _, size) in zip(FLAGS.mesh, pairs) if not size.removeprefix("-").isdecimal()), None):
            raise ValueError(f"{wrong}: expected AXIS=N, as in data=4")
        return inference.meshes.local_mesh({axis: int(size) for axis, _, size in pairs} or None)
    except ValueError as error:
        raise ValueError(f"--mesh={','.join(FLAGS.mesh)}: {error}") from error


def say(text: str, table: Mapping[str, tuple[str, ...]], language: str = "en") -> str:
    """What will be spoken: word, tab, phones; pauses as comments. Raises ValueError for a text that cannot be spoken."""
    words = inference.spoken(text, table, language)
    lines = [f"# pause {word.text}".rstrip() if word.phones == inference.PAUSE else f"{word.text}\t{' '.join(word.phones)}" for word in words]
    return "\n".join(lines)


def read_list(path: str) -> list[tuple[str, str, tuple[str, ...]]]:
    """(out, text, prompts) of every line. Raises ValueError naming the line that is wrong, FileNotFoundError for no file."""
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
        out, *parts = (part.strip() for part in line.split("\t"))
        if len(parts) < 2:
            raise ValueError(f"{path}:{number}: {len(parts) + 1} columns, expected 3 or more with tabs between: out, text, prompt")
        jobs.append((out, parts[0], tuple(parts[1:])))
    if not jobs:
        raise ValueError(f"--batch={path}: no lines")
    return jobs


def fills() -> bool:
    """Whether the source is filled in or gone on with (SoundStorm), rather than a prompt (VALL-E)."""
    return FLAGS.task == "edit" or FLAGS.task == "continue" and (FLAGS.source is not None or FLAGS.said is not None)


def read_jobs() -> list[Job]:
    """What the flags ask for, checked before anything slow starts."""
    if not FLAGS.model:
        raise ValueError("--model=DIR is missing: a run or an export")
    times, changing, singing = tuple(FLAGS.times), FLAGS.task in ("convert", "enhance"), FLAGS.task == "sing"
    filling, talking, revoicing = fills(), FLAGS.task == "dialogue", FLAGS.task == "revoice"
    if not filling and FLAGS.said is not None:
        raise ValueError("--said goes with --task=edit or --task=continue, and says what --source says")
    if talking and (wrong := next((name for name in ("batch", "score", "verify") if FLAGS[name].value not in (None, False)), None)):
        raise ValueError(f"--{wrong} does not go with --task=dialogue")
    for name in ("batch", "score", "prompt", "verify", "sampler", "pitch_shift"):
        if filling and FLAGS[name].value not in (None, False):
            raise ValueError(f"--{name} does not go with --task={FLAGS.task}: the source is the voice, --said and --text the words")
    for name in ("batch", "text", "score", "verify", "prompt_text", "times", "sampler", "speed", "pitch_shift"):
        if revoicing and FLAGS[name].value not in (None, False, []):
            raise ValueError(f"--{name} does not go with --task=revoice: the source is said again as it is")
    if FLAGS.at_once and not talking:
        raise ValueError("--at_once goes with --task=dialogue")
    if not changing and FLAGS.target_pitch is not None:
        raise ValueError("--target_pitch goes with --task=convert or --task=enhance")
    if FLAGS.wiener and FLAGS.task != "enhance":
        raise ValueError("--wiener goes with --task=enhance")
    if FLAGS.wiener and FLAGS.target_pitch not in (None, "kept"):
        raise ValueError(f"--target_pitch={FLAGS.target_pitch} does not go with --wiener, which filters the source as it is")
    if "wiener" in inference.options_of(FLAGS.option):
        raise ValueError("--option=wiener: it is a flag of its own, --wiener")
    if singing and not FLAGS.language.lower().startswith("en"):
        raise ValueError(f"--language={FLAGS.language}: --task=sing knows English only")
    if FLAGS.score is not None and FLAGS.speed is not None:
        raise ValueError("--speed does not go with --score, which says how long each phone is")
    if singing and (FLAGS.batch or FLAGS.score is None):
        raise ValueError("--task=sing needs --score=SONG: MusicXML or MIDI")
    if changing and FLAGS.verify:
        raise ValueError(f"--verify does not go with --task={FLAGS.task}: the source says the words")
    continuing = FLAGS.task == "continue" and not filling
    if FLAGS.seconds is not None and not continuing:
        raise ValueError("--seconds goes with --task=continue")
    inference.options_of(FLAGS.option)
    for name in ("score", "source", "verify", "speed", "pitch_shift", "prompt_text"):
        if continuing and FLAGS[name].value:
            raise ValueError(f"--{name} does not go with --task=continue: the prompt is a recording, --text all that it says")
    for name in ("speed", "pitch_shift", "temperature", "sampler"):
        if changing and FLAGS[name].value is not None:
            raise ValueError(f"--{name} does not go with --task={FLAGS.task}: times and noise are the source's")
    if wrong := [kind for kind in times if kind not in inference.WRITERS]:
        raise ValueError(f"--times={wrong[0]}: expected {', '.join(inference.WRITERS)}")
    if FLAGS.batch:
        given = [name for name in ("text", "score", "source", "prompt", "prompt_text", "out") if FLAGS[name].value is not None]
        if given:
            raise ValueError(f"--{given[0]} does not go with --batch, whose lines hold out, text and prompt")
        rows = read_list(FLAGS.batch)
        if changing and (short := next((out for out, _, prompts in rows if len(prompts) < 2), None)):
            raise ValueError(f"--batch={FLAGS.batch}: the line of {short} needs a source and a prompt for --task={FLAGS.task}")
        jobs = []
        for out, text, prompts in rows:
            voices, texts = zip(*((voice.strip(), words.strip()) for voice, _, words in (prompt.partition("|") for prompt in prompts[changing:])))
            jobs.append(Job(out, text, voices, times, prompts[0] if changing else "", texts=texts))
    else:
        if FLAGS.text is not None and FLAGS.score is not None and not singing:
            raise ValueError("--text does not go with --score, which says the words")
        if FLAGS.score is not None and changing:
            raise ValueError(f"--score does not go with --task={FLAGS.task}: the source says when its words are said")
        if FLAGS.source is not None and not changing and not filling and not revoicing:
            raise ValueError("--source goes with --task=convert, enhance, edit, continue or revoice")
        needed = ("source", "said", "out") if filling else ("prompt", "out", *["source"] * (changing or revoicing))
        missing = [name for name in needed if FLAGS[name].value is None]
        missing = ["text"] * (FLAGS.text is None and FLAGS.score is None and not revoicing) + missing
        if missing:
            raise ValueError(f"--{missing[0]} is missing (or give --batch=list.tsv)")
        if singing:
            text = inference.sung(inference.read_song(FLAGS.score), FLAGS.text, lexicon())
        else:
            text = FLAGS.text if FLAGS.score is None else inference.read_score(FLAGS.score)
        texts = tuple(FLAGS.prompt_text or ())
        if texts and len(texts) != len(FLAGS.prompt):
            raise ValueError(f"--prompt_text is given {len(texts)} times, --prompt {len(FLAGS.prompt)} times; each prompt has its own")
        speakers, prompts = (), tuple(FLAGS.prompt or ())
        if talking:
            pairs = [prompt.partition("=") for prompt in prompts]
            if odd := next((prompt for prompt, (name, _, path) in zip(prompts, pairs) if not (name and path)), None):
                raise ValueError(f"--prompt={odd}: expected SPEAKER=FILE for --task=dialogue")
            speakers, prompts = tuple(name for name, _, _ in pairs), tuple(path for _, _, path in pairs)
            if not Path(text).is_file():
                raise FileNotFoundError(f"--text={text}: no such file; expected a transcript with lines of SPEAKER: what they say")
            try:
                text = Path(text).read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"--text={text}: not a UTF-8 text file; expected a transcript with lines of SPEAKER: what they say") from error
        jobs = [Job(FLAGS.out, text, prompts, times, FLAGS.source or "", FLAGS.said or "", speakers, texts)]
    seen, read = set(), {Path(name).resolve() for job in jobs for name in (*job.prompts, job.source, FLAGS.batch, FLAGS.score) if name}
    if (continuing or revoicing) and (several := next((job for job in jobs if len(job.prompts) > 1), None)):
        raise ValueError(f"--task={FLAGS.task} takes one prompt, {several.out} has {len(several.prompts)}")
    for job in jobs:
        for path in job.written:
            if path.resolve() in read:
                raise ValueError(f"{path} is also read (as a prompt, a score or a list): it would be overwritten; choose another name")
            if path.is_dir():
                raise ValueError(f"{path} is a folder, expected the name of a file to write")
            if path.resolve() in seen:
                raise ValueError(f"{path} is written by two lines")
            seen.add(path.resolve())
        if isinstance(job.text, str) and not job.text.strip():
            raise ValueError(f"the text for {job.out} is empty")
        for kind, path in (*(("prompt", prompt) for prompt in job.prompts), ("source", job.source)):
            if path and not Path(path).is_file():
                raise FileNotFoundError(f"{path}: no such audio file (the {kind} for {job.out})")
        if Path(job.out).suffix.lower() not in SUFFIXES:
            raise ValueError(f"{job.out}: the name of the output must end in one of {' '.join(SUFFIXES)}")
        if not Path(job.out).parent.is_dir():
            raise FileNotFoundError(f"{job.out}: the folder {Path(job.out).parent} does not exist")
    return jobs


def said(doubts: list, seed: int, takes: int) -> str:
    """What `--verify` reports of the take that was kept, of so many."""
    again = f" (the best of {takes} takes, seed {seed})" if takes > 1 else ""
    return (f"; doubtful: {', '.join(map(str, doubts))}" if doubts else "; every word found") + again


def define_flags() -> None:
    """Flags belong to the command: a program that imports this module keeps its own."""
    flags.DEFINE_string("model", None, "A run (its latest checkpoint is read) or an export; with commas the models of a chain.")
    flags.DEFINE_string("text", None, "What to say.")
    flags.DEFINE_string("score", None, "Instead of text: a JSON file as --times=json writes it, with the length and pitch of each phone; a song for --task=sing.")
    flags.DEFINE_multi_string("prompt", None, "Audio file with the voice to imitate; several times for several.")
    flags.DEFINE_multi_string("prompt_text", None, "What the prompt says, once for each; for a model that goes on from it.")
    flags.DEFINE_alias("ref_audio", "prompt")
    flags.DEFINE_alias("ref_text", "prompt_text")
    flags.DEFINE_string("consent", None, "Text file with the speaker's consent and the SHA-256 of every prompt, or of a source that is "
                        "edited or goes on.")
    flags.DEFINE_bool("say", False, "Only print what the text is spoken as, word by word; needs no model, reads the lexicon of one.")
    flags.DEFINE_string("out", None, "Audio file to write.")
    flags.DEFINE_string("batch", None, "Instead of text, prompt and out: a file of lines `out<tab>text<tab>prompt`; # starts a comment. "
                        "Or, with --out=DIR, a data set whose texts are spoken.")
    flags.DEFINE_list("mesh", [], "Devices of a host among which the rows of a batch are cut, data=N or fsdp=N; all if left out.")
    flags.DEFINE_list("times", [], "Files to write beside the audio: json (to edit and give back), TextGrid (Praat), srt (captions).")
    flags.DEFINE_enum("task", "tts", ["tts", "sing", "convert", "enhance", "edit", "continue", "dialogue", "revoice"],
                      "What to do: speak, sing, change a source, go on from a recording, hold a conversation.")
    flags.DEFINE_float("seconds", None, "Of the prompt, which --task=continue keeps; 3 if left out.", lower_bound=0.1)
    flags.DEFINE_multi_string("option", [], "Of the system's own, NAME=VALUE, as in --option=top_p=0.9.")
    flags.DEFINE_bool("at_once", False, "All turns of --task=dialogue in one decoding, after the prompts of both speakers.")
    flags.DEFINE_string("source", None, "Audio file that is changed; for --task=convert or enhance it says the text.")
    flags.DEFINE_string("said", None, "What the source of --task=edit or continue says.")
    flags.DEFINE_string("aligner", None, "Run or export of an aligner, for a source and --verify; results/aligner/model of the repository if left out.")
    flags.DEFINE_bool("verify", False, "Look whether every word was said, speak again where not, and report.")
    flags.DEFINE_integer("takes", 2, "At most so many, with --verify.", lower_bound=1)
    flags.DEFINE_enum("target_pitch", None, inference.PITCHES, "Pitch of what a source becomes; convert: predicted, enhance: kept.")
    flags.DEFINE_bool("wiener", False, "Of --task=enhance: the source itself, filtered by what the model makes of it.")
    flags.DEFINE_integer("seed", 0, "Seed of the noise.")
    flags.DEFINE_integer("steps", None, "Sampler steps; the system's own number if left out.", lower_bound=1, upper_bound=10000)
    flags.DEFINE_float("guidance", None, "Strength of classifier-free guidance; the system's own if left out.")
    flags.DEFINE_float("temperature", None, "Scale of the starting noise; the system's own if left out.", lower_bound=0.0)
    flags.DEFINE_float("speed", None, "Tempo, as a factor; 1.2 speaks faster.", lower_bound=0.25, upper_bound=4.0)
    flags.DEFINE_float("pitch_shift", None, "Semitones to add to the pitch, be it predicted or that of a --score or song.")
    flags.DEFINE_alias("pitch", "pitch_shift")
    flags.DEFINE_string("sampler", None, "Name of the sampler; the system's own if left out.")
    flags.DEFINE_string("lexicon", None, "File of pronunciations that win over every other source.")
    flags.DEFINE_multi_string("word", None, "A word and its phones, which win over the lexicon: 'gif=JH IH F'; several times for several.")
    flags.DEFINE_string("language", "en", "Language of the text, in espeak-ng's naming; English needs no espeak-ng.")


def speak_corpus(table: Mapping[str, tuple[str, ...]]) -> None:
    """--batch of a folder."""
    for name in ("model", "out"):
        if not FLAGS[name].value:
            raise ValueError(f"--{name}=DIR is missing")
    without = ("text", "score", "source", "said", "prompt", "prompt_text", "seconds", "consent", "task", "verify", "times", "takes", "language",
               "at_once", "target_pitch", "wiener")
    if named := next((name for name in without if FLAGS[name].value != FLAGS[name].default), None):
        raise ValueError(f"--{named} does not go with --batch={FLAGS.batch}, a data set that holds texts, their languages and voices")
    cluster.start(lambda line: None)
    cluster.end_tidily()
    model = inference.load(FLAGS.model, mesh=mesh())
    if model.continues:
        model.aligner = inference.load(FLAGS.aligner or inference.ALIGNER)
    names = ("steps", "guidance", "temperature", "sampler", "speed", "pitch_shift")
    options = {name: FLAGS[name].value for name in names} | inference.options_of(FLAGS.option)
    made = corpus.speak(model, FLAGS.batch, FLAGS.out, FLAGS.seed, {**options, "lexicon": table or None})
    for split, about in made.get("splits", {}).items():
        cluster.say(f"{FLAGS.out}: {split}, {about['records']} utterances, {about['seconds']:.1f} s")


def main(argv: list[str]) -> None:
    del argv
    table = lexicon()
    if FLAGS.say:
        if not FLAGS.text:
            raise ValueError("--text is missing: what --say is to show")
        print(say(FLAGS.text, {**came_along(), **table}, FLAGS.language))
        return
    if FLAGS.batch and Path(FLAGS.batch).is_dir():
        return speak_corpus(table)
    jobs = read_jobs()
    consent = inference.read_consent(FLAGS.consent) if FLAGS.consent else None
    cluster.start(lambda line: None)
    cluster.end_tidily()
    model = inference.load(FLAGS.model, mesh=mesh())
    changing, filling, continuing = FLAGS.task in ("convert", "enhance"), fills(), FLAGS.task == "continue" and not fills()
    if FLAGS.task == "revoice" and model.tokenizer is None:
        raise ValueError(f"--model={FLAGS.model} makes no tokens of a source; --task=revoice needs --model=SOUNDSTORM,TOKENIZER")
    if not model.speaks and FLAGS.task != "revoice":
        raise ValueError(f"{model.name} does not speak; it offers {sorted(model.programs)}")
    aligner = inference.load(FLAGS.aligner or inference.ALIGNER) if changing or filling or continuing or FLAGS.verify or model.continues else None
    if aligner is not None and "align" not in aligner.programs:
        raise ValueError(f"--aligner={FLAGS.aligner}: {aligner.name} does not align")
    model.aligner = aligner
    heard: dict[tuple[str | inference.Said, ...], inference.Heard] = {}

    def hear(prompts: tuple[str | inference.Said, ...]) -> inference.Heard:
        """Each voice once; an empty name is no prompt."""
        if prompts not in heard:
            given = None if prompts in ((), ("",)) else prompts
            heard[prompts] = model.hear(given, table, FLAGS.language).allowed(consent)
            if given:
                print(f"{', '.join(str(one.voice if isinstance(one, inference.Said) else one) for one in given)}: {'; '.join(heard[prompts].notes)}")
        return heard[prompts]

    alone = filling or continuing or FLAGS.task == "revoice"
    for job in jobs if FLAGS.batch else ():  # what the last line lacks is said before the first is spoken
        try:
            inference.spoken(job.text, model.pronunciations(table), FLAGS.language)
            if not alone:
                hear(job.voices)
        except ValueError as error:
            raise ValueError(f"--batch={FLAGS.batch}: the line of {job.out}: {error}") from error
    names = ("guidance", "temperature", "sampler", "speed", "pitch_shift")
    options = {name: FLAGS[name].value for name in names if FLAGS[name].value is not None} | inference.options_of(FLAGS.option)
    for begin in range(0, len(jobs), inference.ROWS):  # a few at a time, so that files appear while later ones are made
        part = jobs[begin : begin + inference.ROWS]
        start = time.monotonic()
        voices = [None if alone or job.speakers else hear(job.voices) for job in part]
        common, found = dict(steps=FLAGS.steps, lexicon=table, language=FLAGS.language, **options), {}
        requests = [(job.text, voice) for job, voice in zip(part, voices)]
        if FLAGS.verify:
            takes = inference.speak_checked(model, aligner, requests, FLAGS.seed, FLAGS.takes, **common)
            speeches = [speech for speech, *_ in takes]
            found = {job.out: said(*rest) for job, (_, *rest) in zip(part, takes)}
        elif continuing:
            recordings = [(job.prompts[0], job.text) for job in part]
            speeches = inference.continue_all(model, recordings, FLAGS.seed, FLAGS.seconds or 3.0, consent=consent, **common)
        elif filling:
            change = inference.edit if FLAGS.task == "edit" else inference.go_on
            speeches = [change(model, aligner, job.source, job.said, job.text, FLAGS.seed, consent=consent, **common) for job in part]
        elif FLAGS.task == "revoice":
            own = {name: value for name, value in options.items() if value is not None} | ({"steps": FLAGS.steps} if FLAGS.steps else {})
            speeches = [inference.revoice(model, model.tokenizer, job.source, job.prompts[0] or None, FLAGS.seed, consent, **own) for job in part]
        elif FLAGS.task == "dialogue":
            speakers = [{name: hear((prompt,)) for name, prompt in zip(job.speakers, job.voices)} for job in part]
            converse = inference.converse_at_once if FLAGS.at_once else inference.converse
            talks = [converse(model, inference.read_dialogue(job.text), who, FLAGS.seed, **common) for job, who in zip(part, speakers)]
            speeches = [talk.speech for talk in talks]
            found = {job.out: f", {len(talk.turns)} turns" for job, talk in zip(part, talks)}
        elif not changing:
            speeches = model.speak_batch(requests, FLAGS.seed, **common)
        else:
            pitch = FLAGS.target_pitch or ("predicted" if FLAGS.task == "convert" else "kept")
            speeches = inference.convert_all(model, aligner, [(job.source, job.text, voice) for job, voice in zip(part, voices)], FLAGS.seed,
                                             FLAGS.steps, pitch, table, FLAGS.language, FLAGS.wiener, **options)  # fmt: skip
        seconds = time.monotonic() - start
        for job, speech in zip(part, speeches):
            inference.write(job.out, speech)
            for kind, path in job.beside.items():
                inference.write_text(path, inference.WRITERS[kind](speech.score))
            parted = len(speech.pieces) > 1 and not job.speakers
            pieces = f", in {len(speech.pieces)} pieces: longer than the model speaks at once" if parted else ""
            beside = "".join(f"; {path}" for path in job.beside.values())
            print(f"{job.out}: {speech.seconds:.2f} s of speech{pieces}{found.get(job.out, '')}{beside}")
        print(f"made {sum(s.seconds for s in speeches):.1f} s of speech in {seconds:.1f} s, compilation included")


if __name__ == "__main__":
    define_flags()
    cluster.run(main)
