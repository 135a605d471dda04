"""Rules of the repository: who imports whom, how long files are, what is pinned, what the README names."""

import ast
import re
from pathlib import Path

import pytest
import yaml

from cnn_demo.cli import build_parser

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "cnn_demo"
# A folder may import those after it; modules of one folder may import each other, without a cycle.
ORDER = ["__main__", "cli", "terminal", "ui", "sharing", "answers", "runs", "training", "pictures", "networks"]
ORDER += ["settings", "errors"]
APART = {"pictures": "networks", "networks": "pictures"}  # these do not import each other
ALLOWED = {  # package -> where it may be imported
    "huggingface_hub": ("sharing", "pictures/cifar10"),
    "spaces": ("runs/zero",),
    "gradio": ("ui",),
    "plotly": ("ui",),
    "argparse": ("cli",),
}
LIGHT = {"__main__", "cli", "terminal", "settings", "errors", "networks/catalog", "pictures/catalog"}
LIGHT |= {"training/config", "training/events", "runs/history"}
HEAVY = {"torch", "torchvision", "PIL", "safetensors", "gradio", "huggingface_hub"}
LONGEST_FILE, LONGEST_CLASS, LONGEST_LINE = 400, 250, 120


def name_of(path: Path) -> str:
    """Return a module's name as `folder/module`."""
    return str(path.relative_to(PACKAGE).with_suffix(""))


MODULES = {name_of(path): path for path in PACKAGE.rglob("*.py") if path.stem != "__init__"}


def imports(path: Path, everywhere: bool = True) -> set[str]:
    """Return what a module imports: `folder/module` for its own package, else the first part of the name.

    everywhere: inside functions, too.
    """
    tree = ast.parse(path.read_text())
    found = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            folder = path.parents[node.level - 1] / (node.module or "").replace(".", "/")
            names = [folder / alias.name for alias in node.names] if folder.is_dir() else [folder]
            found |= {str(name.relative_to(PACKAGE)) for name in names}
    return found


def test_folders_import_only_those_below_them() -> None:
    assert {name.split("/")[0] for name in MODULES} == set(ORDER)
    for name, path in MODULES.items():
        place = name.split("/")[0]
        allowed = {place, *ORDER[ORDER.index(place) + 1 :]} - {APART.get(place)}
        own = {found.split("/")[0] for found in imports(path) if found in MODULES}
        assert own <= allowed, name


def test_imports_have_no_cycle() -> None:
    arrows = {name: imports(path) & set(MODULES) for name, path in MODULES.items()}

    def reach(name: str, seen: tuple[str, ...]) -> None:
        assert name not in seen, seen
        for other in arrows[name]:
            reach(other, (*seen, name))

    for name in MODULES:
        reach(name, ())


def test_outside_packages_are_imported_only_where_allowed() -> None:
    for name, path in MODULES.items():
        found = imports(path)
        for package, places in ALLOWED.items():
            assert package not in found or name.startswith(places), name


def test_only_settings_reads_the_environment() -> None:
    for name, path in MODULES.items():
        assert name == "settings" or not re.search(r"os\.(environ|getenv)", path.read_text()), name


def light(name: str, seen: set[str]) -> set[str]:
    """Return the packages that load slowly among those that are loaded with a module."""
    if name in seen:
        return set()
    seen.add(name)
    found = imports(MODULES[name], everywhere=False)
    return (found & HEAVY).union(*(light(other, seen) for other in found & set(MODULES)))


@pytest.mark.parametrize("name", sorted(LIGHT))
def test_help_errors_and_logs_load_no_slow_package(name: str) -> None:
    assert light(name, set()) == set()


def test_nothing_unpickles() -> None:
    for path in [*PACKAGE.rglob("*.py"), ROOT / "app.py"]:
        assert not re.search(r"torch\.load|pickle\.load|Unpickler|allow_pickle", path.read_text()), path.name


