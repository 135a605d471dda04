"""Feature maps, Grad-CAM, occlusion and receptive fields against independent passes; nothing is left behind."""

import concurrent.futures
import io
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from cnn_demo import cli
from cnn_demo.answers import explain
from cnn_demo.answers.inference import Classifier
from cnn_demo.errors import CheckpointError, InputError
from cnn_demo.networks import stages
from cnn_demo.networks.catalog import NETWORKS, Vgg
from cnn_demo.networks.models import Network, build
from cnn_demo.pictures.dataset import Dataset
from cnn_demo.runs import folder, recording
from cnn_demo.runs.checkpoints import Checkpoint
from cnn_demo.runs.folder import Run

CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay")
CAM_STAGES = {"vgg16": "stage4.conv3", "resnet50": "stage2.block3", "resnet50_full": "stage4"}  # the last of 4x4
everyone = pytest.mark.parametrize("model", NETWORKS)


def checkpoint_of(model: str) -> Checkpoint:
    fields = {"name": "x", "model": model, "dataset": "x", "classes": CLASSES, "step": 0, "weights": {}}
    measured = {"validation_accuracy": None, "limits": None, "temperature": 1.5, "held_out": None}
    return Checkpoint(mean=(0.5, 0.4, 0.6), std=(0.2, 0.3, 0.25), **fields, **measured)


def network_of(model: str) -> Network:
    """A network as if it were trained: no part of BN is at its start, and blocks are more than their shortcuts."""
    network, generator = build(model, len(CLASSES), 0), torch.Generator().manual_seed(1)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for values, low, high in ((layer.weight, 0.5, 1), (layer.bias, -0.3, 0.3)):
                nn.init.uniform_(values, low, high, generator=generator)
            layer.running_mean.uniform_(-0.3, 0.3, generator=generator)
            layer.running_var.uniform_(0.5, 2, generator=generator)
    return network.to(memory_format=torch.channels_last).eval()


@pytest.fixture(scope="module")
def networks() -> dict[str, Network]:
    return {model: network_of(model) for model in NETWORKS}


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.randint(0, 256, (3, 32, 32), generator=torch.Generator().manual_seed(2)).byte()


def reference(model: str, network: Network, pixels: Tensor) -> dict[str, Tensor]:
    """All maps and the logits of a pass of its own in float64, through which gradients flow: torchvision's VGG16 with
    the same weights; the ResNets from the functions of their equations."""
    weights = {name: value.detach().double() for name, value in network.state_dict().items()}
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in ((0.5, 0.4, 0.6), (0.2, 0.3, 0.25)))
    x, found, layout = ((pixels.double() / 255 - mean) / std)[None].requires_grad_(), {}, NETWORKS[model]

    def unit(x: Tensor, conv: str, bn: str, stride: int = 1) -> Tensor:
        kernel, bias = weights[f"{conv}.weight"], weights.get(f"{conv}.bias")
        x = F.conv2d(x, kernel, bias, stride, kernel.shape[-1] // 2)
        scale = weights[f"{bn}.weight"] / (weights[f"{bn}.running_var"] + 1e-5).sqrt()
        shift = weights[f"{bn}.bias"] - weights[f"{bn}.running_mean"] * scale
        return x * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)

    if isinstance(layout, Vgg):
        features = make_layers(cfgs["D"], batch_norm=True).double().eval()
        own = [value for name, value in weights.items() if not name.startswith("classifier")]
        features.load_state_dict(dict(zip(features.state_dict(), own, strict=True)))
        names = iter(explain.layers(network))
        for layer in features:
            x = F.relu(x) if isinstance(layer, nn.ReLU) else layer(x)  # torchvision's would change x in place
            if isinstance(layer, (nn.ReLU, nn.MaxPool2d)):
                found[next(names)] = x
        assert next(names, None) is None
    else:
        x = found["stem.conv"] = F.relu(unit(x, "stem.conv", "stem.bn", layout.stem[1]))
        x = found["stem"] = F.max_pool2d(x, 3, 2, 1) if layout.stem[2] else x
        for number, (_, depth, halving) in enumerate(layout.stages, start=1):
            for name in (f"stage{number}.block{i + 1}" for i in range(depth)):
                stride, y = 2 if name.endswith(f"block{halving}") else 1, x
                for i in (1, 2, 3):
                    y = unit(
                        F.relu(y) if i > 1 else y,
                        f"{name}.conv{i}",
                        f"{name}.bn{i}",
                        stride if i == layout.strided + 1 else 1,
                    )
                if f"{name}.projection.conv.weight" in weights:
                    x = unit(x, f"{name}.projection.conv", f"{name}.projection.bn", stride)
                x = found[name] = F.relu(x + y)
            found[f"stage{number}"] = x
    x = x.mean((2, 3))
    linear = [name.removesuffix(".weight") for name in weights if name.startswith("classifier") and "weight" in name]
    for name in linear:
        x = F.linear(x if name == linear[0] else F.relu(x), weights[f"{name}.weight"], weights[f"{name}.bias"])
    return found | {"logits": x}


