"""Starts CNN Demo's page: settings from the environment, build, launch. A Space runs this file.

For now the page says what the command line can do already; training and classifying in the browser are not here yet.
"""

import gradio as gr

TEXT = """
# CNN Demo

Train VGG16 or ResNet50 on CIFAR-10, watch it learn, classify a picture with it.

**This page is not built yet.** All of it works from a terminal, in this folder:

    .venv/bin/python -m cnn_demo stages vgg16
    .venv/bin/python -m cnn_demo train resnet50 --seconds 60
    .venv/bin/python -m cnn_demo classify PICTURE
"""


def build() -> gr.Blocks:
    """Return the page."""
    with gr.Blocks(title="CNN Demo", analytics_enabled=False) as page:
        gr.Markdown(TEXT)
    return page


if __name__ == "__main__":
    build().launch(ssr_mode=False)
