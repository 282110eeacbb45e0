"""Train a video model; tttvideo/training/run.py tells the story.

    python train.py --config configs/demo.yaml --data.root data/flash-order --out runs/demo
    accelerate launch train.py ...                                   # one or several GPUs
    ACCELERATE_USE_CPU=1 torchrun --nproc_per_node 2 train.py ...    # two processes on CPU
    # after an interruption: continues exactly
    python train.py ... --resume auto

`--print_config` shows every setting, `--a.b value` changes one.
"""

import sys

from tttvideo.training.run import main

if __name__ == "__main__":
    sys.exit(main())