@everyone
def test_maps_and_grad_cam_equal_an_independent_pass(model: str, networks: dict[str, Network], pixels: Tensor) -> None:
    network, checkpoint = networks[model], checkpoint_of(model)
    expected = reference(model, network, pixels)
    names = explain.layers(network)
    assert set(names) == set(expected) - {"logits"} == set(stages.fields(model))
    assert [name for name in names if "." not in name] == [size.name for size in stages.measure(model)[:-1]]
    maps = explain.maps(network, checkpoint, pixels, names)
    assert list(maps) == names
    for name, found in maps.items():
        values = expected[name][0].detach()
        torch.testing.assert_close(found.double(), values, rtol=1e-5, atol=1e-5)
        about, zero = explain.describe(name, found), values == 0
        assert found.is_contiguous() and about["mean"] == pytest.approx(float(values.mean()), rel=1e-4)
        assert about["largest"] == pytest.approx(float(values.max()), rel=1e-4) and 0 <= about["zeros"] < 1
        assert about["zeros"] == pytest.approx(float(zero.double().mean()), abs=1e-3)
        assert about["dead"] == sum(bool(channel.all()) for channel in zero)
        assert (about["name"], about["size"]) == (name, list(values.shape))
    assert explain.cam_layers(model) == [name for name in names if expected[name].shape[-1] >= 4]
    assert explain.cam_layers(model)[-1] == CAM_STAGES[model]
    for name in {CAM_STAGES[model], "stage1"}:
        largest = 0.0
        for number, label in enumerate(CLASSES):  # up to one for which something speaks
            (gradient,) = torch.autograd.grad(expected["logits"][0, number], expected[name], retain_graph=True)
            cam = torch.einsum("k,kij->ij", gradient[0].mean((1, 2)), expected[name][0]).relu().detach()
            found = explain.grad_cam(network, checkpoint, pixels, label, name).double()
            largest = float(cam.max())
            torch.testing.assert_close(found, cam, rtol=0, atol=1e-4 * largest)
            if largest > 0:
                break
        assert largest > 0


def test_occlusion_finds_the_patch_that_alone_matters(pixels: Tensor) -> None:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.5, 0.4, 0.6), (0.2, 0.3, 0.25)))

    def network(x: Tensor) -> Tensor:
        """Its class 0 is certain where the pixels of one patch are, and unlikely where they are grey."""
        known = (pixels / 255 - mean) / std
        distance = (x - known)[..., 8:16, 16:24].abs().mean((1, 2, 3))
        return torch.stack([4 - 40 * distance, *(torch.zeros(len(x)) for _ in CLASSES[1:])], 1)

    heat = explain.occlusion(network, checkpoint_of("vgg16"), pixels, "ant")
    assert heat.shape == (4, 4) and float(heat[1, 2]) > 0.4
    heat[1, 2] = 0
    assert float(heat.abs().max()) < 1e-5
    assert float(explain.occlusion(network, checkpoint_of("vgg16"), pixels, "bee")[1, 2]) < -0.05  # its score rises


