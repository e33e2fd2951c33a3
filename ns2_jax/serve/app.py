"""The HTTP API and the page, around a `Worker` and its `Voices`."""

from __future__ import annotations

import asyncio
import base64
import collections
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, File, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

import ns2_jax
from ns2_jax import inference
from ns2_jax.serve import guard, schema
from ns2_jax.serve.guard import Refusal
from ns2_jax.serve.voices import DEFAULT, NoConsent, Unknown, Voices
from ns2_jax.serve.work import Ask, Busy, Worker

HERE = Path(__file__).parent
JSON_BYTES = 1 << 18
PHONES = 3  # for a character of the longest text, at most: what digits or a lexicon make of few characters is work too
GONE = 0.2  # seconds between two looks whether the client is still there
ERRORS: dict[int | str, dict[str, Any]] = {code: {"model": schema.Problem, "description": text} for code, text in {
    400: "what was asked for can't be done", 403: "no consent, or a foreign page", 404: "no such voice", 408: "the request came too slowly",
    413: "too large", 429: "too many requests of one client at once", 500: "a fault of the server", 503: "the server is busy",
    504: "it took too long"}.items()}


@dataclasses.dataclass(frozen=True)
class Limits:
    """`text` characters, `upload` bytes, `client` requests of one address at once, `patience` seconds for a request to arrive, `answer`
    seconds for it to be answered; `steps` that may be asked for; `hosts` that the server is called (any, if empty)."""

    text: int = 2000
    upload: int = 20 << 20
    client: int = 32
    patience: float = 30.0
    answer: float = 120.0
    steps: Sequence[int] = ()
    hosts: Sequence[str] = guard.LOOPBACK


class Service:
    """What the routes share."""

    def __init__(self, worker: Worker, voices: Voices, limits: Limits):
        self.worker, self.voices, self.limits, self.metrics = worker, voices, limits, worker.metrics
        self.at_once: collections.Counter[str] = collections.Counter()
        programs = worker.model.programs
        known = ("speed" in programs["durations"].options, "contour" in programs)
        self.controls = [name for name, there in zip(("speed", "pitch_shift"), known) if there]

    @contextlib.contextmanager
    def client(self, request: Request):
        """Counts what an address has asked for. Raises Refusal (429) when that is too much."""
        name = request.client.host if request.client else ""
        if self.at_once[name] >= self.limits.client:
            self.metrics.refused.labels("client").inc()
            raise Refusal(429, f"{self.at_once[name]} requests of {name} are at work, which is the most for one client", "rate_limit_exceeded", 1)
        self.at_once[name] += 1
        try:
            yield
        finally:
            self.at_once[name] -= 1
            if not self.at_once[name]:
                del self.at_once[name]

    def asks(self, said: schema.Saying, in_sentences: bool) -> list[Ask]:
        """One, or one a sentence. Raises Refusal for what can't be spoken."""
        if len(said.text) > self.limits.text:
            raise Refusal(413, f"the text has {len(said.text)} characters, at most {self.limits.text} are accepted", "too_large")
        if said.steps is not None and said.steps not in self.limits.steps:
            raise Refusal(400, f"steps={said.steps}; this server offers {list(self.limits.steps) or 'the usual number alone'}", "invalid_value")
        if said.steps is None and self.limits.steps:
            said = said.model_copy(update={"steps": self.limits.steps[0]})
        usual = (("speed", round(said.speed, 1), 1.0), ("pitch_shift", round(2 * said.pitch_shift) / 2, 0.0), ("steps", said.steps, None))
        options = {name: value for name, value, default in usual if value != default}
        if wrong := next((name for name in options if name != "steps" and name not in self.controls), None):
            raise Refusal(400, f"{wrong}: this model has none; GET /health says what it has", "invalid_value")
        try:
            table = {**self.worker.model.lexicon, **inference.read_lexicon(said.lexicon)}
            words = inference.spoken(said.text, table, said.language)
            if (phones := sum(len(word.phones) for word in words)) > PHONES * self.limits.text:
                raise Refusal(413, f"the text is spoken with {phones} phones, at most {PHONES * self.limits.text} are accepted", "too_large")
            parts = inference.sentences.scores(said.text, table, said.language) if in_sentences else [inference.of_words(words)]
            voice = self.voices.get(said.voice)
        except Unknown:
            raise Refusal(404, f"there is no voice {said.voice[:80]!r}; GET /v1/voices lists them", "voice_not_found") from None
        except (ValueError, ImportError) as error:
            raise Refusal(400, str(error), "invalid_value") from error
        return [Ask(part, voice, (said.seed + k) % (1 << 32), options) for k, part in enumerate(parts)]

    def submit(self, ask: Ask) -> Future[inference.Speech]:
        try:
            return self.worker.submit(ask)
        except Busy as error:
            raise Refusal(503, str(error), "busy", error.seconds) from error

    async def wait(self, request: Request | None, future: Future[inference.Speech], until: float) -> inference.Speech:
        """The speech, unless the client leaves or it takes too long: then it is taken out of the queue."""
        task = asyncio.wrap_future(future)
        try:
            while not task.done():
                left = until - time.monotonic()
                if left <= 0:
                    self.metrics.refused.labels("timeout").inc()
                    raise Refusal(504, f"not spoken within {self.limits.answer:g} s", "timeout")
                await asyncio.wait({task}, timeout=min(GONE, left))
                if request is not None and not task.done() and await request.is_disconnected():
                    self.metrics.gone.inc()
                    raise Refusal(499, "the client is gone", "gone")
            return task.result()
        except Busy as error:
            raise Refusal(503, str(error), "busy", error.seconds) from error
        except ValueError as error:
            raise Refusal(400, str(error), "invalid_value") from error
        finally:
            future.cancel()
            if not task.done():
                task.cancel()

    async def speak(self, request: Request, said: schema.Saying) -> inference.Speech:
        with self.client(request):
            until = time.monotonic() + self.limits.answer
            (ask,) = await run_in_threadpool(self.asks, said, False)
            return await self.wait(request, self.submit(ask), until)

    async def stream(self, request: Request, said: schema.Saying) -> StreamingResponse:
        """The first sentence is waited for here, so that what is wrong has a status of its own; one sentence is made ahead."""
        begin, held = time.monotonic(), contextlib.ExitStack()
        held.enter_context(self.client(request))
        try:
            asks = await run_in_threadpool(self.asks, said, True)
            first = await self.wait(request, self.submit(asks[0]), begin + self.limits.answer)
        except BaseException:
            held.close()
            raise
        self.metrics.first_audio.observe(time.monotonic() - begin)

        async def blocks() -> AsyncIterator[bytes]:
            speech = first
            for k in range(len(asks)):
                until = time.monotonic() + self.limits.answer
                coming = await self.submit_late(asks[k + 1], until) if k + 1 < len(asks) else None
                if coming is not None:
                    held.callback(coming.cancel)
                yield next(inference.wav_stream([speech])) if k == 0 else inference.wav_samples(speech)
                if coming is not None:
                    speech = await self.wait(None, coming, until)

        return Held(held, blocks(), media_type="audio/wav", headers=_named(first))

    async def submit_late(self, ask: Ask, until: float) -> Future[inference.Speech]:
        """A sentence of a stream that has begun: when the queue is full, it waits for its place."""
        while True:
            try:
                return self.worker.submit(ask)
            except Busy as error:
                if time.monotonic() > until:
                    raise Refusal(503, str(error), "busy", error.seconds) from error
                await asyncio.sleep(GONE)


