"""The tree in the README: every file of the packages with the first line of its own docstring.

`make tree` writes it; `test_house_rules.py` checks that it is fresh.
"""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("services", "ppo_learner", "rollout_workers", "reward_server")
BLOCK = re.compile(r"(<!-- tree -->\n```\n)(.*?)(```)", re.DOTALL)
_PHRASE_COLUMN = 30


def tracked_files() -> list[Path]:
    """Files that git tracks or would track."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return sorted(ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file())


def render() -> str:
    """The tree, folders before their files, one line a file."""
    shown: list[str] = []
    folders: tuple[str, ...] = ()
    for path in _files():
        *parents, name = path.relative_to(ROOT).parts
        for depth in range(len(parents)):
            if tuple(parents[: depth + 1]) != folders[: depth + 1]:
                shown.append(f"{'  ' * depth}{parents[depth]}/")
        folders = tuple(parents)
        shown.append(f"{'  ' * len(parents) + name:{_PHRASE_COLUMN}} {_phrase(path)}")
    return "".join(f"{line}\n" for line in shown)


def _files() -> Iterator[Path]:
    for path in tracked_files():
        in_packages = path.relative_to(ROOT).parts[0] in PACKAGES
        if in_packages and path.name != "__init__.py" and "_pb2" not in path.name:
            yield path


def _phrase(path: Path) -> str:
    text = path.read_text()
    if path.suffix == ".py":
        line = (ast.get_docstring(ast.parse(text)) or "").split("\n")[0]
    else:
        line = re.sub(r"^\W+|\W*(-->|#})?$", "", text.split("\n")[0])
    return line.removesuffix(".")


def main() -> None:
    readme = ROOT / "README.md"
    readme.write_text(BLOCK.sub(lambda block: block[1] + render() + block[3], readme.read_text()))


if __name__ == "__main__":
    main()
