"""The page's scripts and style sheet: short enough to read, complete, and named once."""

import re
from pathlib import Path

import pytest

from cnn_demo.ui import app

FOLDER = Path(app.__file__).parent
FILES = sorted([*FOLDER.glob("*.js"), *FOLDER.glob("*.css")])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_files_and_lines_are_short(file: Path) -> None:
    lines = file.read_text().splitlines()
    assert len(lines) <= 400
    assert [number for number, line in enumerate(lines, 1) if len(line) > 120] == []


def test_every_script_is_in_the_head_once() -> None:
    assert sorted(app.SCRIPTS) == [file.name for file in FILES if file.suffix == ".js"]
    head = app.launch_options()["head"]
    assert head.count("<script>") == head.count("</script>") == len(app.SCRIPTS)


def test_rows_of_the_server_are_read_by_name() -> None:
    """Only run_state.js knows that points and epochs come as rows; drawing code uses no position such as p[3]."""
    for file in FILES:
        if file.name != "run_state.js":
            assert not re.search(r"\b(p|e|point|epoch|row)\[\d\]", file.read_text()), file.name


def test_scripts_define_each_name_once() -> None:
    names = [
        name for script in app.SCRIPTS for name in re.findall(r"^cnnDemo\.(\w+) =", (FOLDER / script).read_text(), re.M)
    ]
    assert len(names) > 20 and len(names) == len(set(names))
