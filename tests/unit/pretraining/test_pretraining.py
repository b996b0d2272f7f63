"""Pretraining: each objective learns, is saved as a Hugging Face directory, read back, resumed; scenes stay apart."""

import hashlib
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import bindkit as bk
from bindkit.backbones.checkpoint import sine_cosine_positions
from bindkit.errors import BackboneError, InvalidParameterError, NonFiniteActivationsError
from bindkit.pipeline.running import RUN_DEFAULTS
from bindkit.pretraining import (
    GRID,
    OBJECTIVES,
    SIDE,
    TRAINING_SCENES,
    TRAINING_SEED,
    TrainingScenes,
    caption,
    checkpoints_of,
    objective_loss,
    read_objective,
    ship,
)
from bindkit.pretraining.cards import CARD_FILE, command_of
from bindkit.pretraining.class_objectives import END, PADDING, START, encode, vocabulary
from bindkit.pretraining.distillation import crop, hide
from bindkit.pretraining.loop import STATE_FILE, Plan, _Trainer
from bindkit.pretraining.objectives import make_objective
from bindkit.pretraining.patch_objectives import draw_hints, draw_motion
from bindkit.scenes.synthetic import SyntheticOptions

NAMES = sorted(OBJECTIVES)
SMALL = TRAINING_SCENES.replace("n=20000", "n=48")
UNSEEN = SMALL.replace(f"seed={TRAINING_SEED}", "seed=3")


@pytest.fixture(scope="module")
def pool():
    return TrainingScenes.open(SMALL, workers=1, clips=True)


def weights_of(directory) -> str:
    return hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()


# ---- scenes


def test_training_and_measuring_scenes_never_meet():
    """Seeds are apart by rule, and the scenes of a run's default set are none of those trained on."""
    trained, measured = (SyntheticOptions.parse(uri.removeprefix("synthetic:")) for uri in (TRAINING_SCENES, default()))
    assert measured.seed < TRAINING_SEED <= trained.seed
    # The strongest check that is affordable: not one image of the measured recipe is drawn by the training seed.
    with_training_seed = default().replace(f"seed={measured.seed}", f"seed={trained.seed}")
    first, second = (
        {hashlib.sha256(scene.image.tobytes()).digest() for scene in bk.open_scenes(uri.replace("n=400", "n=60"))}
        for uri in (default(), with_training_seed)
    )
    assert len(first) == len(second) == 60
    assert not first & second


def default() -> str:
    return RUN_DEFAULTS["scenes"]


def test_a_seed_on_the_wrong_side_is_refused(tmp_path):
    with pytest.raises(InvalidParameterError, match="kept for measuring"):
        TrainingScenes.open(UNSEEN)
    with pytest.raises(InvalidParameterError, match="kept for measuring"):
        bk.pretrain("mae", tmp_path / "run", UNSEEN, scenes_seen=16)
    with pytest.raises(InvalidParameterError, match="measure with a seed below"):
        TrainingScenes.held_out(SMALL)
    with pytest.raises(InvalidParameterError, match=f"size={SIDE}x{SIDE}"):
        TrainingScenes.open(SMALL.replace(f"size={SIDE}x{SIDE}", "size=64x64"))
    with pytest.raises(InvalidParameterError, match="synthetic"):
        TrainingScenes.open(f"folder:{tmp_path}")


def test_the_pool_holds_the_scenes_themselves(pool):
    scenes = bk.open_scenes(SMALL)
    for position in (0, 17, 47):
        scene = scenes[position]
        assert (pool.images[position].numpy().transpose(1, 2, 0) == scene.image).all()
        for number in range(int(scene.instances.max())):
            rows, cols = np.nonzero(scene.instances == number + 1)
            assert pool.classes[position, number] == scene.classes[rows[0], cols[0]]
            down, across = pool.middles[position, number].tolist()
            assert math.isclose(down * SIDE, rows.mean() + 0.5, abs_tol=1e-3)
            assert math.isclose(across * SIDE, cols.mean() + 0.5, abs_tol=1e-3)
        patch = scene.instances[8 * 3 : 8 * 4, 8 * 6 : 8 * 7]
        assert pool.instances[position, 3, 6] == np.bincount(patch.ravel()).argmax()


