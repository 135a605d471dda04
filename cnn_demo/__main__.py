"""`python -m cnn_demo`, and `cnn-demo` where the package is installed."""

import sys

from .cli import main as run

if __name__ == "__main__":
    sys.exit(run())
