"""torch's optimizers without the import of torch._dynamo, which takes more than a second at the start of a run.

torch wraps these methods for torch.compile, which is not used here, and the wrappers import torch._dynamo at the first
call. Below they are the same methods without the wrappers. (Should a version of torch wrap others, or none, all works
as well, and at worst starts as late as before.)
"""

import inspect

import torch
from torch.optim import Optimizer


class Eager(Optimizer):
    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    zero_grad = inspect.unwrap(Optimizer.zero_grad)
    state_dict = inspect.unwrap(Optimizer.state_dict)
    load_state_dict = inspect.unwrap(Optimizer.load_state_dict)


class AdamW(Eager, torch.optim.AdamW):
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))
