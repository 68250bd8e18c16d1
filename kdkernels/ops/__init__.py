"""What torch has to know about the compiled ops beside their kernels. One file per op.

Importing a file registers its op, which the library with the schemas must precede; without that library the
reference runs and there is nothing to register.
"""

from importlib import import_module
from pkgutil import iter_modules

from .. import _loader

if _loader.serves("cpu"):
    for _found in iter_modules(__path__):
        import_module(f"{__name__}.{_found.name}")
