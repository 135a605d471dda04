"""What the tests of sharing use together."""

from __future__ import annotations

from cnn_demo.runs.folder import Run
from cnn_demo.sharing import hub
from tests.hub_server import HubServer

ADA = "ada-token"
EVALUATED = {
    **{"classes": ["a", "b"], "confusion": [[9, 1], [2, 8]], "mistakes": [], "accuracy": 0.85, "accuracy_flip": 0.86},
    **{"pictures": 20, "validation_pictures": 20, "temperature": 2.0, "limits": [-1.0, 0.3]},
    **{"ece_before": 0.07, "ece_after": 0.02},
}


def quiet(text: str, share: float) -> None:
    """A report that is not shown."""
    assert 0 <= share <= 1, text


def push(run: Run, server: HubServer, repo: str = "ada/net", token: hub.Token = ADA) -> str:
    return hub.push(run, server.url, repo, token, False, quiet)


def curve(run: Run) -> list[tuple[int, float | None]]:
    """Return the steps and losses of a run."""
    return [(point.step, point.loss) for point in run.history().curve]
