"""What tests share: a tiny world of real faces, and registries that a test may add to."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

# As the command line does, and before torch is imported: threads that wait must not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from pretended_device import pretended_device, register
from run_folder import build

from bench.memory import keep_freed_memory
from bench.plan import Spec, parse_suite
from bench.registry import ATTACKS, DATASETS, DEFENSES, RECOGNIZERS, REFERENCES
from bench.store import Store
from bench.world import World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

SMALL = {"steps": 2, "width": 8, "batch": 2, "calls": 3}
"""Steps, channels, images a step and calls in tests: every line runs, nothing is learned."""


def pytest_configure() -> None:
    """Share the cores among the workers of pytest-xdist; keep memory, as every run does."""
    keep_freed_memory()
    register()
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))


SERVER = """
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

# One request at a time: moto checks and writes in two steps, which S3 does in one.
server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app))
print(server.port, flush=True)
server.serve_forever()
"""


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """Return the URL of an empty bucket of S3, as moto plays it in a process of its own.

    Copies of what it holds have a place of their own too.
    """
    for package in ("s3fs", "moto", "flask", "flask_cors"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: s3fs, moto[s3], flask, flask-cors")
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        assert server.stdout is not None
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{int(server.stdout.readline())}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "testing")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        make = "import s3fs; s3fs.S3FileSystem().mkdir('bucket')"
        subprocess.run([sys.executable, "-c", make], check=True)
        yield "s3://bucket"
        server.kill()


@pytest.fixture(scope="session")
def quick() -> Callable[..., Spec]:
    """Return a function that gives a plug-in with every training run cut down."""

    def spec(kind: str, name: str, **parameters: Any) -> Spec:
        registry = ATTACKS if kind == "attack" else DEFENSES
        fields = [field.name for field in dataclasses.fields(registry.get(name))]
        small = {key: SMALL[last] for key in fields if (last := key.split("_")[-1]) in SMALL}
        return Spec(kind, name, tuple({**small, **parameters}.items()))

    return spec


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Six victims, twenty attacker's and twenty defender's photos of ORL, before the real SFace."""
    suite = parse_suite(
        {
            "name": "tiny",
            "title": "The smallest world that has every role",
            "dataset": "orl",
            "recognizer": {"name": "sface"},
            "fresh_instances": 2,
            "query_budget": 40,
            "split": {
                "victims": 6,
                "probes": 6,
                "attacker_images": 20,
                "defender_images": 20,
                "gallery_people": 2,
            },
            "group": [
                {
                    "leak": "features",
                    "defenses": [{"name": "none"}],
                    "attacks": [{"name": "retrieval", "threats": ["transfer"]}],
                }
            ],
        },
        "tests/conftest.py",
    )
    return World(suite, 0, Store(tmp_path_factory.mktemp("store")), "cpu", None)


@pytest.fixture(scope="session")
def far_world(world: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """The same world on a device that is not the CPU; to be used within `pretended_device`."""
    with pretended_device() as device:
        return World(world.suite, 0, Store(tmp_path_factory.mktemp("far")), device, None)


@pytest.fixture(scope="session")
def faces(world: World) -> Tensor:
    """Aligned faces of the victims, (6, 3, 112, 112) in [0, 1]."""
    return world.images(world.split.probes)


@pytest.fixture
def registries() -> Iterator[None]:
    """Let a test register what it likes; afterwards it is forgotten."""
    known = (ATTACKS, DEFENSES, REFERENCES, DATASETS, RECOGNIZERS)
    before = [(r, dict(r._table()), dict(r._classes)) for r in known]
    modules = set(sys.modules)
    yield
    for registry, entries, classes in before:
        registry._entries, registry._classes = entries, classes
    for name in set(sys.modules) - modules:
        if name.startswith("veilbench_plugin_"):
            del sys.modules[name]


@pytest.fixture(scope="session")
def lfw_root() -> Path:
    """The folder that holds `lfw.tar` and `pairs.txt`."""
    root = Path(os.environ.get("VEILBENCH_LFW") or Path(__file__).parents[2] / "shared" / "data")
    if not (root / "lfw.tar").is_file():
        pytest.skip(f"LFW is not at {root}: set VEILBENCH_LFW to the folder that holds lfw.tar")
    return root


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a synthetic run folder, which tests read and do not change."""
    return build(tmp_path_factory.mktemp("synthetic"))
