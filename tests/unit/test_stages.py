"""The tables of stage sizes against the published numbers, the FLOP counter and a real forward pass."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cnn_demo.errors import InputError
from cnn_demo.networks.catalog import NETWORKS
from cnn_demo.networks.models import build
from cnn_demo.networks.stages import explain, measure, to_dict

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
everyone = pytest.mark.parametrize("name", NETWORKS)


@everyone
def test_stage_table_is_exact(name: str) -> None:
    sizes = measure(name)
    rows = [(s.name, s.output, s.stride, s.receptive_field, s.parameters, s.macs) for s in sizes]
    assert rows == TABLES[name]
    table = to_dict(name, 32)
    assert (table["parameters"], table["macs"]) == TOTALS[name]
    assert [row["activation_bytes"] for row in table["stages"]] == [4 * c * h * w for _, (c, h, w), *_ in TABLES[name]]


@everyone
@pytest.mark.parametrize("size", [32, 64])
def test_table_equals_a_real_forward_pass(name: str, size: int) -> None:
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


def test_receptive_field_is_the_pixels_that_change_an_output() -> None:
    """Of the first two VGG stages in exact arithmetic: 16 px wide around one output pixel."""
    network = build("vgg16", 10, seed=0).double().eval()
    for module in network.modules():
        if isinstance(module, nn.MaxPool2d):
            module.forward = lambda x: nn.functional.avg_pool2d(x, 2)  # every input counts, not the largest alone
    x = torch.rand(1, 3, 64, 64, dtype=torch.float64, requires_grad=True)
    network.stage2(network.stage1(x))[0, :, 8, 8].sum().backward()
    touched = x.grad[0].abs().sum(0).nonzero()
    assert tuple(touched.max(0).values - touched.min(0).values + 1) == (16, 16)


@pytest.mark.parametrize(
    ("name", "size", "sentence"),
    [
        ("vgg16", 8, "Input size: enter 32 to 1,024 pixels for VGG16, not 8."),
        ("resnet50", 1025, "Input size: enter 1 to 1,024 pixels for ResNet50-C4, not 1025."),
        ("vgg16", 32.5, "Input size: enter 32 to 1,024 pixels for VGG16, not 32.5."),
        ("vgg16", "32 px", "Input size: enter 32 to 1,024 pixels for VGG16, not '32 px'."),
        ("vgg19", 32, "Network: choose vgg16, resnet50, resnet50_full, not 'vgg19'."),
    ],
)
def test_unusable_input_is_refused_in_one_sentence(name: str, size: object, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        measure(name, size)
    assert str(caught.value) == sentence


@everyone
def test_smallest_input_size_is_what_the_network_can_take(name: str) -> None:
    smallest, network = NETWORKS[name].smallest_px, build(name, 10, seed=0).eval()
    assert measure(name, smallest)
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, smallest, smallest)).shape == (1, 10)
        if smallest > 1:
            with pytest.raises(RuntimeError):
                network(torch.zeros(1, 3, smallest - 1, smallest - 1))


def test_explanations_say_what_the_table_says() -> None:
    sizes = measure("vgg16")
    assert explain("vgg16", sizes, 0, 32) == (
        "32x32 becomes 16x16 by a 2x2 max-pool at its end, which keeps the largest of four values. The number of "
        "channels grows from 3 to 64: there are fewer positions, so each can hold more features. The stage has 0.3% "
        "of the parameters and does 12.6% of the computation: its kernels are small, but each is applied at every "
        "position of a large map."
    )
    assert explain("vgg16", sizes, 5, 32) == (
        "Each channel of the 1x1 map is averaged to one value, and 3 linear layers turn these 512 values into one "
        "score per class. The stage has 3.5% of the parameters and does 0.2% of the computation: each weight is used "
        "once per image. Its receptive field of 212 px is larger than the whole image."
    )
    sizes = measure("resnet50_full")
    first = explain("resnet50_full", sizes, 1, 32)
    assert first.startswith("The map stays 32x32. The number of channels grows from 64 to 256. The stage")
    stem = explain("resnet50", measure("resnet50"), 0, 32)
    assert stem.startswith("32x32 becomes 8x8 by the convolution and the max-pool of the stem, each with stride 2.")
