"""How much the training loss in simulated FP8 differs from that in float32, for the same run of V3-tiny.

    python -m experiments.fp8_loss runs/v3_tiny runs/v3_fp8

Both are runs of configs/v3_tiny.py, the second with --config.arithmetic.kind=fp8; either may have been stopped early.
DeepSeek-V3's report (section 3.3, appendix B.1) states less than 0.25% between averaged losses.
"""

import argparse
from pathlib import Path

import numpy as np

from deepseek_jax.train.sinks import FILE, read_rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plain", type=Path)
    parser.add_argument("fp8", type=Path)
    args = parser.parse_args()
    plain, fp8 = (losses(each) for each in (args.plain, args.fp8))
    steps = sorted(plain.keys() & fp8.keys())
    error = np.array([fp8[step] / plain[step] - 1 for step in steps])
    for step, each in zip(steps, error):
        print(f"step {step}: {plain[step]:.4f} and {fp8[step]:.4f}, {each:+.3%}")
    late = error[len(error) // 2 :]
    print(f"mean of {len(late)} rows from step {steps[len(error) // 2]} on: {late.mean():+.3%}; |error| at most "
          f"{np.abs(late).max():.3%}")  # fmt: skip


def losses(workdir: Path) -> dict[int, float]:
    return {row["step"]: row["loss/next"] for row in read_rows(workdir / FILE) if "loss/next" in row}


if __name__ == "__main__":
    main()
