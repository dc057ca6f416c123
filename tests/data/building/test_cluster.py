"""Slurm: datatrove's real executor, with stand-ins for `sbatch` and `srun` that run the jobs here, in their order.

Ray: the real one, where it is installed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from mplus_cli.data.building import read_manifest
from mplus_cli.data.building.documents import Running, Selection, build_documents
from mplus_cli.data.building.rows import Fields
from mplus_cli.errors import MissingExtraError, UsageError
from tests.data.building.conftest import same_build

SBATCH = """#!/bin/bash
# The last argument is the launch script: run it once for each member of its array.
for script; do :; done
echo "$@" >> "{log}"
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
for ((i = 0; i <= ${{last:-0}}; i++)); do
  export SLURM_ARRAY_TASK_ID=$i SLURM_ARRAY_JOB_ID=7 SLURM_JOB_ID=7 SLURM_NODELIST=localhost
  RUN_OFFSET=0 bash "$script" >> "{log}" 2>&1
done
echo "Submitted batch job $(wc -l < "{log}")"
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch) -> Path:
    folder, log = tmp_path / "bin", tmp_path / "log"
    folder.mkdir()
    scripts = {
        "sbatch": SBATCH.format(log=log),
        "srun": '#!/bin/bash\nwhile [[ "$1" != launch_* ]]; do shift; done\nexec "$@"\n',
        "scontrol": "#!/bin/bash\necho localhost\n",
    }
    for name, text in scripts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    here = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{folder}:{here}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    monkeypatch.chdir(tmp_path)
    return log


@pytest.mark.skipif(sys.platform == "win32", reason="stand-ins are shell scripts")
def test_a_build_on_slurm_is_the_local_build(tmp_path, cluster, corpus, tokenizer_file):
    wanted = Selection("slimpajama", str(corpus), tokenizer=str(tokenizer_file), edges=(256, 1024), quota=20)
    options = {"time": "01:00:00", "partition": "cpu"}
    jobs = build_documents(tmp_path / "b", wanted, Running(executor="slurm", tasks=2, options=options))
    assert len(jobs) == 5, cluster.read_text()[-3000:]
    assert (tmp_path / "b/manifest.json").is_file(), cluster.read_text()[-3000:]
    build_documents(tmp_path / "local", wanted, Running(processes=1))
    assert read_manifest(tmp_path / "b").shards == read_manifest(tmp_path / "local").shards
    assert not same_build(tmp_path / "b", tmp_path / "local"), "the records of the jobs stay on a cluster"


def test_slurm_without_slurm_or_its_options(tmp_path, corpus, tokenizer_file, cluster, monkeypatch):
    wanted = Selection("slimpajama", str(corpus), tokenizer=str(tokenizer_file), edges=(256, 1024))
    with pytest.raises(UsageError, match="does not take these options") as error:
        build_documents(tmp_path / "b", wanted, Running(executor="slurm"))
    assert "partition" in error.value.hint
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="sbatch is not on this machine"):
        build_documents(tmp_path / "c", wanted, Running(executor="slurm"))


def test_ray_without_ray(tmp_path, corpus, tokenizer_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    wanted = Selection("slimpajama", str(corpus), tokenizer=str(tokenizer_file), edges=(256, 1024))
    with pytest.raises(MissingExtraError, match="needs ray") as error:
        build_documents(tmp_path / "b", wanted, Running(executor="ray"))
    assert error.value.hint == "pip install ray"


def test_a_build_on_ray_is_the_local_build(tmp_path, corpus, tokenizer_file, monkeypatch):
    pytest.importorskip("ray", reason="ray is not installed: pip install ray")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[3]), *sys.path]))
    wanted = Selection("slimpajama", str(corpus), tokenizer=str(tokenizer_file), edges=(256, 1024), quota=20)
    build_documents(tmp_path / "b", wanted, Running(executor="ray", tasks=2, options={"mem_per_cpu_gb": "1"}))
    build_documents(tmp_path / "local", wanted, Running(processes=1, tasks=2))
    assert same_build(tmp_path / "b", tmp_path / "local")
    broken = Selection("slimpajama", str(corpus), tokenizer=str(tokenizer_file), edges=(256, 1024), fields=Fields("x"))
    with pytest.raises(UsageError, match="no field 'x'; its fields are text, meta"):
        build_documents(tmp_path / "c", broken, Running(executor="ray", tasks=2))
