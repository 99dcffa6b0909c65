"""DeepSeek-V3, 671B parameters, pretrained as in section 4.2 of arXiv:2412.19437: 14.8T tokens in rows of 4,096.

    deepseek-jax compile --config configs/v3_671b.py --topology v5p:8x8x16
    deepseek-jax compile --config configs/v3_671b.py --topology v5p:8x8x8 --mesh fsdp=32 \\
      --config.train.microbatch_size=512

Compiled on two cores with JAX_OPTIMIZATION_LEVEL=O1; on TPUs tokens are sent to experts by ragged all-to-all.  The
column "step" has the time of 62.9M tokens at the hardware's peak rates, first if computation, memory traffic and
communication overlap entirely, then if nothing overlaps.

    devices      GiB of memory   arguments   temporaries   step              utilisation   compiled in
    1,024 v5p    48.9 of 95      6.9         42.0          47 s to 106 s     75% to 33%    2 min
    512 v5p      70.6 of 95      13.8        56.8          93 s to 198 s     75% to 35%    4 min beside other work
    1,024 H100   68.8 of 74.5    6.9         61.9          188 s to 294 s    9% to 6%      7 min beside other work

H100s (--topology h100:128x8) send over the network between hosts what TPUs send over their torus: this mesh does not
suit them.  For 256 v5p `plan` estimates 81.6 GiB; its estimate for 512 is 17 GiB too low.

The paper's batch grows from 3,072 sequences over the first 469B tokens: --config.train.ramp_start=3072
--config.train.ramp_fraction=0.0614 --config.train.steps=242700.  The released weights, whose context YaRN has extended,
take --config.model.rope_scaling.factor=40.
"""

import dataclasses

from deepseek_jax.config import default_config
from deepseek_jax.models.presets import preset


def get_config():
    config = default_config()
    config.model.update(dataclasses.asdict(preset("v3")))
    config.model.initializer_range = 0.006  # released config.json files say 0.02
    config.model.rope_scaling.factor = 1.0  # YaRN extends the context only after pretraining; section 4.3
    config.data.sequence_length = 4096
    config.train.update(steps=235_000, batch_size=15_360, microbatch_size=1024, dtype="bfloat16", remat="full")
    config.optimizer.update(peak_lr=2.2e-4, moment_dtype="bfloat16")  # parameters and gradients stay float32
    config.optimizer.schedule.update(name="v3", warmup_steps=2000)
    config.router.capacity_factor = 1.5  # buffer size for dispatch; router/dropped counts overflow
    config.mesh.update(fsdp=64, expert=16)  # the axis data takes the remaining devices of a larger pod
    # Half an hour of steps.  A lost host costs at most these steps, and those taken while a checkpoint of 5.5 TB is
    # written, and read again for its checksums, in the background.
    config.checkpoint.every = 20
    config.eval.update(every=1000, batches=4)
    return config
