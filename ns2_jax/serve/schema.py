"""What the API takes and gives, as OpenAPI documents it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

STEPS = "Sampler steps: one of those in GET /health."
FORMATS = {"mp3": "audio/mpeg", "wav": "audio/wav", "flac": "audio/flac", "ogg": "audio/ogg"}


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Saying(Strict):
    """What to say, and how."""

    text: str = Field(description="Numbers, dates and abbreviations are spoken as words.")
    voice: str = Field("default", description="One of GET /v1/voices.")
    seed: int = Field(0, ge=0, lt=1 << 32, description="The same seed gives the same audio.")
    speed: float = Field(1.0, ge=0.5, le=2.0, description="Tempo as a factor, rounded to tenths; where GET /health has it.")
    pitch_shift: float = Field(0.0, ge=-12, le=12, description="Semitones, rounded to halves; where GET /health has it.")
    steps: int | None = Field(None, description=STEPS)
    lexicon: dict[str, Annotated[str, Field(max_length=200)]] = Field(
        {}, max_length=100, description="Word -> phones (ARPAbet or the names GET /v1/say gives); wins over all else.")
    language: str = Field("en", max_length=20, pattern="^[A-Za-z][A-Za-z0-9-]*$", description="espeak-ng's name of it.")


class SpeechRequest(BaseModel):
    """As OpenAI's; fields of theirs that mean nothing here are ignored. `seed`, `steps` and `stream` are ours."""

    input: str = Field(description="What to say.")
    model: str = Field("", description="Ignored: there is one.")
    voice: str | dict[str, str] = Field("default", description="One of GET /v1/voices, or {'id': NAME}.")
    response_format: Literal["mp3", "wav", "flac", "ogg"] = Field("mp3", description="Those that can hold the mark that the audio is synthetic.")
    speed: float = Field(1.0, ge=0.25, le=4.0, description="Rounded to tenths, and taken between 0.5 and 2.")
    seed: int = Field(0, ge=0, lt=1 << 32)
    steps: int | None = Field(None, description=STEPS)
    stream: bool = Field(False, description="WAV sentence by sentence, each sent as soon as it is made; needs response_format wav.")


class Timed(BaseModel):
    text: str
    start: float
    end: float


class Spoken(BaseModel):
    """Times in seconds."""

    audio: str = Field(description="A WAV file, base64. Its comment says that it is synthetic.")
    rate: int
    seconds: float
    words: list[Timed]
    phones: list[Timed]
    pitch_period: float = Field(description="Seconds between two values of `pitch`.")
    pitch: list[float] = Field(description="Hz, 0 where unvoiced.")
    provenance: dict = Field(description="Model, prompts (SHA-256), seed, consent.")


class Word(BaseModel):
    word: str
    phones: list[str]


class VoiceInfo(BaseModel):
    name: str
    consent: bool
    text: bool = Field(description="Whether it is known what the recording says.")
    recordings: list[str] = Field([], description="SHA-256.")
    notes: list[str] = Field([], description="What was done to the recording.")


class Health(BaseModel):
    status: Literal["ready", "warming_up"]
    model: str = Field(description="12 hex digits of the weights.")
    system: str
    rate: int
    steps: list[int] = Field(description="What `steps` may be; the first is used if none is asked for. Empty: the system's own alone.")
    waiting: int
    longest_text: int
    needs_consent: bool
    needs_text: bool = Field(description="Whether a voice can be used only where it is known what its recording says.")
    controls: list[str] = Field(description="Which of `speed` and `pitch_shift` this model has.")


class Problem(BaseModel):
    """Every error."""

    error: dict[str, str | None]
