"""SoundStorm: codec tokens filled in by parallel masked decoding, from phones or semantic tokens, in the voice of a prompt.

    python -m ns2_jax.train --config=configs/soundstorm.py:small --config.data.path=runs/data/default \
        --config.init_from='{"rest/codec": "results/codec/model"}' --workdir=runs/soundstorm

Sizes
    smoke  seconds on a laptop: for tests.
    small  7.8 M, float32, the first six levels of the codec: 16,000 steps. All but its decoder has the
           layout of NaturalSpeech 2 `small`, from which it may begin: results/soundstorm has the command.
    base   the paper's decoder (12 layers, 16 heads, 1024/4096, 353 M) on 12 levels at 50 Hz, codec `configs/codec.py:base,hop=320,levels=12`; the
           paper gives no batch and no rate, these are ours. For a pod or 16 GPUs; not trained here.

Variants, as words in the argument:
    semantic  a token a frame is the condition (the paper's), from `configs/semantic.py`; no phones, no predictors. It speaks after
              `configs/text_to_semantic.py`, which shows how.
    both      phones and tokens.

For conversations in one decoding (`ns2_jax.synthesize --task=dialogue --at_once`) train, or go on training, on what `data_pipelines.dialogues`
makes of the corpus (with codes by `data_pipelines.encode`, and tokens by `data_pipelines.tokens`).

Overrides: `level_law=uniform,infill=0,hide_text=0,longest_prompt=1` and `drop_prompt=0,drop_text=0,drop_both=0` are the paper's training,
`voice.hidden=0,phase_harmonics=0,decoder.vector_head=false` its layout; `levels=8` models more of the codec.
"""

from __future__ import annotations

import ml_collections

from configs import common
from configs.codec import codec_numbers

WORDS = ("semantic", "both")


def model_numbers(size: str) -> dict:
    """The fields of `systems.soundstorm.System` but the codec's."""
    if size == "base":
        encoder = dict(hidden=2048, heads=8, kernel=9, remat=True)
        predictor = dict(every=3, width=512, heads=8, dropout=0.3, attention_dropout=0.1)
        return dict(
            levels=12, codec_levels=12, codes=1024, width=512, prenet=2, encoder_dropout=0.1, pitch_bins=256, phase_harmonics=0,
            decoder=dict(layers=12, width=1024, hidden=4096, heads=16, kernel=5, expansion=2, dropout=0.1, level_vector=True, vector_head=False,
                         remat=True),
            phone_encoder=dict(layers=4, **encoder), prompt_encoder=dict(layers=4, **encoder),
            duration=dict(layers=12, kernel=3, **predictor), pitch=dict(layers=12, kernel=5, **predictor))
    if size == "small":  # all but the decoder as in NaturalSpeech 2 `small`
        encoder = dict(hidden=320, heads=4)
        predictor = dict(every=3, width=128, heads=4, dropout=0.2, attention_dropout=0.1)
        return dict(
            levels=6, codec_levels=16, codes=1024, width=192, prenet=0, encoder_dropout=0.1, pitch_bins=256, phase_harmonics=4,
            decoder=dict(layers=4, width=200, hidden=400, heads=4, kernel=5, expansion=1, dropout=0.1, level_vector=True, vector_head=True,
                         remat=False),
            phone_encoder=dict(layers=2, kernel=5, **encoder), prompt_encoder=dict(layers=1, kernel=3, **encoder), voice=dict(hidden=192, blocks=2),
            duration=dict(layers=6, kernel=3, **predictor), pitch=dict(layers=3, kernel=5, **predictor))
    encoder = dict(layers=1, hidden=48, heads=2, kernel=3)
    predictor = dict(layers=2, every=2, width=24, heads=2, kernel=3, dropout=0.1, attention_dropout=0.1)
    return dict(
        levels=3, codec_levels=4, codes=32, width=32, prenet=1, encoder_dropout=0.1, pitch_bins=32, phase_harmonics=2,
        decoder=dict(layers=2, width=32, hidden=64, heads=2, kernel=5, expansion=2, dropout=0.1, level_vector=True, vector_head=True,
                     remat=True),
        phone_encoder=encoder, prompt_encoder=encoder, voice=dict(hidden=16, blocks=1), duration=predictor, pitch=predictor)


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    size, words, overrides = common.parse(arg, WORDS)
    config = common.defaults(system="soundstorm", size=size)
    hop = 320 if size == "base" else 200
    condition = words[0] if words else "phones"
    config.model = ml_collections.ConfigDict(model_numbers(size) | {
        "codec": codec_numbers(size, hop), "condition": condition, "semantic": common.choose(size, smoke=16, small=256, base=1024),
        "level_law": "linear" if size == "base" else "first", "longest_prompt": 1.0 if size == "base" else 0.6, "infill": 0.15,
        "hide_text": 0.7, "drop_prompt": 0.1, "drop_text": 0.05, "drop_both": 0.1, "steps": 16,
        "temperature": 1.0, "top_p": 0.95, "choice": 4.5, "whiten": 0.5 if size == "small" else 1.0, "unroll": 4 if size == "small" else 1})
    if condition == "semantic":
        for name in ("phone_encoder", "prompt_encoder", "duration", "pitch"):
            config.model[name] = ml_collections.ConfigDict()
    config.data.hop = hop
    config.data.tokenizer = ""  # whose semantic tokens, 12 hex digits; "" means the only ones there
    config.data.transform = "whole"
    config.data.buckets = common.choose(  # u is the longest prompt of synthesis: 3 s
        size,
        smoke=(dict(b=8, t=64, p=24, u=32),),
        small=(dict(b=6, t=208, p=40, u=240), dict(b=4, t=320, p=64, u=240), dict(b=3, t=512, p=104, u=240), dict(b=2, t=816, p=168, u=240),
               dict(b=1, t=1264, p=224, u=240)),
        base=(dict(b=256, t=320, p=128, u=160), dict(b=160, t=512, p=192, u=160), dict(b=80, t=1008, p=400, u=160), dict(b=48, t=1504, p=600, u=160)))
    config.optim.peak = common.choose(size, smoke=2e-3, small=1e-3, base=3e-4)
    config.optim.warmup = common.choose(size, smoke=10, small=500, base=10_000)
    config.optim.schedule = common.choose(size, smoke="constant", small="cosine", base="cosine")
    config.optim.weight_decay = common.choose(size, smoke=0.0, small=0.01, base=0.01)
    config.train.steps = common.choose(size, smoke=60, small=16_000, base=300_000)
    config.train.ema = common.choose(size, smoke=0.9, small=0.999, base=0.9999)
    config.train.log_every = common.choose(size, smoke=5, small=50, base=100)
    config.train.save_every = common.choose(size, smoke=30, small=1000, base=5000)
    return common.finish(config, overrides)
