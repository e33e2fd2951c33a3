"use strict";
const at = (id) => document.getElementById(id);
const state = { words: [], samples: null, rate: 0, recording: null, url: null };

function say(text, wrong) {
  at("status").textContent = text;
  at("status").className = wrong ? "wrong" : "";
}

async function ask(path, options) {
  const answer = await fetch(path, options);
  if (answer.ok) return answer;
  let message = `the server answered ${answer.status}`;
  try { message = (await answer.json()).error.message; } catch (_) { /* no JSON: the status says it */ }
  throw new Error(message);
}

const post = (path, body) => ask(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });

function asked() {
  const body = { text: at("text").value, voice: at("voice").value, speed: Number(at("speed").value), pitch_shift: Number(at("pitch").value),
                 seed: Number(at("seed").value) };
  if (at("steps").value) body.steps = Number(at("steps").value);
  return body;
}

async function doing(what, work) {
  const buttons = document.querySelectorAll("button");
  buttons.forEach((button) => { button.disabled = true; });
  say(what);
  try { await work(); } catch (error) { say(error.message, true); } finally { buttons.forEach((button) => { button.disabled = false; }); }
}

// 16-bit mono WAV -> samples in [-1, 1]; the header of a stream says that its length is unknown
function samplesOf(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let place = 12, rate = 0;
  while (place + 8 <= view.byteLength) {
    const name = String.fromCharCode(...bytes.subarray(place, place + 4)), size = view.getUint32(place + 4, true);
    if (name === "fmt ") rate = view.getUint32(place + 12, true);
    if (name === "data") {
      const count = Math.floor(Math.min(size, view.byteLength - place - 8) / 2), samples = new Float32Array(count);
      for (let i = 0; i < count; i++) samples[i] = view.getInt16(place + 8 + 2 * i, true) / 32768;
      return { samples, rate };
    }
    place += 8 + size + (size % 2);
  }
  throw new Error("no audio came");
}

// power spectrum by a radix-2 FFT, in place
function transform(re, im) {
  const n = re.length;
  for (let i = 1, j = 0; i < n; i++) {
    let bit = n >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) { [re[i], re[j]] = [re[j], re[i]]; [im[i], im[j]] = [im[j], im[i]]; }
  }
  for (let size = 2; size <= n; size <<= 1) {
    for (let start = 0; start < n; start += size) {
      for (let k = 0; k < size / 2; k++) {
        const c = Math.cos(2 * Math.PI * k / size), s = -Math.sin(2 * Math.PI * k / size), a = start + k, b = a + size / 2;
        const x = re[b] * c - im[b] * s, y = re[b] * s + im[b] * c;
        re[b] = re[a] - x; im[b] = im[a] - y; re[a] += x; im[a] += y;
      }
    }
  }
}

function draw() {
  const canvas = at("picture"), pen = canvas.getContext("2d"), { samples, rate, words } = state;
  const width = canvas.width, height = canvas.height - 40, size = 512;
  const levels = [], window = Float32Array.from({ length: size }, (_, i) => 0.5 - 0.5 * Math.cos(2 * Math.PI * i / size));
  let loudest = -200;
  for (let x = 0; x < width; x++) {
    const begin = Math.round(x / width * samples.length) - size / 2, re = new Float32Array(size), im = new Float32Array(size);
    for (let i = 0; i < size; i++) re[i] = (samples[begin + i] || 0) * window[i];
    transform(re, im);
    levels.push(Float32Array.from({ length: size / 2 }, (_, k) => 10 * Math.log10(re[k] ** 2 + im[k] ** 2 + 1e-12)));
    loudest = Math.max(loudest, ...levels[x]);
  }
  const image = pen.createImageData(width, height);
  for (let x = 0; x < width; x++) {
    for (let y = 0; y < height; y++) {
      const level = levels[x][Math.floor((height - 1 - y) / height * size / 2)];
      const part = Math.max(0, Math.min(1, 1 + (level - loudest) / 70)), i = 4 * (y * width + x);
      const colour = [Math.min(1, 1.6 * part), part ** 2, (0.25 + 0.5 * part) * (1 - part ** 4), 1];
      for (let k = 0; k < 4; k++) image.data[i + k] = 255 * colour[k];
    }
  }
  pen.fillStyle = "#111"; pen.fillRect(0, 0, width, canvas.height); pen.putImageData(image, 0, 0);
  pen.font = "16px sans-serif"; pen.fillStyle = "#fff"; pen.strokeStyle = "#fff8"; pen.textBaseline = "top";
  const seconds = samples.length / rate;
  words.forEach((word, i) => {
    const a = word.start / seconds * width, b = word.end / seconds * width;
    pen.beginPath(); pen.moveTo(a, 0); pen.lineTo(a, canvas.height); pen.stroke();
    pen.fillText(word.text, a + 2, height + 2 + (i % 2) * 19, Math.max(b - a - 2, 30));
  });
  const told = words.map((word) => `${word.text} ${word.start.toFixed(2)}`).join(", ");
  canvas.setAttribute("aria-label", `Spectrogram, ${seconds.toFixed(2)} s: ${told}`);
  canvas.dataset.drawn = String(words.length);
}

