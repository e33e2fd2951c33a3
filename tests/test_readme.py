"""The README's commands: every one exists with its flags, and those that are printed whole are run as printed."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import commands
import numpy as np
import pytest

from ns2_jax.audio import files

ROOT = pathlib.Path(__file__).parent.parent
PAGES = ("README.md", "results/codec/README.md", "results/naturalspeech2/README.md", "results/aligner/README.md",
         "results/hard_sentences/README.md", "results/performance/README.md", "results/vocoder/README.md", "results/soundstorm/README.md",
         "results/grad_stylespeech/README.md")


def printed(page: str) -> list[list[str]]:
    """All `python -m ...` commands of a page, as words."""
    text = (ROOT / page).read_text().replace("\\\n", " ").replace("\\|", "|")
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.S) for line in block.splitlines()]
    lines += re.findall(r"`(python -m [^`]*)`", text)
    plain = [re.sub(r"^([A-Z_]+=\S+ )+", "", line) for line in lines]  # without variables before them
    return [shlex.split(line.split("  #")[0]) for line in plain if line.startswith("python -m ")]


def run(words: list[str], folder: pathlib.Path) -> str:
    done = subprocess.run([sys.executable, *words[1:]], cwd=folder, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_flags_exist(page):
    known: dict[str, str] = {}
    found = printed(page)
    assert len(found) >= {"results/hard_sentences/README.md": 2, "results/performance/README.md": 2}.get(page, 4)
    for words in found:
        module = words[2]
        if module == "pytest":
            continue
        assert importlib.util.find_spec(module), " ".join(words)
        if module not in known:
            code, known[module], _ = commands.run(module, "--help")
            assert code == 0
        for word in words[3:]:
            if word.startswith("--") and word != "--" and not word.startswith("--config."):
                assert f"  {word.split('=')[0]}: " in known[module], f"{page}: {' '.join(words)}: no flag {word}"


@pytest.mark.parametrize("page, again", [(PAGES[2], PAGES[0]), ("results/grad_stylespeech/README.md", None)])
def test_a_published_model_speaks_as_printed(page, again, tmp_path):
    """The page's sentence, from the export in the repository; README.md has NaturalSpeech 2's too."""
    sentence = lambda page: [words for words in printed(page) if words[2] == "ns2_jax.synthesize" and any("results/" in w for w in words)]
    (words,) = sentence(page)
    assert again is None or sentence(again) == [words]
    run([word.replace("--out=", f"--out={tmp_path}/") for word in words], ROOT)
    speech = files.read(tmp_path / "speech.wav", 16000)
    assert 1.0 < len(speech) / 16000 < 5.0


def test_the_published_codecs_tables_are_its_scores():
    """results/codec/README.md's first table and README.md's, number by number, as they are rounded there."""
    scores = {line["name"]: line for line in map(json.loads, (ROOT / "results/codec/scores.jsonl").read_text().splitlines())}
    assert {line["fingerprint"].get("model") for name, line in scores.items() if name.endswith("_codec_8")} <= {"a86c3da4e754", None}
    columns = {"recording": "recording", "16 levels": "codec", "8 levels": "codec_8", "6 levels, coarse": "codec_6", "4 levels": "codec_4",
               "not quantised": "codec_unquantised", "Opus 12.8 kbit/s": "opus_12.8", "Opus 6.5": "opus_6.4", "Opus 12.8": "opus_12.8"}
    rows = {"word error": "wer", "PESQ-WB": "pesq", "STOI": "stoi", "SI-SDR": "si_sdr", "mel distance": "mel_distance",
            "DNSMOS overall": "dnsmos_overall", "SECS": "secs_own", "of 12 voices": "secs_nearest"}

    def table(page: str) -> list[list[str]]:
        found = re.search(r"(?:^\|.*\n)+", (ROOT / page).read_text(), re.M).group()
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in found.splitlines() if "---" not in line]

    whole, (head, *short) = table("results/codec/README.md"), table("README.md")
    short = [["", *(f"{row[0]} {row[1]}" if row[0] == "Opus" else row[0] for row in short)],
             *([head[k], *(row[k] for row in short)] for k in range(2, len(head)))]
    checked = 0
    for heads, *lines in (whole, short):
        for label, *cells in lines:
            (kind,) = (name for start, name in rows.items() if label.startswith(start))
            for column, cell in zip(heads[1:], cells, strict=True):
                if not cell:
                    assert f"{kind}_{columns[column]}" not in scores
                    continue
                score = scores[f"{kind}_{columns[column]}"]
                value, *interval = re.findall(r"[0-9.]+", cell)
                for text, exact in zip([value, *interval], [score["value"], *score["interval"]]):
                    digits = len(text.partition(".")[2])
                    assert abs(float(text) - exact) <= 0.5001 * 10.0**-digits, (label, column, text, exact)
                    checked += 1
    assert checked > 80


def test_the_published_codec_codes_as_printed(tmp_path):
    """README.md's recording through the codec in the repository, into a file and back."""
    whole = [words for words in printed(PAGES[0]) if words[2] == "ns2_jax.codec" and "IN" not in words]
    assert [words[3] for words in whole] == ["encode", "info", "decode"]
    ours = re.compile(r"\w+\.(ns2|wav)")
    said = [run([f"{tmp_path}/{word}" if ours.fullmatch(word) else word for word in words], ROOT) for words in whole]
    assert "8 levels of 1024 codes" in said[1] and "6.40 kbit/s" in said[1]
    again = [f"{tmp_path}/again.ns2" if word == "speech.ns2" else word for word in whole[0][3:]]  # in this process: the same bytes
    code, _, err = commands.run("ns2_jax.codec", *again)
    assert code == 0, err
    assert (tmp_path / "again.ns2").read_bytes() == (tmp_path / "speech.ns2").read_bytes()
    source, decoded = files.read(ROOT / whole[0][4], 16000), files.read(tmp_path / whole[2][5], 16000)
    assert len(source) == len(decoded) and np.corrcoef(source, decoded)[0, 1] > 0.5


