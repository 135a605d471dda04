"""Which device trains; threads of a run on the CPU: fewer beside other work, all of them alone."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cnn_demo.errors import InputError
from cnn_demo.runs.service import Service
from cnn_demo.settings import Settings
from cnn_demo.training import device
from cnn_demo.training.device import Threads


class Machine:
    """A stand-in for a machine of four cores: its clock, and how long the slowest thread waited for a core."""

    def __init__(self) -> None:
        self.now = self.waited = self.computed = 0.0

    def run(self, seconds: float, waiting: float, cores: float) -> None:
        self.now, self.waited = self.now + seconds, self.waited + waiting * seconds
        self.computed += cores * seconds


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    found, before = Machine(), torch.get_num_threads()
    monkeypatch.setattr(device, "_read_waits", lambda: {"1": 0.0, "2": found.waited})
    monkeypatch.setattr(time, "monotonic", lambda: found.now)
    monkeypatch.setattr(time, "process_time", lambda: found.computed)
    torch.set_num_threads(4)
    yield found
    torch.set_num_threads(before)


def test_a_gpu_that_pytorch_cannot_use_is_named_and_the_cpu_trains(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # what NVML says where the driver is too old
    assert device.find_devices() == [torch.device("cpu")] and device.pick_device() == torch.device("cpu")
    where = Settings(checkpoints=tmp_path, data=None, cache=tmp_path, hub="", toronto="")
    service = Service(where)
    service.close()
    assert service.note.startswith("The GPU of this machine cannot be used: its driver is too old")
    assert service.note.endswith("Until then the CPU trains.")
    with pytest.raises(
        InputError, match=r"Device: here choose cpu, not 'cuda:0'\. The GPU of this machine cannot be used"
    ):
        device.pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device.find_devices() == [torch.device("cuda", 0)] and not device.unusable_gpu()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    service = Service(where)
    service.close()
    assert service.note == "2 GPUs train 2 runs at a time." and service.has_gpu


class Card(SimpleNamespace):
    """What torch tells of a GPU: an H200's."""

    major, minor, multi_processor_count, clock_rate = 9, 0, 132, 1_980_000


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Card())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (Card.major, Card.minor))


def test_a_device_is_chosen_by_name_or_by_torchrun(gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [None, "cpu", "cuda", "cuda:1"]
    assert [str(device.pick_device(name)) for name in names] == ["cuda:0", "cpu", "cuda:0", "cuda:1"]
    assert str(device.pick_device(None, local_rank=1)) == "cuda:1"
    with pytest.raises(InputError, match="torchrun: give --nproc-per-node 2, one process for each GPU"):
        device.pick_device(None, local_rank=2)
    for name in ("mps", "cuda:2", "gpu", ""):
        with pytest.raises(InputError, match=f"here choose cuda:0 or cuda:1 or cpu, not '{name}'"):
            device.pick_device(name)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)  # on an Apple machine
    assert str(device.pick_device("mps")) == "mps" and str(device.pick_device()) == "cuda:0"
    assert device.resolve_precision("auto", torch.device("mps")) == "float32"


def test_a_gpus_peak_is_that_of_its_data_sheet(gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 0)
    assert (
        device.peak_flops(gpu, "bfloat16") == 2 * device.peak_flops(gpu, "float32") == pytest.approx(1.07e15, rel=0.01)
    )
    sheets = {(8, 0, 108, 1410): 312, (7, 5, 40, 1590): 65, (8, 9, 58, 2040): 121}  # TFLOP/s of an A100, a T4, an L4
    for (major, minor, processors, megahertz), tera in sheets.items():
        card = Card(major=major, minor=minor, multi_processor_count=processors, clock_rate=1000 * megahertz)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, card=card: card)
        assert device.peak_flops(gpu, "float16") == pytest.approx(tera * 1e12, rel=0.01)
    assert device.peak_flops(torch.device("cpu"), "bfloat16") == 0
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Card(major=3))
    assert device.peak_flops(gpu, "float16") == 0  # not known


def test_all_threads_stay_where_nothing_else_computes(machine: Machine) -> None:
    threads = Threads()
    for _ in range(100):
        machine.run(0.5, waiting=0.02, cores=3.9)
        threads.adapt()
        assert torch.get_num_threads() == 4


def test_beside_other_work_there_are_fewer_threads_until_it_has_ended(machine: Machine) -> None:
    threads, used = Threads(), []
    for second in range(60):
        beside = second < 20  # three cores are left
        machine.run(1.0, waiting=0.4 if beside and torch.get_num_threads() == 4 else 0.0, cores=3.0)
        threads.adapt()
        used.append(torch.get_num_threads())
    assert used[:13] == [3] * 10 + [4] + [3] * 2, "tried again after ten seconds"
    assert used[11:33] == [3] * 20 + [4, 4], "then after twenty"
    assert used[33:] == [4] * 27


def test_a_container_with_fewer_cores_than_threads_gets_as_many_threads_as_cores(machine: Machine) -> None:
    threads = Threads()
    machine.run(1.0, waiting=0.5, cores=1.9)
    threads.adapt()
    assert torch.get_num_threads() == 2
    threads.restore()
    assert torch.get_num_threads() == 4


def test_the_kernel_tells_that_a_thread_waits_for_a_core() -> None:
    """As many busy processes as cores: this thread gets half of one, and says so."""
    if sys.platform != "linux":
        assert device._read_waits() == {}, "elsewhere no number of threads is changed"
        return
    code = "while True: pass"
    others = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2 * (torch.get_num_threads() + 1))]
    try:
        time.sleep(0.3)
        before, end = device._read_waits(), time.monotonic() + 1
        while time.monotonic() < end:
            pass
        after = device._read_waits()
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert max(after[k] - before.get(k, after[k]) for k in after) > Threads.LONGEST_WAIT
