"""The voices of a server: recordings in a folder, NAME.wav (.flac, .ogg, .mp3), and NAME.consent.txt where there is a consent.

NAME.txt is what the recording says: a model that goes on from its prompt (VALL-E) needs it, for others it need not be there. `default` comes
with the package. Each voice is heard once, as long as the model's longest prompt, and again when one of its files has changed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import tempfile
import threading
from pathlib import Path

from absl import logging

from ns2_jax import inference

DEFAULT = "default"
BUNDLED = Path(__file__).with_name("default.flac")  # flite says it, in its voice "slt" a little warped: no recording of a person
SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
BUNDLED_TEXT = "My brother is learning to play the piano this year."
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
MOST = 1000
LONGEST = 60.0  # seconds of a recording that is uploaded
LONGEST_TEXT = 2000  # characters of what a recording says
KINDS = {b"RIFF": ".wav", b"RF64": ".wav", b"fLaC": ".flac", b"OggS": ".ogg"}


class NoConsent(ValueError):
    """A recording that may not be imitated."""


class NoText(ValueError):
    """A recording of which nobody told what it says, for a model that must know."""


class Unknown(KeyError):
    """No such voice."""


@dataclasses.dataclass(frozen=True)
class Voice:
    """A name, its recording, whether a consent lies beside it, and whether what it says is known."""

    name: str
    path: Path
    consent: bool
    text: bool


class Voices:
    """Raises FileNotFoundError for a folder that is not there. `needs_consent`: of what is uploaded, not of what the operator put there."""

    def __init__(self, model: inference.Model, folder: str | os.PathLike | None = None, needs_consent: bool = True):
        self._own = tempfile.TemporaryDirectory(prefix="ns2_jax-voices-") if folder is None else None
        self.model, self.needs_consent = model, needs_consent
        self.folder = Path(self._own.name if self._own else folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"--voices={self.folder}: no such folder")
        if not needs_consent:
            logging.warning("voices may be uploaded without a consent: the operator turned it off")
        self._heard: dict[str, tuple[tuple, inference.Heard]] = {}
        self._lock, self._hearing = threading.Lock(), threading.Lock()

    def close(self) -> None:
        if self._own:
            self._own.cleanup()

    def list(self) -> list[Voice]:
        """`default` first, the others by name."""
        found = {DEFAULT: BUNDLED}
        for path in sorted(self.folder.iterdir()):
            if path.suffix.lower() in SUFFIXES and NAME.fullmatch(path.stem):
                found[path.stem] = path
        told = lambda name, path: path == BUNDLED or self._text_of(name).is_file()
        return [Voice(name, path, self._consent_of(name).is_file(), told(name, path)) for name, path in found.items()]

    def _hear(self, path: str | os.PathLike, text: str) -> inference.Heard:
        """No more than the longest prompt of training, or every length of voices would be compiled apart."""
        prompt = inference.Said(path, text) if self.model.continues else path
        return self.model.hear(prompt).first(self.model.longest_prompt)

    def _text_of(self, name: str) -> Path:
        return self.folder / f"{name}.txt"

    def _told(self, name: str, path: Path) -> str:
        """What a voice says, "" where the model need not know. Raises NoText, ValueError for a file that is no text."""
        if path == BUNDLED:
            return BUNDLED_TEXT
        if not self.model.continues:
            return ""
        file = self._text_of(name)
        if not file.is_file():
            raise NoText(f"nobody told what its recording says, which this model must know: it goes on from it; put its words into {file.name}")
        if file.stat().st_size > LONGEST_TEXT * 4:
            raise ValueError(f"what its recording says has {file.stat().st_size} bytes, at most {LONGEST_TEXT * 4} are read")
        try:
            return " ".join(file.read_text(encoding="utf-8").split())
        except UnicodeDecodeError as error:
            raise ValueError("what its recording says is not a UTF-8 text file") from error

    def _consent_of(self, name: str) -> Path:
        return self.folder / f"{name}.consent.txt"

    def get(self, name: str) -> inference.Heard:
        """A voice that was listened to, once for all who ask. Raises Unknown, ValueError for a recording or a consent that can't be used."""
        path = next((voice.path for voice in self.list() if voice.name == name), None) if NAME.fullmatch(name) else None
        if path is None:
            raise Unknown(name)
        try:
            stamp = self._stamp(path)
            if (heard := self._known(name, stamp)) is None:
                with self._hearing:
                    if (heard := self._known(name, stamp)) is None:
                        consent = self._consent_of(name)
                        heard = self._hear(path, self._told(name, path)).allowed(inference.read_consent(consent) if consent.is_file() else None)
                        with self._lock:
                            self._heard[name] = stamp, heard
        except FileNotFoundError:
            raise Unknown(name) from None  # it was deleted in between
        except ValueError as error:
            said = str(error).replace(str(self._consent_of(name)), "its consent").replace(str(path), "its recording")
            raise ValueError(f"voice {name}: {said}") from error  # a client need not know where files lie
        return heard

    def _stamp(self, path: Path) -> tuple:
        """What changes with a recording, its consent or its text."""
        files = (path, self._consent_of(path.stem), self._text_of(path.stem))
        return tuple((p, p.stat().st_mtime_ns, p.stat().st_size) for p in files if p.is_file())

    def _known(self, name: str, stamp: tuple) -> inference.Heard | None:
        with self._lock:
            known = self._heard.get(name)
        return known[1] if known is not None and known[0] == stamp else None

    def add(self, name: str, data: bytes, statement: str = "", text: str = "") -> inference.Heard:
        """Registers a recording, which says `text`. `statement` are the words of the speaker's consent, which are bound to it by its hash.

        Raises NoConsent where one is needed and there is none, NoText likewise, ValueError for a name, a recording, a text or a statement that
        can't be used, and for a name that is taken.
        """
        if not NAME.fullmatch(name) or name == DEFAULT:
            raise ValueError(f"a voice can't be called {name[:80]!r}: expected a to z, 0 to 9, - and _, at most 64, and not {DEFAULT!r}")
        statement, said = " ".join(statement.split()), " ".join(text.split())
        if len(said) > LONGEST_TEXT:
            raise ValueError(f"what the recording says has {len(said)} characters, at most {LONGEST_TEXT} are accepted")
        if self.model.continues and not said:
            raise NoText("send what the recording says as `text`: this model goes on from it and must know")
        if not statement:
            if self.needs_consent:
                raise NoConsent("a voice may be imitated only with its speaker's consent: send the speaker's words as `consent`")
            logging.warning("voice %s was uploaded without a consent", name)
        digest = hashlib.sha256(data).hexdigest()
        bound = f"{statement}\n{digest}  {name}\n"
        consent = inference.consent(bound) if statement else None
        handle, temporary = tempfile.mkstemp(prefix=".upload-", dir=self.folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            try:
                with self._hearing:  # one at a time: unpacked, a recording is thousands of times as large as what was sent
                    if (seconds := inference.seconds_of(temporary)) > LONGEST:
                        raise ValueError(f"the recording: {seconds:.0f} s long, at most {LONGEST:g} s are accepted; cut it first")
                    heard = self._hear(temporary, said).allowed(consent)
            except ValueError as error:
                raise ValueError(str(error).replace(temporary, "the recording")) from error
            with self._lock:
                names = {voice.name for voice in self.list()}
                if name in names:
                    raise ValueError(f"there is a voice {name!r} already; delete it first, or choose another name")
                if len(names) > MOST:
                    raise ValueError(f"there are {len(names)} voices, which is the most")
                path = self.folder / f"{name}{KINDS.get(data[:4], '.mp3')}"
                for file, words in ((self._consent_of(name), bound if consent else ""), (self._text_of(name), f"{said}\n" if said else "")):
                    if words:
                        inference.write_text(file, words)
                    else:
                        file.unlink(missing_ok=True)  # of a voice that the operator took away
                os.replace(temporary, path)
                self._heard[name] = self._stamp(path), heard
        finally:
            if os.path.exists(temporary):
                os.unlink(temporary)
        logging.info("voice %s registered: %s, consent %s", name, digest, consent.sha256 if consent else "none")
        return heard

    def remove(self, name: str) -> None:
        """Deletes a voice, its consent and its text. Raises Unknown, ValueError for `default`."""
        if name == DEFAULT:
            raise ValueError(f"{DEFAULT!r} can't be deleted")
        with self._lock:
            paths = [path for path in self.folder.iterdir() if path.stem == name and path.suffix.lower() in SUFFIXES]
            if not paths or not NAME.fullmatch(name):  # several, where the operator put more beside it: the next would be heard
                raise Unknown(name)
            for file in (*paths, self._consent_of(name), self._text_of(name)):
                file.unlink(missing_ok=True)
            self._heard.pop(name, None)
