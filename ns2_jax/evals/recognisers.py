"""The recognisers behind word error, chosen by one string. All are offline, English, and hear each utterance on its own.

    pocketsphinx      its stock US English models; in the `eval` extra. Weak: about 20 % on clean human speech
    whisper:DIR       Whisper from a folder on this machine: of CTranslate2 (`model.bin`) through faster-whisper, of Hugging Face
                      (`config.json` with model_type whisper) through transformers. Nothing is ever downloaded
    command:CMD       any program, run once: the paths of 16 kHz WAV files come on its standard input, one a line, and it prints
                      what it hears, one line a file in their order (an empty line for nothing)

CMD is split as a shell would (quotes hold words together) and run without one. A Python recogniser loops over
`sys.stdin`; a program that takes one file is `command:xargs -n 1 PROGRAM --its-options`; what takes a list is
`command:PROGRAM --list /dev/stdin`.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
import json
import multiprocessing
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tqdm

from ns2_jax.audio import files

RATE = 16000
SHORTEST = RATE // 10  # samples; no word fits into fewer
BEAM, LANGUAGE = 5, "en"
WINDOW = 30 * RATE  # of Whisper: longer audio is heard piece by piece
SUFFIXES = (".bin", ".json", ".safetensors", ".txt")  # of the files that make a Whisper what it is
KINDS = "pocketsphinx, whisper:DIR or command:CMD"
_decoder = None  # one per worker process


class Recogniser(Protocol):
    def check(self) -> None:
        """Raises what is wrong with it before any work: ImportError, FileNotFoundError, ValueError."""

    def name(self) -> str:
        """For fingerprints: what it is, in which version, with which settings."""

    def transcribe(self, audios: Sequence[np.ndarray | None], processes: int = 2, progress: bool = True) -> list[str | None]:
        """What it hears in each `[s]` at RATE, in order. None stays None; without a signal nothing is heard, "".
        `processes` is how many of pocketsphinx work at once; the others share out their work themselves."""


def has_signal(audio: np.ndarray | None) -> bool:
    """Whether there is anything to listen to: at least 0.1 s, finite and not silent."""
    return files.has_signal(audio, SHORTEST)


def _hear_all(hear: Callable[[list[np.ndarray]], Any], audios: Sequence[np.ndarray | None], progress: bool) -> list[str | None]:
    """The texts that `hear` yields for those `audios` that have a signal, among the others' None and ""."""
    heard: list[str | None] = [None if audio is None else "" for audio in audios]
    places = [k for k, audio in enumerate(audios) if has_signal(audio)]
    if places:
        texts = hear([np.clip(np.asarray(audios[k], np.float32), -1, 1) for k in places])
        for k, text in zip(places, tqdm.tqdm(texts, "recognising", len(places), disable=not progress, mininterval=2), strict=True):
            heard[k] = text
    return heard


def _load(package: str, spec: str) -> Any:
    try:
        return importlib.import_module(package.replace("-", "_"))
    except ImportError as error:
        raise ImportError(f"the recogniser {spec} needs the package {package} ({error}): pip install {package}") from error


def _version(package: str) -> str:
    return f"{package} {importlib.metadata.version(package)}"


def _start() -> None:
    global _decoder
    import pocketsphinx

    _decoder = pocketsphinx.Decoder(samprate=RATE, loglevel="FATAL")


def _hear(audio: np.ndarray) -> str:
    pcm = (np.pad(audio, SHORTEST) * 32767).astype("<i2").tobytes()  # padded: it drops words that touch the ends
    _decoder.reinit_feat()  # or its estimate of the noise goes on from the utterance before
    try:
        _decoder.start_utt()
        _decoder.process_raw(pcm, no_search=False, full_utt=True)
        _decoder.end_utt()
    except RuntimeError:  # it gives up on some noise: then it has heard nothing, and a fresh decoder hears the next one
        _start()
        return ""
    heard = _decoder.hyp()
    return re.sub(r"\(\d+\)", "", heard.hypstr) if heard else ""


