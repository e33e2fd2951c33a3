"""espeak-ng through ctypes: text to phonemes for words no dictionary has, and for other languages.

espeak-ng is GPL-3: it is not imported or linked by anything here. The library and its data come from the
`espeakng_loader` wheel (the `text` extra) and are opened at the first call.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import threading

from ns2_jax.text.phones import from_ipa, join_espeak

_SYNCHRONOUS, _NO_EXIT = 2, 0x8000
_UTF8, _IPA = 1, 2
_SEPARATOR = ord("_") << 8
_LOCK = threading.Lock()  # the library keeps its voice and its state in globals
_ENGLISH = "en-us"


def available() -> bool:
    """Whether the `espeakng_loader` wheel is installed (does not load the library)."""
    return importlib.util.find_spec("espeakng_loader") is not None


@functools.cache
def _library() -> ctypes.CDLL:
    try:
        import espeakng_loader
    except ImportError as error:
        raise ImportError(
            "espeak-ng is needed for this text: pip install -e '.[text]' (package espeakng-loader), or add the words to a lexicon") from error
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), _NO_EXIT)
    if rate <= 0:
        raise ValueError(f"espeak-ng did not start (code {rate}); its data should be at {espeakng_loader.get_data_path()}")
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    library.espeak_TextToPhonemes.argtypes = [ctypes.POINTER(ctypes.c_char_p), ctypes.c_int, ctypes.c_int]
    return library


def text_to_phonemes(text: str, language: str = "en-us", ipa: bool = True) -> list[str]:
    """One string per clause: IPA, or espeak mnemonics, with `_` between phones and spaces between words.

    Raises ValueError for a language espeak does not have (it would keep the previous voice silently), ImportError
    when espeak-ng is not installed.
    """
    with _LOCK:
        library = _library()
        if library.espeak_SetVoiceByName(language.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice for language {language!r}; try for example en-us, de, fr, es, it, pl, cmn")
        pointer = ctypes.c_char_p(text.encode())
        clauses = []
        while pointer.value is not None:
            clause = library.espeak_TextToPhonemes(ctypes.byref(pointer), _UTF8, _SEPARATOR | (_IPA if ipa else 0))
            if clause:
                clauses.append(clause.decode())
    return clauses


@functools.lru_cache(maxsize=65536)
def word_phones(word: str) -> tuple[str, ...]:
    """Inventory phones of one English word (American voice), without pauses."""
    names = [name for clause in text_to_phonemes(word, _ENGLISH, ipa=False) for part in clause.split() for name in part.split("_")]
    return tuple(phone for phone in join_espeak(names) if phone != "sil")


def clause_phones(text: str, language: str) -> list[list[str]]:
    """Phones of every spoken word of one clause in `language` (espeak may join or split written words)."""
    words = " ".join(text_to_phonemes(text, language)).split()
    return [phones for phones in (from_ipa(word, language) for word in words) if phones]
