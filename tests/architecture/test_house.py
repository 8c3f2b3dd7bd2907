"""The house stays as README.md and the import table say: links, layers, no torch where none is promised, docs that exist."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("policies", "envs", "datasets", "deploy", "agents", "configs")
MAY_IMPORT = {
    "datasets": set(),
    "envs": set(),
    "policies": {"datasets", "envs"},
    "deploy": {"policies", "datasets"},
    "agents": {"deploy", "envs", "policies", "datasets"},
}
# A robot to test against, simulated in a process of its own.
MAY_ALSO_IMPORT = {"deploy/ros2/simulated_base.py": {"envs"}}
# Root modules that load nothing heavy, and what they may load.
LIGHT = {"argparse", "jaxtyping", "numpy", "yaml", "tyro", "kineflow"} | set(sys.stdlib_module_names)


def python_files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imports(file: Path, *, top_level_only: bool = False) -> Iterator[str]:
    tree = ast.parse(file.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield node.module or ""


def folder_of(module: str) -> str | None:
    match = re.match(r"kineflow\.(\w+)", module)
    return match.group(1) if match and match.group(1) in FOLDERS else None


@pytest.mark.parametrize("folder", FOLDERS)
def test_one_name_through_relative_links(folder: str) -> None:
    link = ROOT / "kineflow" / folder
    assert link.is_symlink()
    assert str(link.readlink()) == f"../{folder}"
    assert not (ROOT / folder / "__init__.py").exists(), "would shadow other packages of that name"


@pytest.mark.parametrize("folder", FOLDERS)
def test_clean_clone_has_every_folder(folder: str) -> None:
    """git keeps no empty folders, and a link into nothing is an import error."""
    tracked = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert tracked.strip()


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_nothing_imports_upward(folder: str) -> None:
    wrong = [
        f"{file.relative_to(ROOT)} imports {module}"
        for file in python_files(folder)
        for module in imports(file)
        if (target := folder_of(module))
        and target not in MAY_IMPORT[folder] | {folder} | MAY_ALSO_IMPORT.get(str(file.relative_to(ROOT)), set())
    ]
    assert wrong == []


def test_only_absolute_imports_by_the_one_name() -> None:
    bare = re.compile(rf"^({'|'.join(FOLDERS)})(\.|$)")
    wrong = [
        f"{file.relative_to(ROOT)} imports {module}"
        for folder in (*FOLDERS, "kineflow", "tests")
        for file in python_files(folder)
        for module in imports(file)
        if bare.match(module)
    ]
    assert wrong == []


def test_no_import_circles() -> None:
    graph: dict[str, set[str]] = {}
    for folder in MAY_IMPORT:
        for file in python_files(folder):
            name = "kineflow." + ".".join(file.relative_to(ROOT).with_suffix("").parts)
            graph[name] = {m for m in imports(file) if m.startswith("kineflow.")}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"import circle: {' -> '.join((*path, module))}"
        if module in done:
            return
        for target in graph.get(module, ()):
            visit(target, (*path, module))
        done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("file", ["__init__.py", "interface.py", "plain.py", "contracts.py", "config.py", "cli.py"])
def test_root_is_light(file: str) -> None:
    heavy = {m for m in imports(ROOT / "kineflow" / file, top_level_only=True) if m.split(".")[0] not in LIGHT}
    assert heavy == set()


def test_import_loads_no_torch() -> None:
    code = "import sys, kineflow.contracts, kineflow.cli; print(sorted({'torch', 'zarr', 'gymnasium'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_deploy_imports_no_torch() -> None:
    # Files of deploy that may: what exports policies, and what loads those that need torch. What runs on a robot may not.
    others = [f for f in python_files("deploy") if f.parent != ROOT / "deploy" / "export" and f.name != "models.py"]
    assert [f for f in others if any(m.split(".")[0] == "torch" for m in imports(f))] == []


def test_modules_are_short() -> None:
    long = {
        str(f.relative_to(ROOT)): n
        for d in (*FOLDERS, "kineflow")
        for f in python_files(d)
        if (n := f.read_text().count("\n")) > 400
    }
    assert long == {}


def test_functions_are_short() -> None:
    long = [
        f"{file.relative_to(ROOT)}:{node.lineno} {node.name}"
        for folder in (*FOLDERS, "kineflow")
        for file in python_files(folder)
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and (node.end_lineno or 0) - node.lineno > 80
    ]
    assert long == []


def test_main_path_fits_in_one_sitting() -> None:
    section = README.split("## Read the code")[1].split("\n## ")[0]
    files = re.findall(r"^\d+\. `([\w/]+\.py)`", section, flags=re.MULTILINE)
    assert 6 <= len(files) <= 8
    assert sum((ROOT / f).read_text().count("\n") for f in files) <= 1500


README = (ROOT / "README.md").read_text()


def test_paths_in_readme_exist() -> None:
    paths = set(re.findall(rf"`((?:{'|'.join(FOLDERS)}|kineflow|tests)/[\w./-]*)`", README))
    paths |= set(re.findall(r"!\[[^]]*\]\(([^)]+)\)", README))
    assert paths, "README names no paths: did its format change?"
    assert sorted(p for p in paths if not (ROOT / p).exists()) == []


def test_paper_page_names_code_and_tests_that_exist() -> None:
    """Each row of the page names a file, and where it names something in it, that is there; each test file exists."""
    page = (ROOT / "policies" / "from_paper_to_code.md").read_text()
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| ") and "`policies/" in line]
    assert len(rows) >= 35
    for _, method, code, tests, *_ in rows:
        files = re.findall(r"`(policies/[\w/.]+)`(?:: ((?:`\w+`(?:, )?)+))?", code)
        assert files, method
        for file, names in files:
            assert (ROOT / file).exists(), f"{method}: {file}"
            for name in re.findall(r"`(\w+)`", names):
                assert re.search(rf"\b(class|def) {name}\b", (ROOT / file).read_text()), f"{method}: {name} in {file}"
        named = re.findall(r"`((?:\w+/)?[\w.]*)`", tests)
        assert named, method
        assert [t for t in named if not (ROOT / "tests" / "policies" / t).exists()] == [], method


def test_commands_in_readme_exist() -> None:
    from kineflow.cli import _parser

    commands = re.findall(r"^\s*(?:\.venv/bin/)?(kineflow [^\n#|]*)", README, flags=re.MULTILINE)
    assert len(commands) >= 5
    for command in commands:
        words = command.split()[1:]
        try:
            args, rest = _parser().parse_known_args(words)
        except SystemExit as stop:
            raise AssertionError(f"README names `{command}`, which the command line refuses") from stop
        assert not rest or args.takes_overrides, f"README names `{command}`: unknown {rest}"


def test_make_targets_in_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"`?make (\w+)", README))
    assert {"demo", "test"} <= targets
    assert [t for t in targets if not re.search(rf"^{t}:", makefile, flags=re.MULTILINE)] == []


def test_ci_runs_make_test() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_copy_without_links_fails_with_one_sentence(tmp_path: Path) -> None:
    """A .zip archive turns links into small files; importing such a copy must say so."""
    package = tmp_path / "kineflow"
    package.mkdir()
    (package / "__init__.py").write_text((ROOT / "kineflow" / "__init__.py").read_text())
    for folder in FOLDERS:
        (package / folder).write_text(f"../{folder}")
    done = subprocess.run([sys.executable, "-c", "import kineflow"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "lost its symbolic links" in done.stderr
    assert "git clone" in done.stderr
