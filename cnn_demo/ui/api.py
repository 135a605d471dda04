"""What programs may call, over HTTP (gradio_client) and as MCP tools: six endpoints; everything else is private."""

import asyncio
import dataclasses
import secrets
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.events import api
from gradio.mcp import GradioMCPServer
from PIL import Image
from torch import Tensor

from ..answers import explain as explaining
from ..answers.inference import Classifier
from ..errors import InputError
from ..networks import stages as sizes
from ..pictures import photo
from ..runs.service import Service
from ..training import config as configs
from .classify import picture_file
from .events import CLASSIFY, checked, sentences
from .visitors import source_of


def build(service: Service, classifier: Classifier) -> None:
    """Add the endpoints to the page that is being assembled."""

    def start_run(
        model: str, recipe: dict[str, Any] | None = None, owner: str = "", request: gr.Request | None = None
    ) -> dict[str, Any]:
        """Start training a network and return at once; follow it with run_status.

        Args:
            model: vgg16, resnet50 or resnet50_full.
            recipe: settings that differ from the defaults, for example {"seconds": 60} or {"epochs": 5,
                "optimizer": "sgd", "learning_rate": 0.1}. Without a budget the run trains for 60 seconds.
            owner: a secret text of yours, needed to stop the run; one active run each. If empty, you get a new one.

        Returns:
            {"run": id of the run}, and "owner" if you gave none.
        """
        secret = owner or secrets.token_hex(16)
        config = configs.override(configs.preset("quick", model, service.has_gpu), recipe or {})
        run = service.submit(config, secret, source_of(request, None, service.is_space))
        return {"run": run} if owner else {"run": run, "owner": secret}

    def run_status(run: str, after: int = -1, owner: str = "") -> dict[str, Any]:
        """Return the state of a run, and what is new since the event number `after`.

        Args:
            run: id of the run.
            after: "seq" of your last answer; -1 for everything.
            owner: the secret given to start_run; not needed to watch.

        Returns:
            state (queued, preparing, training, validating, testing, stopping, finished, stopped, diverged, failed,
            interrupted), title, text (the state in words), share (progress, 0 to 1), points, validations, epochs (rows;
            their columns are named under "columns" in an answer with "reset": true), seq, and at the end "end" with the
            test accuracy (0 to 1). Loss in nats.
        """
        return service.watch(run, after, owner)

    def stop_run(run: str, owner: str) -> dict[str, Any]:
        """Stop a run, keep its best weights and return {"state": its state now}; a waiting run leaves the queue.

        Args:
            run: id of the run.
            owner: the secret given to start_run.
        """
        service.stop(run, owner)
        return {"state": service.watch(run, owner=owner)["state"]}

    def classify(picture: str, checkpoint: str) -> dict[str, Any]:
        """Classify a picture into the ten classes of a checkpoint.

        Args:
            picture: the picture file (JPEG, PNG, WEBP, GIF, BMP or TIFF); its center square is used.
            checkpoint: vgg16, resnet50 (shipped), or the id of a run.

        Returns:
            predictions [{label, score}], the highest score first, scores 0 to 1; unusual: the picture is unlike most
            validation images; unsure: the top score is lower than usual.
        """
        with sentences(picture):
            found, answer = classifier.answer(checkpoint or "", pixels_of(picture))
            return {"checkpoint": found.name, "model": found.model, **dataclasses.asdict(answer)}

    def explain(picture: str, checkpoint: str, label: str = "", stage: str = "") -> tuple[dict[str, Any], Image.Image]:
        """Show what a network makes of a picture, and what its answer rests on.

        Args:
            picture: as for classify.
            checkpoint: as for classify.
            label: the class to explain, for example cat; the network's answer if empty.
            stage: the feature maps for Grad-CAM, for example stage3 or stage3.conv2; if empty, the last of 4x4 or more.

        Returns:
            What classify returns, class, stage, grad_cam (rows of its map, 0 or more; all 0: no positive evidence),
            occlusion (4 rows of 4: how much the class's score falls when that part, 8x8 px, is grey) and maps (name,
            size [C,H,W], mean, largest, zeros: the fraction of values, dead: the number of channels). And a picture,
            from left to right: what the network sees, Grad-CAM, occlusion, the strongest maps of the stage.
        """
        with sentences(picture):
            found, network = classifier.load(checkpoint or "")
            report, pictures = explaining.explain(network, found, pixels_of(picture), label or "", stage or "")
            return report, pictures["overview"]

    def stages(model: str, input_size: int = 32) -> dict[str, Any]:
        """Return the size of every stage of a network: output C,H,W, stride, receptive field, parameters, MACs.

        Args:
            model: vgg16, resnet50 or resnet50_full.
            input_size: width and height of the input in pixels.

        Returns:
            model, input [C,H,W], parameters, macs (FLOPs = 2 x MACs) and stages, one entry each.
        """
        return sizes.to_dict(model, input_size, explained=True)

    for function in (start_run, run_status, stop_run, stages):
        api(sentences()(checked(function)), queue=False)
    inputs = [picture_file(visible=False), *(gr.Textbox(text, visible=False) for text in ("resnet50", "", ""))]
    outputs = [gr.JSON(visible=False), gr.Image(format="png", visible=False)]
    gr.Button(visible=False).click(classify, inputs[:2], outputs[0], api_name="classify", **CLASSIFY)
    gr.Button(visible=False).click(explain, inputs, outputs, api_name="explain", **CLASSIFY)

    async def execute(_: GradioMCPServer, job: Any) -> list[Any]:
        """Return the outputs of a tool one by one; Gradio itself makes one text of several, without their images."""
        result = await asyncio.to_thread(job.result)
        return list(result) if isinstance(result, (list, tuple)) else [result]

    GradioMCPServer._execute_tool_without_progress = execute  # type: ignore[assignment,method-assign]


def pixels_of(file: str | None) -> Tensor:
    """Return what a network sees of an uploaded picture. Raises InputError, DataError."""
    if not file:
        raise InputError("Give a picture.")
    return photo.to_input(photo.crop(photo.read_picture(Path(file))))
