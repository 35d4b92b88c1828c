"""A training step's loss and gradients as one compiled graph.

Pyro's handlers break the graph that ``torch.compile`` looks for, so compiling a program's ``forward`` gains nothing.
But a program of static structure performs the same tensor operations at every step: ``make_fx`` records them, loss and
gradients together, in one run, and the record, some hundreds of operations without a trace of Python, is what is
compiled. Gradients are recorded rather than left to autograd, so that the hooks and detached terms of the gradient
estimators are in the graph.

The loss is any: of one of Pyro's, or of a user's own, ``loss_and_grads`` is run, and what it reads as a number or calls
``backward`` on stays a tensor.

The tensors that a step reads (parameters, buffers, arguments, beta) are inputs of the graph, found by identity, so it
does not matter whether a program reaches a parameter through a module or through ``pyro.param``. A number that a module
holds in Python, or that is an argument, is a constant of the graph, and another value of it needs another graph: what
changes from step to step belongs in a buffer, or in a tensor. A function that a module or a hook holds is such a
constant too. What a module holds in a list, a dictionary, or a tensor that is no buffer is not looked at again.
"""

from pyro_vae.compilation.compiler import AUTO_STEPS, Compile, Compiler
from pyro_vae.compilation.leaves import Leaves
from pyro_vae.compilation.step import Precision, Prepare, reduced

__all__ = ["AUTO_STEPS", "Compile", "Compiler", "Leaves", "Precision", "Prepare", "reduced"]
