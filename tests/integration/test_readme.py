"""The code of the README runs as it is pasted."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[2]


def test_ten_lines_of_the_readme_run(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (_ROOT / "README.md").read_text(), re.DOTALL)
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == f"{3.14159 * sum(n**2 for n in range(100))} {3.14159 * 4}\n"


def test_links_of_the_documents_lead_somewhere() -> None:
    documents = [_ROOT / "README.md", *(_ROOT / "docs").glob("*.md")]
    for document in documents:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_commands_of_the_readme_are_there() -> None:
    commands = re.findall(r"^(ci/\w+)", (_ROOT / "README.md").read_text(), re.MULTILINE)
    assert commands == ["ci/demo", "ci/test"]
    assert all((_ROOT / command).stat().st_mode & 0o111 for command in commands)