def test_mirrored_scenes_keep_picture_labels_and_places_together(pool):
    """In every batch, an object's middle lies where its patches' instances are, and its pixels too."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(8):
        batch = pool.batch(16, generator)
        assert batch.images.shape == (16, 3, SIDE, SIDE)
        for scene in range(16):
            for number in range(int((batch.classes[scene] > 0).sum())):
                rows, cols = torch.nonzero(batch.instances[scene] == number + 1, as_tuple=True)
                if len(rows) < 4:
                    continue
                down, across = ((batch.middles[scene, number] * GRID) - 0.5).tolist()
                assert abs(down - float(rows.float().mean())) < 1.0
                assert abs(across - float(cols.float().mean())) < 1.0


def test_captions_read_as_written_and_tokens_name_every_word():
    text = caption([("star", 0.1, 0.2), ("ring", 0.9, 0.99)])
    assert text == "a star at the upper left, a ring at the lower right"
    words = vocabulary(["star", "ring"])
    tokens = encode([text, caption([])], words, length=12)
    spoken = [words[token] for token in tokens[0].tolist()]
    assert spoken[:8] == ["<start>", "star", "upper", "left", "ring", "lower", "right", "<end>"]
    assert tokens[1].tolist()[:3] == [START, words.index("nothing"), END]
    assert (tokens[:, 8:] == PADDING).all()
    assert encode([text], words, length=5)[0].tolist()[-1] == END


# ---- objectives


def test_a_student_learns_the_answers_of_a_teacher_that_stands_still(pool):
    objective = make_objective("dino", small_crops=0).eval()
    optimiser = torch.optim.AdamW([weight for weight in objective.parameters() if weight.requires_grad], lr=1e-3)
    losses = []
    for step in range(24):
        loss = objective(
            pool.batch(8, torch.Generator().manual_seed(step % 2)), torch.Generator().manual_seed(step % 2)
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:4])


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"dino"}))
def test_every_objective_lowers_its_loss_on_a_few_scenes(name, pool, tmp_path):
    run = bk.pretrain(name, tmp_path / name, pool, scenes_seen=16 * 24, checkpoints=1)
    losses = [entry["loss"] for entry in run.history]
    assert np.mean(losses[-4:]) < np.mean(losses[:4])
    assert sorted(checkpoints_of(run.directory)) == [0, 384]
    few = TrainingScenes.held_out(UNSEEN.replace("n=48", "n=16"), workers=1, clips=True)
    assert math.isfinite(objective_loss(run.final, few))


@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_load_as_backbones_with_their_objective(name, pool, tmp_path):
    run = bk.pretrain(name, tmp_path / "run", pool, scenes_seen=32, checkpoints=1)
    backbone = bk.load_backbone(str(run.final))
    assert (backbone.n_layers, backbone.d_model, backbone.geometry.window) == (6, 112, SIDE)
    assert backbone.objective == OBJECTIVES[name].label
    assert (run.final / "preprocessor_config.json").exists()
    windows = torch.randint(0, 255, (2, SIDE, SIDE, 3), dtype=torch.uint8)
    shipped = ship_without_loss(run, tmp_path / "shipped")
    half = bk.load_backbone(str(shipped)).activations(windows, [5])[5]
    whole = backbone.activations(windows, [5])[5]
    assert (half - whole).abs().max() < 0.02 * whole.abs().max()


def ship_without_loss(run, directory):
    return read_objective(run.final).write(directory, torch.float16)


@pytest.mark.parametrize("name", NAMES)
def test_a_directory_gives_its_loss_back(name, pool, tmp_path):
    """What is read from the directory computes the loss that the objective in memory computes."""
    objective = make_objective(name, seed=1)
    objective.train(False)
    batch = pool.in_order(16)[0]
    if name == "dino":
        # Of the student only the teacher is kept: make them equal first, as reading does.
        objective.set_heads(objective.heads())
    with torch.inference_mode():
        before = objective(batch, torch.Generator().manual_seed(2))
        after = read_objective(objective.write(tmp_path / name))(batch, torch.Generator().manual_seed(2))
    torch.testing.assert_close(before, after, rtol=1e-5, atol=1e-6)


def test_untrained_twins_of_all_objectives_start_from_the_same_kind_of_positions(tmp_path):
    wanted = 0.05 * sine_cosine_positions(GRID, GRID, 112)
    for name in NAMES:
        made = make_objective(name)
        twin = bk.load_backbone(f"random-init:{made.write(tmp_path / name)}")
        for model in (made.vision, twin.tower.model):
            found = next(value for key, value in model.named_parameters() if "position_embedding" in key)
            torch.testing.assert_close(found.data.reshape(-1, 112)[-GRID * GRID :], wanted)


def test_masked_reconstruction_is_the_mean_squared_error_of_hidden_patches(pool):
    objective = make_objective("mae").eval()
    batch = pool.in_order(4)[0]
    with torch.inference_mode():
        loss = objective(batch, torch.Generator().manual_seed(3))
        noise = torch.rand(4, GRID * GRID, generator=torch.Generator().manual_seed(3))
        drawn = objective.model(batch.images, noise=noise).logits
    total, count = 0.0, 0
    for scene in range(4):
        hidden = noise[scene].argsort()[25:].tolist()
        for patch in hidden:
            row, col = divmod(patch, GRID)
            pixels = batch.images[scene, :, 8 * row : 8 * row + 8, 8 * col : 8 * col + 8]
            total += float((drawn[scene, patch] - pixels.permute(1, 2, 0).reshape(-1)).square().sum())
            count += pixels.numel()
    assert math.isclose(float(loss), total / count, rel_tol=1e-4)


def test_the_decoder_knows_where_patches_lie():
    """transformers leaves the decoder's positions at zero; then every hidden patch would be drawn alike."""
    model = make_objective("mae").model
    torch.testing.assert_close(model.decoder.decoder_pos_embed[0, 1:], sine_cosine_positions(GRID, GRID, 64))


