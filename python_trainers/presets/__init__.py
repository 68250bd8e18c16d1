"""Published settings of the trainers, one file per method: what ``--preset NAME`` sets."""
