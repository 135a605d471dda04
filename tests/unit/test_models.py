"""The networks against torchvision's, the FLOP counter, a real forward pass and the published tables."""

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cnn_demo.networks.models import BUILDERS, Bottleneck, Conv2d, build
from cnn_demo.networks.stages import measure, to_dict

# name, output C,H,W at 32 px, output stride, receptive field, parameters, MACs
TABLES = {
    "vgg16": [
        ("stage1", (64, 16, 16), 2, 6, 38_976, 39_518_208),
        ("stage2", (128, 8, 8), 4, 16, 221_952, 56_623_104),
        ("stage3", (256, 4, 4), 8, 44, 1_476_864, 94_371_840),
        ("stage4", (512, 2, 2), 16, 100, 5_902_848, 94_371_840),
        ("stage5", (512, 1, 1), 32, 212, 7_082_496, 28_311_552),
        ("classifier", (10, 1, 1), 32, 212, 530_442, 529_408),
    ],
    "resnet50": [
        ("stem", (64, 8, 8), 4, 11, 9_600, 2_408_448),
        ("stage1", (256, 4, 4), 8, 43, 283_520, 11_337_728),
        ("stage2", (512, 2, 2), 16, 123, 1_486_848, 17_104_896),
        ("stage3", (1024, 2, 2), 16, 315, 7_108_608, 28_311_552),
        ("classifier", (10, 1, 1), 32, 331, 10_250, 10_240),
    ],
    "resnet50_full": [
        ("stem", (64, 32, 32), 1, 3, 1_856, 1_769_472),
        ("stage1", (256, 32, 32), 1, 9, 215_808, 218_103_808),
        ("stage2", (512, 16, 16), 2, 23, 1_219_584, 335_544_320),
        ("stage3", (1024, 8, 8), 4, 67, 7_098_368, 478_150_656),
        ("stage4", (2048, 4, 4), 8, 107, 14_964_736, 264_241_152),
        ("classifier", (10, 1, 1), 32, 131, 20_490, 20_480),
    ],
}
TOTALS = {
    "vgg16": (15_253_578, 313_725_952),
    "resnet50": (8_898_826, 59_172_864),
    "resnet50_full": (23_520_842, 1_297_829_888),
}
everyone = pytest.mark.parametrize("name", BUILDERS)


@everyone
def test_the_stage_table_is_exact(name: str) -> None:
    sizes = measure(name)
    rows = [(s.name, s.output, s.stride, s.receptive_field, s.parameters, s.macs) for s in sizes]
    assert rows == TABLES[name]
    table = to_dict(name, 32)
    assert (table["parameters"], table["macs"]) == TOTALS[name]
    assert [row["activation_bytes"] for row in table["stages"]] == [4 * c * h * w for _, (c, h, w), *_ in TABLES[name]]


@everyone
@pytest.mark.parametrize("size", [32, 64])
def test_the_table_is_what_a_real_forward_pass_does(name: str, size: int) -> None:
    network = build(name, 10, seed=0).eval()
    counter = FlopCounterMode(display=False)
    x = torch.randn(1, 3, size, size)
    shapes = []
    with torch.inference_mode(), counter:
        for stage in network:
            x = stage(x)
            shapes.append((*x.shape[1:], 1, 1)[:3])
    sizes = measure(name, size)
    assert shapes == [s.output for s in sizes]
    assert counter.get_total_flops() == 2 * sum(s.macs for s in sizes)
    assert sum(p.numel() for p in network.parameters()) == sum(s.parameters for s in sizes)


@everyone
def test_what_the_network_declares_is_what_is_measured(name: str) -> None:
    for declared, found in zip(build(name, 10, seed=0).stages, measure(name), strict=True):
        assert (declared.name, declared.channels) == (found.name, found.output[0])
        assert declared.stride in (None, found.stride)


def test_the_receptive_field_is_the_pixels_that_move_an_output() -> None:
    """Of the first two VGG stages in exact arithmetic: 16 px wide around one output pixel."""
    network = build("vgg16", 10, seed=0).double().eval()
    for module in network.modules():
        if isinstance(module, nn.MaxPool2d):
            module.forward = lambda x: nn.functional.avg_pool2d(x, 2)  # every input counts, not the largest alone
    x = torch.rand(1, 3, 64, 64, dtype=torch.float64, requires_grad=True)
    network.stage2(network.stage1(x))[0, :, 8, 8].sum().backward()
    touched = x.grad[0].abs().sum(0).nonzero()
    assert tuple(touched.max(0).values - touched.min(0).values + 1) == (16, 16)


def test_vgg16_is_torchvisions_vgg16_bn() -> None:
    theirs, ours = torchvision.models.vgg16_bn(weights=None).eval(), build("vgg16", 10, seed=0).eval()
    trunk = nn.Sequential(*(getattr(ours, f"stage{i}") for i in range(1, 6)))
    copied = dict(zip(trunk.state_dict(), theirs.features.state_dict().values(), strict=True))
    trunk.load_state_dict(copied)
    x = torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(trunk(x), theirs.features(x))


def test_resnet50_full_is_torchvisions_resnet50_with_a_small_stem() -> None:
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


def test_the_course_resnet50_strides_in_the_first_1x1_of_the_last_block() -> None:
    network = build("resnet50", 10, seed=0)
    halving = [name for name, m in network.named_modules() if isinstance(m, Bottleneck) and m.conv1.stride == (2, 2)]
    assert halving == ["stage1.block3", "stage2.block4"]
    projecting = [name for name, m in network.named_modules() if name.endswith("projection.conv")]
    blocks = ["stage1.block1", "stage1.block3", "stage2.block1", "stage2.block4", "stage3.block1"]
    assert projecting == [f"{block}.projection.conv" for block in blocks]
    assert all(m.bias is not None for m in network.modules() if isinstance(m, nn.Conv2d))


@everyone
def test_every_parameter_gets_a_finite_gradient(name: str) -> None:
    network = build(name, 10, seed=0)
    for module in network.modules():
        if isinstance(module, Bottleneck):
            assert not module.bn3.weight.any()  # starts as its shortcut alone
            nn.init.ones_(module.bn3.weight)  # behind a zero nothing would get a gradient yet
    network(torch.randn(4, 3, 32, 32)).logsumexp(1).sum().backward()
    for parameter_name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name


@pytest.mark.parametrize(
    "kernel, stride, padding, size",
    [(1, 1, 0, 4), (1, 2, 0, 5), (1, 2, 0, 2), (3, 1, 1, 2), (3, 1, 1, 4), (3, 2, 1, 2)],
)
def test_the_fast_convolution_is_the_convolution(kernel: int, stride: int, padding: int, size: int) -> None:
    torch.manual_seed(0)
    fast = Conv2d(6, 5, kernel, stride, padding=padding).double()
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


def test_the_same_seed_draws_the_same_network_and_leaves_other_draws_alone() -> None:
    torch.manual_seed(5)
    first = torch.rand(1)
    torch.manual_seed(5)
    a, b, other = build("resnet50", 10, 1), build("resnet50", 10, 1), build("resnet50", 10, 2)
    assert torch.rand(1) == first
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.stem.conv.weight, other.stem.conv.weight)
