"""MaxText as a contestant, through its own command line; its log says when each step was done.

Every round is a start of its own, so the first steps, in which it compiles, are left out.
"""

import os
import subprocess
import tempfile
import time
from pathlib import Path

from deepseek_jax.models.config import ModelConfig

WARM_UP = 3  # steps


class MaxText:
    """Steps of the same sizes on synthetic tokens; every expert on every token, its fastest dropless way on a CPU."""

    def __init__(self, python: str, config: ModelConfig, batch: int, sequence: int, log: Path):
        self.python, self.config, self.batch, self.sequence, self.log = python, config, batch, sequence, log

    def round(self, steps: int) -> dict[str, list[float]]:
        """Wall and CPU seconds between the log lines of successive steps."""
        with tempfile.TemporaryDirectory() as directory, open(self.log, "w") as log:
            command = [
                self.python,
                "-m",
                "maxtext.trainers.pre_train.train",
                *self._settings(directory, steps + WARM_UP),
            ]
            # --verbosity=0: without it MaxText's log leaves the steps out.
            environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1", "DECOUPLE_GCLOUD": "FALSE"}
            process = subprocess.Popen(
                [*command, "--verbosity=0"],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=environment,
                cwd=directory,
            )
            done = []
            for line in process.stdout:
                log.write(line)
                if "completed step:" in line:
                    done.append((time.perf_counter(), _cpu_seconds(process.pid)))
            process.wait()
        if len(done) != steps + WARM_UP:
            raise RuntimeError(f"MaxText ended after {len(done)} steps; see {self.log}")
        done = done[WARM_UP - 1 :]
        walls, cpus = ([after[i] - before[i] for before, after in zip(done, done[1:], strict=False)] for i in (0, 1))
        return {"seconds": walls, "cpu_seconds": cpus}

    def _settings(self, directory, steps):
        config, scaling = self.config, self.config.rope_scaling
        settings = {
            "model_name": "deepseek3-tiny",
            "decoder_block": "deepseek",
            "override_model_config": True,
            "hardware": "cpu",
            "skip_jax_distributed_system": True,
            "dataset_type": "synthetic",
            "enable_checkpointing": False,
            "enable_tensorboard": False,
            "log_config": False,
            "run_name": "contest",
            "base_output_directory": directory,
            "steps": steps,
            "per_device_batch_size": self.batch,
            "max_target_length": self.sequence,
            "dtype": "float32",
            "weight_dtype": "float32",
            "attention": "dot_product",
            "attention_type": "mla",
            "sparse_matmul": False,
            "megablox": False,
            "capacity_factor": -1.0,
            "learning_rate": 3e-4,
            "vocab_size": config.vocab_size,
            "base_emb_dim": config.hidden_size,
            "base_num_decoder_layers": config.num_hidden_layers,
            "first_num_dense_layers": config.first_k_dense_replace,
            "base_num_query_heads": config.num_attention_heads,
            "base_num_kv_heads": config.num_attention_heads,
            "base_mlp_dim": config.intermediate_size,
            "base_moe_mlp_dim": config.moe_intermediate_size,
            "normalization_layer_epsilon": config.rms_norm_eps,
            "num_experts": config.n_routed_experts,
            "num_experts_per_tok": config.num_experts_per_tok,
            "shared_experts": config.n_shared_experts,
            "routed_scaling_factor": config.routed_scaling_factor,
            "routed_score_func": "sigmoid",
            "routed_bias": True,
            "routed_bias_update_rate": 0.001,
            "q_lora_rank": config.q_lora_rank,
            "kv_lora_rank": config.kv_lora_rank,
            "qk_nope_head_dim": config.qk_nope_head_dim,
            "qk_rope_head_dim": config.qk_rope_head_dim,
            "v_head_dim": config.v_head_dim,
            "mtp_num_layers": 0,
            "rope_type": "yarn",
            "rope_factor": scaling.factor,
            "mscale": scaling.mscale,
            "rope_max_timescale": int(config.rope_theta),
            "original_max_position_embeddings": scaling.original_max_position_embeddings,
            "max_position_embeddings": config.max_position_embeddings,
            "rope_interleave": config.rope_interleave,
        }
        return [
            f"{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in settings.items()
        ]


def _cpu_seconds(pid: int) -> float:
    """User and system time of a process with all its threads (proc(5), fields 14 and 15 of stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