def lines_of(*patterns: str) -> dict[str, list[str]]:
    """Return the lines of the product's and the tests' files."""
    paths = [path for pattern in patterns for folder in (PACKAGE, ROOT / "tests") for path in folder.rglob(pattern)]
    return {str(path.relative_to(ROOT)): path.read_text().splitlines() for path in paths}


def test_files_and_classes_are_short() -> None:
    files = lines_of("*.py", "*.js", "*.css")
    assert len(files) > 80
    assert {name: len(lines) for name, lines in files.items() if len(lines) > LONGEST_FILE} == {}
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                assert node.end_lineno - node.lineno < LONGEST_CLASS, f"{name}: {node.name}"


def test_lines_of_javascript_are_short() -> None:
    files = lines_of("*.js")
    assert len(files) > 3
    long = [
        f"{name}:{i}" for name, lines in files.items() for i, line in enumerate(lines, 1) if len(line) > LONGEST_LINE
    ]
    assert long == []


def test_requirements_are_pinned_and_complete() -> None:
    pins = {}
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        name, version = re.fullmatch(r"([a-z_-]+)(?:\[[a-z,]+\])?==([\d.]+)", line).groups()
        pins[name] = version
    assert pins["torch"] == "2.11.0" and pins["torchvision"] == "0.26.0" and pins["gradio"] == "6.31.0"
    names = {"PIL": "pillow", "huggingface_hub": "huggingface-hub"}
    used = set().union(*(imports(path) for path in [*PACKAGE.rglob("*.py"), ROOT / "app.py"]))
    standard = set(__import__("sys").stdlib_module_names)
    outside = used - set(MODULES) - {"cnn_demo"} - standard - {"spaces"}  # a Space installs it
    assert {names.get(name, name) for name in outside} <= set(pins)


def test_readme_names_only_what_exists() -> None:
    readme = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"\bmake ([a-z]+)", readme)) <= targets
    commands = re.findall(r"-m cnn_demo ([a-z]+ .*)$", readme, re.M)
    assert len(commands) >= 5
    for command in commands:
        build_parser().parse_args(command.split("  #")[0].split())
    for path in re.findall(r"`((?:cnn_demo|tests|checkpoints)/[\w./]*)`", readme):
        assert (ROOT / path).exists(), path


def test_front_matter_of_the_readme_suits_a_space() -> None:
    front = yaml.safe_load((ROOT / "README.md").read_text().split("---\n")[1])
    pins = dict(line.split("==") for line in (ROOT / "requirements.txt").read_text().split())
    assert front["sdk"] == "gradio" and front["sdk_version"] == pins["gradio[mcp,oauth]"]
    assert front["python_version"] in ("3.10", "3.12") and (ROOT / front["app_file"]).is_file()  # those of ZeroGPU
    assert pins["torch"] in ("2.8.0", "2.9.1", "2.10.0", "2.11.0")
    assert 0 < len(front["short_description"]) <= 60
    colours = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {front["colorFrom"], front["colorTo"]} <= colours and len(front["emoji"]) == 1
    assert front["hf_oauth"] is True and front["hf_oauth_scopes"] == ["contribute-repos"]
    assert front["datasets"] == ["uoft-cs/cifar10"] and front["license"] == "mit"
    assert set(front) >= {"title", "models", "tags"}


def test_tools_check_for_the_oldest_python() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    for line in ('target-version = "py310"', 'python_version = "3.10"', 'requires-python = ">=3.10,<3.13"'):
        assert f"\n{line}\n" in project


@pytest.mark.parametrize("name", ["app.py", "LICENSE", "Makefile", "requirements.txt", "pyproject.toml", ".gitignore"])
def test_top_level_files_exist(name: str) -> None:
    assert (ROOT / name).is_file()


def test_ci_runs_what_people_run() -> None:
    commands = [line for line in (ROOT / ".ci/run").read_text().splitlines() if not line.startswith(("#", "set", "cd"))]
    assert commands == ["make check test"]
