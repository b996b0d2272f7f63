"""beartype as jaxtyping's import hook uses it in tests: an int passes for a float, as it does for mypy."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