@pytest.mark.slow
def test_your_recordings_as_printed(tmp_path):
    """Ingest, encode, train: on two sentences, for two steps, from the codec in the repository."""
    for name in ("configs", "results"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "recordings").mkdir()
    texts = {"one": "The children walked along the river, and looked at the old bridge before dinner.",
             "two": "A small bird was singing in the garden, and nobody heard it."}
    shutil.copy(ROOT / "tests/evals/sentence.flac", tmp_path / "recordings/one.flac")
    shutil.copy(ROOT / "tests/data_pipelines/sentence0.flac", tmp_path / "recordings/two.flac")
    (tmp_path / "metadata.csv").write_text("".join(f"{name}|{text}\n" for name, text in texts.items()))
    text = (ROOT / "README.md").read_text()
    block = re.search(r"## Your recordings.*?```bash\n(.*?)```", text, re.S).group(1).replace("\\\n", " ")
    assert "`CODEC` is an exported codec: `results/codec/model`" in text
    for line in block.splitlines():
        words = [word.replace("CODEC", "results/codec/model") for word in shlex.split(line)]
        run(words + (["--config.train.steps=2"] if words[2] == "ns2_jax.train" else []), tmp_path)
    assert (tmp_path / "runs/mine/checkpoints/2").is_dir()


def test_a_corpus_in_another_language_as_printed(tmp_path):
    """The block under "Corpora of thousands of hours", on a miniature MLS with the smallest aligner."""
    (tmp_path / "results").symlink_to(ROOT / "results")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    tone = lambda n: (0.2 * np.sin(2 * np.pi * np.cumsum(150 + 50 * np.sin(np.arange(n) / 4000)) / 16000)).astype(np.float32)
    root = tmp_path / "mls_german"
    for split, names in {"train": [f"48_10_{i:06}" for i in range(8)], "dev": ["17_29_000004"], "test": ["99_1_000000"]}.items():
        for name in names:
            folder = root / split / "audio" / "/".join(name.split("_")[:2])
            folder.mkdir(parents=True, exist_ok=True)
            files.write(folder / f"{name}.flac", tone(16000 + 1000 * int(name[-1])), 16000)
        (root / split / "transcripts.txt").write_text("".join(f"{name}\tein schöner tag\n" for name in names), encoding="utf8")
    text = (ROOT / "README.md").read_text()
    block = re.search(r"## Corpora of thousands of hours.*?```bash\n(.*?)```", text, re.S).group(1).replace("\\\n", " ")
    for line in block.splitlines():
        words = [word.replace("CODEC", "results/codec/model").replace(":base", ":smoke") for word in shlex.split(line)]
        run(words + (["--config.train.steps=2"] if words[2] == "ns2_jax.train" else ["--config.max_rejects=1"]), tmp_path)
    assert (tmp_path / "data/mls_de/DATASHEET.md").is_file() and list((tmp_path / "data/mls_de").glob("codes-*/test-*.tfrecord"))
