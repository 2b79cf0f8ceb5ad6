"""Training from scratch on a tiny RecordIO: what is learned, resumed, and refused."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
import torch
from pretended_device import pretended_device
from record_files import pack, write_records
from safetensors.torch import load_file, save_file
from torch.nn import functional
from typer.testing import CliRunner

from bench import pretraining, training
from bench.arcface import ArcFace
from bench.cli import app
from bench.datasets.recordio import Record
from bench.errors import DataError, UserError
from bench.leaks import Leak
from bench.pretraining import PRESETS, FaceSet, pretrain
from bench.recognizers import iresnet
from defenses.base import Defender
from defenses.frequency.partialface import PartialFace

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from bench.world import World

PEOPLE = (7, 7, 3, 3, 3, 12)
"""Labels of the images: any numbers, in any order."""


def encoded(image: NDArray[np.uint8]) -> bytes:
    return bytes(cv2.imencode(".png", image)[1])


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """Six images of three people as insightface packs them."""
    path = tmp_path / "train.rec"
    random = np.random.default_rng(0)
    made = []
    for key, person in enumerate(PEOPLE):
        image = random.integers(0, 256, (112, 112, 3), dtype=np.uint8)
        made.append(pack(Record(np.array([person], np.float32), key, 0, encoded(image))))
    write_records(path, enumerate(made))
    return path


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """One block a stage, batches of two, and few channels."""
    monkeypatch.setitem(iresnet.BLOCKS, 18, (1, 1, 1, 1))
    monkeypatch.setattr(iresnet, "_CHANNELS", (16, 16, 16, 16))
    monkeypatch.setattr(iresnet, "_DENSE_INPUT", 16 * 7 * 7)
    for name, preset in PRESETS.items():
        monkeypatch.setitem(PRESETS, name, replace(preset, batch=2))


def run(
    records: Path, out: Path, preset: str = "clean", epochs: int = 2, device: str = "cpu"
) -> dict[str, Tensor]:
    pretrain(
        records,
        out,
        preset=preset,
        depth=18,
        epochs=epochs,
        device=device,
        progress=lambda _: None,
    )
    return load_file(out)


@pytest.mark.parametrize("preset", ["clean", "partialface"])
@pytest.mark.usefixtures("small")
def test_it_trains_on_the_device_that_it_was_given(
    records: Path, tmp_path: Path, preset: str
) -> None:
    with pretended_device() as device:
        weights = run(records, tmp_path / "far.safetensors", preset, epochs=1, device=device)
    assert all(torch.isfinite(part).all() for part in weights.values())


@pytest.mark.usefixtures("small")
def test_a_recogniser_is_trained_that_the_loader_reads(records: Path, tmp_path: Path) -> None:
    out = tmp_path / "made.safetensors"
    arguments = ["train", str(records), "--out", str(out), "--epochs", "2", "--device", "cpu"]
    done = CliRunner().invoke(app, arguments)
    assert (done.exit_code, done.stdout) == (0, f"Weights: {out}\n")
    assert done.stderr.splitlines() == [
        "6 images of 3 people",
        *[f"step {number} of 6" for number in range(1, 7)],
    ]
    state = load_file(out)
    torch.manual_seed(pretraining.SEED)
    fresh = iresnet.network(18).state_dict()
    assert not torch.equal(state["conv1.weight"], fresh["conv1.weight"])
    assert not torch.equal(state["prelu.weight"], fresh["prelu.weight"])
    layers = iresnet.network(18)
    iresnet.load(layers, state, "made.safetensors")
    assert torch.equal(layers.state_dict()["conv1.weight"], state["conv1.weight"])
    assert not (tmp_path / "made.checkpoint").exists()


@pytest.mark.usefixtures("small")
def test_what_was_interrupted_ends_as_if_it_was_not(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(records, tmp_path / "whole.safetensors", "partialface")
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    backward, calls = torch.Tensor.backward, []

    def pull_the_plug(loss: Tensor) -> None:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        backward(loss)

    monkeypatch.setattr(torch.Tensor, "backward", pull_the_plug)
    out = tmp_path / "parts.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run(records, out, "partialface")
    assert not out.exists()
    assert out.with_suffix(".checkpoint").exists()
    torch.rand(5)  # whatever else drew in between
    parts = run(records, out, "partialface")
    assert len(calls) == 4 + 1 + 2  # four steps, the one that fell, and the rest of six
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert whole["conv1.weight"].shape[1] == len(whole["standardize.mean"].flatten()) == 27


@pytest.mark.usefixtures("small")
def test_a_defense_takes_a_trained_server(world: World, faces: Tensor, tmp_path: Path) -> None:
    network = iresnet.network(18, 27).eval()
    state = network.state_dict()
    channels = {"standardize.mean": torch.zeros(27), "standardize.deviation": torch.ones(27)}
    path = tmp_path / "server.safetensors"
    save_file(state | channels, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    team = world.defender
    scene = Defender(Leak.IMAGE, team.images, team.identities, world.recognizer, 0, "cpu")
    defense = PartialFace(weights=str(path), weights_sha256=digest).setup(scene)
    records = defense.protect(faces[:2], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = functional.normalize(network(records), dim=1)
    torch.testing.assert_close(defense.comparable(records), wanted)
    assert not defense.plain_probes
    save_file(state, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    plain = PartialFace(weights=str(path), weights_sha256=digest).setup(scene)
    with pytest.raises(UserError, match="has no statistics of channels"):
        _ = plain.server
    with pytest.raises(UserError, match="weights and weights_sha256 go together"):
        PartialFace.create("defense 'partialface'", {"weights": str(path)})


def test_every_epoch_shows_every_image_once_in_another_order(records: Path) -> None:
    faces = FaceSet(records)
    assert faces.classes == 3
    assert faces.labels.tolist() == [1, 1, 0, 0, 0, 2]
    assert faces.per_epoch(4) == 2
    first, second = (
        np.concatenate([faces.batch(number, 4) for number in pair]) for pair in ((0, 1), (2, 3))
    )
    assert sorted(first) == sorted(second) == list(range(6))
    assert first.tolist() != second.tolist()


def test_arcface_adds_its_margin_to_the_right_angle() -> None:
    head = ArcFace(3, 2, scale=2.0, margin=0.5)
    angles = torch.tensor([0.0, 1.0, 2.0])
    head.centers.data = 3 * torch.stack([angles.cos(), angles.sin()], 1)
    at = torch.tensor(0.3)
    found = head(5 * torch.stack([at.cos(), at.sin()])[None], torch.tensor([1])).detach()
    logits = 2 * torch.cos(torch.tensor([0.3, 0.7 + 0.5, 1.7]))
    assert float(found) == pytest.approx(float(logits.logsumexp(0) - logits[1]), rel=1e-5)


def test_the_rate_falls_where_the_papers_let_it(tmp_path: Path) -> None:
    plan = pretraining._plan("minusface", 18, 12)
    assert (plan.rate, plan.copies, plan.milestones) == (0.01, 3, (5, 9, 11))
    optimizer = pretraining._descent(plan, [torch.nn.Parameter(torch.zeros(1))], plan.rate)
    schedule = pretraining._falling(plan, optimizer, 24)
    rates = []
    for _ in range(24):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([1e-2] * 10 + [1e-3] * 8 + [1e-4] * 4 + [1e-5] * 2)


def test_what_cannot_be_trained_is_refused(records: Path, tmp_path: Path) -> None:
    out = tmp_path / "made.safetensors"
    with pytest.raises(UserError, match="no preset 'cloak': choose one of clean, dctdp"):
        run(records, out, "cloak")
    out.write_bytes(b"weights")
    with pytest.raises(UserError, match="is there already"):
        run(records, out)
    assert out.read_bytes() == b"weights"
    with pytest.raises(UserError, match=r"The folder .*absent is not there"):
        run(records, tmp_path / "absent" / "made.safetensors")


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "large.rec"
    image = encoded(np.zeros((128, 112, 3), np.uint8))
    made = [pack(Record(np.array([key], np.float32), key, 0, image)) for key in range(2)]
    write_records(path, enumerate(made))
    with pytest.raises(DataError, match="has 128x112 pixels where 112x112 belong"):
        run(path, tmp_path / "made.safetensors")
