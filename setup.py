"""Names the packages whose folders lie at the repository's top level but install inside `marl_tr`."""

from setuptools import find_packages, setup

nested = find_packages(include=["envs*", "agents*", "scenarios*"])
setup(packages=find_packages(include=["marl_tr*"]) + ["marl_tr." + name for name in nested])
