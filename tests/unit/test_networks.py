"""The networks against torchvision's, and against the weights that each seed has always drawn."""

import copy
import hashlib
import subprocess
import sys
import threading

import pytest
import torch
import torchvision
from torch import nn

from cnn_demo.networks.catalog import NETWORKS
from cnn_demo.networks.cpu_convolution import Conv2d
from cnn_demo.networks.models import Block, build, construct, fold_biases

everyone = pytest.mark.parametrize("name", NETWORKS)


def test_vgg16_equals_torchvisions_vgg16_bn() -> None:
    theirs, ours = torchvision.models.vgg16_bn(weights=None).eval(), build("vgg16", 10, seed=0).eval()
    trunk = nn.Sequential(*(getattr(ours, f"stage{i}") for i in range(1, 6)))
    copied = dict(zip(trunk.state_dict(), theirs.features.state_dict().values(), strict=True))
    trunk.load_state_dict(copied)
    x = torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(trunk(x), theirs.features(x))


def test_resnet50_full_equals_torchvisions_resnet50_with_a_small_stem() -> None:
    theirs = torchvision.models.resnet50(weights=None, num_classes=10).eval()
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    ours = build("resnet50_full", 10, seed=0).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):  # so that a gamma or a mean in the wrong place shows
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))  # in the same order
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_resnet50_c4_strides_in_the_first_1x1_of_the_last_block() -> None:
    network = build("resnet50", 10, seed=0)
    halving = [name for name, m in network.named_modules() if isinstance(m, Block) and m.conv1.stride == (2, 2)]
    assert halving == ["stage1.block3", "stage2.block4"]
    projecting = [name for name, m in network.named_modules() if name.endswith("projection.conv")]
    blocks = ["stage1.block1", "stage1.block3", "stage2.block1", "stage2.block4", "stage3.block1"]
    assert projecting == [f"{block}.projection.conv" for block in blocks]
    assert all(m.bias is not None for m in network.modules() if isinstance(m, nn.Conv2d))


@everyone
def test_every_parameter_but_biases_before_bn_gets_a_finite_gradient(name: str) -> None:
    network = build(name, 10, seed=0)
    for module in network.modules():
        if isinstance(module, Block):
            assert not module.bn3.weight.any()  # starts as its shortcut alone
            nn.init.ones_(module.bn3.weight)  # behind a zero nothing would get a gradient yet
    network(torch.randn(4, 3, 32, 32)).logsumexp(1).sum().backward()
    before_bn = [f"{path}.bias" for path, layer in network.named_modules() if isinstance(layer, Conv2d)]
    for parameter_name, parameter in network.named_parameters():
        assert (parameter.grad is None) == (parameter_name in before_bn), parameter_name
        assert parameter.grad is None or parameter.grad.isfinite().all(), parameter_name


@everyone
def test_biases_before_bn_change_nothing_in_training_and_are_kept_in_its_means(name: str) -> None:
    network = build(name, 10, seed=0)
    plain = copy.deepcopy(network)
    for layer in plain.modules():
        if isinstance(layer, Conv2d) and layer.bias is not None:
            nn.init.normal_(layer.bias)
    x = torch.randn(2, 3, 32, 32)
    folded = copy.deepcopy(plain)
    fold_biases(folded)
    assert not any(
        layer.bias.any() for layer in folded.modules() if isinstance(layer, Conv2d) and layer.bias is not None
    )
    torch.testing.assert_close(folded.eval()(x), plain.eval()(x), rtol=1e-4, atol=1e-4)
    assert torch.equal(plain.train()(x), network.train()(x))


@pytest.mark.parametrize(
    "kernel, stride, padding, size",
    [(1, 1, 0, 4), (1, 2, 0, 5), (1, 2, 0, 2), (3, 1, 1, 2), (3, 1, 1, 4), (3, 2, 1, 2)],
)
def test_fast_convolution_equals_pytorchs(kernel: int, stride: int, padding: int, size: int) -> None:
    torch.manual_seed(0)
    fast = Conv2d(6, 5, kernel, stride, padding=padding).double().eval().requires_grad_(True)  # its bias, too
    plain = nn.Conv2d(6, 5, kernel, stride, padding=padding).double()
    plain.load_state_dict(fast.state_dict())
    x = torch.randn(3, 6, size, size, dtype=torch.float64)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        a, b = (x.to(memory_format=memory_format).clone().requires_grad_() for _ in range(2))
        out = fast(a)
        torch.testing.assert_close(out, plain(b))
        weight = torch.randn_like(out)
        grads = [torch.autograd.grad((m(i) * weight).sum(), [i, *m.parameters()]) for m, i in ((fast, a), (plain, b))]
        torch.testing.assert_close(*grads)


