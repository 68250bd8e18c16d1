"""What torch has to know about the compiled ops beside their kernels. One file per op.

Importing a file registers its op, which the library with the schemas must precede; without that library the
reference runs and there is nothing to register.
"""

from .. import _loader

if _loader.serves("cpu"):
    from . import dkpp_loss as dkpp_loss
    from . import dynamic_temperature_kl as dynamic_temperature_kl
    from . import label_loss as label_loss
    from . import memory_bank as memory_bank
    from . import peer_ensemble as peer_ensemble
    from . import peer_mixture as peer_mixture
    from . import row_statistics as row_statistics
    from . import similarity as similarity
    from . import softened_kl as softened_kl
