"""What all tests share: real data, seeded randomness, CUDA cases that cannot be skipped unnoticed."""

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image
from residual_net import Residual
from torch import Tensor, nn

from bitsplit.cli import main
from bitsplit.models.cifar import CifarResNet
from bitsplit.models.load import load_model

MOST_THREADS = 2

# how long an example takes says nothing about what is tested
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.fc(torch.relu(self.conv2(x)).mean((2, 3)))

def net():
    return Net()

def number():
    return 7

not_a_function = 3
"""


def pytest_configure() -> None:
    """Keeps the tests to few threads, so that several can run on one machine."""
    torch.set_num_threads(min(MOST_THREADS, os.cpu_count() or 1))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a test marked ``cuda`` where there is no GPU, or fails it where one is required.

    Those marked ``cuda(graph=True)`` record CUDA graphs, for which torch's caching allocator is needed.
    """
    marker = item.get_closest_marker("cuda")
    if marker is not None and marker.kwargs.get("graph") and "PYTORCH_NO_CUDA_MEMORY_CACHING" in os.environ:
        pytest.skip("no CUDA graph without the caching allocator")
    if marker is None or torch.cuda.is_available():
        return
    if os.environ.get("BITSPLIT_REQUIRE_CUDA") == "1":
        pytest.fail("BITSPLIT_REQUIRE_CUDA=1, but torch sees no CUDA device", pytrace=False)
    pytest.skip("needs a CUDA device")


@pytest.fixture
def model() -> nn.Module:
    """A network that is learned in a moment, where a file has no other."""
    return Residual().eval()


@pytest.fixture
def images() -> Tensor:
    """Some for ``model``."""
    return torch.randn(40, 3, 8, 8)


@pytest.fixture(autouse=True)
def same_surroundings() -> Iterator[None]:
    """Every test starts from seed 0 and leaves random states, threads and default dtype as they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, and the GPU where there is one."""
    return torch.device(request.param)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data and checkpoints; tests that ask for it are skipped without it."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("BITSPLIT_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no test data: {folder} does not exist (set BITSPLIT_TEST_DATA)")
    return folder


@pytest.fixture
def trained_resnet20(shared_data: Path) -> CifarResNet:
    """A fresh copy of the public CIFAR-10 ResNet-20, in eval mode."""
    return load_model("bitsplit.models.cifar:resnet20", shared_data / "models" / "cifar10_resnet20.th")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model, its weights, and eight photos in four classes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    Path("net.py").write_text(MODEL)
    torch.save(load_model("net.py:net").state_dict(), "weights.pt")
    generator = np.random.default_rng(0)
    for label in range(4):
        for number in range(2):
            path = Path("photos", f"class{label}", f"{number}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the program, expect success, give what it prints."""

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as left:
            main(arguments)
        output = capsys.readouterr()
        assert left.value.code == 0, output.err
        return output.out

    return run


@pytest.fixture
def fail(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the program, expect a mistake of the user, give the line that tells it."""

    def fail(*arguments: str) -> str:
        with pytest.raises(SystemExit) as left:
            main(arguments)
        output = capsys.readouterr()
        assert left.value.code == 2, output
        (line,) = [line for line in output.err.splitlines() if line.startswith("error: ")]
        assert "Traceback" not in output.err and output.err.strip().endswith(line)
        return line

    return fail
