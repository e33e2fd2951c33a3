"""Crop, prompt cut and gain keep what they must keep."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import numpy as np

from ns2_jax.data import transforms

HOP = 4


@st.composite
def utterances(draw, min_phones=1):
    durations = np.array(draw(st.lists(st.integers(1, 20), min_size=min_phones, max_size=40)), np.int32)
    total = int(durations.sum())
    place = np.arange(total)
    return {
        "frames": total,
        "durations": durations,
        "phones": (np.arange(len(durations)) % 100 + 1).astype(np.uint8),
        "codes": np.stack([place, place + 1000], 1).astype(np.uint16),  # a frame says where it is
        "f0": place.astype(np.float32),
        "audio": np.arange(total * HOP + draw(st.integers(0, HOP - 1))).astype(np.float32),
    }


def rng(seed):
    return np.random.Generator(np.random.Philox(seed))


@hypothesis.given(utterances(min_phones=2), st.integers(1, 200), st.integers(0, 40), st.integers(0, 2**32))
def test_prompt_and_target_share_the_utterance(utterance, u, least, seed):
    row = transforms.cut_prompt(utterance, u, HOP, least, rng(seed))
    frames, prompt = row["frames"], row["prompt_frames"]
    assert 1 <= prompt <= u and frames >= 1
    assert row["durations"].sum() == frames == len(row["f0"]) == len(row["codes"]) and len(row["audio"]) == frames * HOP
    assert len(row["phones"]) == len(row["durations"])
    target, cut = set(row["codes"][:, 0].tolist()), row["codes"][:, 0]
    assert prompt == len(row["prompt_codes"]) == len(row["prompt_f0"]) and len(row["prompt_audio"]) == prompt * HOP
    inside = row["prompt_codes"][:, 0].tolist()
    assert inside == list(range(inside[0], inside[0] + prompt))  # one segment
    assert not target & set(inside)
    assert (np.diff(cut.astype(int)) > 0).all()  # in order
    # What was cut starts and ends at phone boundaries, and the phones that stay keep their frames.
    edges = np.concatenate([[0], np.cumsum(utterance["durations"])])
    assert inside[0] in edges
    at = np.concatenate([[0], np.cumsum(row["durations"])])
    for phone, start in zip(row["phones"], at):
        original = int(phone) - 1
        assert cut[start] == edges[original]
    if frames + prompt == utterance["frames"]:
        assert inside[-1] + 1 in edges
    else:  # only when no cut of at most u frames exists
        assert prompt == u


@hypothesis.given(utterances(min_phones=2), st.integers(0, 2**32))
def test_prompt_length_is_a_tenth_to_a_half_within_a_phone(utterance, seed):
    row = transforms.cut_prompt(utterance, 10_000, HOP, 0, rng(seed))
    longest, total = utterance["durations"].max(), utterance["frames"]
    assert 0.1 * total - longest <= row["prompt_frames"] <= 0.5 * total + longest


def test_where_prompts_come_from():
    durations = np.full(40, 5, np.int32)
    kinds = []
    for seed in range(2000):
        first, last = transforms.choose_cut(durations, 1000, 10, rng(seed))
        kinds.append("prefix" if first == 0 else "suffix" if last == 40 else "middle")
        assert 20 <= 5 * (last - first) <= 100
    share = {kind: kinds.count(kind) / 2000 for kind in ("prefix", "suffix", "middle")}
    assert abs(share["prefix"] - 0.45) < 0.05 and abs(share["suffix"] - 0.45) < 0.05 and abs(share["middle"] - 0.1) < 0.03


def test_prompt_is_half_a_second_where_the_utterance_allows():
    for seed in range(200):
        first, last = transforms.choose_cut(np.full(40, 5, np.int32), 1000, 40, rng(seed))
        assert last - first >= 8
        first, last = transforms.choose_cut(np.full(40, 5, np.int32), 30, 40, rng(seed))
        assert last - first <= 6  # the cap wins


def test_one_phone_has_no_weight():
    utterance = {"frames": 5, "durations": np.array([5]), "phones": np.array([1], np.uint8), "codes": np.zeros((5, 2), np.uint16)}
    row = transforms.cut_prompt(utterance, 3, HOP, 2, rng(0))
    assert row["weight"] == 0 and row["prompt_frames"] == 3 and row["durations"].sum() == row["frames"] == 5


@hypothesis.given(utterances(), st.integers(1, 60), st.integers(0, 2**32))
def test_crop_takes_the_same_frames_of_everything(utterance, t, seed):
    row = transforms.crop(utterance, t, HOP, rng(seed))
    assert row["frames"] == min(t, utterance["frames"]) == len(row["codes"]) == len(row["f0"])
    start = int(row["codes"][0, 0])
    np.testing.assert_array_equal(row["f0"], np.arange(start, start + row["frames"]))
    np.testing.assert_array_equal(row["audio"], np.arange(start * HOP, (start + row["frames"]) * HOP))
    again = transforms.crop(utterance, t, HOP, rng(seed))
    assert int(again["codes"][0, 0]) == start


def test_crop_prefers_sound():
    """A tenth of the recording is speech: one random place finds it seldom, the choice of four often."""
    audio = np.zeros(4000 * HOP, np.float32)
    audio[1000 * HOP : 1400 * HOP] = np.sin(np.arange(400 * HOP))
    utterance = {"frames": 4000, "audio": audio}
    heard = sum(np.abs(transforms.crop(utterance, 50, HOP, rng(seed))["audio"]).max() > 0 for seed in range(400)) / 400
    assert heard > 0.28  # 1 - (1 - 0.11) ** 4 = 0.38 against 0.11
    assert len({len(transforms.crop({"frames": 100, "audio": np.zeros(400, np.float32)}, 50, HOP, rng(s))["audio"]) for s in range(5)}) == 1


def test_gain_is_within_its_range_and_never_clips():
    audio = np.sin(np.arange(1000)).astype(np.float32) * 0.5
    factors = np.array([np.max(transforms.gain(audio, 3.0, rng(seed))) / np.max(audio) for seed in range(500)])
    decibels = 20 * np.log10(factors)
    assert decibels.min() >= -3.001 and decibels.max() <= 3.001 and decibels.max() - decibels.min() > 5.5
    loud = np.ones(10, np.float32)
    assert max(np.max(transforms.gain(loud, 6.0, rng(seed))) for seed in range(50)) <= 1.0
    assert transforms.gain(np.zeros(4, np.float32), 3.0, rng(0)).tolist() == [0, 0, 0, 0]
