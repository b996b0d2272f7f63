"""Pretrain one objective: the same loop for all, resumed where it was stopped, with checkpoints along the way."""

from __future__ import annotations

import json
import logging
import math
import os
import pickle
import platform
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bindkit import __version__
from bindkit.arguments import positive_number, read_device, read_path, read_seed, whole_number
from bindkit.backbones.checkpoint import position_embeddings
from bindkit.errors import BackboneError, InvalidParameterError, NonFiniteActivationsError
from bindkit.files import parse_json, progress, write_json
from bindkit.pretraining.objectives import POSITION_SCALE, Objective, make_objective
from bindkit.pretraining.training_scenes import TRAINING_SCENES, TrainingScenes

logger = logging.getLogger(__name__)

RUN_FILE, STATE_FILE = "pretraining.json", "state.pt"
_CHECKPOINT = "scenes_{:09d}"
_WARM_UP_STEPS = 200
_WEIGHT_DECAY, _GRADIENT_NORM = 0.05, 1.0
_LAST_RATE = 0.01
_ENTRIES = 100

_POSITION_SCALE_LATER, _FADE_IN_STEPS = 0.5, 200
"""In the first steps of training position embeddings are raised to this share of the sine-cosine ones, about as strong
as the patches themselves; from there on they are only learned. Left faint, masked reconstruction took no notice of them
in its first 90,000 scenes, nor common fate in its first 25,000."""


