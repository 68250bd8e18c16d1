"""Every public function in plain PyTorch, under the same name and signature.

The readable definition of each loss, the oracle of the tests, what runs where no compiled library serves the
device, and the path of second and higher derivatives. Arguments are taken as already checked.

A file of this package exports its `__all__` from here.
"""

from importlib import import_module
from pkgutil import iter_modules

__all__ = []
# Import all files first: a function then replaces the file of the same name as an attribute of the package.
for _file in [import_module(f"{__name__}.{_found.name}") for _found in iter_modules(__path__)]:
    for _name in getattr(_file, "__all__", ()):
        globals()[_name] = getattr(_file, _name)
        __all__.append(_name)
__all__.sort()
