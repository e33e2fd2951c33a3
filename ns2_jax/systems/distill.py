"""Few-step distillation of a continuous system: a student that says in 4, 2 or 1 evaluations what its teacher says in many, twice each.

The student is a system of the teacher's kind (`of`) whose network is told the guidance factor; `python -m ns2_jax.export` writes it as such. It is
made in stages, each a training whose teacher lies in `rest/teacher`, frozen:

    1. one network for all factors: one evaluation without a null branch does what two guided steps of the teacher do, from anywhere
    2. fewer evaluations: the first student teaches a second on the places where it will be evaluated, `evaluations` of 4, then 2, then 1

That is ZipVoice-Distill (Zhu et al. 2025, 2506.13053) with progressive distillation (Salimans & Ho 2022, 2202.00512) as its end. Other `objective`s:
"consistency" (Song et al. 2023; CoMoSpeech, 2305.06908; in several segments RapFlow-TTS, 2506.16741) and "rectified" (ReFlow-TTS, 2309.17056).
A smaller student (`student` has other numbers, `whole`) learns everything: durations and pitch from the data, the denoiser from the teacher's
answers.

Where we differ from what is published, or it is silent:
  * Encoders and predictors are the teacher's and stay as they are unless `whole`: otherwise durations drift.
  * Places are drawn evenly over the whole way of `Flow`'s coordinates, the noisy end included. Teachers trained with EDM's log-normal sigma, as
    CoMoSpeech's, practically never see the noise that one evaluation starts from.
  * The boundary condition holds by construction (`maths.distillation.step`); consistency targets come from the student itself, without an
    average (Song & Dhariwal 2023), and both of its calls drop out the same.
  * Losses are means over valid frames: over padding, short utterances would count less.
  * Near the data errors count as those of the data estimate (`maths.distillation.KNEE`).
  * `coolest`: rows are also shown noise that is quieter than the process's, down to this deviation, because sampling may start there (`temperature`).
  * A teacher that predicts noise is refused: at t = 1 its data estimate has no signal left (Salimans & Ho, section 4).
  * The second stage's teacher stays as it is and is asked about the factors that it learned; ZipVoice-Distill's follows the student's average
    and is asked about larger ones.
  * Real pairs of "rectified" are told the factor 1: without guidance is what they are.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ns2_jax.maths import distillation, process, samplers
from ns2_jax.systems import system as systems
from ns2_jax.systems.system import Batch, Denoising, Field, Program, SingleLoss, Sizes, Tree

OBJECTIVES = ("trajectory", "consistency", "rectified")


def merged(numbers: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`numbers` with `changes`, those of a mapping within the mapping."""
    inner = lambda old, new: merged(old, new) if isinstance(old, Mapping) and isinstance(new, Mapping) else new
    return {**numbers, **{name: inner(numbers.get(name), value) for name, value in changes.items()}}