def test_motion_is_one_vector_an_instance_and_none_on_the_ground(pool):
    instances = pool.in_order(16)[0].instances.flatten(1)
    motion = draw_motion(instances, torch.Generator().manual_seed(0))
    hints = draw_hints(instances, 1.0, torch.Generator().manual_seed(0))
    assert (motion[instances == 0] == 0).all()
    for scene in range(16):
        for instance in instances[scene].unique().tolist():
            own = instances[scene] == instance
            assert len(motion[scene][own].unique(dim=0)) == 1
            assert hints[scene][own].sum() == 1
    none = draw_hints(instances, 0.0, torch.Generator().manual_seed(0))
    assert not none.any()


@pytest.mark.parametrize("name", ["motion", "flow"])
def test_hints_of_motion_touch_nothing_before_the_middle_block(name, pool):
    """Early activations come from the picture alone: two draws of motion give the same ones."""
    objective = make_objective(name).eval()
    batch = pool.in_order(4)[0]
    seen = []
    for seed in (0, 1):
        outputs = []
        blocks = objective.model.layers if hasattr(objective.model, "layers") else objective.model.encoder.layer
        handles = [block.register_forward_hook(lambda m, i, o, kept=outputs: kept.append(o)) for block in blocks]
        with torch.inference_mode():
            objective(batch, torch.Generator().manual_seed(seed))
        for handle in handles:
            handle.remove()
        seen.append([output[0] if isinstance(output, tuple) else output for output in outputs])
    same = [torch.equal(first, second) for first, second in zip(*seen, strict=True)]
    assert same[:2] == [True, True]
    assert same[3:] == [False, False, False]


def test_crops_show_the_asked_share_and_hide_hides_in_every_other_crop():
    ramp = torch.linspace(0, 1, SIDE).expand(6, 3, SIDE, SIDE).clone()
    whole = crop(ramp, 1.0, 1.0, SIDE, torch.Generator().manual_seed(0))
    for image in whole:
        inner = image[0] - image[0].mean() + 0.5
        flipped = inner.flip(1)
        assert min((inner - ramp[0, 0]).abs().max(), (flipped - ramp[0, 0]).abs().max()) < 0.02
    quarter = crop(ramp, 0.25, 0.25, 40, torch.Generator().manual_seed(0))
    spans = quarter[:, 0].amax((1, 2)) - quarter[:, 0].amin((1, 2))
    assert ((spans - 0.5).abs() < 0.03).all()
    hidden = hide(8, torch.Generator().manual_seed(0))
    assert not hidden[::2].any()
    assert (hidden[1::2].float().mean(1) > 0.02).all()


def test_the_teacher_follows_the_student_and_no_gradient_reaches_it(pool):
    objective = make_objective("dino", small_crops=0)
    loss = objective(pool.batch(4, torch.Generator().manual_seed(0)), torch.Generator().manual_seed(0))
    loss.backward()
    assert all(parameter.grad is None for parameter in objective.teacher.parameters())
    assert objective.centre.abs().sum() > 0
    with torch.no_grad():
        for parameter in objective.model.parameters():
            parameter.add_(1.0)
    before = next(objective.teacher.parameters()).clone()
    objective.after_step(0.0)
    torch.testing.assert_close(next(objective.teacher.parameters()), before + 0.01, rtol=1e-4, atol=1e-5)
    objective.after_step(1.0)
    torch.testing.assert_close(next(objective.teacher.parameters()), before + 0.01, rtol=1e-4, atol=1e-5)


def test_unknown_objectives_and_options_are_named():
    with pytest.raises(InvalidParameterError, match="clip, dino, flow, mae, motion, supervised"):
        make_objective("jepa")
    with pytest.raises(InvalidParameterError, match=r"mask_ratio=0\.75"):
        make_objective("mae", masks=3)


# ---- the loop


