"""Stands in for the module of setuptools, which Debian's chameleon imports.

chameleon needs it for templates inside packages and for the name of a cache on disk; this function
has neither. The real one takes longer to import than all of chameleon.
"""


def find_distributions(_path):
    return ()
