"""Grad-StyleSpeech: mel diffusion from an average mel in the voice of a prompt.

    python -m ns2_jax.train --config=configs/grad_stylespeech.py:small --config.data.path=runs/data/default \
        --config.init_from='{"rest/vocoder": "results/vocoder/model"}' --workdir=runs/grad_stylespeech

Sizes
    smoke  seconds on a laptop: for tests.
    small  7.7 M (8 MB as int8), 16 kHz, hop 200, the data's exact durations, a score network over frames: 20,000 steps, 1.3 to 1.6 s each on
           one slow CPU core. results/grad_stylespeech has what 4,000 of them gave in an hour and a half: it speaks,
           and what it does with unheard voices, noise, other solvers, and 20 recordings to adapt to.
    base   the layout of the paper's parts, 55.4 M: four transformer blocks of width 256 for text and four for the average mel, a U-Net
           of width 128, an aligner learned on the way; 22.05 kHz, hop 256, HiFi-GAN. Wants a data set made at 22.05 kHz. Not trained here.

Variants, as words in the argument:
    align      learn the alignment where `smoke` and `small` take the data's durations; of `base`, which learns it, `exact` is the contrary.
    flow       the same networks by flow matching on the residual, sampled with F5-TTS's warp of time.
    unet       the U-Net in `smoke` and `small` (width 32), which have blocks over frames.
    own_style  the paper's training: the style is that of the target itself, which then carries words and melody and fails with another
               prompt. Without: another recording of the speaker, or another part of a speaker's only one.
    cut        the style is of another part of the same recording, always.
    unstyled   the ablation without style in the average mel.
    hifigan    a vocoder of `configs/vocoder.py:small,hifigan` in `smoke` and `small` (`base` has HiFi-GAN anyway).
    adapt      fine-tunes a trained model on some twenty recordings of a voice, all but text encoder and aligner, for 100 steps;
    preserve   beside it: every second batch is of the old corpus, `--config.data.path=VOICE,CORPUS`.

    python -m data_pipelines.voice --data=runs/data/default --split=heldout --speaker='awb.*' --train=20 --out=VOICE
    python -m ns2_jax.train --config=configs/grad_stylespeech.py:small,adapt --config.data.path=VOICE --workdir=runs/adapted \
        --config.init_from='{"params": "results/grad_stylespeech/model", "rest/vocoder": "results/vocoder/model"}'

What `adapt` trains is a regex of paths: `--config.train.frozen='("(?!params/prior/.*norm).*",)'` leaves all but the styled norms alone.
"""

from __future__ import annotations

import ml_collections

from configs import common
from configs.vocoder import vocoder_numbers

WORDS = ("align", "exact", "flow", "unet", "own_style", "cut", "unstyled", "hifigan", "adapt", "preserve")


def model_numbers(size: str, words: tuple[str, ...]) -> dict:
    """The fields of `systems.grad_stylespeech.System`."""
    learned = "align" in words or (size == "base" and "exact" not in words)
    if size == "base":
        encoder = dict(layers=4, hidden=1024, heads=2, kernel=9)
        numbers = dict(width=256, text=encoder, prior=encoder, style=dict(width=128, heads=2), duration=dict(width=256),
                       score=dict(kind="unet", width=128), crop=256, given="y", mel_mean=0.0, prediction="eps", weighting="eps")
        aligner, binarise_from = dict(width=256, blocks=2, text_width=128, channels=80), 6000
    elif size == "small":
        encoder = dict(hidden=384, heads=2, kernel=5)
        score = dict(kind="unet", width=32) if "unet" in words else dict(kind="frames", width=256, blocks=6, kernel=13)
        numbers = dict(width=192, text=dict(layers=2, **encoder | {"hidden": 320}), prior=dict(layers=3, **encoder), style=dict(width=128, heads=2),
                       duration=dict(width=192), score=score, crop=160, given="r", mel_mean=-5.0, prediction="v", weighting="v",
                       unroll=4)
        aligner, binarise_from = dict(width=192, blocks=2, text_width=96, channels=64), 150
    else:
        encoder = dict(layers=1, hidden=48, heads=2, kernel=3)
        numbers = dict(width=32, text=encoder, prior=encoder, style=dict(width=16, heads=2), duration=dict(width=16),
                       score=dict(kind="unet", width=8, multipliers=(1, 2)) if "unet" in words else dict(kind="frames", width=16, blocks=1),
                       crop=32, given="y", mel_mean=-5.0, prediction="eps", weighting="eps")
        aligner, binarise_from = dict(width=32, blocks=1, text_width=16, channels=16), 30
    return numbers | dict(aligner=aligner if learned else {}, binarise_from=binarise_from, vocoder=vocoder_numbers(size, words), drop_style=0.1,
                          own_style="own_style" in words, styled_prior="unstyled" not in words, stop_prior=False, temperature=1 / 1.5)


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    size, words, overrides = common.parse(arg, WORDS)
    for one, other in (("align", "exact"), ("own_style", "cut")):
        if one in words and other in words:
            raise ValueError(f"config argument {arg!r}: {one!r} and {other!r} exclude each other")
    common.check_needed(arg, words, ("align", "unet", "hifigan") if size == "base" else ("exact",))
    config = common.defaults(system="grad_stylespeech", size=size)
    config.model = ml_collections.ConfigDict(model_numbers(size, words))
    if "flow" in words:
        config.model.objective = "flow"
    config.data.transform = "whole" if "own_style" in words else "cut_prompt" if "cut" in words else "speaker_prompt"
    config.data.sample_rate, config.data.hop = config.model.vocoder.rate, config.model.vocoder.hop
    config.data.buckets = common.choose(
        size,
        smoke=(dict(b=8, t=64, p=24, u=32),),
        small=(dict(b=12, t=160, p=32, u=80), dict(b=7, t=256, p=56, u=128), dict(b=4, t=448, p=96, u=224), dict(b=2, t=800, p=160, u=240),
               dict(b=1, t=1200, p=240, u=240)),
        base=(dict(b=128, t=344, p=96, u=258), dict(b=64, t=688, p=176, u=430), dict(b=32, t=1376, p=352, u=860)))
    config.optim.peak = common.choose(size, smoke=2e-3, small=1e-3, base=2e-4)
    config.optim.warmup = common.choose(size, smoke=10, small=300, base=5000)
    config.optim.schedule = common.choose(size, smoke="constant", small="cosine", base="cosine")
    config.optim.b2 = 0.99
    config.optim.weight_decay = common.choose(size, smoke=0.0, small=0.01, base=0.01)
    config.train.steps = common.choose(size, smoke=60, small=20_000, base=500_000)
    config.train.ema = common.choose(size, smoke=0.9, small=0.999, base=0.9999)
    config.train.log_every = common.choose(size, smoke=5, small=50, base=100)
    config.train.save_every = common.choose(size, smoke=30, small=1000, base=5000)
    if "adapt" in words:
        common.adapt(config, ("params/(prior|score|duration|style)/.*",), "preserve" in words)
    elif "preserve" in words:
        raise ValueError("variant 'preserve' is about what 'adapt' keeps: give both")
    return common.finish(config, overrides)
