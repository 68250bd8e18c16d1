"""What torch has to know about the compiled ops beside their kernels, and one function per op that calls it.

Importing a file registers its ops, which the library with the schemas must precede; without that library the
reference runs and there is nothing to register. A file of this package exports its `__all__` from here.
"""

from importlib import import_module
from pkgutil import iter_modules

from .. import _loader

if _loader.serves("cpu"):
    # Import all files first: a function then replaces the file of the same name as an attribute of the package.
    for _file in [import_module(f"{__name__}.{_found.name}") for _found in iter_modules(__path__)]:
        for _name in getattr(_file, "__all__", ()):
            globals()[_name] = getattr(_file, _name)