def test_same_seed_draws_same_weights_and_leaves_global_generator_alone() -> None:
    torch.manual_seed(5)
    first = torch.rand(1)
    torch.manual_seed(5)
    a, b, other = build("resnet50", 10, 1), build("resnet50", 10, 1), build("resnet50", 10, 2)
    assert torch.rand(1) == first
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.stem.conv.weight, other.stem.conv.weight)


def test_same_seed_draws_same_weights_while_another_thread_makes_networks() -> None:
    """A run starts while a visitor's checkpoint is loaded, or another run starts: all share PyTorch's one generator."""

    def others() -> None:
        while not done.is_set():
            construct("resnet50", 10)
            build("resnet50", 10, 2)

    alone, done = build("resnet50", 10, 1), threading.Event()
    thread = threading.Thread(target=others)
    thread.start()
    try:
        for _ in range(2):
            beside = build("resnet50", 10, 1)
            assert all(torch.equal(x, y) for x, y in zip(alone.parameters(), beside.parameters(), strict=True))
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize(
    ("name", "layout", "checksum"),
    [
        ("vgg16", "496dafa0579e12fd", 671.5113),
        ("resnet50", "7aeb8631d078aa94", 979.8122),
        ("resnet50_full", "3a1029a933f31b1e", 5740.5828),
    ],
)
def test_seed_0_draws_the_weights_of_the_first_release(name: str, layout: str, checksum: float) -> None:
    """Names, order and draws: saved checkpoints load, and a recorded seed makes the same run."""
    state = build(name, 10, seed=0).state_dict()
    shapes = "".join(f"{key}{tuple(value.shape)}" for key, value in state.items())
    assert hashlib.sha256(shapes.encode()).hexdigest()[:16] == layout
    values = torch.cat([value.flatten().double() for value in state.values()])
    weights = (torch.arange(len(values)) * 37 % 101 - 50).double()
    assert float(values @ weights) == pytest.approx(checksum, rel=1e-4)  # the last bits depend on the processor


NEW_NETWORK = """
import contextlib, io, json
from cnn_demo.networks.catalog import NETWORKS, Resnet

NETWORKS["resnet18"] = Resnet(
    title="ResNet18",
    about="Basic blocks.",
    halving="the first 3x3 convolution of its first block, which has stride 2",
    stem=(3, 1, False),
    stages=((64, 2, 0), (128, 2, 1), (256, 2, 1), (512, 2, 1)),
    kernels=(3, 3),
    expansion=1,
    strided=0,
)

import torch
import torchvision
from torch import nn
from cnn_demo.cli import main
from cnn_demo.networks.models import build
from cnn_demo.networks.stages import measure

theirs = torchvision.models.resnet18(weights=None, num_classes=10).eval()
theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
for module in theirs.modules():
    if isinstance(module, nn.BatchNorm2d):
        nn.init.uniform_(module.weight, 0.5, 1.5)
        nn.init.uniform_(module.running_mean, -0.1, 0.1)
ours = build("resnet18", 10, seed=0).eval()
assert not any(m.bn2.weight.any() for m in ours.modules() if hasattr(m, "bn2"))  # each block starts as its shortcut
ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
x = torch.randn(2, 3, 32, 32)
with torch.inference_mode():
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)
    sizes = measure("resnet18")
    for stage, size in zip(ours, sizes, strict=True):
        x = stage(x)
        assert (*x.shape[1:], 1, 1)[:3] == size.output
assert sum(size.parameters for size in sizes) == sum(p.numel() for p in theirs.parameters())
assert sum(size.layers for size in sizes) == 18

output = io.StringIO()
with contextlib.redirect_stdout(output):
    assert main(["stages", "resnet18", "--json"]) == 0
assert [row["output"][1] for row in json.loads(output.getvalue())["stages"]] == [32, 32, 16, 8, 4, 1]
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(output):
    main(["train", "--help"])
assert "resnet18" in output.getvalue()
"""


def test_a_new_network_needs_one_entry_in_the_catalog() -> None:
    done = subprocess.run([sys.executable, "-c", NEW_NETWORK], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
