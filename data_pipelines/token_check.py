"""What semantic tokens know: how well they tell phones, and how little they tell the voice, beside k-means on MFCCs.

Purity and mutual information as in HuBERT (Hsu et al. 2021, section IV-C): of the joint counts of phone y and token z at the centres of the
tokens, phone purity is the share of tokens whose phone is the commonest of their kind, PNMI is I(y; z) / H(y). The probe says the speaker of an
utterance from the share of each token in it, by the nearest mean (cosine) of the speakers' other utterances.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ns2_jax.data.dataset import Dataset
from ns2_jax.layers import quantize
from ns2_jax.maths import spectral

ROUNDS = 20  # of k-means on MFCCs
FITTED = 60_000  # frames it is fitted to


def agreement(phones: np.ndarray, tokens: np.ndarray) -> dict[str, float]:
    """`phone_purity`, `token_purity` and `pnmi` of two label sequences of one length."""
    joint = np.zeros((int(phones.max()) + 1, int(tokens.max()) + 1))
    np.add.at(joint, (phones, tokens), 1)
    p = joint / joint.sum()
    y, z = p.sum(1), p.sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mutual = np.nansum(p * np.log(p / (y[:, None] * z[None])))
        entropy = -np.nansum(y * np.log(y))
    return {"phone_purity": float(p.max(0).sum()), "token_purity": float(p.max(1).sum()), "pnmi": float(mutual / max(entropy, 1e-12))}


def speaker_probe(tokens: Sequence[np.ndarray], speakers: Sequence[str], count: int) -> dict[str, float]:
    """`speaker` (share of utterances whose speaker the probe finds) and `chance`, over speakers with two utterances or more."""
    names, who = np.unique(np.asarray(speakers), return_inverse=True)
    bags = np.stack([np.bincount(t, minlength=count) / len(t) for t in tokens])
    sums, many = np.zeros((len(names), count)), np.bincount(who)
    np.add.at(sums, who, bags)
    unit = lambda x: x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    asked = np.flatnonzero(many[who] > 1)
    if not len(asked):
        return {"speaker": float("nan"), "chance": float("nan")}
    right = 0
    for i in asked:
        means = sums.copy()
        means[who[i]] -= bags[i]  # its own utterance does not help
        right += int(np.argmax(unit(means) @ unit(bags[i])) == who[i])
    return {"speaker": right / len(asked), "chance": float(np.mean(many[who[asked]] / len(who)))}


def mfccs(audio: np.ndarray, rate: int, hop: int) -> np.ndarray:
    """13 MFCCs (of 10 ms frames) with first and second differences, mean 0 and deviation 1 over the utterance, one mean for every `hop` samples:
    float32 `[n, 39]`."""
    step = rate // 100
    mel = np.asarray(spectral.log_mel(jnp.asarray(audio)[None], rate, 3 * step, step, 40, 3e-5))[0]
    c = mel @ spectral.dct_matrix(40)[:, :13]
    first = np.gradient(c, axis=0)
    x = np.concatenate([c, first, np.gradient(first, axis=0)], -1)
    x = (x - x.mean(0)) / np.maximum(x.std(0), 1e-3)
    at = np.arange(len(x)) * step // hop
    return np.stack([x[at == i].mean(0) for i in range(at[-1] + 1)]).astype(np.float32)


def cluster(features: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    """k-means of all frames together: tokens of every utterance."""
    every = np.concatenate(features)
    some = every[np.random.default_rng(0).permutation(len(every))[:FITTED]]
    book = quantize.rvq_start(jax.random.key(0), jnp.asarray(some)[None], 1, count, rounds=ROUNDS)["codebooks"][0]
    nearest = jax.jit(quantize.nearest)
    return [np.asarray(nearest(jnp.asarray(x), book)) for x in features]


def check(dataset: Dataset, group: str, split: str, count: int, hop: int) -> dict[str, dict[str, float]]:
    """Scores of the tokens in `group` over `split`, and of as many k-means clusters of MFCCs fitted to that same split, which favours them."""
    tokens, phones, speakers, features = [], [], [], []
    for i in range(dataset.records(split)):
        own, align = dataset.read(split, group, i)["tokens"].astype(np.int64), dataset.read(split, "align", i)
        audio = dataset.read(split, "audio", i)["audio"].astype(np.float32) / 32768
        whole = len(audio) // hop * hop
        if not whole or not len(align["ends"]):
            continue
        at = np.searchsorted(align["ends"], np.arange(len(own)) * hop + hop // 2, side="right")
        tokens.append(own)
        phones.append(np.asarray(align["phones"])[np.minimum(at, len(align["phones"]) - 1)].astype(np.int64))
        speakers.append(dataset.read(split, "meta", i)["speaker"])
        features.append(mfccs(audio[:whole], dataset.sample_rate, hop))
    if not tokens:
        raise ValueError(f"split {split!r} of {dataset.root} has no aligned utterance of {hop} samples or more")
    dull = [x[: len(own)] for x, own in zip(cluster(features, count), tokens)]
    every = np.concatenate(phones)
    score = lambda found: agreement(every, np.concatenate(found)) | speaker_probe(found, speakers, count)
    return {"tokens": score(tokens), "MFCC k-means": score(dull)}
