"""Where generated audio comes from, whose voice it imitates with whose consent, and the mark that says so in every file.

A mark is JSON in the comment of the audio file, under the title TITLE:

    {"synthetic": true, "generator": "ns2_jax 0.1.0", "system": "naturalspeech2", "model": "1f3e...", "prompts": ["9c0d..."], "seed": 0, ...}

`model` names the weights (12 hex digits), `prompts` are the SHA-256 of the recordings imitated. A sidecar, `NAME.json` beside the
audio file NAME, says the same with the SHA-256 of the audio file itself and the words of the consent.

A consent is a text file: the statement in the speaker's own words, and a line with the SHA-256 of every recording it is about, as
`sha256sum voice.wav` prints it. So it belongs to these recordings and to no other.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import numbers
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

import ns2_jax
from ns2_jax.audio import files

if TYPE_CHECKING:
    from ns2_jax.inference.model import Model

TITLE = "Synthetic speech"
LEAST = 20  # characters of a statement
LARGEST = 1 << 16  # bytes of a consent file
_HASH = re.compile(r"\b[0-9a-fA-F]{64}\b")


@dataclasses.dataclass(frozen=True)
class Consent:
    """A `statement`, the SHA-256 of the recordings it is about, and that of its own file (or text)."""

    statement: str
    recordings: frozenset[str]
    sha256: str

    def check(self, digests: Sequence[str]) -> None:
        """Raises ValueError naming the first recording that is not covered."""
        for digest in digests:
            if digest not in self.recordings:
                raise ValueError(f"the consent is not about the recording with SHA-256 {digest}; if it is meant, add that line to the file")


def consent(text: str, name: str = "the consent") -> Consent:
    """A consent from its text. Raises ValueError where it holds no statement or no hash."""
    found = frozenset(digest.lower() for digest in _HASH.findall(text))
    statement = "\n".join(line.strip() for line in text.splitlines() if line.strip() and not _HASH.search(line))
    if len(statement) < LEAST:
        raise ValueError(f"{name} has no statement of at least {LEAST} characters: who allows what to be done with the voice")
    if not found:
        raise ValueError(f"{name} names no recording: add a line with the SHA-256 of each, as sha256sum prints it")
    return Consent(statement, found, hashlib.sha256(text.encode()).hexdigest())


def read_consent(path: str | os.PathLike) -> Consent:
    """`consent` of a file. Raises FileNotFoundError, ValueError."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file with a consent")
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path}: {path.stat().st_size} bytes, a consent has at most {LARGEST}")
    try:
        return consent(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a UTF-8 text file") from error


@dataclasses.dataclass(frozen=True)
class Origin:
    """Of generated audio: 12 hex digits of the weights, the system's name, SHA-256 of what it heard, seed, options, consent."""

    model: str
    system: str
    prompts: tuple[str, ...]
    seed: int
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    consent: Consent | None = None


def whole(seed: Any) -> int:
    """The seed as a plain int, so that the one that is written says the same again. Raises ValueError for what is no whole number."""
    if not isinstance(seed, numbers.Integral):
        raise ValueError(f"seed={seed!r}; expected a whole number")
    return int(seed)


def origin(model: Model, digests: Sequence[str], seed: int, options: Mapping[str, Any], by: Consent | None = None) -> Origin:
    """Of what `model` makes of the recordings with these `digests`; options that are None were left to the model. Raises ValueError for a seed
    that is no whole number."""
    given = {name: value for name, value in options.items() if value is not None}
    return Origin(model.hash, str(model.config["system"]), tuple(digests), whole(seed), given, by)


def together(origins: Sequence[Origin | None]) -> Origin | None:
    """Of several pieces of audio that become one: the first's seed and options, all recordings, and all that was consented to, if each piece
    has a consent. None where none is known."""
    known = [one for one in origins if one is not None]
    if not known:
        return None
    given = list(dict.fromkeys(one.consent for one in known))
    if None in given:
        allowed = None
    elif len(given) == 1:
        allowed = given[0]
    else:
        allowed = consent("\n".join(line for one in given for line in (one.statement, *sorted(one.recordings))))
    return dataclasses.replace(known[0], prompts=tuple(dict.fromkeys(name for one in known for name in one.prompts)), consent=allowed)


def digest(voice: Any) -> str:
    """SHA-256 of a recording: of the file's bytes, or of samples as float32 with their rate. Raises AudioError for no file."""
    if isinstance(voice, (str, os.PathLike)):
        if not Path(voice).is_file():
            raise files.AudioError("missing", f"{os.fspath(voice)}: no such audio file")
        with open(voice, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    audio, rate = voice
    return hashlib.sha256(f"{int(rate)} Hz ".encode() + np.ascontiguousarray(audio, "<f4").tobytes()).hexdigest()


def _plain(value: Any) -> Any:
    """An option that JSON does not know: numpy's numbers and arrays as their values, anything else by its name."""
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else str(value)


def allowed(recordings: Iterable[Any], by: Consent | None) -> tuple[str, ...]:
    """The digests of recordings. Raises ValueError where a consent is given that is not about one of them, AudioError for no file."""
    digests = tuple(digest(recording) for recording in recordings)
    if by is not None:
        by.check(digests)
    return digests


def mark(origin: Origin | None) -> dict[str, Any]:
    """What every generated file says of itself."""
    said: dict[str, Any] = {"synthetic": True, "generator": f"ns2_jax {ns2_jax.__version__}"}
    if origin is not None:
        said |= {"system": origin.system, "model": origin.model, "prompts": list(origin.prompts), "seed": origin.seed}
        said |= {"options": dict(origin.options)} if origin.options else {}
        said |= {"consent": origin.consent.sha256} if origin.consent else {}
    return said


def tags(origin: Origin | None) -> dict[str, str]:
    """The mark as the texts of an audio file."""
    return {"title": TITLE, "comment": json.dumps(mark(origin), sort_keys=True, default=_plain)}


def sidecar(origin: Origin, path: str | os.PathLike, seconds: float, rate: int) -> str:
    """JSON for the file beside the finished audio file `path`."""
    said = mark(origin) | {"file": Path(path).name, "sha256": digest(path), "seconds": round(seconds, 4), "rate": rate}
    if origin.consent:
        said["consent"] = {"sha256": origin.consent.sha256, "statement": origin.consent.statement}
    return json.dumps(said, indent=1, sort_keys=True, ensure_ascii=False, default=_plain) + "\n"


def read_mark(source: str | os.PathLike | BinaryIO) -> dict[str, Any] | None:
    """The mark in an audio file; None where it has none. Raises AudioError for what is no audio file."""
    found = files.read_tags(source)
    try:
        said = json.loads(found.get("comment", ""))
    except ValueError:
        return None
    return said if isinstance(said, dict) and said.get("synthetic") is True else None
