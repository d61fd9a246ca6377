"""What checks calls against signatures in tests."""

from beartype import BeartypeConf, beartype

# An int is a float where a float is asked for, as PEP 484 has it.
typechecked = beartype(conf=BeartypeConf(is_pep484_tower=True))
