"""What each network is; `models.py` builds it from this. A new network needs one entry here, nothing else."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Vgg:
    """A VGG: stages of 3x3 convolutions that each end in a max-pool, then linear layers."""

    title: str
    about: str
    smallest_px: int  # the smallest input
    halving: str  # what shrinks a map within a stage, as the end of a sentence
    stages: tuple[tuple[int, int], ...]  # channels and convolutions of each
    hidden: tuple[int, ...]  # widths of the linear layers before the last


@dataclass(frozen=True, slots=True, kw_only=True)
class Resnet:
    """A ResNet: a stem, then stages of residual blocks, then one linear layer. smallest_px, halving: as for Vgg."""

    title: str
    about: str
    smallest_px: int = 1
    halving: str
    stem: tuple[int, int, bool]  # kernel and stride of its convolution, whether a 3x3/2 max-pool follows
    stages: tuple[tuple[int, int, int], ...]  # width and blocks of each, and which block halves the map, 0: none
    kernels: tuple[int, ...] = (1, 3, 1)  # of a block's convolutions
    expansion: int = 4  # width of a block's last convolution, in widths of the others
    strided: int  # which convolution strides in a halving block, from 0: in the paper 0, in torchvision's "V1.5" 1
    bias: bool = False  # of the convolutions


NETWORKS: dict[str, Vgg | Resnet] = {
    "vgg16": Vgg(
        title="VGG16",
        about="VGG16 with batch normalization: 13 convolutions of 3x3 in five stages, then three linear layers.",
        smallest_px=32,
        halving="a 2x2 max-pool at its end, which keeps the largest of four values",
        stages=((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)),
        hidden=(512, 512),
    ),
    "resnet50": Resnet(
        title="ResNet50-C4",
        about="ResNet50 cut after its fourth convolution group (hence C4): ImageNet stem, no last stage, 41 weight "
        "layers, in the layout of the university course that this project grew out of.",
        halving="the first 1x1 convolution of its last block, which has stride 2",
        stem=(7, 2, True),
        stages=((64, 3, 3), (128, 4, 4), (256, 6, 0)),
        strided=0,
        bias=True,
    ),
    "resnet50_full": Resnet(
        title="ResNet50",
        about="ResNet50 with all its 50 weight layers, and a 3x3 stem made for small images.",
        halving="the 3x3 convolution of its first block, which has stride 2",
        stem=(3, 1, False),
        stages=((64, 3, 0), (128, 4, 1), (256, 6, 1), (512, 3, 1)),
        strided=1,
    ),
}
