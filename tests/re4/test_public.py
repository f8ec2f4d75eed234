"""`import re4`: its names are the documented ones, and each costs only what it needs."""

import ast
import inspect
import itertools
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import re4
from re4.common import errors

ROOT = Path(__file__).parents[2]


def run_python(code: str, home: Path) -> str:
    environment = {name: text for name, text in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    command = [sys.executable, "-P", "-c", code]
    return subprocess.check_output(command, text=True, env=environment | {"HOME": str(home)}).strip()


def test_the_public_names_are_the_documented_ones() -> None:
    documented = re.findall(r"^::: re4\.(\w+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
    assert sorted(re4.__all__) == re4.__all__ == sorted(documented)


def test_type_checkers_see_the_same_names() -> None:
    stub = ast.parse((ROOT / "re4/__init__.pyi").read_text())
    imported = {
        alias.asname: (statement.module, alias.name)
        for statement in stub.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert imported == {name: (re4._MODULES[name], name) for name in re4.__all__}


@pytest.mark.parametrize("name", [*re4.__all__, "__version__"])
def test_every_name_is_there_and_explains_itself(name: str) -> None:
    assert getattr(re4, name).__doc__
    assert name in dir(re4)


@pytest.mark.parametrize("name", [each for each in re4.__all__ if isinstance(getattr(re4, each), type)])
def test_every_field_of_a_value_is_documented(name: str) -> None:
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(getattr(re4, name)))).body
    assert isinstance(definition, ast.ClassDef)
    for statement, following in itertools.pairwise([*definition.body, None]):
        if isinstance(statement, ast.AnnAssign) and not ast.unparse(statement.target).startswith("_"):
            is_text = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            assert is_text, f"{name}.{ast.unparse(statement.target)} has no text below it"


def test_the_error_tree_is_public() -> None:
    found = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and value.__module__ == errors.__name__
    }
    assert found <= {*re4.__all__}


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'re4' has no attribute 'Retreiver'"):
        re4.Retreiver  # noqa: B018


@pytest.mark.parametrize("package", ["faiss", "onnxruntime"])
def test_a_missing_extra_is_named(package: str, tmp_path: Path) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None; import re4; re4.RetrievalClient\n"
        "try:\n    re4.Retriever\nexcept ImportError as error:\n    print(error)"
    )
    assert run_python(code, tmp_path).startswith(
        f"re4.Retriever needs {package}, which is not installed: pip install 're4-retrieval[serve]'"
    )


def test_a_client_loads_nothing_that_computes(tmp_path: Path) -> None:
    code = (
        "import sys, re4; light = {*sys.modules}; "
        "re4.RetrievalClient, re4.AsyncRetrievalClient, re4.Connection, re4.Candidates, re4.AttributeFilter; "
        "print({'numpy', 'grpc', 'typer'} & light, "
        "{'torch', 'faiss', 'onnxruntime', 'polars'} & {*sys.modules})"
    )
    assert run_python(code, tmp_path) == "set() set()"


def test_a_retriever_loads_nothing_offline(tmp_path: Path) -> None:
    code = "import sys, re4; re4.Retriever; print({'torch', 'polars', 'onnx'} & {*sys.modules})"
    assert run_python(code, tmp_path) == "set()"


def test_no_import_changes_the_environment_or_lets_onnx_runtime_report(tmp_path: Path) -> None:
    code = (
        "import os; before = dict(os.environ); import re4; re4.Retriever; import onnxruntime, sys; "
        "links = [os.readlink(e.path) for e in os.scandir('/proc/self/fd') if os.path.lexists(e.path)]; "
        "print(os.environ == before, [link for link in links if 'onnxruntime.db' in link])"
    )
    assert run_python(code, tmp_path) == "True []"
    assert list(tmp_path.iterdir()) == [], "nothing is written into the home folder"


def test_no_import_changes_a_setting_of_faiss(tmp_path: Path) -> None:
    code = (
        "import faiss; before = faiss.cvar.distance_compute_blas_threshold, faiss.omp_get_max_threads(); "
        "import re4.retriever, re4.exporting.rebuild.job; "
        "print(before == (faiss.cvar.distance_compute_blas_threshold, faiss.omp_get_max_threads()))"
    )
    assert run_python(code, tmp_path) == "True"
