"""What setup.cfg has no words for: the compiled part, left out where it cannot be compiled."""

from setuptools import Extension, setup

setup(ext_modules=[Extension("dstore._native", ["dstore/_native.pyx"], optional=True)])