function show(bytes, words, about) {
  const { samples, rate } = samplesOf(bytes);
  Object.assign(state, { samples, rate, words });
  if (state.url) URL.revokeObjectURL(state.url);
  state.url = URL.createObjectURL(new Blob([bytes], { type: "audio/wav" }));
  at("player").src = at("download").href = state.url;
  at("about").textContent = about;
  at("result").hidden = false;
  draw();
}

at("speak").onclick = () => doing("Speaking ...", async () => {
  const begin = performance.now(), made = await (await post("/v1/speech", asked())).json();
  show(Uint8Array.from(atob(made.audio), (c) => c.charCodeAt(0)), made.words,
       `model ${made.provenance.model}, seed ${made.provenance.seed}, synthetic`);
  say(`${made.seconds.toFixed(2)} s of speech in ${((performance.now() - begin) / 1000).toFixed(2)} s`);
  at("player").play().catch(() => {});
});

// Each sentence is heard as soon as it is here; the whole can be downloaded at the end.
at("stream").onclick = () => doing("Speaking ...", async () => {
  const begin = performance.now(), answer = await post("/v1/speech/stream", asked()), reader = answer.body.getReader();
  const blocks = [];
  let context = null, next = 0, played = 0, total = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    if (!blocks.length) say(`First audio after ${((performance.now() - begin) / 1000).toFixed(2)} s ...`);
    blocks.push(value); total += value.length;
    const { samples, rate } = samplesOf(joined(blocks, total));
    if (!context) context = new AudioContext({ sampleRate: Math.max(rate, 8000) });
    const fresh = samples.subarray(played);
    played = samples.length;
    if (!fresh.length) continue;
    const buffer = context.createBuffer(1, fresh.length, Math.max(rate, 3000)), source = context.createBufferSource();
    buffer.copyToChannel(fresh, 0); source.buffer = buffer; source.connect(context.destination);
    next = Math.max(next, context.currentTime + 0.02); source.start(next); next += buffer.duration;
  }
  const bytes = joined(blocks, total), { samples, rate } = samplesOf(bytes);
  show(withLengths(bytes), [], "sentence by sentence, synthetic");
  say(`${(samples.length / rate).toFixed(2)} s of speech in ${((performance.now() - begin) / 1000).toFixed(2)} s`);
});

function joined(blocks, total) {
  const all = new Uint8Array(total);
  let place = 0;
  for (const block of blocks) { all.set(block, place); place += block.length; }
  return all;
}

// A stream's header with the lengths that are known now
function withLengths(bytes) {
  const fixed = bytes.slice(), view = new DataView(fixed.buffer);
  view.setUint32(4, fixed.length - 8, true);
  for (let place = 12; place + 8 <= fixed.length;) {
    const name = String.fromCharCode(...fixed.subarray(place, place + 4));
    if (name === "data") { view.setUint32(place + 4, fixed.length - place - 8, true); break; }
    const size = view.getUint32(place + 4, true);
    place += 8 + size + (size % 2);
  }
  return fixed;
}

