"""NaturalSpeech 2: latent diffusion text to speech in the voice of a prompt.

    python -m ns2_jax.train --config=configs/naturalspeech2.py:small --config.data.path=runs/data/default \
        --config.init_from='{"rest/codec": "results/codec/model"}' --workdir=runs/naturalspeech2

Sizes
    smoke  seconds on a laptop: for tests.
    small  7.5 M, float32, 13,000 steps: two hours on one or two CPU cores (0.5 to 0.6 s a step). results/naturalspeech2/README.md has
           what such a run and 12,000 steps more on speech, songs and rooms gave: 19 % word error on unseen sentences (codec 8 %), SECS 0.80.
    base   the paper's layout with every parameter row met within 1 % (Table 11: 435 M), batch, rate and steps
           of the paper (16 x 6,000 frames, AdamW 5e-4, 32 K warm-up, inverse square root, 300 K steps). For a pod or 16
           GPUs; not trained here.

Overrides worth knowing: `score_loss=literal|min_snr`, and the paper's ablations `prompt_in_denoiser=false`,
`prompt_in_predictors=false`, `ce_weight=0`, `queries=0`. `small` leaves the paper in
`prediction`, `whiten`, `phone_position`, `phase_harmonics` (0 is the paper), `voice` (`voice.hidden=0` is the paper), `ce_levels` (0),
`ce_by_signal`, `temperature`, the latents (the coarse levels of its codec, not all) and the prompt encoder's kernel; every size in `ce_scaled`
(false is the paper).

Variants: `flow` trains the same networks by flow matching (32 evaluations with F5-TTS's warp of time), to be compared with the paper's objective at
equal training. `adapt` fine-tunes a trained model on a voice of its own, all but the text encoder; `preserve` beside it mixes in the old corpus:

    python -m data_pipelines.voice --data=runs/data/default --split=heldout --speaker='awb.*' --train=20 --out=VOICE
    python -m data_pipelines.encode --data=VOICE --codec=results/codec/model              # unless the corpus has its codes, which are copied
    python -m ns2_jax.train --config=configs/naturalspeech2.py:small,adapt --config.data.path=VOICE --workdir=runs/adapted \
        --config.init_from='{"params": "results/naturalspeech2/model", "rest/codec": "results/codec/model"}'

`--config.train.frozen` has the regex of what is not trained: `'("(?!params/denoiser/).*",)'` trains the denoiser alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_collections

from configs import common
from configs.codec import codec_numbers


def model_numbers(size: str) -> dict:
    """The fields of `systems.naturalspeech2.System` but the codec's."""
    if size == "base":
        encoder = dict(layers=6, hidden=2048, heads=8, kernel=9, remat=True)
        predictor = dict(layers=30, every=3, width=512, heads=8, dropout=0.5, attention_dropout=0.2)
        denoiser = dict(width=512, filters=1024, blocks=40, dilations=(2, 2, 2), kernel=3, heads=8, queries=32, film="conv",
                        dropout=0.2, time_hidden=2048, time_scale=1000.0, remat=("gate",))
        return dict(
            levels=16, codes=1024, width=512, prenet=2, encoder_dropout=0.2, pitch_bins=512, phase_harmonics=0, phone_position=False,
            ce_weight=0.1, ce_levels=0, ce_by_signal=False, ce_scaled=True, score_loss="min_snr", phone_encoder=encoder, prompt_encoder=encoder,
            duration=dict(kernel=3, **predictor), pitch=dict(kernel=5, **predictor), denoiser=denoiser)
    if size == "small":
        encoder = dict(hidden=320, heads=4)
        predictor = dict(every=3, width=128, heads=4, dropout=0.2, attention_dropout=0.1)
        denoiser = dict(width=256, filters=384, blocks=6, dilations=(1, 3, 9), kernel=3, heads=4, queries=32, film="linear",
                        dropout=0.0, time_hidden=512, time_scale=1000.0, remat=())
        return dict(
            levels=16, codes=1024, width=192, prenet=0, encoder_dropout=0.1, pitch_bins=256, phase_harmonics=4, phone_position=True,
            ce_weight=0.1, ce_levels=4, ce_by_signal=True, ce_scaled=True, score_loss="min_snr", phone_encoder=dict(layers=2, kernel=5, **encoder),
            prompt_encoder=dict(layers=1, kernel=3, **encoder), voice=dict(hidden=192, blocks=2),
            duration=dict(layers=6, kernel=3, **predictor),
            pitch=dict(layers=3, kernel=5, **predictor), denoiser=denoiser)  # pitch runs at frame rate: two groups cost a third of a step
    encoder = dict(layers=1, hidden=48, heads=2, kernel=3)
    predictor = dict(layers=2, every=2, width=24, heads=2, kernel=3, dropout=0.1, attention_dropout=0.1)
    denoiser = dict(width=32, filters=64, blocks=3, dilations=(1, 2), kernel=3, heads=2, queries=4, film="conv", dropout=0.1,
                    time_hidden=64, time_scale=1000.0, remat=("gate",))
    return dict(
        levels=4, codes=32, width=32, prenet=1, encoder_dropout=0.1, pitch_bins=32, phase_harmonics=2, phone_position=True, ce_weight=0.1,
        ce_levels=0, ce_by_signal=False, ce_scaled=True, score_loss="min_snr", phone_encoder=encoder, prompt_encoder=encoder,
        voice=dict(hidden=16, blocks=1),
        duration=predictor, pitch=predictor, denoiser=denoiser)


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    size, words, overrides = common.parse(arg, ("flow", "adapt", "preserve"))
    config = common.defaults(system="naturalspeech2", size=size)
    config.model = ml_collections.ConfigDict(model_numbers(size) | {
        "codec": codec_numbers(size), "prompt_in_denoiser": True, "prompt_in_predictors": True, "snr_cap": 5.0,
        "whiten": 0.5 if size == "small" else 1.0, "prediction": "v" if size == "small" else "x0",
        "temperature": 0.1 if size == "small" else 1 / 1.2, "drop_prompt": 0.1, "drop_text": 0.05, "drop_both": 0.1,
        "unroll": 16 if size == "small" else 1})
    if "flow" in words:
        config.model.objective = "flow"
    config.data.transform = "cut_prompt"
    config.data.buckets = common.choose(
        size,
        smoke=(dict(b=8, t=64, p=24, u=32),),
        small=(dict(b=12, t=160, p=32, u=80), dict(b=7, t=256, p=56, u=128), dict(b=4, t=448, p=96, u=224), dict(b=2, t=800, p=160, u=240),
               dict(b=2, t=1264, p=224, u=240)),
        base=(dict(b=320, t=320, p=80, u=160), dict(b=192, t=512, p=128, u=256), dict(b=128, t=800, p=200, u=400),
              dict(b=64, t=1600, p=400, u=800)))
    config.optim.peak = common.choose(size, smoke=2e-3, small=1e-3, base=5e-4)
    config.optim.warmup = common.choose(size, smoke=10, small=300, base=32_000)
    config.optim.schedule = common.choose(size, smoke="constant", small="cosine", base="inverse_sqrt")
    config.optim.weight_decay = common.choose(size, smoke=0.0, small=0.01, base=0.01)
    config.train.steps = common.choose(size, smoke=60, small=13_000, base=300_000)
    config.train.ema = common.choose(size, smoke=0.9, small=0.999, base=0.9999)
    config.train.log_every = common.choose(size, smoke=5, small=50, base=100)
    config.train.save_every = common.choose(size, smoke=30, small=1000, base=5000)
    if "adapt" in words:
        common.adapt(config, ("params/(denoiser|duration|phase|pitch|prompt|voice)/.*",), "preserve" in words)
    elif "preserve" in words:
        raise ValueError("variant 'preserve' is about what 'adapt' keeps: give both")
    return common.finish(config, overrides)


def get_hyper() -> Iterator[dict[str, Any]]:
    """The paper's ablations (Table 9) and its score loss as printed, beside the whole, for launch/sweep.py."""
    yield {}
    for field, value in (("prompt_in_denoiser", False), ("prompt_in_predictors", False), ("ce_weight", 0.0), ("denoiser.queries", 0),
                         ("score_loss", "literal")):
        yield {f"model.{field}": value}
