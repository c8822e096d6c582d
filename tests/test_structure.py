"""Policies of the code base: who may import whom, what importing costs, how long a file may be."""

import ast
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "vlrep_jax"
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

# Top to bottom: a unit imports only from lines below its own. Packages are one unit, but `losses`,
# `models` and `data` are held to more below.
LAYERS = (
    ("cli",),
    ("commands",),
    ("classify", "embed", "serve", "suite", "vqa"),
    ("run", "plan", "data_tools", "guidance", "config_files", "search"),
    ("session",),
    ("finished", "hosts", "rollbacks", "skipping"),
    ("initial",),
    ("experiment", "weights"),
    ("config_keys", "evaluation", "workdirs", "report", "training_data"),
    ("train", "encoder", "checkpoint", "export", "goodput", "metrics", "pace", "probe", "recipes"),
    ("adversarial",),
    ("objectives", "evals", "optim", "data", "fingerprint", "events", "timing"),
    ("parallel",),
    ("losses", "models", "rules", "spikes", "augment"),
    ("cluster", "stopping", "watchdog"),
    (
        "addresses",
        "answers",
        "appending",
        "collectives",
        "build",
        "exits",
        "exported",
        "scores",
        "processes",
        "retention",
        "terminal",
        "whole",
    ),
)
LEVEL = {unit: level for level, units in enumerate(LAYERS) for unit in units}
SEE_CONFIGS = {"initial", "recipes", "experiment", "run", "plan", "evaluation", "workdirs", "cli"}
SEE_CONFIGS |= {"config_files", "config_keys", "data_tools", "finished", "hosts", "training_data"}
BARE_DATA = ("jax", "jaxlib", "flax", "optax", "orbax", "ml_collections", "tensorflow", "torch")
LIMIT = 400


def unit_of(module):
    """The second part of vlrep_jax.x.y; '' for the package itself."""
    return [*module.split("."), ""][1]


def imports(path):
    """Dotted names that a file imports, anywhere in it; `from a import b` counts as a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def own_imports(module):
    """Modules of this package that a module imports."""
    return {name for name in imports(FILES[module]) if name in FILES} - {"vlrep_jax"}


def test_every_unit_has_its_layer():
    assert {unit_of(module) for module in FILES} - {""} == LEVEL.keys()


@pytest.mark.parametrize("module", FILES)
def test_imports_go_down(module):
    unit = unit_of(module)
    for name in own_imports(module):
        below = unit_of(name)
        if below != unit:
            assert LEVEL[below] > LEVEL.get(unit, -1), f"{module} imports {name}"


def test_losses_know_only_collectives_and_models_only_how_to_build():
    allowed = {"losses": {"losses", "collectives"}, "models": {"models", "build"}}
    for module in FILES:
        if unit_of(module) in allowed:
            own = {unit_of(name) for name in own_imports(module)}
            assert own <= allowed[unit_of(module)], module


def test_only_losses_and_the_step_ask_for_an_axis():
    """`collectives` is the one file with lax collectives; losses and `train` call it."""
    words = ("all_gather", "psum", "pmean", "pmax", "psum_scatter", "ppermute", "all_to_all")
    words += ("axis_index", "axis_size", "pcast")
    for module, path in FILES.items():
        if module != "vlrep_jax.collectives":
            assert not any(f"lax.{word}(" in path.read_text() for word in words), module


def test_data_needs_neither_jax_nor_configs_nor_tensorflow():
    for module, path in FILES.items():
        if unit_of(module) == "data":
            assert not {name.split(".")[0] for name in imports(path)} & set(BARE_DATA), module
            own = {unit_of(name) for name in own_imports(module)}
            assert own <= {"data", "build", "answers"}, module


def test_only_the_upper_layers_see_configs():
    seen = {unit_of(m) for m, path in FILES.items() if "ml_collections" in imports(path)}
    assert seen <= SEE_CONFIGS


def test_linen_lives_in_models_alone():
    users = {unit_of(m) for m, path in FILES.items() if any("flax" in n for n in imports(path))}
    assert users == {"models"}


def test_no_mesh_and_no_axis_inside_models():
    for module, path in FILES.items():
        if unit_of(module) == "models":
            names = {node.id for node in ast.walk(ast.parse(path.read_text())) if is_name(node)}
            assert not names & {"Mesh", "PartitionSpec", "NamedSharding", "axis_name"}, module
            assert "jax.sharding" not in imports(path), module


def is_name(node):
    return isinstance(node, ast.Name)


def loaded(statement):
    """Top-level names of the modules that a statement loads in a new interpreter."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not out.stderr
    (line,) = out.stdout.splitlines()  # nothing else is printed
    return {name.split(".")[0] for name in json.loads(line)}, set(json.loads(line))


def test_importing_the_package_loads_nothing_else():
    top, names = loaded("import vlrep_jax; vlrep_jax.__version__; dir(vlrep_jax)")
    heavy = {"jax", "numpy", "flax", "grain", "tensorflow_datasets", "PIL", "orbax", "absl"}
    assert not top & heavy
    assert {name for name in names if name.startswith("vlrep_jax")} == {"vlrep_jax"}


def test_the_building_blocks_load_without_data_checkpoints_or_configs():
    top, _ = loaded("from vlrep_jax import losses, models, objectives, optim, parallel, train")
    assert not top & {"grain", "tensorflow_datasets", "orbax", "ml_collections", "PIL"}


def test_help_needs_no_jax():
    top, _ = loaded("from vlrep_jax import cli")
    assert not top & {"jax", "numpy", "flax", "ml_collections", "absl"}


def test_importing_touches_no_device():
    """A program may still choose its devices, and call jax.distributed.initialize."""
    code = (
        "import vlrep_jax.run, vlrep_jax.cli; from jax._src import xla_bridge; "
        "assert not xla_bridge.backends_are_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_no_file_is_long():
    own = [p for folder in ("vlrep_jax", "configs", "tests") for p in (ROOT / folder).rglob("*.py")]
    for path in [*own, ROOT / "setup.py"]:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= LIMIT, f"{path.relative_to(ROOT)} has {lines} lines"


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda p: p.name)
def test_benchmarks_import_what_is_there(path):
    """Few of them run here, so a name that has moved would show only to users."""
    for name in imports(path):
        if name.startswith("vlrep_jax"):
            pkgutil.resolve_name(name)