at("show").onclick = () => doing("", async () => {
  const words = await (await post("/v1/say", asked())).json();
  at("preview").textContent = words.map((word) => word.phones.join() === "sil" ? word.word : ` ${word.word} [${word.phones.join(" ")}]`).join("");
});

at("picture").onclick = (event) => {
  const box = at("picture").getBoundingClientRect();
  at("player").currentTime = (event.clientX - box.left) / box.width * state.samples.length / state.rate;
  at("player").play().catch(() => {});
};

// Another voice: a file as it is, or what was recorded, as WAV.
function wavOf(samples, rate) {
  const bytes = new Uint8Array(44 + 2 * samples.length), view = new DataView(bytes.buffer);
  const text = (place, word) => [...word].forEach((c, i) => view.setUint8(place + i, c.charCodeAt(0)));
  text(0, "RIFF"); view.setUint32(4, bytes.length - 8, true); text(8, "WAVEfmt "); view.setUint32(16, 16, true); view.setUint16(20, 1, true);
  view.setUint16(22, 1, true); view.setUint32(24, rate, true); view.setUint32(28, 2 * rate, true); view.setUint16(32, 2, true);
  view.setUint16(34, 16, true); text(36, "data"); view.setUint32(40, 2 * samples.length, true);
  samples.forEach((value, i) => view.setInt16(44 + 2 * i, Math.round(Math.max(-1, Math.min(1, value)) * 32767), true));
  return new Blob([bytes], { type: "audio/wav" });
}

at("record").onclick = async () => {
  if (state.recorder) { state.recorder.stop(); return; }
  try {
    const source = await navigator.mediaDevices.getUserMedia({ audio: true }), blocks = [];
    const recorder = state.recorder = new MediaRecorder(source);
    recorder.ondataavailable = (event) => blocks.push(event.data);
    recorder.onstop = async () => {
      source.getTracks().forEach((track) => track.stop());
      state.recorder = null; at("record").textContent = "Record";
      try {
        const audio = await new AudioContext().decodeAudioData(await new Blob(blocks).arrayBuffer());
        state.recording = wavOf(audio.getChannelData(0), audio.sampleRate);
        at("file").value = "";
        at("recorded").textContent = `${audio.duration.toFixed(1)} s recorded`;
      } catch (error) { say(`the recording can't be read: ${error.message}`, true); }
    };
    recorder.start(); at("record").textContent = "Stop"; at("recorded").textContent = "recording ...";
  } catch (error) { say(`no microphone: ${error.message}`, true); }
};

at("file").onchange = () => { state.recording = null; at("recorded").textContent = ""; };

at("upload").onclick = () => doing("Adding the voice ...", async () => {
  const recording = at("file").files[0] || state.recording;
  if (!recording) throw new Error("choose a recording, or record one");
  const form = new FormData();
  form.set("name", at("name").value); form.set("text", at("said").value); form.set("consent", at("consent").value); form.set("recording", recording, "recording");
  const voice = await (await ask("/v1/voices", { method: "POST", body: form })).json();
  await voices(voice.name);
  say(`${voice.name}: ${voice.notes.join("; ")}`);
});

async function voices(chosen) {
  const known = await (await ask("/v1/voices")).json();
  at("voice").replaceChildren(...known.map((voice) => new Option(voice.name, voice.name, false, voice.name === chosen)));
}

async function start() {
  const about = await (await fetch("/health")).json();
  at("steps").replaceChildren(...about.steps.map((steps) => new Option(steps, steps)));
  at("stepping").hidden = !about.steps.length;
  at("saying").hidden = !about.needs_text;
  at("speeding").hidden = !about.controls.includes("speed");
  at("pitching").hidden = !about.controls.includes("pitch_shift");
  at("text").maxLength = about.longest_text;
  await voices("default");
  if (about.status !== "ready") say("The model is getting ready; what you ask for now is spoken then.");
  document.body.dataset.ready = "yes";
}

start().catch((error) => say(error.message, true));
