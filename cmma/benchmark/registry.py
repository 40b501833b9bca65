"""Names of tasks and methods. Nothing heavy is imported until one is used.

A new task is one file and one line in `TASKS`. A new method is a small class:

    @register("dictionary", "mine")
    class Mine:
        def fit(self, reader, budget, seed): ...

in a file of `cmma/benchmark/methods/`, or in any importable module that `benchmark.plugins` names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from cmma.errors import ConfigError

if TYPE_CHECKING:
    from cmma.benchmark.config import BenchmarkConfig
    from cmma.benchmark.task import Task
    from cmma.models.spec import ModelSpec

TASKS = {
    "planted": "cmma.benchmark.tasks.planted:PlantedTask",
    "convergence": "cmma.benchmark.tasks.convergence:ConvergenceTask",
    "circuit": "cmma.benchmark.tasks.circuit:CircuitTask",
    "attribution": "cmma.benchmark.tasks.attribution:AttributionTask",
    "concepts": "cmma.benchmark.tasks.concepts:ConceptsTask",
    "bias": "cmma.benchmark.tasks.bias:BiasTask",
}
PROTOCOLS = {
    "dictionary": ("cmma.benchmark.methods.autoencoders", "cmma.benchmark.methods.linear"),
    "graph": ("cmma.benchmark.methods.graphs",),
    "attribution": ("cmma.benchmark.methods.attributions",),
    "localisation": ("cmma.benchmark.methods.localisations",),
}
"""Protocol of a method (`cmma.benchmark.protocols`) → the modules with those that ship."""

_methods: dict[tuple[str, str], Callable[[], Any]] = {}
Factory = TypeVar("Factory", bound=Callable[[], Any])


def register(protocol: str, name: str) -> Callable[[Factory], Factory]:
    """Decorator of a class, or of anything that makes a method: make it known under a name."""

    def keep(method: Factory) -> Factory:
        _methods[protocol, name] = method
        return method

    return keep


def find_methods(protocol: str, names: Sequence[str], plugins: Sequence[str] = ()) -> dict[str, Any]:
    """Instances of the named methods, in the given order.

    Raises:
        ConfigError: no such method or plugin; the message names those that there are.
    """
    for module in PROTOCOLS[protocol]:
        import_module(module)
    for plugin in plugins:
        try:
            import_module(plugin)
        except ModuleNotFoundError as error:
            raise ConfigError(f"benchmark.plugins: {error}; give modules that python can import") from error
    known = [name for kind, name in _methods if kind == protocol]
    for name in names:
        if name not in known:
            raise ConfigError(f"method={name} is not one of {', '.join(known)}")
    return {name: _methods[protocol, name]() for name in dict.fromkeys(names)}


def make_task(config: BenchmarkConfig, model: ModelSpec) -> Task:
    """The configured task; the model is loaded only by those that look into one."""
    module, attribute = TASKS[config.task].split(":")
    task: Task = getattr(import_module(module), attribute)(config, model)
    return task
