"""Speech from espeak-ng through the shared library of the `espeakng-loader` wheel: no system package, no subprocess.

The library is GPL-3 and loaded at run time only (extra `text`). What was measured on 1.52, and what follows from it:

- Phoneme events carry the exact sample where a phone starts; they need the option bits of the old `espeak_Initialize`.
- Flutter and noise live in static variables and the generator is seeded from the clock: only a *fresh process* that
  calls `espeak_ng_SetRandSeed` first repeats its bytes. Callers give every shard its own process and seed.
- An accent that does not exist leaves the old voice in place and only the return code tells: every code is checked. A
  *variant* that does not exist is not even that, the plain accent speaks: the variant's file is looked for.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
import os

import numpy as np

INSTALL = "install it with: pip install -e '.[text]'"
_SYNCHRONOUS, _PHONEME_EVENTS, _DONT_EXIT, _UTF8 = 2, 0x0001, 0x8000, 1
_RATE, _PITCH, _POSITION_CHARACTER = 1, 3, 1
_END, _PHONEME = 0, 7
WORDS_PER_MINUTE = 175  # espeak's own default


class _Id(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int), ("unique", ctypes.c_uint), ("text_position", ctypes.c_int), ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int), ("sample", ctypes.c_int), ("user", ctypes.c_void_p), ("id", _Id),
    ]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


def available() -> bool:
    """Whether the wheel is installed."""
    return importlib.util.find_spec("espeakng_loader") is not None


class Espeak:
    """The library in this process, its random generator seeded. Make one per process, before anything else speaks.

    Raises FileNotFoundError without the wheel, RuntimeError when the library refuses to start.
    """

    def __init__(self, seed: int):
        if not available():
            raise FileNotFoundError(f"the package espeakng-loader is not installed; {INSTALL}")
        import espeakng_loader

        data = espeakng_loader.get_data_path()
        self._variants = frozenset(os.listdir(os.path.join(data, "voices", "!v")))
        self._library = library = ctypes.CDLL(espeakng_loader.get_library_path())
        library.espeak_Info.restype = ctypes.c_char_p
        library.espeak_Synth.argtypes = [
            ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p,
        ]
        library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
        self.rate = library.espeak_Initialize(_SYNCHRONOUS, 0, data.encode(), _PHONEME_EVENTS | _DONT_EXIT)
        if self.rate <= 0:
            raise RuntimeError(f"espeak-ng did not start (code {self.rate}) with data in {data}")
        self._check("espeak_ng_SetRandSeed", library.espeak_ng_SetRandSeed(seed % 2**31))
        self._chunks: list[np.ndarray] = []
        self._starts: list[tuple[str, int]] = []
        self._callback = _Callback(self._collect)  # kept: the library holds only the pointer
        library.espeak_SetSynthCallback(self._callback)

    @property
    def version(self) -> str:
        """e.g. `1.52.0`."""
        return self._library.espeak_Info(None).decode().split()[0]

    def _check(self, call: str, code: int, detail: str = "") -> None:
        if code != 0:
            raise RuntimeError(f"{call} returned {code}{detail}")

    def _collect(self, samples, count: int, events) -> int:
        if count > 0 and samples:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        i = 0
        while events[i].type != _END:
            if events[i].type == _PHONEME:
                self._starts.append((events[i].id.string.decode("utf8", "replace"), events[i].sample))
            i += 1
        return 0

    def speak(self, text: str, voice: str, pitch: float = 1.0, stretch: float = 1.0) -> tuple[np.ndarray, int, list[str], np.ndarray]:
        """Speaks normalised `text`: (audio float32 `[s]`, rate in Hz, espeak's phone names, their ends in samples int64).

        `voice` is an accent and a variant, `en-us+f3`; `pitch` and `stretch` are ratios against the untouched voice. Raises
        ValueError for an unknown voice, a ratio out of range or text without sound, RuntimeError when a call fails.
        """
        speed, height = round(WORDS_PER_MINUTE / stretch), round(50 + 50 * math.log2(pitch))
        if not 80 <= speed <= 350 or not 0 <= height <= 100:
            raise ValueError(f"pitch {pitch} must be 0.5 to 2 and stretch {stretch} 0.5 to 2.18")
        _, plus, variant = voice.partition("+")
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0 or bool(plus) != (variant in self._variants):
            raise ValueError(f"espeak-ng has no voice {voice!r}; accents are e.g. en-us en en-gb-x-rp, variants e.g. +f3 +m1")
        self._check("espeak_SetParameter", self._library.espeak_SetParameter(_RATE, speed, 0))
        self._check("espeak_SetParameter", self._library.espeak_SetParameter(_PITCH, height, 0))
        self._chunks.clear()
        self._starts.clear()
        data = text.encode()
        code = self._library.espeak_Synth(data, len(data) + 1, 0, _POSITION_CHARACTER, 0, _UTF8, None, None)
        self._check("espeak_Synth", code, f" on {text!r}")
        if not self._chunks or not self._starts:
            raise ValueError(f"espeak-ng says nothing for {text!r}")
        audio = np.concatenate(self._chunks)
        starts = np.array([sample for _, sample in self._starts], np.int64)
        if (np.diff(starts) < 0).any() or starts[-1] > len(audio):
            raise RuntimeError(f"espeak-ng's phone times are not in order for {text!r}")
        ends = np.append(starts[1:], len(audio))  # the few samples before the first phone are its own
        return audio.astype(np.float32) / 32768.0, self.rate, [name for name, _ in self._starts], ends
