"""Ship a finished run: weights in half precision, with a model card that says how to make them again."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bindkit.errors import BackboneError
from bindkit.files import parse_json, write_bytes, write_json
from bindkit.pretraining.loop import RUN_FILE, STATE_FILE, checkpoints_of
from bindkit.pretraining.objectives import HEADS, LAYERS, WIDTH, objective_loss, read_objective
from bindkit.pretraining.training_scenes import GRID, PATCH, SIDE
from bindkit.scenes.synthetic import TRAINING_SEED, SyntheticOptions

CARD_FILE = "card.json"
_HELD_OUT_SCENES = 512


def ship(run: str | Path, directory: str | Path) -> Path:
    """Write a finished run's last checkpoint to ship it: float16 weights, heads, ``card.json``, model card."""
    run, directory = Path(run), Path(directory)
    try:
        record = parse_json((run / RUN_FILE).read_text(encoding="utf-8"))
        plan, machine = record["plan"], record["machine"]
        state = torch.load(run / STATE_FILE, weights_only=True)
        history = state["history"]
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise BackboneError(f"{run} holds no readable run ({error}); give the directory of a pretrain() run") from error
    checkpoints = checkpoints_of(run)
    if plan["scenes_seen"] not in checkpoints:
        raise BackboneError(f"{run} is not complete: it has seen {max(checkpoints)} of {plan['scenes_seen']} scenes")
    objective = read_objective(checkpoints[plan["scenes_seen"]])
    objective.write(directory, torch.float16)
    trained_on = SyntheticOptions.parse(plan["scenes"].removeprefix("synthetic:"))
    held_out = replace(trained_on, n=_HELD_OUT_SCENES, seed=1).uri  # the training recipe with a measuring seed
    card = {
        "plan": plan,
        "command": command_of(plan, machine["threads"]),
        "machine": machine,
        "training_seconds": round(history[-1]["seconds"]),
        "training_loss": history[-1]["loss"],
        "held_out_scenes": held_out,
        "held_out_loss": objective_loss(directory, held_out),
        "held_out_loss_untrained": objective_loss(checkpoints[0], held_out),
        "n_parameters": objective.n_parameters,
        "objective": objective.label,
        "supervision": objective.supervision,
    }
    write_json(directory / CARD_FILE, card)
    write_bytes(directory / "README.md", model_card(directory.name, card).encode())
    return directory


def command_of(plan: dict[str, Any], threads: int) -> str:
    """The console command that makes a run of this plan."""
    shares = " ".join(f"{seen / plan['scenes_seen']:g}" for seen in plan["checkpoints"][1:])
    words = ["bindkit", "pretrain", plan["objective"], f"runs/{plan['objective']}", "--scenes", plan["scenes"]]
    words += ["--scenes-seen", plan["scenes_seen"], "--scenes-per-step", plan["scenes_per_step"]]
    words += ["--threads", threads, "--learning-rate", f"{plan['learning_rate']:g}", "--seed", plan["seed"]]
    return f"{shlex.join(map(str, words))} --checkpoints {shares}"


def model_card(name: str, card: dict[str, Any]) -> str:
    """The text of a model card, from ``card.json``'s figures."""
    plan, machine = card["plan"], card["machine"]
    return f"""# bindkit/{name}

A tiny ViT ({card["n_parameters"] / 1e6:.2f} million parameters: {LAYERS} blocks, width {WIDTH}, {HEADS} heads, patches
of {PATCH} px, windows of {SIDE} px, {GRID} x {GRID} patches), pretrained on synthetic scenes. It is for studying object
binding on synthetic scenes and for nothing else: it has never seen a photograph.

```python
backbone = bindkit.load_backbone("bindkit/{name}")
```

| | |
|---|---|
| objective | {card["objective"]} |
| told besides the pictures | {card["supervision"]} |
| scenes seen | {plan["scenes_seen"]:,}, mirrored, transposed and recoloured |
| training scenes | `{plan["scenes"]}` |
| seed | {plan["seed"]} |
| scenes a step, learning rate | {plan["scenes_per_step"]}, {plan["learning_rate"]:g} |
| machine | {machine["processor"]}, {machine["cores"]} cores, {machine["threads"]} thread(s), torch {machine["torch"]} |
| time | {card["training_seconds"] / 60:.0f} minutes (beside other work) |
| training loss at the end | {card["training_loss"]:.4f} |
| loss on unseen scenes | {card["held_out_loss"]:.4f}, untrained {card["held_out_loss_untrained"]:.4f} |
| unseen scenes | `{card["held_out_scenes"]}` |

Made with

```bash
{card["command"]}
```

The same command on the same kind of machine with as many threads gives the same weights; elsewhere sums are rounded
differently, and training amplifies that, so expect the loss on unseen scenes to differ by a few percent and the figures
of binding by about as much as between seeds (`notebooks/08_emergence.ipynb` measures that spread).

Seeds from {TRAINING_SEED} on are for training only; scenes to measure on have smaller ones, so no measured scene was
seen in training. Weights are stored as float16; the objective's decoder or heads are kept beside them, so that
`bindkit.pretraining.objective_loss` can compute its loss.
"""
