"""What programs may call, over HTTP (gradio_client) and as MCP tools: five endpoints, all else is private."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.events import api

from ..answers import inference
from ..answers.inference import Classifier
from ..errors import CnnDemoError
from ..networks import stages as sizes
from ..runs.service import Service
from ..training import config as configs
from .classify import as_file


def build(service: Service, classifier: Classifier) -> None:
    """Add the endpoints to the page that is being built."""

    def start_run(model: str, recipe: dict[str, Any], owner: str) -> dict[str, Any]:
        """Start training a network and return at once; ask run_status how it goes.

        Args:
            model: vgg16, resnet50 or resnet50_full.
            recipe: settings that differ from the usual ones, for example {"seconds": 60} or {"epochs": 5,
                "optimizer": "sgd", "learning_rate": 0.1}; {} trains for 60 seconds.
            owner: a secret text of your own; whoever knows it can stop the run. One active run per owner.

        Returns:
            {"run": the run's id}.
        """
        with sentences():
            config = configs.override(configs.preset("quick", model), recipe)
            if "validation_pictures" not in recipe:
                config = service.hold_out(config)
            return {"run": service.submit(config, owner)}

    def run_status(run: str, after: int = -1, owner: str = "") -> dict[str, Any]:
        """Tell how a run goes, and what is new since the event number `after`.

        Args:
            run: the run's id.
            after: the "seq" of your last answer; -1 for everything.
            owner: the secret given to start_run; without it you watch.

        Returns:
            state (queued, preparing, training, validating, testing, stopping, finished, stopped, diverged, failed,
            interrupted), text (the same in words), share (0 to 1), points [step, loss, lowest, highest, learning rate],
            epochs [step, epoch, training loss, validation loss, validation accuracy, is best], seq, and at the end
            "end" with the test accuracy (0 to 1). Loss in nats.
        """
        with sentences():
            return service.watch(run, after, owner)

    def stop_run(run: str, owner: str) -> dict[str, Any]:
        """Stop a run and keep its best weights; one that waits leaves the queue.

        Args:
            run: the run's id.
            owner: the secret given to start_run.

        Returns:
            {"state": the run's state now}.
        """
        with sentences():
            service.stop(run, owner)
            return {"state": service.watch(run, owner=owner)["state"]}

    def classify(picture: str, checkpoint: str) -> dict[str, Any]:
        """Classify a picture into the ten classes that a checkpoint knows.

        Args:
            picture: the picture file (JPEG, PNG, WEBP, GIF, BMP or TIFF); its centre square is used.
            checkpoint: vgg16, resnet50 (shipped), or a run's id.

        Returns:
            predictions [{label, score}], the likeliest first, scores 0 to 1; unusual: the picture is unlike those the
            checkpoint was tried on; unsure: its top score is lower than usual.
        """
        with sentences():
            if not picture:
                raise gr.Error("Give a picture.", print_exception=False)
            square = inference.crop(inference.read_picture(Path(picture)))
            found, answer = classifier.answer(checkpoint, square)
            return {"checkpoint": found.name, "model": found.model, **dataclasses.asdict(answer)}

    def stages(model: str, input_size: int = 32) -> dict[str, Any]:
        """Return the size of every stage of a network: output C,H,W, stride, receptive field, parameters, MACs.

        Args:
            model: vgg16, resnet50 or resnet50_full.
            input_size: width and height of the picture in pixels.

        Returns:
            model, input [C,H,W], parameters, macs (FLOPs = 2 x MACs) and a row for each stage.
        """
        with sentences():
            return sizes.to_dict(model, input_size, explained=True)

    for function in (start_run, run_status, stop_run, stages):
        api(function, queue=False)
    picture = gr.Image(type="filepath", image_mode=None, visible=False)
    as_file(picture)
    checkpoint = gr.Textbox("resnet50", visible=False)
    gr.Button(visible=False).click(
        classify,
        [picture, checkpoint],
        gr.JSON(visible=False),
        api_name="classify",
        concurrency_limit=4,
        concurrency_id="classify",
    )


@contextlib.contextmanager
def sentences() -> Iterator[None]:
    """Turn our errors into what a client of Gradio shows as a sentence."""
    try:
        yield
    except CnnDemoError as error:
        raise gr.Error(str(error), print_exception=False) from error
