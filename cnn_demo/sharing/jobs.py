"""Trains on a rented machine: the command line's `train ... --on jobs`."""

from functools import partial

from ..errors import InputError
from ..networks.catalog import NETWORKS
from ..runs.files import WEIGHTS
from ..training.config import RunConfig
from .hub import Token, call_hub, parse_target, writer

USE_GPU = "import torch; torch.ones(1).cuda().exp().item()"
NO_GPU = "PyTorch cannot use a GPU on this machine, so nothing was trained; choose another --flavor."


def launch(hub: str, config: RunConfig, flavor: str, space: str, repo: str, token: Token) -> str:
    """Start a Hugging Face Job of the Space's code, which pushes its run; return its address. Raises InputError."""
    space, repo, api = parse_target(space), parse_target(repo), writer(hub, token)
    found = {file.rfilename for file in call_hub(lambda: api.space_info(space), f"reading {space}").siblings or []}
    needed = f"checkpoints/{config.start_from}/{WEIGHTS}" if config.start_from in NETWORKS else "cnn_demo/cli.py"
    if needed not in found:
        raise InputError(f"{space} has no {needed}. Upload this program first: python -m cnn_demo space {space}")
    call_hub(lambda: api.create_repo(repo, exist_ok=True), f"creating {repo}")
    steps = [
        "pip install -q huggingface_hub",
        f"hf download {space} --repo-type space --local-dir app --quiet",  # with the token, and whole weights
        "cd app && pip install -q -r requirements.txt",
        *([] if flavor.startswith("cpu") else [f"python -c '{USE_GPU}' || {{ echo '{NO_GPU}'; exit 1; }}"]),
        f"{config.to_command()} --dataset {config.dataset} --json | tee ../result",  # named, shapes do not replace it
        f'python -m cnn_demo push $(tail -n1 ../result | grep -o \'"run_id": "[^"]*\' | cut -d\'"\' -f4) {repo}',
    ]
    run = partial(api.run_job, image="python:3.12", flavor=flavor, timeout="4h", secrets={"HF_TOKEN": token})
    run = partial(run, command=["bash", "-eo", "pipefail", "-c", "\n".join(steps)], env={"HF_ENDPOINT": hub})
    otherwise = "The job may have started all the same: look at your jobs on the Hub before you try again."
    return str(call_hub(run, "starting the job", otherwise=otherwise).url)
