"""Trains on a rented machine: the command line's `train ... --on jobs`."""

from functools import partial

from .hub import Token, call_hub, parse_target, writer


def launch(hub: str, command: str, flavor: str, space: str, repo: str, token: Token) -> str:
    """Start a training command as a Hugging Face Job of the Space's code, which pushes its run; return its address."""
    space, repo, api = parse_target(space), parse_target(repo), writer(hub, token)
    steps = [
        "apt-get update -qq && apt-get install -qq -y git >/dev/null",
        f"git clone -q --depth 1 {hub}/spaces/{space} app",
        "cd app",
        "pip install -q -r requirements.txt huggingface_hub",
        f"{command} --json | tee ../result",
        f'python -m cnn_demo push $(tail -n1 ../result | grep -o \'"run_id": "[^"]*\' | cut -d\'"\' -f4) {repo}',
    ]
    run = partial(api.run_job, image="python:3.12", flavor=flavor, timeout="4h", secrets={"HF_TOKEN": token})
    run = partial(run, command=["bash", "-eo", "pipefail", "-c", "\n".join(steps)])
    otherwise = "The job may have started all the same: look at your jobs on the Hub before you try again."
    return str(call_hub(run, "starting the job", otherwise=otherwise).url)