class PocketSphinx:
    """About a second an utterance on one core. Over 60 recordings of flite (604 words) it errs in 7.5 %; 7.8 % without its noise
    removal, 11.3 % with a running cepstral mean in place of the utterance's own; 7.3 or 7.1 %, by their order, when the estimate
    of the noise goes on from one to the next."""

    def check(self) -> None:
        try:
            import pocketsphinx
        except ImportError as error:
            raise ImportError(f"word error needs the package {error.name}: pip install -e '.[eval]'") from error
        del pocketsphinx

    def name(self) -> str:
        return f"{_version('pocketsphinx')} en-us, stock language model, each utterance on its own"

    def transcribe(self, audios: Sequence[np.ndarray | None], processes: int = 2, progress: bool = True) -> list[str | None]:
        self.check()
        # Spawned, not forked: a process that holds a JAX backend must not fork.
        with multiprocessing.get_context("spawn").Pool(max(1, min(processes, len(audios))), _start) as pool:
            return _hear_all(lambda some: pool.imap(_hear, some), audios, progress)


class Whisper:
    """Radford et al. 2022 (arXiv 2212.04356) from a local folder, with a beam of 5, in float32, without sampling: with the usual
    fallback to higher temperatures a number could not be had twice. On a GPU where its library finds one."""

    def __init__(self, folder: str):
        self.folder, self.spec = Path(folder), f"whisper:{folder}"

    @functools.cached_property
    def packages(self) -> tuple[str, ...]:
        """What reads the folder. Raises FileNotFoundError or ValueError for what is no folder with a Whisper in it."""
        if not self.folder.is_dir():
            what = "is a file" if self.folder.exists() else "does not exist"
            raise FileNotFoundError(f"{self.spec}: {self.folder} {what}; expected a folder with a Whisper of CTranslate2 or Hugging "
                                    "Face on this machine (nothing is downloaded; whisper.cpp and others: command:CMD)")
        try:
            config = json.loads((self.folder / "config.json").read_text(encoding="utf8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.spec}: {self.folder} has no config.json that can be read, as every folder of Whisper has") from error
        if (self.folder / "model.bin").is_file():
            if not (self.folder / "tokenizer.json").is_file():
                raise ValueError(f"{self.spec}: {self.folder} lacks tokenizer.json, which faster-whisper would download; copy it there "
                                 "from the model that was converted")
            return "faster-whisper", "ctranslate2"
        if config.get("model_type") != "whisper":
            raise ValueError(f"{self.spec}: {self.folder} is neither a Whisper of CTranslate2 (it has no model.bin) nor one of Hugging "
                             f"Face (its config.json says model_type {config.get('model_type')!r}, expected 'whisper')")
        return "transformers", "torch"

    @functools.cached_property
    def listen(self) -> Callable[..., str]:
        """The loaded model: float32 `[s]` at RATE -> text."""
        library, _ = (_load(package, self.spec) for package in self.packages)
        try:
            listen = (_faster_whisper if self.packages[0] == "faster-whisper" else _transformers)(library, str(self.folder))
            listen(np.zeros(RATE, np.float32), max_new_tokens=1)  # what a model or a GPU's libraries lack shows only here
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise ValueError(f"{self.spec}: {self.packages[0]} can't hear with it: {reason}") from error
        return listen

    @functools.cached_property
    def hash(self) -> str:
        """Twelve hex digits of the model's files, and their size."""
        sha, size = hashlib.sha256(), 0
        for path in sorted(path for path in self.folder.iterdir() if path.suffix in SUFFIXES and path.is_file()):
            sha.update(f"{path.name} {_digest(path)}\n".encode())
            size += path.stat().st_size
        return f"{sha.hexdigest()[:12]} of {size / 1e6:.0f} MB"

    def check(self) -> None:
        """Also loads it and lets it listen to a second of silence, so that a broken model is found now."""
        self.listen

    def name(self) -> str:
        return f"Whisper {self.hash}, {', '.join(map(_version, self.packages))}, beam {BEAM}, temperature 0, float32, {LANGUAGE}"

    def transcribe(self, audios: Sequence[np.ndarray | None], processes: int = 2, progress: bool = True) -> list[str | None]:
        return _hear_all(lambda some: map(self.listen, some), audios, progress)


def _faster_whisper(library: Any, folder: str) -> Callable[..., str]:
    model = library.WhisperModel(folder, compute_type="float32", local_files_only=True)

    def listen(audio: np.ndarray, **limits: int) -> str:
        pieces, _ = model.transcribe(audio, language=LANGUAGE, beam_size=BEAM, temperature=0.0, condition_on_previous_text=False, **limits)
        return " ".join(piece.text.strip() for piece in pieces)

    return listen


def _transformers(library: Any, folder: str) -> Callable[..., str]:
    processor = library.WhisperProcessor.from_pretrained(folder, local_files_only=True)
    model = library.WhisperForConditionalGeneration.from_pretrained(folder, local_files_only=True).float().eval()
    model = model.to("cuda" if library.utils.is_torch_cuda_available() else "cpu")
    if not hasattr(model.generation_config, "is_multilingual"):
        raise ValueError("generation_config.json does not say is_multilingual; take the file of the model it was made from")
    told = {"language": LANGUAGE, "task": "transcribe"} if model.generation_config.is_multilingual else {}

    def listen(audio: np.ndarray, **limits: int) -> str:
        long = len(audio) > WINDOW
        whole = {"truncation": False, "padding": "longest"} if long else {}
        inputs = processor(audio, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True, **whole).to(model.device)
        ids = model.generate(**inputs, num_beams=BEAM, do_sample=False, return_timestamps=long, **told, **limits)
        return processor.batch_decode(ids, skip_special_tokens=True)[0].strip()

    return listen


class Command:
    """A program of the user's."""

    def __init__(self, line: str):
        self.line, self.spec = line, f"command:{line}"

    @functools.cached_property
    def words(self) -> list[str]:
        try:
            words = shlex.split(self.line)
        except ValueError as error:
            raise ValueError(f"{self.spec} can't be split into words: {error}") from error
        if not words:
            raise ValueError(f"{self.spec!r} names no program: expected command:CMD")
        return words

    def check(self) -> None:
        if not shutil.which(self.words[0]):
            raise FileNotFoundError(f"{self.spec}: there is no program {self.words[0]!r}")

    def name(self) -> str:
        """The command line with the hashes of the program and of every word of it that is a file."""
        paths = [Path(shutil.which(self.words[0]) or self.words[0]), *map(Path, self.words[1:])]
        known = [f"{path.name} {_digest(path)[:12]}" for path in paths if path.is_file()]
        return f"command {self.line} ({', '.join(known)})"

    def transcribe(self, audios: Sequence[np.ndarray | None], processes: int = 2, progress: bool = True) -> list[str | None]:
        """Raises ValueError, with the end of what it said on stderr, for a command that fails or prints too few or too many lines."""
        self.check()
        return _hear_all(self._run, audios, progress)

    def _run(self, audios: list[np.ndarray]) -> Any:
        with tempfile.TemporaryDirectory(prefix="hear") as folder:
            paths = [Path(folder) / f"{k:05d}.wav" for k in range(len(audios))]
            for path, audio in zip(paths, audios):
                files.write(path, audio, RATE)
            inputs, errors = Path(folder) / "paths", Path(folder) / "stderr"  # files: pipes could fill up and block both sides
            inputs.write_text("".join(f"{path}\n" for path in paths))
            lines = 0
            with inputs.open("rb") as source, errors.open("wb") as complaints:
                try:
                    process = subprocess.Popen(self.words, stdin=source, stdout=subprocess.PIPE, stderr=complaints)
                except OSError as error:
                    raise ValueError(f"{self.spec} can't be started: {error}") from error
                with process:
                    for line in process.stdout:
                        lines += 1
                        if lines <= len(paths):
                            yield line.decode("utf8", "replace").strip()
            said = errors.read_text("utf8", "replace").strip()[-800:]
            if process.returncode:
                raise ValueError(f"{self.spec} failed with exit code {process.returncode}: {said or 'it said nothing on stderr'}")
            if lines != len(paths):
                raise ValueError(f"{self.spec} printed {lines} lines for {len(paths)} files, expected one line a file (an empty one where "
                                 f"it hears nothing){': ' + said if said else ''}")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def find(spec: str = "pocketsphinx") -> Recogniser:
    """The recogniser of a spec, the same one every time: a model is loaded once. Raises ValueError for what is no spec."""
    kind, colon, rest = spec.partition(":")
    if spec == "pocketsphinx":
        return PocketSphinx()
    if kind in ("whisper", "command") and rest.strip():
        return Whisper(rest) if kind == "whisper" else Command(rest)
    raise ValueError(f"{spec!r} is not a recogniser: expected {KINDS}")
