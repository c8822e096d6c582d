"""What a compiled train step needs and costs, found without the devices it is compiled for."""

from vlrep_jax.plan.command import run
from vlrep_jax.plan.estimate import Plan, plan
from vlrep_jax.plan.topology import Topology, find

__all__ = ["Plan", "Topology", "find", "plan", "run"]
