"""Starts CNN Demo's page: settings from the environment, build, launch. A Space runs this file."""

from cnn_demo import settings

settings.share_cores()  # before torch is imported

from cnn_demo.runs.service import Service  # noqa: E402
from cnn_demo.ui.app import build, launch_options  # noqa: E402

if __name__ == "__main__":
    service = Service(settings.read())
    service.prepare()
    try:
        build(service).launch(**launch_options())
    finally:
        service.close()  # a run that is active stops and can be continued
