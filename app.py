"""Starts CNN Demo's page: settings from the environment, build, launch. A Space runs this file."""

from cnn_demo import settings
from cnn_demo.service import Service
from cnn_demo.ui.app import build, launch_options

if __name__ == "__main__":
    service = Service(settings.read())
    service.prepare()
    try:
        build(service).launch(**launch_options())
    finally:
        service.close()  # a run that is active stops and can be continued
