"""Starts CNN Demo's page: settings from the environment, build, launch. A Space runs this file."""

import signal
import sys

from cnn_demo import settings
from cnn_demo.errors import InputError
from cnn_demo.terminal import say

try:
    settings.prepare_environment()  # before torch, gradio and huggingface_hub are imported
    if settings.read_rank().size > 1:
        raise InputError("The page is one process: start it with python app.py, and torchrun for -m cnn_demo train.")
except InputError as error:
    say(f"cnn_demo: {error}")
    sys.exit(error.exit_code)

from cnn_demo.runs.service import Service
from cnn_demo.ui.app import build, launch_options
from cnn_demo.ui.visitors import keep_uploads_clean

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    where = settings.read()
    keep_uploads_clean(where.cache / settings.UPLOADS)
    service = Service(where)
    service.data.prepare()
    try:
        build(service).launch(**launch_options())
    finally:
        service.close()  # an active run stops and can be continued