@dataclass(frozen=True)
class Plan:
    """What a pretraining run is told; the same plan on the same machine gives the same weights."""

    objective: str
    settings: dict[str, Any]
    scenes: str
    scenes_seen: int
    scenes_per_step: int
    learning_rate: float
    seed: int
    checkpoints: tuple[int, ...]
    """Scenes seen at each, ascending; the first is 0, the last all of them."""

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return math.ceil(self.scenes_seen / self.scenes_per_step)

    def rate_at(self, step: int) -> float:
        """Learning rate of a step: a linear start, then half a cosine down to a hundredth."""
        warm = min(1.0, (step + 1) / min(_WARM_UP_STEPS, max(1, self.steps // 5)))
        fall = _LAST_RATE + (1 - _LAST_RATE) * (1 + math.cos(math.pi * step / self.steps)) / 2
        return self.learning_rate * warm * fall


@dataclass(frozen=True)
class PretrainingRun:
    """A finished run."""

    directory: Path
    final: Path
    """Hugging Face directory of its last checkpoint."""
    history: tuple[dict[str, float], ...]
    """``scenes_seen``, ``loss`` (mean since the entry before) and ``seconds`` since the start."""


def pretrain(
    objective: str,
    directory: str | Path,
    scenes: str | TrainingScenes = TRAINING_SCENES,
    scenes_seen: int = 200_000,
    scenes_per_step: int = 16,
    seed: int = 0,
    learning_rate: float | None = None,
    checkpoints: int | Sequence[float] = 5,
    device: str = "auto",
    **settings: Any,
) -> PretrainingRun:
    """Train the tiny architecture with one objective on synthetic scenes.

    ::

        run = bk.pretrain("mae", "runs/mae", scenes_seen=50_000)
        backbone = bk.load_backbone(str(run.final))

    A run that was stopped goes on from its last state when the same call is made again; one that is complete returns
    at once.

    Parameters
    ----------
    objective : str
        ``"flow"``, ``"mae"``, ``"dino"``, ``"supervised"``, ``"clip"`` or ``"motion"``.
    directory : path
        Where the run is kept; new, empty, or one of the same plan.
    scenes : str or TrainingScenes
        A synthetic URI with a training seed (from ``10**12`` on), or scenes drawn already.
    scenes_seen : int
        Scenes that go through the model, repetitions counted.
    scenes_per_step : int
        Scenes in a batch.
    seed : int
        Of the starting weights and of everything random in training.
    learning_rate : float, optional
        AdamW's, at its peak. Default: the objective's own.
    checkpoints : int or sequence of float
        How many checkpoints besides the untrained one, evenly spread; or their shares of the run, 0..1.
    device : str
        ``"auto"`` takes CUDA where there is one.
    **settings
        Options of the objective, such as ``mask_ratio`` or ``patch_term``.

    Raises
    ------
    InvalidParameterError
        For an objective or option that does not exist, scenes kept for measuring, counts below one.
    BackboneError
        If the directory holds a run of another plan.
    NonFiniteActivationsError
        If the loss is no longer a number.
    """
    scenes_seen = whole_number(scenes_seen, "scenes_seen", least=1)
    scenes_per_step = whole_number(scenes_per_step, "scenes_per_step", least=1)
    seed = read_seed(seed)
    directory, target = read_path(directory, "the run's directory"), read_device(device)
    model = make_objective(objective, seed, **settings)
    if isinstance(scenes, TrainingScenes):
        model.require_clips(scenes)
    uri = scenes.uri if isinstance(scenes, TrainingScenes) else scenes
    rate = model.learning_rate if learning_rate is None else positive_number(learning_rate, "learning_rate")
    marks = _checkpoint_scenes(checkpoints, scenes_seen)
    plan = Plan(objective, model.settings, uri, scenes_seen, scenes_per_step, rate, seed, marks)
    _claim(directory, plan)
    trainer, final = _Trainer(plan, model.to(target), directory), directory / _CHECKPOINT.format(plan.scenes_seen)
    if trainer.step < plan.steps or not final.exists():
        pool = scenes if isinstance(scenes, TrainingScenes) else TrainingScenes.open(scenes, clips=model.needs_clips)
        trainer.run(pool)
    return PretrainingRun(directory, final, tuple(trainer.history))


def checkpoints_of(directory: str | Path) -> dict[int, Path]:
    """Checkpoints of a run: scenes seen -> Hugging Face directory, ascending. Raises BackboneError if there is none."""
    found = sorted(path for path in Path(directory).glob("scenes_*") if (path / "config.json").exists())
    if not found:
        raise BackboneError(f"{directory} holds no checkpoints (scenes_*); give the directory of a pretrain() run")
    return {int(path.name.removeprefix("scenes_")): path for path in found}


def _checkpoint_scenes(checkpoints: int | Sequence[float], scenes_seen: int) -> tuple[int, ...]:
    if isinstance(checkpoints, Iterable):
        shares = list(checkpoints)
    else:
        n_checkpoints = whole_number(checkpoints, "checkpoints", least=1)
        shares = [k / n_checkpoints for k in range(1, n_checkpoints + 1)]
    if not all(isinstance(share, int | float) and 0 <= share <= 1 for share in shares):
        raise InvalidParameterError(f"checkpoints are shares of the run between 0 and 1, got {checkpoints!r}")
    return tuple(sorted({0, scenes_seen, *(round(share * scenes_seen) for share in shares)}))


def _claim(directory: Path, plan: Plan) -> None:
    """Record the plan in a new directory; refuse one that holds another."""
    record = json.loads(json.dumps(asdict(plan)))
    try:
        kept = parse_json((directory / RUN_FILE).read_text(encoding="utf-8"))["plan"]
    except FileNotFoundError:
        directory.mkdir(parents=True, exist_ok=True)
        machine = {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        write_json(directory / RUN_FILE, {"format": 1, "bindkit": __version__, "plan": record, "machine": machine})
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BackboneError(f"{directory / RUN_FILE} cannot be read ({error}); give a new directory") from error
    differing = [name for name, value in record.items() if kept.get(name) != value]
    if differing:
        said = "; ".join(f"{name} (there {kept.get(name)!r}, asked {record[name]!r})" for name in differing)
        raise BackboneError(f"{directory} holds a run of another plan: {said}; give a new directory")


class _Trainer:
    """One run: weights, optimiser, random stream and history, which together are its state; goes on where it was."""

    def __init__(self, plan: Plan, objective: Objective, directory: Path) -> None:
        self.plan, self.objective, self.directory = plan, objective, directory
        trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
        groups = [
            {"params": [weight for weight in trained if (weight.ndim > 1) == decays], "weight_decay": decay}
            for decays, decay in ((True, _WEIGHT_DECAY), (False, 0.0))
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=plan.learning_rate, betas=(0.9, 0.95), fused=True)
        self.generator = torch.Generator().manual_seed(plan.seed)
        self.step, self.seconds = 0, 0.0
        self.history: list[dict[str, float]] = []
        path = directory / STATE_FILE
        if not path.exists():
            return
        try:
            state = torch.load(path, weights_only=True)
            self.objective.load_state_dict(state["objective"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.generator.set_state(state["generator"])
            self.step, self.seconds, self.history = state["step"], state["seconds"], state["history"]
        except (OSError, RuntimeError, LookupError, ValueError, EOFError, pickle.UnpicklingError) as error:
            raise BackboneError(f"{path} cannot be read ({error}); delete {directory} to start over") from error
        if self.step < plan.steps:
            logger.info("%s: going on after %d of %d steps", directory, self.step, plan.steps)

    def run(self, pool: TrainingScenes) -> None:
        """All steps that are left."""
        plan, losses = self.plan, []
        marks = {math.ceil(seen / plan.scenes_per_step): seen for seen in plan.checkpoints}
        keep_every, entry_every = max(1, plan.steps // 20), max(1, plan.steps // _ENTRIES)
        begun = time.perf_counter() - self.seconds
        self.objective.train()
        with progress(plan.steps, f"pretrain {plan.objective}", "step") as bar:
            bar.update(self.step)
            if self.step in marks:
                self._checkpoint(marks[self.step])
            while self.step < plan.steps:
                losses.append(self._one_step(pool))
                self.seconds = time.perf_counter() - begun
                bar.update(1)
                if self.step % entry_every == 0 or self.step == plan.steps:
                    loss = float(torch.stack(losses).mean())
                    losses.clear()
                    if not math.isfinite(loss):
                        raise NonFiniteActivationsError(
                            f"the loss of {plan.objective} is no longer a number after {self.step} steps; take a "
                            f"smaller learning_rate than {plan.learning_rate:g}"
                        )
                    seen = min(plan.scenes_seen, self.step * plan.scenes_per_step)
                    self.history.append({"scenes_seen": seen, "loss": loss, "seconds": round(self.seconds, 1)})
                if self.step in marks:
                    self._checkpoint(marks[self.step])
                if self.step in marks or self.step % keep_every == 0:
                    self._keep()

    def _one_step(self, pool: TrainingScenes) -> torch.Tensor:
        for group in self.optimiser.param_groups:
            group["lr"] = self.plan.rate_at(self.step)
        loss = self.objective(pool.batch(self.plan.scenes_per_step, self.generator), self.generator)
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.objective.parameters(), _GRADIENT_NORM)
        self.optimiser.step()
        self.step += 1
        if self.step <= _FADE_IN_STEPS:
            growth = (_POSITION_SCALE_LATER / POSITION_SCALE) ** (1 / _FADE_IN_STEPS)
            with torch.no_grad():
                position_embeddings(self.objective.vision).mul_(growth)
        self.objective.after_step(self.step / self.plan.steps)
        return loss.detach()

    def _checkpoint(self, seen: int) -> None:
        """Write a Hugging Face directory; under its name only when whole."""
        final = self.directory / _CHECKPOINT.format(seen)
        if final.exists():
            return
        unfinished = final.with_name(f".{final.name}")
        self.objective.write(unfinished)
        unfinished.rename(final)

    def _keep(self) -> None:
        """Write the state, so that a stopped run can go on here."""
        state = {
            "objective": self.objective.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
        }
        unfinished = self.directory / f".{STATE_FILE}"
        torch.save(state, unfinished)
        unfinished.replace(self.directory / STATE_FILE)
