"""Starts CNN Demo's page: settings from the environment, build, launch. A Space runs this file."""

import signal

from cnn_demo import settings

settings.prepare_environment()  # before torch, gradio and huggingface_hub are imported

from cnn_demo.runs.service import Service  # noqa: E402
from cnn_demo.ui.app import build, launch_options  # noqa: E402
from cnn_demo.ui.visitors import keep_uploads_clean  # noqa: E402

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