class Held(StreamingResponse):
    """A stream that gives back what it holds when it ends, however it ends."""

    def __init__(self, held: contextlib.ExitStack, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._held = held

    async def __call__(self, *args: Any) -> None:
        try:
            await super().__call__(*args)
        finally:
            self._held.close()


def _named(speech: inference.Speech) -> dict[str, str]:
    """Headers that say what the mark says."""
    return {"X-Synthetic": "true", "X-Model": speech.origin.model, "X-Seed": str(speech.origin.seed)}


def create(worker: Worker, voices: Voices, limits: Limits = Limits()) -> FastAPI:
    """The application; starting and stopping the worker is its life."""
    service = Service(worker, voices, limits)

    @contextlib.asynccontextmanager
    async def life(app: FastAPI):
        del app
        worker.start()
        early = asyncio.create_task(run_in_threadpool(voices.get, DEFAULT))  # compiles what hears a voice
        yield
        await asyncio.gather(early, run_in_threadpool(worker.stop), return_exceptions=True)
        voices.close()

    app = FastAPI(title="ns2_jax", version=ns2_jax.__version__, docs_url=None, redoc_url=None, lifespan=life, responses=ERRORS,
                  description="Speech in the voice of a recording. All audio is marked as synthetic.")
    app.add_middleware(guard.Guard, usual=JSON_BYTES, largest={"/v1/voices": limits.upload + 65536}, patience=limits.patience, hosts=limits.hosts,
                       count=lambda route, status: service.metrics.requests.labels(route, status).inc())

    @app.exception_handler(Refusal)
    async def refuse(request: Request, refusal: Refusal) -> Response:
        del request
        return JSONResponse(refusal.body, refusal.status, headers=refusal.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        return await refuse(request, Refusal(400, f"{where or 'the request'}: {first['msg']}", "invalid_value"))

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> Response:
        return await refuse(request, Refusal(error.status_code, str(error.detail), "http"))

    for name, kind in (("page.html", "text/html"), ("page.js", "text/javascript")):
        app.get("/" if name == "page.html" else f"/{name}", include_in_schema=False)(
            lambda name=name, kind=kind: FileResponse(HERE / name, media_type=kind))

    @app.get("/health")
    def health(response: Response) -> schema.Health:
        """200 when warm, 503 before."""
        response.status_code = 200 if worker.ready.is_set() else 503
        return schema.Health(status="ready" if worker.ready.is_set() else "warming_up", model=worker.model.hash,
                             system=str(worker.model.config["system"]), rate=worker.model.rate, steps=list(limits.steps), waiting=len(worker),
                             longest_text=limits.text, needs_consent=voices.needs_consent, needs_text=worker.model.continues,
                             controls=service.controls)

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    def metrics() -> Response:
        """For Prometheus."""
        service.metrics.voices.set(len(voices.list()))
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        """As OpenAI's: the one model."""
        return {"object": "list", "data": [{"id": worker.model.hash, "object": "model", "owned_by": "ns2_jax"}]}

    @app.post("/v1/say")
    async def say(request: Request, said: schema.Saying) -> list[schema.Word]:
        """What would be spoken, without speaking: words with their phones; pauses are words of the phone `sil`."""
        with service.client(request):
            (ask,) = await run_in_threadpool(service.asks, said, False)
        return [schema.Word(word=word.text, phones=list(word.phones)) for word in ask.score.words]

    @app.post("/v1/speech")
    async def speech(request: Request, said: schema.Saying) -> schema.Spoken:
        """Speech with the times of its words and phones."""
        return await run_in_threadpool(_spoken, await service.speak(request, said))

    @app.post("/v1/speech/stream", response_class=StreamingResponse, responses={200: {"content": {"audio/wav": {}}}})
    async def speech_stream(request: Request, said: schema.Saying) -> Response:
        """A WAV of unknown length, sentence by sentence, each sent as soon as it is made."""
        return await service.stream(request, said)

    @app.post("/v1/audio/speech", response_class=Response, responses={200: {"content": {kind: {} for kind in schema.FORMATS.values()}}})
    async def audio_speech(request: Request, asked: schema.SpeechRequest) -> Response:
        """As OpenAI's."""
        voice = asked.voice if isinstance(asked.voice, str) else asked.voice.get("id", "")
        said = schema.Saying(text=asked.input, voice=voice, seed=asked.seed, speed=min(max(asked.speed, 0.5), 2.0), steps=asked.steps)
        if asked.stream:
            if asked.response_format != "wav":
                raise Refusal(400, "stream needs response_format wav", "invalid_value")
            return await service.stream(request, said)
        made = await service.speak(request, said)
        try:
            data = await run_in_threadpool(inference.encode, made, f".{asked.response_format}")
        except ValueError as error:
            raise Refusal(400, str(error), "invalid_value") from error
        return Response(data, media_type=schema.FORMATS[asked.response_format], headers=_named(made))

    @app.get("/v1/voices")
    def list_voices() -> list[schema.VoiceInfo]:
        """The voices there are."""
        return [schema.VoiceInfo(name=voice.name, consent=voice.consent, text=voice.text) for voice in voices.list()]

    @app.post("/v1/voices", status_code=201)
    async def add_voice(request: Request, name: Annotated[str, Form()], recording: Annotated[UploadFile, File()],
                        consent: Annotated[str, Form(max_length=10000)] = "", text: Annotated[str, Form(max_length=10000)] = "") -> schema.VoiceInfo:
        """Registers a recording (WAV, FLAC, OGG, MP3; 2 to 30 seconds are best, 60 the most). `consent`: the words with which its speaker allows it;
        `text`: what it says, where GET /health says that the model needs to know."""
        with service.client(request):
            data = await recording.read()
            if len(data) > limits.upload:
                raise Refusal(413, f"the recording has {len(data)} bytes, at most {limits.upload} are accepted", "too_large")
            try:
                heard = await run_in_threadpool(voices.add, name, data, consent, text)
            except NoConsent as error:
                raise Refusal(403, str(error), "no_consent") from error
            except ValueError as error:
                raise Refusal(400, str(error), "invalid_value") from error
            return schema.VoiceInfo(name=name, consent=heard.consent is not None, text=bool(text.strip()), recordings=list(heard.digests),
                                    notes=list(heard.notes))

    @app.delete("/v1/voices/{name}", status_code=204)
    def remove_voice(name: str) -> Response:
        """Deletes a voice and its consent."""
        try:
            voices.remove(name)
        except Unknown:
            raise Refusal(404, f"there is no voice {name[:80]!r}", "voice_not_found") from None
        except ValueError as error:
            raise Refusal(400, str(error), "invalid_value") from error
        return Response(status_code=204)

    return app


def _spoken(made: inference.Speech) -> schema.Spoken:
    timed = lambda rows: [schema.Timed(text=text, start=round(begin, 4), end=round(end, 4)) for text, begin, end in rows]
    said: Mapping[str, Any] = inference.provenance.mark(made.origin)
    return schema.Spoken(audio=base64.b64encode(inference.encode(made, ".wav")).decode(), rate=made.rate, seconds=round(made.seconds, 4),
                         words=timed(made.word_times), phones=timed(made.phone_times), pitch_period=made.hop / made.rate,
                         pitch=[round(float(hz), 1) for hz in made.f0], provenance=dict(said))
