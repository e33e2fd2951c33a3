"""The page in a real browser: type, hear, see, download; upload and record a voice; and what it says when something is wrong."""

from __future__ import annotations

import contextlib
import io
import time

import browser
import numpy as np
import pytest
import served
import soundfile
import tiny

from ns2_jax import inference
from ns2_jax.serve import app, voices

STATUS = "return document.getElementById('status').textContent"


@pytest.fixture
def page(tmp_path):
    """A browser with a false microphone."""
    fake = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--autoplay-policy=no-user-gesture-required")
    with contextlib.ExitStack() as stack:
        try:
            yield stack.enter_context(browser.Browser(tmp_path / "downloads", *fake))
        except browser.NoBrowser as error:
            pytest.skip(f"Chromium is here and does not start: {error}")


@pytest.mark.skipif(not browser.HERE, reason="needs chromium and chromedriver (Debian: chromium, chromium-driver)")
def test_in_a_browser(page, tmp_path):
    model = tiny.toy(rate=8000)
    (tmp_path / "voice.wav").write_bytes(served.recording())
    (tmp_path / "voices").mkdir()
    with served.running(model, app.Limits(steps=(3, 2)), tmp_path / "voices", steps=3) as (address, worker):
        page.open(address)
        page.until("return document.body.dataset.ready")
        page.type("text", "Hello there. Good night to you.")
        page.click("show")
        assert "hello [hh ax l ow]" in page.until("return document.getElementById('preview').textContent")

        page.click("speak")
        assert "s of speech in" in page.until(f"const t = {STATUS[7:]}; return t.includes('of speech') && t")
        speech = model("Hello there. Good night to you.", voices.BUNDLED, steps=3)
        assert page.run("return state.words.map(word => word.text)") == [word for word, _, _ in speech.word_times]
        np.testing.assert_allclose(page.run("return Array.from(state.samples)"), speech.audio, atol=1 / 32768)
        label = page.run("return document.getElementById('picture').getAttribute('aria-label')")
        assert all(word in label for word in ("hello", "there", "good", "night"))
        colours = page.run("const c = document.getElementById('picture'), s = new Set();"
                           "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
                           "for (let i = 0; i < d.length; i += 4 * 97) s.add(d[i] * 65536 + d[i + 1] * 256 + d[i + 2]); return s.size")
        assert colours > 50  # a picture, not a flat field
        page.until("return document.getElementById('player').readyState > 0")  # the browser can play it
        page.click("download")
        for _ in range(300):
            if (tmp_path / "downloads" / "speech.wav").exists():
                break
            time.sleep(0.1)
        assert inference.read_mark(tmp_path / "downloads" / "speech.wav")["model"] == model.hash
        np.testing.assert_allclose(soundfile.read(tmp_path / "downloads" / "speech.wav")[0], speech.audio, atol=1 / 32768)

        page.click("stream")
        page.until(f"const t = {STATUS[7:]}; return t.includes('of speech') && !t.includes('First')")
        assert page.run("return state.samples.length") == sum(len(part.audio) for part in model.stream(
            "Hello there. Good night to you.", voices.BUNDLED, steps=3))

        page.type("file", str(tmp_path / "voice.wav"))
        page.type("name", "ann")
        page.click("upload")
        page.until(f"const t = {STATUS[7:]}; return t.includes('consent')")
        assert [voice.name for voice in voices.Voices(model, tmp_path / "voices").list()] == ["default"]
        page.type("consent", served.CONSENT)
        page.click("upload")
        page.until("return document.getElementById('voice').value === 'ann'")
        page.click("speak")
        page.until(f"const t = {STATUS[7:]}; return t.includes('of speech')")
        expected = model("Hello there. Good night to you.", tmp_path / "voice.wav", steps=3)
        np.testing.assert_allclose(page.run("return Array.from(state.samples)"), expected.audio, atol=1 / 32768)

        page.click("record")
        page.until("return document.getElementById('recorded').textContent.includes('recording')")
        time.sleep(1.5)  # the false microphone beeps
        page.click("record")
        page.until("return document.getElementById('recorded').textContent.includes('recorded')")
        page.type("name", "beep")
        page.click("upload")
        page.until("return document.getElementById('voice').value === 'beep'")
        audio, _ = soundfile.read(io.BytesIO((tmp_path / "voices" / "beep.wav").read_bytes()))
        assert np.abs(audio).max() > 0.01 and inference.read_consent(tmp_path / "voices" / "beep.consent.txt").statement == served.CONSENT

        page.type("text", "!?")
        page.click("speak")
        assert "no pronounceable word" in page.until(f"const t = {STATUS[7:]}; return t.includes('pronounceable') && t")
        assert all("status of 4" in line for line in page.log()), page.log()  # refusals that were meant, and no error of a script
        assert not len(worker)


@pytest.mark.skipif(not browser.HERE, reason="needs chromium and chromedriver (Debian: chromium, chromium-driver)")
def test_it_asks_what_a_recording_says_where_the_model_must_know(page, tmp_path):
    hidden = lambda name: page.run(f"return document.getElementById('{name}').offsetParent === null")
    (tmp_path / "voice.wav").write_bytes(served.recording())
    (tmp_path / "voices").mkdir()
    with served.running(tiny.toy(rate=8000)) as (address, _):
        page.open(address)
        page.until("return document.body.dataset.ready")
        assert [hidden(name) for name in ("saying", "speeding", "pitching")] == [True, False, False]
    with served.running(tiny.follower(), folder=tmp_path / "voices") as (address, _):
        page.open(address)
        page.until("return document.body.dataset.ready")
        assert [hidden(name) for name in ("saying", "speeding", "pitching")] == [False, True, True]
        page.type("file", str(tmp_path / "voice.wav"))
        page.type("name", "ann")
        page.type("consent", served.CONSENT)
        page.click("upload")
        assert "what the recording says" in page.until(f"const t = {STATUS[7:]}; return t.includes('goes on') && t")
        page.type("said", "Hello there.")
        page.click("upload")
        page.until("return document.getElementById('voice').value === 'ann'")
        page.click("speak")
        page.until(f"const t = {STATUS[7:]}; return t.includes('of speech')")
        assert (tmp_path / "voices" / "ann.txt").read_text() == "Hello there.\n"
