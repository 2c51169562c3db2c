"""What all tests share."""

import random
import signal

import numpy as np
import pytest
import torch

torch.set_num_threads(1)

# A shell's background job ignores it, and so would the processes that tests start in order to interrupt them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Let every test draw the same numbers, whichever ran before it in this process."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