@dataclasses.dataclass(frozen=True)
class System(SingleLoss):
    """`teacher` are the numbers of system `of`; `student` those in which the student differs."""

    of: str
    teacher: Mapping[str, Any]
    student: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    objective: str = "trajectory"
    whole: bool = False
    evaluations: int = 0  # those that the student is for: their places alone, or segments of consistency; 0: from anywhere to anywhere
    sampler: str = "sway"  # whose places they are, and those of the teacher's way of "rectified"
    guidance: tuple[float, float] = (1.0, 3.0)  # total factors, drawn evenly
    factor: float = 2.0  # what the student samples with, unless it is told
    teacher_steps: int = 2  # for one of the student; of "rectified" from noise to data
    furthest: float = 0.3  # of the way at most, in one of the teacher's steps from anywhere to anywhere
    lowest: float = 0.02  # the place nearest to the data from which steps begin
    coolest: float = 1.0
    strides: tuple[float, float, int] = (0.1, 0.01, 10_000)  # of "consistency": first, last, and after how many steps
    real_share: float = 0.25  # of rows whose pair is real, against drift; of "rectified"
    huber: bool = False  # pseudo-Huber distance of a row instead of mean squares
    dtype: str = "float32"

    fresh = (r"params/guidance/.*",)  # what a teacher may not have
    exported = (r"params/.*", r"rest/(?!teacher/).*")

    def __post_init__(self):
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective={self.objective!r}; expected one of {OBJECTIVES}")
        if self.evaluations < 0 or self.teacher_steps < 1:
            raise ValueError(f"evaluations={self.evaluations}, teacher_steps={self.teacher_steps}; expected at least 0 and 1")
        samplers.warp(self.sampler)
        if getattr(self.taught, "prediction", "") == "eps" and getattr(self.taught, "objective", "") != "flow":
            raise ValueError(f"system {self.of!r} with prediction='eps' cannot be distilled to few steps; expected a teacher that predicts velocity")
        if self.learner.process != self.taught.process:
            raise ValueError("teacher and student follow different processes; leave process and objective out of config.model.student")

    # The two ------------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def taught(self) -> systems.Continuous:
        """The teacher's system."""
        return systems.make(self.of, {"dtype": self.dtype, **self.teacher})

    @property
    def numbers(self) -> dict[str, Any]:
        """The student's, as a system of kind `of`."""
        jumps = self.objective == "consistency" and self.evaluations < 2  # from anywhere to the data: more steps begin again from there
        own = {"guided": True, "guidance": self.factor, "sampler": "renoise" if jumps else self.sampler,
               "evaluations": self.evaluations or (1 if jumps else 8)}
        return merged({**self.teacher, **own}, self.student)

    @functools.cached_property
    def learner(self) -> systems.Continuous:
        """The student's system."""
        return systems.make(self.of, {"dtype": self.dtype, **self.numbers})

    @property
    def becomes(self) -> dict[str, Any]:
        """What an export of the student is: config.system and config.model."""
        return {"system": self.of, "model": self.numbers}

    @property
    def borrowed(self) -> dict[str, str]:
        """What config.init_from must fill: the teacher, and what that is made of."""
        return {"rest/teacher": "teacher"} | {path: f"teacher.{name}" for path, name in getattr(self.taught, "borrowed", {}).items()}

    @property
    def fields(self) -> dict[str, Field]:
        return self.learner.fields

    @property
    def sizes(self) -> dict[str, int]:
        return self.learner.sizes

    @property
    def audio(self) -> dict[str, int]:
        return self.learner.audio

    @property
    def codec_network(self) -> Any:
        return self.learner.codec_network

    @property
    def codes(self) -> int:
        """Of a codebook. Raises AttributeError for a system without one."""
        return self.learner.codes

    def programs(self) -> dict[str, Program]:
        """Those of the student."""
        return self.learner.programs()

    def build(self, rng: jax.Array, batch: Batch) -> tuple[Tree, Tree]:
        """A random student; `config.init_from` is to fill the teacher, and the student unless it is smaller."""
        params, rest = self.learner.build(rng, batch)
        teacher, _ = self.taught.build(jax.random.fold_in(rng, 1), batch)
        return params, {**rest, "teacher": {"params": teacher}}

    # Loss ---------------------------------------------------------------------------------------------------------------

    def grid(self, evaluations: int) -> jax.Array:
        """Places of so many evaluations of the sampler and the end, `[evaluations + 1]`. Those of twice as many are these and one between each two."""
        return jnp.asarray(samplers.places(self.learner.process, samplers.warped(evaluations, samplers.warp(self.sampler))), jnp.float32)

    def draws(self, rng: jax.Array, rows: int, frames: int, step: jax.Array) -> dict[str, jax.Array]:
        """All randomness of a step: `path [n + 1, b]` of places (of "consistency" from, to and the segment's end; of "rectified" the teacher's whole
        way, and `place` on the line), noise, guidance factors, which rows are real pairs, dropout's key."""
        keys = jax.random.split(rng, 6)
        number, steps = max(self.evaluations, 1), self.teacher_steps
        grid = self.grid(number)
        noise = jax.random.normal(keys[1], (rows, frames, self.sizes["c"]))
        quiet = self.coolest + (1 - self.coolest) * jax.random.uniform(keys[2], (rows,))
        low, high = self.guidance
        factor = low + (high - low) * jax.random.uniform(keys[3], (rows,))
        share = 1 - process.stratified(keys[0], rows, 0.0)  # (0, 1]: the noisy end is among them
        anywhere = self.lowest + (grid[0] - self.lowest) * share
        drawn = {"dropout": keys[4]}
        if self.objective == "rectified":
            real = jax.random.uniform(keys[5], (rows,)) < self.real_share
            quiet, factor = jnp.where(real, 1.0, quiet), jnp.where(real, 1.0, factor)
            drawn |= {"path": jnp.broadcast_to(self.grid(steps)[:, None], (steps + 1, rows)), "place": anywhere, "real": real}
        elif self.objective == "consistency" or self.evaluations:
            segment = jnp.minimum(jnp.floor((1 - share) * number).astype(jnp.int32), number - 1)  # rows spread evenly
            start, end = grid[segment], grid[segment + 1]
            if self.objective == "consistency":
                begin = jnp.maximum(start + ((1 - share) * number - segment) * (end - start), jnp.minimum(self.lowest, start))
                first, last, until = self.strides
                stride = first + (last - first) * jnp.minimum(step / until, 1.0)
                drawn |= {"path": jnp.stack([begin, jnp.maximum(begin - stride, end), end])}
            else:  # where a teacher of so many times the evaluations makes its own
                drawn |= {"path": self.grid(number * steps)[segment * steps + jnp.arange(steps + 1)[:, None]]}
        else:
            path = [anywhere]
            for key in jax.random.split(keys[5], steps):
                path.append(path[-1] - jax.random.uniform(key, (rows,), minval=1e-3) * jnp.minimum(self.furthest, path[-1]))
            drawn |= {"path": jnp.stack(path)}
        return drawn | {"noise": quiet[:, None, None] * noise, "factor": factor}

    def loss(self, params: Tree, rest: Tree, batch: Batch, rng: jax.Array, step: jax.Array) -> tuple[jax.Array, tuple[Tree, dict]]:
        rows, frames = batch["frames"].shape[0], self._frames(batch)
        return self.loss_given(params, rest, batch, self.draws(rng, rows, frames, step))

    def _frames(self, batch: Batch) -> int:
        """The static length of a batch."""
        (length,) = {batch[name].shape[1] for name, field in self.fields.items() if field.axes.startswith("bt")} or {0}
        return length or batch["audio"].shape[1] // self.audio["hop"]

    def loss_given(self, params: Tree, rest: Tree, batch: Batch, draws: dict) -> tuple[jax.Array, tuple[Tree, dict]]:
        """The loss with its randomness given; `draws["dropout"]` None means no dropout. Sums over valid frames, to be divided by their number."""
        rng = draws["dropout"]
        teacher = self.taught.denoising(rest["teacher"]["params"], rest, batch)
        student = self.learner.denoising(params, rest, batch, rng if self.whole else None)
        error = self.error(student, teacher, draws)
        count = student.weight
        per_frame = jnp.square(error).mean(-1)
        loss = distillation.pseudo_huber(error, student.mask)[:, None] if self.huber else per_frame
        metrics = {"match": (loss * count).sum(), "square": (per_frame * count).sum()}
        place = draws.get("place", draws["path"][0])
        for i in range(4):  # by quarter of the way, times the share of rows that fall there
            metrics[f"square_p{i}"] = (per_frame * count * (jnp.clip(jnp.floor(place * 4), 0, 3) == i)[:, None]).sum()
        total = loss
        if self.whole:
            metrics["prior"] = (student.prior * count).sum()
            total = total + student.prior
        return (total * count).sum(), ({}, metrics | {"weight": count.sum()})

    def error(self, student: Denoising, teacher: Denoising, draws: dict) -> jax.Array:
        """The objective's error, `[b, t, c]`. The two calls of a consistency student have one dropout key."""
        one, path, noise, valid = self.learner.process, draws["path"], draws["noise"], student.mask[..., None]
        told: Callable[[Denoising, Any], distillation.Denoise] = lambda network, rng: lambda z, t: network.denoise(
            z * valid, t, draws["factor"], rng)
        learns, teaches = told(student, draws["dropout"]), told(teacher, None)
        x0 = jax.lax.stop_gradient(student.x0)
        if self.objective == "rectified":
            start = noise / distillation.state(one, path[0], noise)[1]  # as sampling starts
            made = distillation.rectified(learns, teaches, one, start, path, draws["place"])
            return jnp.where(draws["real"][:, None, None], distillation.straight(learns, one, x0, noise, draws["place"]), made)
        y = distillation.mixed(x0, noise, path[0])
        if self.objective == "consistency":
            return distillation.consistency(learns, teaches, one, y, *path)
        return distillation.trajectory(learns, teaches, one, y, path)

    def flops(self, sizes: Sizes) -> float:
        """Analytic forward FLOPs of one batch, an upper bound of which three times is a step: the student as in its own training, and a third of the
        teacher's evaluations, which nothing goes back through; encoders and predictors are counted with each."""
        calls = (2 if self.objective == "consistency" else self.teacher_steps) * (1 if self.taught.guided else 2)
        again = self.objective == "consistency"  # the student makes its target too
        return (1 + again / 3) * self.learner.flops(sizes) + calls / 3 * self.taught.flops(sizes)
