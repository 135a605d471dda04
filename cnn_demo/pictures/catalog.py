"""What is known of each data set before its images are loaded. Standard library only."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetInfo:
    """One data set. mean and std: of red, green and blue, in values 0 to 1. hub: its repository on the Hub, or None."""

    title: str
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    train_pictures: int
    test_pictures: int
    hub: str | None = None


DATASETS = {
    "cifar10": DatasetInfo(
        title="CIFAR-10",
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        train_pictures=50_000,
        test_pictures=10_000,
        hub="uoft-cs/cifar10",
    ),
    "shapes": DatasetInfo(
        title="Shapes (drawn by the program)",
        classes=("disc", "ring", "square", "frame", "triangle", "diamond", "cross", "plus", "bars", "crescent"),
        mean=(0.5, 0.5, 0.5),
        std=(0.3, 0.3, 0.3),
        train_pictures=12_000,
        test_pictures=3_000,
    ),
}
