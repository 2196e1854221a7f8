"""Print the project's tree with one line per file, from the files themselves; `--write` puts it into ARCHITECTURE.md.

    python tools/architecture_tree.py [--write | --check]

The line of a Python file is the first sentence of its docstring, that of any other file its first comment.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHOWN = ("pipeline", "preprocess", "launch", "configs", "benchmarks", "tools")
BEGIN, END = "<!-- tree: begin, written by tools/architecture_tree.py -->", "<!-- tree: end -->"


def first_line(path: Path) -> str:
    """What a file says of itself in its first sentence; empty where it says nothing."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        docstring = ast.get_docstring(ast.parse(text)) or ""
        text = docstring.split("\n\n")[0]
    elif path.suffix in (".yaml", ".sh"):
        comments = re.match(r"(?:#!.*\n)?((?:#.*\n)+)", text)
        text = re.sub(r"^# ?", "", comments[1], flags=re.MULTILINE) if comments else ""
    elif path.suffix == ".md":
        text = text.splitlines()[0].lstrip("# ") if text else ""
    else:
        text = ""
    sentence = re.split(r"(?<=[.]) ", " ".join(text.split()))[0]
    return sentence.rstrip(".:;")


def tree_lines() -> list[str]:
    """The tree, a folder at a time, in the order of SHOWN."""
    tracked = subprocess.run(["git", "ls-files", *SHOWN], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines: list[str] = []
    previous: Path | None = None
    for name in sorted(
        tracked.splitlines(), key=lambda name: (SHOWN.index(name.split("/")[0]), str(Path(name).parent), name)
    ):
        path = Path(name)
        if path.name == "__init__.py" or not (ROOT / path).is_file():
            continue
        if path.parent != previous:
            package = ROOT / path.parent / "__init__.py"
            about = first_line(package) if package.exists() else ""
            lines.append(f"{path.parent}/".ljust(32) + about)
            previous = path.parent
        lines.append(f"  {path.name}".ljust(32) + first_line(ROOT / path))
    return [line.rstrip() for line in lines]


def main(argv: list[str]) -> int:
    """Print, write or check the tree; exit code 1 when ARCHITECTURE.md is behind."""
    block = "\n".join([BEGIN, "```", *tree_lines(), "```", END])
    document = ROOT / "ARCHITECTURE.md"
    text = document.read_text(encoding="utf-8")
    updated = re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: block, text, flags=re.DOTALL)
    if "--write" in argv:
        document.write_text(updated, encoding="utf-8")
    elif "--check" in argv:
        if updated != text:
            print("the tree in ARCHITECTURE.md is behind; run: make format", file=sys.stderr)
            return 1
    else:
        print(block)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
