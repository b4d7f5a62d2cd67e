"""Methods by name. Each method file registers one config class; everybody else finds it here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Generic, TypeVar

from bitsplit.document import nearest
from bitsplit.methods.base import ActivationMethod, Config, Method

C = TypeVar("C", bound=Config)


class Registry(Generic[C]):
    """Config classes of one kind by their names."""

    def __init__(self, kind: str, base: type[C]) -> None:
        self.kind = kind
        self.base = base
        self._classes: dict[str, type[C]] = {}

    def register(self, config_class: type[C]) -> type[C]:
        """Class decorator: make a config known under its name; a second owner is refused."""
        known = self._classes.setdefault(config_class.name, config_class)
        if known is not config_class:
            raise ValueError(
                f"{self.kind} {config_class.name!r} is already registered by {known.__qualname__}"
            )
        return config_class

    def names(self) -> list[str]:
        """All registered names, sorted."""
        return sorted(self._classes)

    def get(self, name: str) -> type[C]:
        """The config class called ``name``; an unknown name is an error that lists the nearest ones."""
        if name not in self._classes:
            raise ValueError(f"unknown {self.kind} {name!r}; {nearest(name, self.names())}")
        return self._classes[name]

    def make(self, item: Any) -> C:
        """A config from itself, its name, or a mapping ``{"name": ..., option: value}``."""
        if isinstance(item, self.base):
            return item
        if isinstance(item, str):
            return self.get(item)()
        if isinstance(item, Mapping) and isinstance(item.get("name"), str):
            options = {key: value for key, value in item.items() if key != "name"}
            return self.get(item["name"])(**options)
        raise ValueError(f"a {self.kind} is a name, a config or a mapping with a 'name', got {item!r}")


_METHODS: Registry[Method] = Registry("method", Method)
_ACTIVATIONS: Registry[ActivationMethod] = Registry("activation method", ActivationMethod)

register = _METHODS.register
make = _METHODS.make
get = _METHODS.get
names = _METHODS.names
register_activation = _ACTIVATIONS.register
activation_names = _ACTIVATIONS.names
activation_method = _ACTIVATIONS.make


def resolve(method: Any) -> list[Method]:
    """A chain of configs from a name, a config, a mapping or a list of them."""
    if isinstance(method, (str, Mapping, Config)):
        method = [method]
    if not isinstance(method, Iterable):
        raise ValueError(f"a method is a name, a config or a list of them, got {type(method).__name__}")
    chain = [_METHODS.make(item) for item in method]
    if not chain:
        raise ValueError("the method chain is empty")
    return chain
