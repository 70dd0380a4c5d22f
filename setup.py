"""Finds the packages; everything else is declared in pyproject.toml.

Three packages of ``gptoss`` lie beside that folder, not inside it. The symbolic links in it serve
tools that read the source tree. They are not used here: a source archive has none, nor does a
checkout on Windows.
"""

from setuptools import find_packages, setup

ROOMS = ("converter", "quant", "runtime")
INSIDE_LINKS = [pattern for room in ROOMS for pattern in (room, f"{room}.*")]

packages = ["gptoss"]
packages += [f"gptoss.{name}" for name in find_packages("gptoss", exclude=INSIDE_LINKS)]
for room in ROOMS:
    packages.append(f"gptoss.{room}")
    packages += [f"gptoss.{room}.{name}" for name in find_packages(room)]

setup(packages=packages, package_dir={f"gptoss.{room}": room for room in ROOMS})
