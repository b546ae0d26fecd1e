"""Scripts without a guard, standard input, notebooks; and what is left when they are ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from exadask.runtime.limits import marked
from exadask.testing.waiting import eventually

SCRIPT = """
import sys
from pathlib import Path
import exadask as xd

with Path("imported").open("a") as log:
    log.write("once\\n")

class Molecule:
    def __init__(self, name):
        self.name = name

class NotConverged(Exception):
    pass

@xd.task
def relax(name):
    return Molecule(name)

def fail():
    raise NotConverged("after 500 steps")

with xd.Executor() as ex:
    water = relax.submit("H2O").result()
    print(type(water) is Molecule, water.name)
    try:
        ex.submit(fail).result()
    except NotConverged as error:
        print("caught", error)
    print(sum(future.result() for future in [ex.submit(lambda x: x + 1, n) for n in range(3)]))
"""
EXPECTED = ["True H2O", "caught after 500 steps", "6"]

ENDLESS = """
import signal, subprocess, sys
import exadask as xd

signal.signal(signal.SIGINT, signal.default_int_handler)  # even where it was ignored

def sleep_with_company(name):
    subprocess.Popen(["sleep", "600"])
    open(name, "w").close()
    subprocess.run(["sleep", "600"])

with xd.Executor() as ex:
    futures = [ex.submit(sleep_with_company, f"started-{n}") for n in range(2)]
    for future in futures:
        future.result()
"""


def run(argv: list[str], cwd: Path, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *argv],
        cwd=cwd,
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("way", ["file", "stdin", "-c"])
def test_script_without_a_guard(tmp_path: Path, way: str) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    argv = {"file": ["script.py"], "stdin": ["-"], "-c": ["-c", SCRIPT]}[way]
    ended = run(argv, tmp_path, SCRIPT if way == "stdin" else "")
    assert ended.stderr == ""
    assert ended.stdout.splitlines() == EXPECTED
    assert (tmp_path / "imported").read_text() == "once\n"


def test_prompt(tmp_path: Path) -> None:
    lines = "import exadask as xd\nex = xd.Executor()\ndef f(x): return x + 1\n\n"
    lines += "print('result', ex.submit(f, 1).result())\nex\nex.shutdown()\nexit()\n"
    ended = run(["-i", "-q"], tmp_path, lines)
    assert "result 2" in ended.stdout
    assert "<Executor: node-0: " in ended.stdout
    assert ended.returncode == 0


def test_module_beside_the_script_is_importable_in_tasks(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("def f(x):\n    return x * 2\n")
    (tmp_path / "script.py").write_text(
        "import beside, exadask\n"
        "with exadask.Executor() as ex:\n    print(ex.submit(beside.f, 21).result())\n"
    )
    away = tmp_path / "away"
    away.mkdir()
    ended = run([str(tmp_path / "script.py")], away)
    assert (ended.stdout, ended.stderr) == ("42\n", "")


def test_remote_traceback_shows_the_users_code_and_not_ours(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import exadask\n\ndef inner(x):\n    return 1 / x\n\n"
        "def outer(x):\n    return inner(x)\n\n"
        "with exadask.Executor() as ex:\n    ex.submit(outer, 0).result()\n"
    )
    ended = run(["script.py"], tmp_path)
    remote = ended.stderr.partition("The above exception was the direct cause")[0]
    assert "in outer" in remote
    assert "in inner" in remote
    assert "exadask/runtime" not in remote
    assert ended.stderr.strip().endswith("ZeroDivisionError: division by zero")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_script_that_is_ended(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "script.py").write_text(ENDLESS)
    with subprocess.Popen(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as script:
        eventually(lambda: (tmp_path / "started-0").exists())
        assert marked(f"{script.pid}-")
        os.kill(script.pid, number)
        _, errors = script.communicate(timeout=30)
    if number == signal.SIGINT:
        assert b"KeyboardInterrupt" in errors
    eventually(lambda: not marked(f"{script.pid}-"))
    left = f"exadask-{script.pid}-*"
    eventually(lambda: not list(Path(tempfile.gettempdir()).glob(left)))


def test_notebook(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="notebooks need nbformat")
    nbclient = pytest.importorskip("nbclient", reason="notebooks need nbclient")
    cells = [
        "import exadask as xd\nex = xd.Executor()\nex",
        "class Point:\n    def __init__(self, x):\n        self.x = x\n"
        "@xd.task\ndef double(p):\n    return Point(2 * p.x)",
        "futures = double.map([Point(n) for n in range(3)], progress=True)\n"
        "print([f.result().x for f in futures])",
        "futures[0]",
        "await futures[1]",
        "ex.shutdown()",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(one) for one in cells])
    nbclient.NotebookClient(
        notebook, timeout=60, resources={"metadata": {"path": tmp_path}}
    ).execute()
    outputs = [cell.outputs for cell in notebook.cells]
    assert "<table>" in outputs[0][0]["data"]["text/html"]
    assert "[0, 2, 4]" in "".join(one.get("text", "") for one in outputs[2])
    assert any("of 3" in one.get("data", {}).get("text/html", "") for one in outputs[2])
    assert "finished" in outputs[3][0]["data"]["text/html"]
