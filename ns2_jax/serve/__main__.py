"""Serves a model: an HTTP API and a page to try it.

    python -m ns2_jax.serve --model=results/naturalspeech2/model --port=8080 [--voices=DIR]      then open http://localhost:8080
    curl localhost:8080/v1/audio/speech -H 'content-type: application/json' -d '{"input": "Good morning.", "response_format": "wav"}' -o out.wav

`/openapi.json` describes all routes. `/v1/audio/speech` is OpenAI's, `/v1/speech` gives the times of words and phones, `/v1/speech/stream`
a WAV sentence by sentence; `/health` says when the model is warm, `/metrics` is for Prometheus. Voices are recordings in --voices (NAME.wav,
.flac, .ogg, .mp3); `default` comes with the package. For a model that goes on from its voice (VALL-E), NAME.txt is what the recording says. A
recording that is uploaded needs its speaker's consent, which is kept beside it, bound to the recording by its SHA-256; `--norequire_consent`
turns that off and is logged. All audio is marked as synthetic.

It listens on this machine alone. For others, put a proxy with TLS and a login before it, and give --host and --hosts.
"""

from __future__ import annotations

import socket

from absl import flags, logging

from ns2_jax import inference
from ns2_jax.runtime import cluster

FLAGS = flags.FLAGS
CONNECTIONS = 500  # at once: more are told 503 before anything is read, or there would be no file left to open


def define_flags() -> None:
    """Flags belong to the command: a program that imports this module keeps its own."""
    flags.DEFINE_string("model", None, "A run (its latest checkpoint is read) or an export; several with commas, the models of a chain.")
    flags.DEFINE_string("aligner", None, "A run or export of an aligner, for models that go on from a voice; otherwise the one in results/.")
    flags.DEFINE_string("host", "127.0.0.1", "Address to listen at; 0.0.0.0 for all of this machine.")
    flags.DEFINE_integer("port", 8080, "Port to listen at; 0 takes a free one.", lower_bound=0, upper_bound=65535)
    flags.DEFINE_list("hosts", [], "Names under which the server may be called; --host and those of the loopback, or any where --host is another.")
    flags.DEFINE_string("voices", None, "Folder of voices; uploads are kept in it. Without it, uploads live as long as the server.")
    flags.DEFINE_bool("require_consent", True, "Whether an upload needs its speaker's consent.")
    flags.DEFINE_integer("rows", 8, "Most requests spoken together.", lower_bound=1, upper_bound=64)
    flags.DEFINE_integer("waiting", 64, "Most requests that wait; more are told 503.", lower_bound=1)
    flags.DEFINE_integer("client", 32, "Most requests of one address at once; more are told 429.", lower_bound=1)
    flags.DEFINE_float("window_ms", 10.0, "How long a batch waits for others.", lower_bound=0.0)
    flags.DEFINE_list("steps", [], "Numbers of sampler steps that may be asked for, the usual first; each is compiled when it is first used.")
    flags.DEFINE_integer("text_limit", 2000, "Most characters of a text.", lower_bound=1)
    flags.DEFINE_integer("upload_mb", 20, "Most megabytes of a recording.", lower_bound=1)
    flags.DEFINE_float("timeout", 120.0, "Seconds within which a request is answered.", lower_bound=1.0)
    flags.DEFINE_bool("warm", True, "Whether to compile everything before the first request.")


def main(argv: list[str]) -> None:
    del argv
    if not FLAGS.model:
        raise ValueError("--model=DIR is missing: a run or an export")
    steps = [int(text) if text.isdecimal() and 0 < int(text) <= 1000 else 0 for text in FLAGS.steps]
    if 0 in steps:
        raise ValueError(f"--steps={','.join(FLAGS.steps)}: expected numbers from 1 to 1000")
    try:
        import uvicorn

        from ns2_jax.serve import app, guard, voices, work
    except ModuleNotFoundError as error:
        raise ImportError(f"serving needs the package {error.name}: pip install -e '.[serve]'") from error
    cluster.start(lambda line: None)
    model = inference.load(FLAGS.model)
    if not model.speaks:
        raise ValueError(f"{model.name} does not speak; it offers {sorted(model.programs)}")
    if steps and "steps" not in model.programs["sample"].options:
        raise ValueError(f"--steps={','.join(FLAGS.steps)}: {model.name} has no sampler with steps; leave it out")
    if model.continues:  # what a voice says is cut to what the model can hear of it
        model.aligner = inference.load(FLAGS.aligner or inference.ALIGNER)
        if "align" not in model.aligner.programs:
            raise ValueError(f"--aligner={FLAGS.aligner}: {model.aligner.name} does not align")
    loopback = FLAGS.host in ("localhost", "::1") or FLAGS.host.startswith("127.")
    if not loopback:
        logging.warning("listening at %s: everybody who reaches it may use it; put a proxy with TLS and a login before it", FLAGS.host)
    try:
        listener = socket.create_server((FLAGS.host, FLAGS.port), family=socket.AF_INET6 if ":" in FLAGS.host else socket.AF_INET)
    except OSError as error:
        raise ValueError(f"--host={FLAGS.host} --port={FLAGS.port}: {error.strerror or error}") from error
    worker = work.Worker(model, FLAGS.rows, FLAGS.waiting, FLAGS.window_ms / 1000, FLAGS.timeout, None, steps[0] if steps else None, FLAGS.warm)
    limits = app.Limits(FLAGS.text_limit, FLAGS.upload_mb << 20, FLAGS.client, 30.0, FLAGS.timeout, steps,
                        tuple(FLAGS.hosts) or ((*guard.LOOPBACK, FLAGS.host) if loopback else ()))  # fmt: skip
    made = app.create(worker, voices.Voices(model, FLAGS.voices, FLAGS.require_consent), limits)
    print(f"http://{FLAGS.host}:{listener.getsockname()[1]} serves {FLAGS.model} ({model.config['system']}, {model.hash}); the first requests wait "
          "until it is warm", flush=True)
    config = uvicorn.Config(made, log_level="warning", server_header=False, ws="none", http=guard.PatientProtocol, timeout_keep_alive=10,
                            timeout_graceful_shutdown=10, limit_concurrency=CONNECTIONS)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    define_flags()
    cluster.run(main)
