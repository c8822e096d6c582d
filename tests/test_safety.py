"""What is read from a disk or a network is data: nothing of it is run, unpickled or imported."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "vlrep_jax"
FILES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}
# The unpickler that admits tensors alone; and what a worker is to do, from the process that started
# it: over a socket, or a pool's pipe, that only these two have.
UNPICKLERS = {"weights/pickles.py", "data/worker.py", "data_tools/scan.py"}
PICKLES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
# A recipe that the user names is code and is run; nothing else is.
RUNS_CODE = {"config_files.py"}
CODE = {"eval", "exec", "compile", "exec_module", "run_path", "spec_from_file_location"}


def calls(path):
    """(dotted name of what is called, the call) for each call in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def unpickles(name):
    owner, _, last = name.rpartition(".")
    return owner in PICKLES and last in ("load", "loads", "Unpickler", "open")


def test_nothing_is_unpickled_but_by_those_that_may():
    found = {file for file, path in FILES.items() if any(unpickles(n) for n, _ in calls(path))}
    bases = {
        file
        for file, path in FILES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and any("Unpickler" in ast.unparse(b) for b in node.bases)
    }
    assert found | bases == UNPICKLERS


def test_arrays_are_read_without_pickles():
    seen = 0
    for file, path in FILES.items():
        for name, call in calls(path):
            if name in ("np.load", "numpy.load", "np.lib.format.read_array"):
                seen += 1
                given = {word.arg: ast.unparse(word.value) for word in call.keywords}
                assert given.get("allow_pickle") == "False", f"{file}:{call.lineno}"
            assert name not in ("torch.load", "yaml.load"), f"{file}:{call.lineno}"
    assert seen  # the names are right


def test_only_the_recipe_that_is_named_is_run():
    """In particular no config of a work directory: that is JSON."""
    found = set()
    for file, path in FILES.items():
        for name, _ in calls(path):
            # jitted.lower(...).compile() and re.compile run nothing of a file's.
            if name.rpartition(".")[2] in CODE and not name.endswith(".compile"):
                found.add(file)
    assert found == RUNS_CODE
