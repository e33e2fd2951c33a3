"""Makes `ge2e_reference.json` with the original network: needs torch and the resemblyzer wheel, so it is run by hand, once.

    python tests/evals/make_ge2e_reference.py     # in an environment of its own with torch, librosa and resemblyzer

The wheel's voice activity detector is not used: signals go to `embed_utterance` as they are.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import numpy as np


def voice(seconds: float, f0: float, warp: float) -> np.ndarray:
    """A vowel-like buzz at 16 kHz, closed form: 30 harmonics of a gliding `f0` Hz under three formants scaled by `warp`."""
    t = np.arange(int(seconds * 16000)) / 16000
    phase = 2 * np.pi * (f0 * t - 6.0 * np.cos(2 * np.pi * 0.7 * t) / (2 * np.pi * 0.7))
    sound = np.zeros_like(t)
    for k in range(1, 31):
        gain = sum(a / (1 + ((k * f0 - warp * f) / w) ** 2) for a, f, w in ((1.0, 600, 120), (0.6, 1500, 160), (0.3, 2500, 220)))
        sound += gain * np.sin(k * phase)
    envelope = 0.55 + 0.45 * np.sin(2 * np.pi * 3.1 * t)
    return (0.4 * envelope * sound / np.abs(sound).max()).astype(np.float32)


SIGNALS = {"low": (2.0, 110.0, 0.95), "high": (1.1, 210.0, 1.12), "long": (5.3, 140.0, 1.0)}

if __name__ == "__main__":
    for missing in ("webrtcvad", "scipy.ndimage.morphology"):
        sys.modules[missing] = types.ModuleType(missing)
    sys.modules["scipy.ndimage.morphology"].binary_dilation = None
    from resemblyzer.voice_encoder import VoiceEncoder  # the original, in torch

    encoder = VoiceEncoder("cpu", verbose=False)
    made = {name: [round(float(v), 6) for v in encoder.embed_utterance(voice(*args))] for name, args in SIGNALS.items()}
    Path(__file__).with_name("ge2e_reference.json").write_text(json.dumps(made) + "\n")
