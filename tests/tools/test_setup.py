"""Set-up stays whole: the lock is complete and pinned, the image follows the script, nothing is installed unlisted."""

import re
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def locked_names() -> set[str]:
    text = (ROOT / "requirements.lock").read_text()
    return {name.lower() for name in re.findall(r"^([A-Za-z0-9._-]+)==", text, flags=re.MULTILINE)}


def test_every_declared_dependency_is_locked_with_hashes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = project["dependencies"] + [d for group in project["optional-dependencies"].values() for d in group]
    names = {re.split(r"[^A-Za-z0-9._-]", item)[0].lower().replace("_", "-") for item in declared}
    assert names <= locked_names()
    text = (ROOT / "requirements.lock").read_text()
    for block in re.split(r"\n(?=\S)", text):
        if "==" in block.splitlines()[0] and not block.startswith(" "):
            assert "--hash=sha256:" in block, block.splitlines()[0]


def test_lock_names_no_index() -> None:
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text and "--index" not in text and "--find-links" not in text


def test_image_installs_what_the_script_wants_and_runs_the_script() -> None:
    script, image = (ROOT / "tools/setup.sh").read_text(), (ROOT / "Dockerfile").read_text()
    wanted = set(re.findall(r"wanted\+=\(([a-z0-9+-]+)\)", script)) - {"python3-venv"}
    assert wanted and all(package in image for package in wanted)
    assert "bash tools/setup.sh" in image
    copied = {path for line in re.findall(r"^COPY (.*)$", image, flags=re.MULTILINE) for path in line.split()[:-1]}
    for path in copied:
        assert (ROOT / path).exists(), f"Dockerfile copies {path}, which is not there"


def test_scripts_parse() -> None:
    for script in [*sorted((ROOT / "tools").glob("*.sh")), ROOT / ".ci/run"]:
        assert subprocess.run(["bash", "-n", script]).returncode == 0


def test_wrong_python_is_refused_in_one_line() -> None:
    script = str(ROOT / "tools/setup.sh")
    done = subprocess.run(
        ["bash", script], env={"PATH": "/usr/bin:/bin", "PYTHON": "false"}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: no Python 3.11 in false") and done.stderr.count("\n") == 1
