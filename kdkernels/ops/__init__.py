"""What torch has to know about the compiled ops beside their kernels. One file per family.

Importing a family's file registers it, which the library with the schemas must precede; without that library
the reference runs and there is nothing to register.
"""

from .. import _loader

if _loader.serves("cpu"):
    from . import softened_kl as softened_kl
