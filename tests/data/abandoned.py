"""A reader of batches whose parent process, the run, is killed."""

import multiprocessing
import os
import signal
import time

from deepseek_jax.data import batches


def read():
    batches._outlast_signals(0, 1)
    time.sleep(0.1)
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)


if __name__ == "__main__":
    reader = multiprocessing.get_context("spawn").Process(target=read)
    reader.start()
    reader.join()
