"""Conversations made of a corpus: who speaks when, what is heard then, and how the record says it."""

from __future__ import annotations

import itertools
import json
import types

import numpy as np
import pytest
from commands import refused, run

from data_pipelines import dialogues, remade, shards
from ns2_jax.data.dataset import Dataset
from ns2_jax.inference import dialogue
from ns2_jax.text import phones

RATE, PERIOD = 16000, 160


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Twelve utterances of three speakers, noise with six phones; the last one was never aligned."""
    root, rng = tmp_path_factory.mktemp("dialogues") / "in", np.random.default_rng(0)
    rows = []
    for i in range(12):
        n = int(rng.integers(9000, 14000))
        ends = np.append(np.sort(rng.choice(np.arange(1, n), 5, replace=False)), n).astype(np.int32)
        ids = phones.ids(["sil", "sil" if i % 2 else "ah", "b", "iy", "sil" if i % 3 == 0 else "t", "sil"]).astype(np.uint8)
        aligned = {"phones": ids, "ends": ends} if i < 11 else {"phones": ids[:0], "ends": ends[:0]}
        meta = {"utt_id": f"u{i}", "speaker": "abc"[i % 3], "source": "noise", "voice": "v", "text": f"Words  {i}.", "text_norm": f"words {i}"}
        f0 = rng.uniform(80, 200, n // PERIOD).astype(np.float16)
        rows.append((n, {"meta": meta, "audio": {"audio": rng.integers(-9000, 9000, n).astype(np.int16)}, "align": aligned, "f0": {"f0": f0}}))
    for group in remade.GROUPS:
        with shards.ShardWriter(root, group, "train", 0, 1, info={"f0": {"period": PERIOD}}.get(group)) as writer:
            for n, values in rows:
                writer.write(values[group], n)
    shards.write_manifest(root, phones=phones.inventory_hash(), f0_period=PERIOD)
    return root


def utterances(root) -> dict[str, remade.Utterance]:
    dataset = Dataset.open(root)
    found = [remade.read(remade.Place(dataset, "train", i)) for i in range(dataset.records("train"))]
    return {one.meta["utt_id"]: one for one in found}


def test_a_conversation_is_its_utterances_with_silence_between(corpus, tmp_path):
    change = dialogues.Dialogues((3, 4), (0.1, 0.6), 10.0)
    remade.build(corpus, tmp_path / "out", change, 100, 0)
    old, made = utterances(corpus), utterances(tmp_path / "out")
    lengths = set()
    for one in made.values():
        named = one.meta["source"].removeprefix("dialogue ").split(":")[0].split("+")
        turns, parts = dialogue.read(one.meta["text"]), [old[name] for name in named]
        assert [who for who, _ in turns] == [part.meta["speaker"] for part in parts] and len(set(named)) == len(named)
        assert [text for _, text in turns] == [part.meta["text"].replace("  ", " ") for part in parts]
        assert all(a != b for a, b in itertools.pairwise(who for who, _ in turns)) and len({who for who, _ in turns}) == 2
        assert one.meta["speaker"] == "+".join(dict.fromkeys(who for who, _ in turns)) and one.meta["text_norm"].startswith("words")
        edges = np.concatenate([[0], one.ends[phones.turns(one.phones)]])
        assert len(edges) == len(turns) + 1 and edges[-1] == len(one.audio) == one.ends[-1] and (np.diff(one.ends) > 0).all()
        for k, (begin, end, part) in enumerate(zip(edges[:-1], edges[1:], parts)):
            spoken, gap = begin + len(part.audio), end - begin - len(part.audio)
            np.testing.assert_allclose(one.audio[begin:spoken], part.audio, atol=1e-4)
            assert not one.audio[spoken:end].any() and (gap == 0 if k == len(parts) - 1 else 1600 <= gap < 9600 + PERIOD)
            voiced = one.f0[begin // PERIOD : begin // PERIOD + len(part.f0)]
            assert begin % PERIOD == 0
            np.testing.assert_array_equal(voiced, part.f0)
        assert len(one.f0) == len(one.audio) // PERIOD
        lengths.add(len(turns))
    assert len(made) >= 6 and lengths <= {2, 3, 4} and max(lengths) >= 3
    left = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert "u11" in {row["item"] for row in left} and {row["reason"] for row in left} == {"nobody_answers"}
    assert len(made) + len(left) == 12


def test_the_draw_is_the_place_s_and_nothing_is_too_long(corpus):
    dataset = Dataset.open(corpus)
    place = remade.Place(dataset, "train", 0)
    first = remade.read(place)
    make = lambda seconds, seed=1: dialogues.Dialogues((5, 5), (0.2, 0.2), seconds)(first, place, np.random.default_rng(seed))
    np.testing.assert_array_equal(make(9.0).audio, make(9.0).audio)
    assert len({make(9.0, seed).meta["text"] for seed in range(5)}) > 1
    assert make(0.9) is None and len(make(2.2).audio) <= 2.2 * RATE + 2 * PERIOD
    alone = types.SimpleNamespace(dataset=dataset, split="train", position=11, rate=RATE, period=PERIOD)
    assert dialogues.Dialogues((2, 2), (0, 0), 9.0)(utterances(corpus)["u11"], alone, np.random.default_rng(0)) is None


def test_silences_in_a_row_are_one_and_turns_are_where_two_meet():
    doubled = phones.doubled(phones.ids(["sil", "sil", "ah", "sil", "sil", "sil"]))
    assert doubled.tolist() == [True, False, False, True, True, False]
    assert phones.turns(phones.ids(["sil", "ah", "sil", "sil", "b", "sil"])).tolist() == [2, 5]
    assert phones.turns(phones.ids(["sil", "ah", "sil"])).tolist() == [2]


def test_the_command_says_what_is_wrong(corpus, tmp_path):
    asked = ("data_pipelines.dialogues", f"--data={corpus}", f"--out={tmp_path / 'x'}", "--workers=0")
    assert "--turns=5,2: expected two numbers" in refused(*asked, "--turns=5,2")
    assert "--gap=0.1,9: expected two numbers" in refused(*asked, "--gap=0.1,9")
    code, _, err = run(*asked, "--turns=2,2", "--utterances=4")
    assert code == 0, err
