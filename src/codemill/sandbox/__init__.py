"""Where code runs that nobody trusts: its own process tree, folder and limits, and no network.

Built from what an ordinary Linux user has: namespaces, Landlock, seccomp, resource limits and a supervisor outside.
Each axis of isolation is attacked live before anything is run, and what is in force is written into every outcome.
"""

from codemill.sandbox.changes import Change
from codemill.sandbox.folder import Entry, OverLimitError
from codemill.sandbox.job import Job, Outcome
from codemill.sandbox.plan import Layers, python_argv
from codemill.sandbox.policy import Axis, Policy
from codemill.sandbox.sandbox import Sandbox
from codemill.sandbox.warm import Call, Warm
from codemill.sandbox.workspace import AsyncWorkspace, Workspace

__all__ = [
    "AsyncWorkspace",
    "Axis",
    "Call",
    "Change",
    "Entry",
    "Job",
    "Layers",
    "Outcome",
    "OverLimitError",
    "Policy",
    "Sandbox",
    "Warm",
    "Workspace",
    "python_argv",
]
