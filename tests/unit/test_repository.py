"""What the repository promises about itself: who imports whom, what is pinned, what the README names."""

import ast
import re
from pathlib import Path

import pytest
import yaml

from cnn_demo.cli import build_parser

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "cnn_demo"
# A module may import those behind it.
ORDER = [
    *(
        "__main__",
        "cli",
        "bench",
        "service",
        "gpu",
        "hub",
        "card",
        "evaluation",
        "runs",
        "training",
        "distributed",
        "optimizers",
        "inference",
        "stages",
        "checkpoints",
        "models",
    ),
    *("data", "settings", "history", "events", "config", "errors"),
]
OWN = {"hub": {"huggingface_hub"}, "gpu": {"spaces"}}  # who alone may import it
LIGHT = {"cli", "config", "errors", "events", "history", "settings", "__main__", "__init__"}


def imports(path: Path, everywhere: bool) -> set[str]:
    """Return the imported module names; `.x` for the package's own. `everywhere`: also inside functions."""
    tree = ast.parse(path.read_text())
    found = set()
    nodes = ast.walk(tree) if everywhere else tree.body
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            found |= {f".{node.module}"} if node.module else {f".{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0])
    return found


def test_every_module_has_its_place_and_imports_only_downwards() -> None:
    modules = {path.stem: path for path in PACKAGE.glob("*.py") if path.stem != "__init__"}
    assert set(modules) == set(ORDER)
    for name, path in modules.items():
        own = {found[1:] for found in imports(path, everywhere=True) if found.startswith(".")}
        assert own <= set(ORDER[ORDER.index(name) + 1 :]), name


def test_nothing_imports_the_page_but_what_starts_it() -> None:
    for path in PACKAGE.glob("*.py"):
        assert not any(name.startswith(".ui") for name in imports(path, everywhere=True)), path.name
    for path in (PACKAGE / "ui").glob("*.py"):
        assert "os.environ" not in path.read_text() and "argparse" not in imports(path, everywhere=True), path.name


def test_only_the_right_modules_know_heavy_or_outside_things() -> None:
    for path in PACKAGE.glob("*.py"):
        found = imports(path, everywhere=True)
        outside = {"gradio", "plotly", "huggingface_hub", "spaces"} - OWN.get(path.stem, set())
        assert not found & outside, path.name
        if path.stem in LIGHT:
            assert not imports(path, everywhere=False) & {"torch", "torchvision", "PIL", "safetensors"}, path.name
        assert path.stem == "settings" or "os.environ" not in path.read_text(), path.name
        assert path.stem == "cli" or "argparse" not in found, path.name


def test_nothing_unpickles() -> None:
    for path in [*PACKAGE.rglob("*.py"), ROOT / "app.py"]:
        assert not re.search(r"torch\.load|pickle\.load|Unpickler|allow_pickle", path.read_text()), path.name


def test_requirements_are_pinned_and_complete() -> None:
    pins = {}
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        name, version = re.fullmatch(r"([a-z_-]+)(?:\[[a-z,]+\])?==([\d.]+)", line).groups()
        pins[name] = version
    assert pins["torch"] == "2.11.0" and pins["torchvision"] == "0.26.0" and pins["gradio"] == "6.31.0"
    names = {"PIL": "pillow", "huggingface_hub": "huggingface-hub"}
    used = set().union(*(imports(path, everywhere=True) for path in [*PACKAGE.rglob("*.py"), ROOT / "app.py"]))
    standard = set(__import__("sys").stdlib_module_names)
    outside = (
        {name for name in used if not name.startswith(".")} - standard - {"cnn_demo", "spaces"}
    )  # a Space brings it
    assert {names.get(name, name) for name in outside} <= set(pins)


def test_the_readme_names_only_what_exists() -> None:
    readme = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"\bmake ([a-z]+)", readme)) <= targets
    commands = re.findall(r"-m cnn_demo ([a-z]+ .*)$", readme, re.M)
    assert len(commands) >= 5
    for command in commands:
        build_parser().parse_args(command.split("  #")[0].split())
    for path in re.findall(r"`((?:cnn_demo|tests|checkpoints)/[\w./]*)`", readme):
        assert (ROOT / path).exists(), path


def test_a_space_can_be_made_of_the_repository() -> None:
    front = yaml.safe_load((ROOT / "README.md").read_text().split("---\n")[1])
    pins = dict(line.split("==") for line in (ROOT / "requirements.txt").read_text().split())
    assert front["sdk"] == "gradio" and front["sdk_version"] == pins["gradio[oauth,mcp]"]
    assert front["python_version"] in ("3.10", "3.12") and (ROOT / front["app_file"]).is_file()  # those of ZeroGPU
    assert pins["torch"] in ("2.8.0", "2.9.1", "2.10.0", "2.11.0")
    assert 0 < len(front["short_description"]) <= 60
    colours = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {front["colorFrom"], front["colorTo"]} <= colours and len(front["emoji"]) == 1
    assert front["hf_oauth"] is True and front["hf_oauth_scopes"] == ["contribute-repos"]
    assert front["datasets"] == ["uoft-cs/cifar10"] and front["license"] == "mit"
    assert set(front) >= {"title", "models", "tags"}


def test_the_tools_are_configured_for_the_oldest_python() -> None:
    settings = (ROOT / "pyproject.toml").read_text()
    assert 'target-version = "py310"' in settings and 'python_version = "3.10"' in settings


@pytest.mark.parametrize("name", ["app.py", "LICENSE", "Makefile", "requirements.txt", ".gitignore", ".ci/run"])
def test_the_top_level_is_whole(name: str) -> None:
    assert (ROOT / name).is_file()