def test_a_run_that_was_stopped_ends_with_the_same_bytes(pool, tmp_path, monkeypatch):
    whole = bk.pretrain("mae", tmp_path / "whole", pool, scenes_seen=640, checkpoints=2)
    step = _Trainer._one_step
    done = []

    def stopped(self, pool):
        if len(done) == 27:
            raise KeyboardInterrupt
        done.append(1)
        return step(self, pool)

    monkeypatch.setattr(_Trainer, "_one_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        bk.pretrain("mae", tmp_path / "parts", pool, scenes_seen=640, checkpoints=2)
    monkeypatch.setattr(_Trainer, "_one_step", step)
    parts = bk.pretrain("mae", tmp_path / "parts", pool, scenes_seen=640, checkpoints=2)
    assert weights_of(whole.final) == weights_of(parts.final)
    assert [entry["loss"] for entry in whole.history] == [entry["loss"] for entry in parts.history]
    # Complete: a third call neither draws scenes nor trains.
    monkeypatch.setattr(_Trainer, "run", lambda *_: pytest.fail("trained again"))
    assert bk.pretrain("mae", tmp_path / "parts", pool, scenes_seen=640, checkpoints=2).final == parts.final


def test_a_directory_of_another_plan_is_refused(pool, tmp_path):
    bk.pretrain("mae", tmp_path / "run", pool, scenes_seen=16, checkpoints=1)
    with pytest.raises(BackboneError, match=r"seed \(there 0, asked 1\)"):
        bk.pretrain("mae", tmp_path / "run", pool, scenes_seen=16, checkpoints=1, seed=1)


def test_a_loss_that_is_no_number_stops_the_run(pool, tmp_path, monkeypatch):
    broken = lambda self, batch, generator: next(self.parameters()).sum() * float("nan")  # noqa: E731
    monkeypatch.setattr(OBJECTIVES["mae"], "forward", broken)
    with pytest.raises(NonFiniteActivationsError, match="smaller learning_rate"):
        bk.pretrain("mae", tmp_path / "run", pool, scenes_seen=64, checkpoints=1)


@pytest.mark.parametrize("wrong", [{"scenes_seen": 0}, {"scenes_per_step": 0}, {"checkpoints": [0.5, 1.5]}])
def test_counts_that_make_no_sense_are_refused(wrong, pool, tmp_path):
    with pytest.raises(InvalidParameterError):
        bk.pretrain("mae", tmp_path / "run", pool, **{"scenes_seen": 16, **wrong})


def test_the_learning_rate_rises_then_falls():
    plan = Plan("mae", {}, SMALL, 16_000, 16, 1e-3, 0, (0, 16_000))
    rates = [plan.rate_at(step) for step in range(plan.steps)]
    assert rates[0] < rates[100] < rates[199]
    assert rates[200] > rates[600] > rates[-1] > 0
    assert max(rates) <= 1e-3


def test_a_shipped_directory_says_how_to_make_it_again(pool, tmp_path, capsys):
    run = bk.pretrain("mae", tmp_path / "run", pool, scenes_seen=32, checkpoints=1)
    shipped = ship(run.directory, tmp_path / "scenes-mae")
    card = json.loads((shipped / CARD_FILE).read_text())
    text = (shipped / "README.md").read_text()
    assert card["command"] in text
    assert f"{card['held_out_loss']:.4f}" in text
    assert card["held_out_loss"] == objective_loss(shipped, card["held_out_scenes"])
    from bindkit.cli import main

    words = command_of(card["plan"], threads=0).split()[1:]
    words[2] = str(tmp_path / "again")
    assert main(words) == 0
    assert weights_of(run.final) == weights_of(tmp_path / "again" / "scenes_000000032")
    assert capsys.readouterr().out.strip().endswith("scenes_000000032")


def test_unfinished_and_strange_directories_are_named(tmp_path, pool):
    with pytest.raises(BackboneError, match="no checkpoints"):
        checkpoints_of(tmp_path)
    with pytest.raises(BackboneError, match="no readable run"):
        ship(tmp_path, tmp_path / "out")
    with pytest.raises(BackboneError, match=r"objective\.json"):
        read_objective(tmp_path)
    run = bk.pretrain("mae", tmp_path / "run", pool, scenes_seen=16, checkpoints=1)
    (run.final / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(BackboneError, match="cannot be read"):
        read_objective(run.final)
    (run.directory / STATE_FILE).write_bytes(b"broken")
    with pytest.raises(BackboneError, match="start over"):
        bk.pretrain("mae", tmp_path / "run", pool, scenes_seen=16, checkpoints=1)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
def test_a_killed_process_leaves_no_worker_behind(tmp_path):
    uri = f"synthetic:n=4000,seed={TRAINING_SEED},size=80x80"
    code = f"from bindkit.pretraining import TrainingScenes; TrainingScenes.open({uri!r}, 2)"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.DEVNULL)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 60
    while len(children.read_text().split()) < 3 and time.monotonic() < deadline:  # the tracker and two workers
        time.sleep(0.05)
    born = [int(pid) for pid in children.read_text().split()]
    assert len(born) == 3
    process.kill()
    process.wait()
    while any(_alive(pid) for pid in born) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in born)


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