@everyone
def test_the_field_of_a_place_is_what_moves_it(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients through random positive weights; max-pools as averages, so that each input counts. In a narrow copy."""
    layout, fields = NETWORKS[model], stages.fields(model)
    narrow = tuple((2, *rest) for _, *rest in layout.stages)
    monkeypatch.setitem(NETWORKS, model, replace(layout, stages=narrow))
    assert stages.fields(model) == fields
    network = build(model, 2, 0).double().eval()
    for parameter in network.parameters():
        nn.init.uniform_(parameter, 0.1, 1, generator=torch.Generator().manual_seed(0))
    x = torch.rand(1, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    y, checked = x, 0
    for layer, names in stages.walk(network):
        pool = isinstance(layer, nn.MaxPool2d)
        y = F.avg_pool2d(y, layer.kernel_size, layer.stride, layer.padding) if pool else layer(y)
        for name in names:
            last, (first, stride, size) = y.shape[-1] - 1, fields[name]
            for row, column in {(0, 0), (last, last), (last // 2, last), (0, (last + 1) // 2)}:
                (gradient,) = torch.autograd.grad(y[0, :, row, column].sum(), x, retain_graph=True)
                moved = torch.zeros(32, 32, dtype=torch.bool)
                top, left = (max(0, first + place * stride) for place in (row, column))
                bottom, right = (first + place * stride + size for place in (row, column))
                moved[top:bottom, left:right] = True
                assert torch.equal(gradient[0].abs().sum(0) > 0, moved), (name, row, column)
                checked += 1
    assert checked >= 2 * len(fields)


@pytest.fixture
def unchanged(networks: dict[str, Network]) -> Iterator[None]:
    """Each network is afterwards as it was: values, mode, gradients, hooks."""

    def state() -> list[object]:
        found: list[object] = []
        for network in networks.values():
            found += [value.sum().item() for value in network.state_dict().values()]
            found += [(p.requires_grad, p.grad, p.data_ptr()) for p in network.parameters()]
            for module in network.modules():
                hooks = [value for key, value in vars(module).items() if "hook" in key]
                found.append((module.training, [len(h) for h in hooks if isinstance(h, dict)]))
        return found

    before = state()
    yield
    assert state() == before


def test_threads_share_a_network_and_leave_it_as_it_was(networks: dict[str, Network], unchanged: None) -> None:
    checkpoint = checkpoint_of("resnet50")
    pictures = torch.randint(0, 256, (8, 3, 32, 32), generator=torch.Generator().manual_seed(3)).byte()

    def ask(pixels: Tensor) -> object:
        report, pictures = explain.explain(networks["resnet50"], checkpoint, pixels, "cat", "")
        return report["grad_cam"], pictures["stage3"].tobytes()

    alone = [ask(pixels) for pixels in pictures]
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        assert list(threads.map(ask, pictures)) == alone
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_bad_input_is_a_sentence_and_leaves_the_network_as_it_was(
    networks: dict[str, Network], unchanged: None, pixels: Tensor
) -> None:
    network, checkpoint = networks["vgg16"], checkpoint_of("vgg16")
    for ask in (explain.grad_cam, explain.explain):
        with pytest.raises(InputError, match=r"^Class: choose ant, bee, .*, jay, not 'cow'\.$"):
            ask(network, checkpoint, pixels, "cow", "stage3")
        usable = r"; choose stage1\.conv1, stage1\.conv2, stage1, .*, stage3, .*, stage4\.conv3\.$"
        with pytest.raises(InputError, match="^Stage for Grad-CAM: 'stage4' is too small, below 4x4" + usable):
            ask(network, checkpoint, pixels, "cat", "stage4")
        with pytest.raises(InputError, match="^Stage for Grad-CAM: there is no 'layer4'" + usable):
            ask(network, checkpoint, pixels, "cat", "layer4")
    with pytest.raises(InputError, match=r"^Stage: choose .*, stage5, not 'classifier'\.$"):
        explain.maps(network, checkpoint, pixels, ["stage1", "classifier"])
    huge = network_of("resnet50")
    nn.init.constant_(huge.stage1.block1.bn1.bias, 3e38)
    asks: list[Callable[[], object]] = [
        lambda: explain.maps(huge, checkpoint_of("resnet50"), pixels, ["stage1"]),
        lambda: explain.grad_cam(huge, checkpoint_of("resnet50"), pixels, "cat", "stage1"),
        lambda: explain.occlusion(huge, checkpoint_of("resnet50"), pixels, "cat"),
    ]
    for ask in asks:
        with pytest.raises(CheckpointError, match="not a finite number"):
            ask()


def test_a_sprite_shows_the_strongest_channels_at_true_scale(pixels: Tensor) -> None:
    values = torch.rand(20, 4, 5, generator=torch.Generator().manual_seed(4)) * torch.arange(20).view(-1, 1, 1)
    values[7, 1, 2] = 100
    channels = explain.shown(values)
    assert channels == sorted(range(20), key=lambda i: -float(values[i].mean())) and channels[-1] == 0
    picture = Image.open(io.BytesIO(explain.sprite(values, channels)))
    assert (picture.format, picture.mode, picture.size) == ("PNG", "L", (8 * 5, 3 * 4))
    for place, channel in enumerate(channels):
        left, top = place % 8 * 5, place // 8 * 4
        tile = torch.tensor(list(picture.crop((left, top, left + 5, top + 4)).tobytes())).view(4, 5)
        assert torch.equal(tile, (values[channel] * 2.55).round().long())
    flat = torch.zeros(70, 1, 1)
    assert len(explain.shown(flat)) == 64
    assert Image.open(io.BytesIO(explain.sprite(flat, explain.shown(flat)))).getextrema() == (0, 0)


def test_kernels_are_colours_around_grey(networks: dict[str, Network]) -> None:
    found = explain.kernels(networks["vgg16"])
    weight = networks["vgg16"].stage1.conv1.weight.detach()
    assert found.shape == (64, 3, 3, 3) and found.dtype == torch.uint8
    n, channel, row, column = (int(i) for i in (weight == weight.abs().max() * weight.sign()).nonzero()[0])
    assert int(found[n, row, column, channel]) in (1, 255)
    assert torch.equal(found.permute(0, 3, 1, 2) > 128, (127 * weight / weight.abs().max()).round() > 0)


def test_no_evidence_is_zero_everywhere(pixels: Tensor) -> None:
    network = network_of("resnet50")
    nn.init.zeros_(network.classifier.fc.weight)
    report, pictures = explain.explain(network, checkpoint_of("resnet50"), pixels, "cat", "stage1")
    assert torch.tensor(report["grad_cam"]).eq(0).all() and torch.tensor(report["occlusion"]).eq(0).all()
    assert report["class"] == "cat" and report["stage"] == "stage1" and json.dumps(report, allow_nan=False)
    names = ["stem", "stage1.block1", "stage1.block2", "stage1.block3", "stage1", "stage2", "stage3"]
    assert [line["name"] for line in report["maps"]] == names
    assert set(pictures) == {"overview", "kernels", *names} and pictures["overview"].size == (4 * 288, 288)


def test_an_untrained_network_is_what_the_training_started_from(
    shipped: Path, tmp_path: Path, tiny: Dataset, cpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    first: dict[str, Tensor] = {}

    def train(network: Network, *_: object, **__: object) -> object:
        first.update({name: value.clone() for name, value in network.state_dict().items()})
        raise InterruptedError

    shutil.copytree(shipped, tmp_path / "resnet50")
    monkeypatch.setattr(recording, "train", train)
    with pytest.raises(InterruptedError):
        list(recording.train_run(folder.create(tmp_path, Run(shipped).config), tiny, cpu, lambda: False))
    classifier = Classifier(tmp_path)
    found = classifier.untrained("resnet50")
    assert not found.training and all(torch.equal(first[name], value) for name, value in found.state_dict().items())
    assert classifier.untrained("resnet50") is found
    later = folder.create(tmp_path, replace(Run(shipped).config, start_from="resnet50", validation_pictures=None))
    for name in ("gone", "../resnet50", later.id):
        with pytest.raises(CheckpointError, match="no checkpoint"):
            classifier.untrained(name)
    shutil.copy(shipped / "model.safetensors", later.folder)
    with pytest.raises(InputError, match="started from resnet50, not from random weights"):
        classifier.untrained(later.id)


def test_command_writes_a_folder_or_nothing(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CNN_DEMO_CHECKPOINTS", str(shipped.parent))
    picture, output = tmp_path / "disc.png", tmp_path / "new" / "folder"
    Image.effect_noise((90, 60), 90).save(picture)
    (tmp_path / "text.png").write_text("no picture")
    for given, sentence in [
        ([str(tmp_path / "gone.png")], "cannot be read"),
        ([str(tmp_path / "text.png")], "is not a picture"),
        ([str(picture), "--checkpoint", "gone"], "There is no checkpoint 'gone'"),
        ([str(picture), "--class", "cat"], "Class: choose disc, ring"),
        ([str(picture), "--stage", "stage2"], "'stage2' is too small, below 4x4; choose stem"),
        ([str(picture), "--stage", "stage9"], "there is no 'stage9'"),
    ]:
        assert cli.main(["explain", *given, "--output", str(output)]) == 2
        assert sentence in capsys.readouterr().err and not output.parent.exists()
    command = ["explain", str(picture), "--class", "ring", "--stage", "stage1", "--output"]
    assert cli.main([*command, str(output)]) == 0
    assert "Grad-CAM of ring at stage1" in capsys.readouterr().out
    report = json.loads((output / "explain.json").read_text())
    assert {path.name for path in output.iterdir()} == {"explain.json", "overview.png", "kernels.png"} | {
        f"{line['name']}.png" for line in report["maps"]
    }
    with Image.open(output / "stage1.block1.png") as drawn:
        assert drawn.size == (8 * 34, 8 * 34)
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    for taken in (output, picture):
        assert cli.main([*command, str(taken)]) == 2
        assert "already holds something" in capsys.readouterr().err
    assert before == {path.name: path.read_bytes() for path in output.iterdir()}
