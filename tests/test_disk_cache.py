"""Compiled programs and a step's memory are kept in scripts as on the command line."""

import pytest

SCRIPT = """
import os, sys
from pathlib import Path

os.environ.pop("JAX_COMPILATION_CACHE_DIR")
os.environ.pop("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", None)
os.environ["HOME"] = os.getcwd()
import jax
from deepseek_jax import disk_cache, host_memory

jax.jit(lambda x: x + 1)(1.0)  # not kept: compiled before
{before}
{call}
jax.jit(lambda x: x + 2)(1.0)
print(jax.config.jax_compilation_cache_dir)
print(sum("_lambda" in path.name for path in Path(jax.config.jax_compilation_cache_dir).glob("*-cache")))
"""
TRAIN = """
from rich.console import Console
from deepseek_jax.train.setup import prepare
from tests.train import tiny
assert not host_memory.keep.cache_info().currsize
prepare(tiny.experiment(Path("data").absolute()), Console(quiet=True))
assert host_memory.keep.cache_info().currsize
"""
MINE = """
jax.config.update("jax_compilation_cache_dir", os.path.abspath("mine"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
"""


@pytest.mark.parametrize(
    "before, call, directory",
    [
        ("", "disk_cache.keep_programs()", ".cache/deepseek_jax/xla"),
        ("os.mkdir('data')", TRAIN, ".cache/deepseek_jax/xla"),
        (MINE, "disk_cache.keep_programs()", "mine"),
    ],
)
def test_programs_are_kept_on_disk_unless_the_user_has_named_a_directory(run_python, before, call, directory):
    result = run_python("-c", SCRIPT.format(before=before, call=call))
    assert result.returncode == 0, result.stderr
    place, count = result.stdout.split()
    assert place.endswith(f"/{directory}") and int(count) == 1


def test_before_jax_is_imported_the_environment_is_set(run_python):
    code = "import os, sys\nfrom deepseek_jax import disk_cache\nos.environ.pop('JAX_COMPILATION_CACHE_DIR')\n"
    code += "disk_cache.keep_programs()\nassert 'jax' not in sys.modules\nimport jax\n"
    result = run_python("-c", code + "print(jax.config.jax_compilation_cache_dir)")
    assert result.stdout.strip().endswith("/.cache/deepseek_jax/xla"), result.stderr


EARLY = """
from pathlib import Path
from jax._src import xla_bridge
from rich.console import Console
from deepseek_jax import host_memory
from deepseek_jax.train.loop import train
from tests.train import tiny

started = []
host_memory.keep = lambda: started.append(xla_bridge.backends_are_initialized())
train(tiny.experiment(Path.cwd(), steps=6), "run", Console(quiet=True), until=1)
print(started[0])
"""


def test_training_keeps_memory_before_jax_starts_its_threads(run_python):
    """Later it has no effect: each thread has an arena of its own by then, which gives memory back after each step."""
    result = run_python("-c", EARLY)
    assert result.stdout.strip() == "False", result.stderr
