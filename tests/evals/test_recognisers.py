"""Recognisers: which one a spec means, what is refused, and that an utterance is heard alike whatever was heard before.

The tests of Whisper drive the real packages with a tiny model of random numbers, where the packages are installed.
"""

from __future__ import annotations

import importlib.metadata
import json
import shlex
import socket
import sys
from pathlib import Path

import numpy as np
import pytest

from ns2_jax.audio import files
from ns2_jax.evals import recognisers

SPEECH = files.read(Path(__file__).with_name("sentence.flac"), 16000)
NOISE = np.random.default_rng(0).normal(0, 0.2, 32000).astype(np.float32)
ODD = [np.zeros(16000, np.float32), None, np.full(16000, np.nan, np.float32), np.zeros(0, np.float32), np.full(9, 0.5, np.float32),
       np.append(SPEECH, np.float32(np.inf))]
NOTHING = ["", None, "", "", "", ""]
LANGUAGES = ["<|en|>", "<|de|>"]
SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", *LANGUAGES, "<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>",
           "<|nospeech|>", "<|notimestamps|>"]
TIMES = [f"<|{k * 0.02:.2f}|>" for k in range(1501)]


def write_json(path: Path, value) -> None:
    path.write_text(json.dumps(value), encoding="utf8")


@pytest.mark.parametrize("spec", ["", "whisper", "whisper:", "command: ", "Pocketsphinx", "pocketsphinx:x", "vosk:model"])
def test_what_is_no_spec(spec):
    with pytest.raises(ValueError, match="is not a recogniser: expected pocketsphinx, whisper:DIR or command:CMD"):
        recognisers.find(spec)


def test_a_spec_means_one_recogniser():
    assert recognisers.find("command:cat") is recognisers.find("command:cat")
    assert isinstance(recognisers.find("whisper:a:b"), recognisers.Whisper) and recognisers.find("whisper:a:b").folder == Path("a:b")
    assert isinstance(recognisers.find(), recognisers.PocketSphinx)


def test_an_utterance_is_heard_alike_after_others():
    recognisers._start()
    alone, mean = recognisers._hear(SPEECH), recognisers._decoder.get_cmn(False)
    for other in (NOISE, SPEECH[:20000] * 0.1, np.full(3200, 1e-3, np.float32)):
        recognisers._hear(other)
        assert recognisers._hear(SPEECH) == alone and recognisers._decoder.get_cmn(False) == mean


def test_pocketsphinx_keeps_the_order_and_hears_nothing_in_silence():
    heard = recognisers.find().transcribe([*ODD, SPEECH, 1e4 * SPEECH], processes=1, progress=False)
    assert heard[:6] == NOTHING and "children" in heard[6] and isinstance(heard[7], str)
    assert importlib.metadata.version("pocketsphinx") in recognisers.find().name()
    assert recognisers.find().transcribe([], progress=False) == []


def test_missing_packages_are_named(monkeypatch, tmp_path):
    for package in ("pocketsphinx", "faster_whisper", "transformers"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match="pocketsphinx: pip install"):
        recognisers.find().check()
    for folder, package in ((converted(tmp_path / "a"), "faster-whisper"), (published(tmp_path / "b"), "transformers")):
        with pytest.raises(ImportError, match=f"whisper:.* needs the package {package} .*: pip install {package}$"):
            recognisers.find(f"whisper:{folder}").check()


def converted(folder: Path) -> Path:
    """The layout of CTranslate2, without a model."""
    folder.mkdir()
    for name in ("config.json", "tokenizer.json"):
        write_json(folder / name, {})
    (folder / "model.bin").write_bytes(b"no model")
    return folder


def published(folder: Path) -> Path:
    """The layout of Hugging Face, without a model."""
    folder.mkdir()
    write_json(folder / "config.json", {"model_type": "whisper"})
    return folder


def test_the_layout_of_the_folder_chooses_the_package(tmp_path):
    assert recognisers.Whisper(str(converted(tmp_path / "a"))).packages == ("faster-whisper", "ctranslate2")
    assert recognisers.Whisper(str(published(tmp_path / "b"))).packages == ("transformers", "torch")


def test_folders_that_are_no_whisper(tmp_path):
    with pytest.raises(FileNotFoundError, match="large-v3 does not exist; expected a folder .*nothing is downloaded"):
        recognisers.find("whisper:large-v3").check()
    (tmp_path / "ggml.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="ggml.bin is a file; expected a folder .*whisper.cpp and others: command:CMD"):
        recognisers.find(f"whisper:{tmp_path}/ggml.bin").check()
    with pytest.raises(ValueError, match="has no config.json"):
        recognisers.find(f"whisper:{tmp_path}").check()
    write_json(tmp_path / "config.json", {"model_type": "bert"})
    with pytest.raises(ValueError, match="no model.bin.*model_type 'bert', expected 'whisper'"):
        recognisers.find(f"whisper:{tmp_path}").check()
    (converted(tmp_path / "a") / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="lacks tokenizer.json, which faster-whisper would download"):
        recognisers.find(f"whisper:{tmp_path}/a").check()


def test_the_name_of_a_whisper_tells_its_files(tmp_path):
    first, other = recognisers.Whisper(str(converted(tmp_path / "a"))), converted(tmp_path / "b")
    (other / "README.md").write_text("not part of it")
    assert first.hash == recognisers.Whisper(str(other)).hash and len(first.hash.split()[0]) == 12
    (other / "model.bin").write_bytes(b"mo model")
    assert first.hash != recognisers.Whisper(str(other)).hash


def script(path: Path, body: str) -> str:
    """The spec of a Python program."""
    path.write_text(f"import sys, wave\npaths = [line.strip() for line in sys.stdin]\n{body}\n", encoding="utf8")
    return f"command:{shlex.join([sys.executable, str(path), 'x $(y); z'])}"


def test_a_command_hears_what_has_a_signal_in_order(tmp_path):
    tool = script(tmp_path / "my tool.py", """
assert sys.argv[1:] == ["x $(y); z"]
print("loading" * 50000, file=sys.stderr)
for path in paths:
    with wave.open(path) as file:
        print(f"{file.getnframes()} at {file.getframerate()} é" if file.getnframes() != 32000 else "")
""")
    recogniser = recognisers.find(tool)
    recogniser.check()
    heard = recogniser.transcribe([SPEECH, *ODD, NOISE, 9 * SPEECH[:1700]], progress=False)
    assert heard == [f"{len(SPEECH)} at 16000 é", *NOTHING, "", "1700 at 16000 é"]
    assert recogniser.transcribe(ODD, progress=False) == NOTHING
    before = recogniser.name()
    assert "my tool.py" in before and tool.removeprefix("command:") in before
    (tmp_path / "my tool.py").write_text("print(1)")
    assert recogniser.name() != before


def test_a_command_for_one_file_at_a_time():
    heard = recognisers.find("command:xargs -n 1 stat --format=%s").transcribe([SPEECH, NOISE], progress=False)
    assert heard == [str(2 * len(SPEECH) + 44), "64044"]


@pytest.mark.parametrize("body,match", [
    ("print(1); sys.exit('no such model ' + 'x' * 900 + ' END')", "failed with exit code 1: x+ END$"),
    ("print(1)", "printed 1 lines for 2 files, expected one line a file"),
    ("print('1\\n2\\n'); print('why', file=sys.stderr)", "printed 3 lines for 2 files.*: why$"),
    ("", "printed 0 lines for 2 files"),
    ("import os; os.kill(os.getpid(), 9)", "failed with exit code -9: it said nothing on stderr"),
])
def test_a_command_that_fails(tmp_path, body, match):
    with pytest.raises(ValueError, match=match):
        recognisers.find(script(tmp_path / "tool.py", body)).transcribe([SPEECH, NOISE], progress=False)


def test_a_command_that_is_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no program 'no-such-program'"):
        recognisers.find("command:no-such-program --x").check()
    with pytest.raises(ValueError, match="can't be split into words: No closing quotation"):
        recognisers.find("command:hear 'x").check()
    (tmp_path / "tool").write_bytes(b"\x00\x01")
    (tmp_path / "tool").chmod(0o755)
    with pytest.raises(ValueError, match="can't be started: .*Exec format error"):
        recognisers.find(f"command:{tmp_path}/tool").transcribe([SPEECH], progress=False)


@pytest.fixture
def offline(monkeypatch):
    """Whoever asks for the network fails the test."""
    def refuse(*args, **kwargs):
        pytest.fail("asked for the network")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def write_tokenizer(path: Path, texts: int = 100):
    """A tokenizer of `texts` made-up words and Whisper's special tokens; returns all tokens in order."""
    tokenizers = pytest.importorskip("tokenizers")
    tokens = [f"w{k}" for k in range(texts)]
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({token: k for k, token in enumerate(tokens)}, unk_token="w0"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    model.add_special_tokens(SPECIAL + TIMES)
    model.save(str(path))
    return tokens + SPECIAL + TIMES


def write_converted(folder: Path) -> Path:
    """A CTranslate2 folder of a Whisper with one layer of random numbers."""
    ctranslate2, _ = pytest.importorskip("ctranslate2"), pytest.importorskip("faster_whisper")
    folder.mkdir()
    tokens = write_tokenizer(folder / "tokenizer.json")
    rng, width, wide = np.random.default_rng(0), 64, 128
    spec = ctranslate2.specs.WhisperSpec(1, 1, 1, 1)

    def fill(part, *shape):
        part.weight = rng.normal(0, 0.3, shape).astype(np.float32)
        if hasattr(part, "bias"):
            part.bias = np.zeros(shape[0], np.float32)

    def norm(part):
        part.gamma, part.beta = np.ones(width, np.float32), np.zeros(width, np.float32)

    fill(spec.encoder.conv1, width, 80, 3)
    fill(spec.encoder.conv2, width, width, 3)
    for side, places in ((spec.encoder, 1500), (spec.decoder, 448)):
        side.position_encodings.encodings = rng.normal(0, 1, (places, width)).astype(np.float32)
        norm(side.layer_norm)
        layer = side.layer[0]
        fill(layer.self_attention.linear[0], 3 * width, width)
        fill(layer.self_attention.linear[1], width, width)
        fill(layer.ffn.linear_0, wide, width)
        fill(layer.ffn.linear_1, width, wide)
        norm(layer.self_attention.layer_norm)
        norm(layer.ffn.layer_norm)
    cross = spec.decoder.layer[0].attention
    for part, rows in zip(cross.linear, (width, 2 * width, width)):
        fill(part, rows, width)
    norm(cross.layer_norm)
    fill(spec.decoder.embeddings, len(tokens), width)
    spec.decoder.projection.weight = rng.normal(0, 1, (len(tokens), width)).astype(np.float32)
    spec.decoder.projection.weight[-len(TIMES):] = 0  # random times would move on by a few frames of each window
    spec.decoder.projection.bias = np.zeros(len(tokens), np.float32)
    spec.register_vocabulary(tokens)
    spec.config.suppress_ids, spec.config.suppress_ids_begin = [], []
    spec.config.lang_ids = [tokens.index(language) for language in LANGUAGES]
    spec.config.alignment_heads = [[0, 0]]
    spec.validate()
    spec.optimize()
    spec.save(str(folder))
    return folder


def write_published(folder: Path) -> Path:
    """A Hugging Face folder of a Whisper with one layer of random numbers."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    folder.mkdir()
    tokens = write_tokenizer(folder / "tokenizer.json")
    at = {token: k for k, token in enumerate(tokens)}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"})
    config = transformers.WhisperConfig(
        vocab_size=len(tokens), d_model=64, encoder_layers=1, decoder_layers=1, encoder_attention_heads=1, decoder_attention_heads=1,
        encoder_ffn_dim=128, decoder_ffn_dim=128, init_std=0.3, decoder_start_token_id=at["<|startoftranscript|>"],
        bos_token_id=at["<|endoftext|>"], eos_token_id=at["<|endoftext|>"], pad_token_id=at["<|endoftext|>"], suppress_tokens=[],
        begin_suppress_tokens=[])
    torch.manual_seed(0)
    model = transformers.WhisperForConditionalGeneration(config)
    torch.nn.init.normal_(model.proj_out.weight.data)[-len(TIMES):] = 0  # random times would move on by a few frames of each window
    model.generation_config = transformers.GenerationConfig(
        is_multilingual=True, lang_to_id={language: at[language] for language in LANGUAGES},
        task_to_id={"transcribe": at["<|transcribe|>"], "translate": at["<|translate|>"]}, no_timestamps_token_id=at["<|notimestamps|>"],
        prev_sot_token_id=at["<|startofprev|>"], decoder_start_token_id=at["<|startoftranscript|>"], eos_token_id=at["<|endoftext|>"],
        pad_token_id=at["<|endoftext|>"], max_length=32, max_initial_timestamp_index=50)
    model.save_pretrained(folder)
    transformers.WhisperFeatureExtractor().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("write", [write_converted, write_published])
def test_whisper_reads_a_folder_without_the_network(write, tmp_path, offline):
    """Random weights hear nonsense, but the same nonsense in the same audio, alone and after others, and none in silence."""
    folder = write(tmp_path / "model")
    recogniser = recognisers.find(f"whisper:{folder}")
    recogniser.check()
    alone = recogniser.transcribe([SPEECH], progress=False)
    long = np.tile(SPEECH, 2 + recognisers.WINDOW // len(SPEECH))
    heard = recogniser.transcribe([*ODD, long, NOISE, SPEECH], progress=False)
    assert heard[:6] == NOTHING and heard[8:] == alone and heard[7] != alone[0]
    assert all("<|" not in text for text in heard[6:]) and any(heard[6:])
    again = recognisers.Whisper(str(folder))
    assert again.name() == recogniser.name() and all(importlib.metadata.version(package) in again.name() for package in again.packages)
    assert "beam 5, temperature 0, float32, en" in again.name()


@pytest.mark.parametrize("write,package", [(converted, "faster_whisper"), (published, "transformers")])
def test_a_broken_whisper_is_a_sentence(write, package, tmp_path, offline):
    pytest.importorskip(package)
    with pytest.raises(ValueError, match="whisper:.* can't hear with it: "):
        recognisers.find(f"whisper:{write(tmp_path / 'model')}").check()
